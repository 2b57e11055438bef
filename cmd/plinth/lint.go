package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/profiles"
)

const lintLong = `Looks for what would make an attestation of the image worth less than it seems.
DIR is what plinth build wrote; a file that a rule reads is first compared with
manifest.json, and one that differs is an error.
A PROFILE can be looked at before there is an image; rules that need one are
listed as not checked, and so is a rule that could not tell.

Exit code 7 with an error; with --strict also with a warning, or when a rule
could not be checked; 0 otherwise.

`

func newLint(c *common) *cobra.Command {
	var strict bool
	var allow []string
	cmd := &cobra.Command{
		Use:   "lint DIR|PROFILE",
		Short: "Report what weakens the attestation of an image or profile",
		Long:  lintLong + lintRules(),
		Example: `  plinth lint out/snp
  plinth lint out/vtpm-debug --allow console,debug,shell
  plinth lint snp --set machine.path=disk`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			rep, err := c.lint(a[0], allow)
			if err != nil {
				return err
			}
			if err := c.printLint(a[0], rep); err != nil {
				return err
			}
			return lintVerdict(a[0], rep, strict)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&strict, "strict", false, "let warnings, and rules that could not be checked, count as errors")
	f.StringSliceVar(&allow, "allow", nil, "rules to leave out; repeatable")
	f.StringArrayVar(&c.set, "set", nil, "override one value of a profile, key=value; repeatable")
	return cmd
}

// lintVerdict is the exit code.
func lintVerdict(name string, rep *builder.LintReport, strict bool) error {
	errs, warnings, unchecked := rep.Count(builder.LintError), rep.Count(builder.LintWarning), len(rep.NotChecked)
	switch {
	case errs > 0:
		return mismatchError{fmt.Errorf("%s: %d errors", name, errs)}
	case strict && warnings+unchecked > 0:
		return mismatchError{fmt.Errorf("%s: %d warnings and %d rules not checked, which --strict counts", name, warnings, unchecked)}
	}
	return nil
}

// lintRules is the list of rules for the help text.
func lintRules() string {
	var b strings.Builder
	b.WriteString("Rules:\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range builder.LintRules() {
		fmt.Fprintf(t, "  %s\t%s\n", r[0], r[1])
	}
	t.Flush()
	return b.String()
}

// lint takes a directory for an image and anything else for a profile.
func (c *common) lint(arg string, allow []string) (*builder.LintReport, error) {
	if err := knownRules(allow); err != nil {
		return nil, err
	}
	fi, err := os.Stat(arg)
	if err != nil || !fi.IsDir() {
		r, err := c.newReporter()
		if err != nil {
			return nil, err
		}
		p, err := c.loadProfile(arg, r)
		if err != nil {
			return nil, err
		}
		return builder.Lint(p, nil, nil, allow)
	}
	if len(c.set) > 0 {
		return nil, usagef("--set changes a profile, and %s is an image", arg)
	}
	m, err := readManifest(arg)
	if err != nil {
		return nil, err
	}
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return nil, mismatchError{fmt.Errorf("%s: profile in manifest.json: %w", arg, err)}
	}
	rep, err := builder.Lint(p, m, os.DirFS(arg), allow)
	if err != nil {
		return nil, lintFault(arg, err)
	}
	return rep, nil
}

// lintFault says where an error arose; a file that is not the manifest's is a
// mismatch.
func lintFault(dir string, err error) error {
	err = fmt.Errorf("%s: %w", dir, err)
	var damage *builder.LintDamage
	if errors.As(err, &damage) {
		return mismatchError{err}
	}
	return err
}

func knownRules(ids []string) error {
	for _, id := range ids {
		if !slices.ContainsFunc(builder.LintRules(), func(r [2]string) bool { return r[0] == id }) {
			return usagef("--allow %s: no such rule; see plinth lint --help", id)
		}
	}
	return nil
}

func (c *common) printLint(name string, rep *builder.LintReport) error {
	w := c.env.stdout
	if c.json {
		return printJSON(w, rep)
	}
	for _, f := range rep.Findings {
		fmt.Fprintf(w, "%s: %s: %s\n  in %s\n  do: %s\n", f.Severity, f.ID, f.What, f.Where, f.Do)
	}
	for _, u := range rep.NotChecked {
		fmt.Fprintf(w, "not checked: %s: %s\n", u.ID, u.Why)
	}
	if len(rep.LeftOut) > 0 {
		fmt.Fprintf(w, "left out: %s\n", strings.Join(rep.LeftOut, ", "))
	}
	_, err := fmt.Fprintf(w, "%s: %d errors, %d warnings, %d rules not checked\n", name, rep.Count(builder.LintError), rep.Count(builder.LintWarning), len(rep.NotChecked))
	return err
}
