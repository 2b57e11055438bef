package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder/source"
)

func newLock(c *common) *cobra.Command {
	var update, check bool
	cmd := &cobra.Command{
		Use:   "lock PROFILE [PACKAGE...]",
		Short: "Resolve a profile's packages and write the lock",
		Long: `Writes the lock of PROFILE: every package with version, size, digest and the
signed evidence for it. What the lock holds already is kept, unless --update
asks for the newest of the named packages, or of all.`,
		Example: "  plinth lock vtpm\n  plinth lock vtpm --update linux-image-cloud-amd64\n  plinth lock vtpm --check",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			switch {
			case len(a) > 1 && !update:
				return usagef("packages are named, but not --update")
			case check && update:
				return usagef("--check and --update exclude each other")
			}
			w, p, err := c.workplaceOf(a[0])
			if err != nil {
				return err
			}
			if check {
				return w.CheckLock(cmd.Context(), p)
			}
			old, lock, err := w.Relock(cmd.Context(), p, a[1:], update && len(a) == 1)
			if err != nil {
				return err
			}
			return c.printLock(w.LockPath, old, lock)
		},
	}
	c.profileFlags(cmd)
	cmd.Flags().BoolVar(&update, "update", false, "take the newest versions of the named packages, or of all")
	cmd.Flags().BoolVar(&check, "check", false, "write nothing; exit 9 when the lock does not fit the profile")
	return cmd
}

// printLock prints what changed, a line a package.
func (c *common) printLock(path string, old, lock *source.Lock) error {
	if c.json {
		return printJSON(c.env.stdout, lock)
	}
	was := map[string]string{}
	if old != nil {
		for _, p := range old.Packages {
			was[p.Name] = p.Version
		}
	}
	for _, p := range lock.Packages {
		switch v, ok := was[p.Name]; {
		case !ok:
			fmt.Fprintf(c.env.stdout, "+ %s %s\n", p.Name, p.Version)
		case v != p.Version:
			fmt.Fprintf(c.env.stdout, "  %s %s -> %s\n", p.Name, v, p.Version)
		}
		delete(was, p.Name)
	}
	if old != nil {
		for _, p := range old.Packages {
			if v, ok := was[p.Name]; ok {
				fmt.Fprintf(c.env.stdout, "- %s %s\n", p.Name, v)
			}
		}
	}
	_, err := fmt.Fprintf(c.env.stdout, "%s: %d packages\n", path, len(lock.Packages))
	return err
}
