package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/profiles"
)

// version is the module's version, "devel" in a checkout.
func version() string {
	if i, ok := debug.ReadBuildInfo(); ok && i.Main.Version != "" && i.Main.Version != "(devel)" {
		return i.Main.Version
	}
	return "devel"
}

func newVersion(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				FIPS    string `json:"fips140,omitempty"`
				Agent   bool   `json:"agent_inside"`
			}{Version: version(), Agent: embedded("plinth-agent") != nil}
			if i, ok := debug.ReadBuildInfo(); ok {
				v.Go = i.GoVersion
				for _, s := range i.Settings {
					if s.Key == "GOFIPS140" {
						v.FIPS = s.Value
					}
				}
			}
			if c.json {
				return printJSON(c.env.stdout, v)
			}
			_, err := fmt.Fprintln(c.env.stdout, strings.TrimSpace(fmt.Sprintf("plinth %s %s", v.Version, v.Go)))
			return err
		},
	}
}

func newSchema(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of profiles",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := c.env.stdout.Write(profiles.Schema())
			return err
		},
	}
}

func newInit(c *common) *cobra.Command {
	var example string
	cmd := &cobra.Command{
		Use:   "init NAME",
		Short: "Write a commented profile, profiles/NAME.toml, to start from",
		Long: `Writes a commented profile, profiles/NAME.toml, to start from: the built-in
profile vtpm with all that is often changed, or one of the examples.

Examples: ` + strings.Join(profiles.Examples(), ", ") + `.`,
		Example: "  plinth init demo\n  plinth init demo --example azure",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.initProfile(a[0], example) },
	}
	cmd.Flags().StringVar(&example, "example", "", "example to start from")
	err := cmd.RegisterFlagCompletionFunc("example", cobra.FixedCompletions(profiles.Examples(), cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag is there
	}
	return cmd
}

func (c *common) initProfile(name, example string) error {
	if err := profiles.CheckName(name); err != nil {
		return usageError{err}
	}
	text := profiles.Template(name)
	if example != "" {
		var err error
		if text, err = profiles.Example(example, name); err != nil {
			return usageError{err}
		}
	}
	path := filepath.Join("profiles", name+".toml")
	if _, err := os.Stat(path); err == nil {
		return usagef("%s is there already; choose another name or remove it", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := builder.WriteFile(path, text); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.env.stdout, "%s\nnext: plinth build %s\n", path, name)
	return err
}

func newMan(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "man [DIR]",
		Short: "Print the manual page, or write one page a command into DIR",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			// A fixed date: the same program prints the same pages.
			manDate := time.Unix(0, 0).UTC()
			head := &doc.GenManHeader{Title: "PLINTH", Section: "1", Source: "plinth", Manual: "plinth manual", Date: &manDate}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if len(a) == 1 {
				if err := os.MkdirAll(a[0], 0o755); err != nil {
					return err
				}
				return doc.GenManTree(root, head, a[0])
			}
			return doc.GenMan(root, head, c.env.stdout)
		},
	}
}
