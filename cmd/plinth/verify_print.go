package main

import (
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/evidence/verify"
)

// verdictsSchema is the number of the JSON form.
const verdictsSchema = 1

// verdictsJSON is what "verify --report --json" prints.
type verdictsJSON struct {
	Schema int    `json:"schema"`
	File   string `json:"file"`
	*verify.Result
}

// printVerdicts prints each check with what was found and, where that differs,
// what was wanted.
func (c *common) printVerdicts(name string, r *verify.Result) error {
	if c.json {
		return printJSON(c.env.stdout, verdictsJSON{verdictsSchema, name, r})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", name, r.Evidence)
	width := 0
	for _, x := range r.Checks {
		width = max(width, len(x.Name))
	}
	indent := strings.Repeat(" ", len(verify.NotChecked)+2+width+2)
	for _, x := range r.Checks {
		fmt.Fprintf(&b, "%-*s  %-*s  ", len(verify.NotChecked), x.Verdict, width, x.Name)
		var lines []string
		if x.Got != "" {
			lines = append(lines, x.Got)
		}
		if x.Want != "" && x.Want != x.Got {
			lines = append(lines, "want "+strings.ReplaceAll(x.Want, " or ", "\n"+indent+"  or "))
		}
		if x.Reason != "" {
			lines = append(lines, x.Reason)
		}
		b.WriteString(strings.Join(lines, "\n"+indent) + "\n")
	}
	if r.OK {
		fmt.Fprintf(&b, "%s: ok\n", name)
	}
	_, err := fmt.Fprint(c.env.stdout, b.String())
	return err
}
