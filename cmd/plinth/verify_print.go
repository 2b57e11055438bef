package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/measure"
)

// verdictsSchema is the number of the JSON form.
const verdictsSchema = 1

// verdictsJSON is what "verify --report --json" prints, and of --evidence.
type verdictsJSON struct {
	Schema int    `json:"schema"`
	File   string `json:"file"`
	*verify.Result
	Registers *measure.CheckResult `json:"registers,omitempty"`
}

// printVerdicts prints each check with what was found and, where that differs,
// what was wanted.
func (c *common) printVerdicts(name string, r *verify.Result) error {
	return c.printShown(name, r, nil)
}

// printShown prints the registers behind the checks.
func (c *common) printShown(name string, r *verify.Result, registers *registerReport) error {
	if c.json {
		doc := verdictsJSON{Schema: verdictsSchema, File: name, Result: r}
		if registers != nil {
			doc.Registers = registers.CheckResult
		}
		return printJSON(c.env.stdout, doc)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", name, r.Evidence)
	width := 0
	for _, x := range r.Checks {
		width = max(width, len(x.Name))
	}
	for _, x := range r.Checks {
		var lines []string
		if x.Got != "" {
			lines = append(lines, x.Got)
		}
		if x.Want != "" && x.Want != x.Got {
			lines = append(lines, "want "+strings.ReplaceAll(x.Want, " or ", "\n  or "))
		}
		if x.Reason != "" {
			lines = append(lines, x.Reason)
		}
		printRow(&b, len(verify.NotChecked), string(x.Verdict), width, x.Name, lines)
	}
	if registers != nil {
		printRegisters(&b, registers.CheckResult)
	}
	if r.OK {
		fmt.Fprintf(&b, "%s: ok\n", name)
	}
	_, err := fmt.Fprint(c.env.stdout, b.String())
	return err
}

// printRow prints a verdict, a name and lines beside them.
func printRow(w io.Writer, verdictWidth int, verdict string, nameWidth int, name string, lines []string) {
	indent := "\n" + strings.Repeat(" ", verdictWidth+2+nameWidth+2)
	text := strings.ReplaceAll(visible(strings.Join(lines, "\n")), "\n", indent)
	row := fmt.Sprintf("%-*s  %-*s  %s", verdictWidth, verdict, nameWidth, name, text)
	fmt.Fprintln(w, strings.TrimRight(row, " "))
}

// visible leaves out what a terminal would obey: names in certificates are the host's.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// printRegisters prints a row a register and, under one that differs, by which event.
func printRegisters(w io.Writer, r *measure.CheckResult) {
	for _, x := range r.Registers {
		var lines []string
		if x.Phase != "" {
			lines = append(lines, "after "+x.Phase)
		}
		if x.Reason != "" {
			lines = append(lines, x.Reason)
		}
		if differs(x) {
			for _, d := range x.Differences {
				lines = append(lines, fmt.Sprintf("%s: got %s, want %s", d, orNone(d.Got), orNone(d.Want)))
			}
			lines = append(lines, "got  "+x.Got)
			if len(x.Want) > 0 {
				lines = append(lines, "want "+strings.Join(x.Want, "\n  or "))
			}
		}
		printRow(w, len(measure.NotPredicted), string(x.Verdict), len("pcr00"), x.Register, lines)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}
