package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/profiles"
)

func newBuild(c *common) *cobra.Command {
	var explain bool
	cmd := &cobra.Command{
		Use:   "build PROFILE",
		Short: "Build an image from a profile",
		Long: `Builds the image that PROFILE describes into out/NAME and predicts its
measurements. PROFILE is a path, or the name of ./profiles/NAME.toml or of a
built-in profile. The first build writes a lock; later ones obey it.`,
		Example: "  plinth build vtpm\n  plinth build ./mine.toml --locked --offline\n  plinth build vtpm --set machine.memory=2048 --explain",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			r, err := c.newReporter()
			if err != nil {
				return err
			}
			p, err := c.loadProfile(a[0], r)
			if err != nil {
				return err
			}
			if explain {
				return printExplain(c, p)
			}
			b, err := c.build(cmd.Context(), p, r)
			if err != nil {
				return err
			}
			return c.printBuild(b)
		},
	}
	c.profileFlags(cmd)
	cmd.Flags().StringVarP(&c.out, "out", "o", "", "output directory (default: out/NAME)")
	cmd.Flags().BoolVar(&explain, "explain", false, "print each value of the profile and where it came from; build nothing")
	return cmd
}

// built is the result of a build.
type built struct {
	manifest *builder.Manifest
	dir      string
	elapsed  time.Duration
}

// build runs the whole pipeline for p and writes the output directory.
func (c *common) build(ctx context.Context, p *profiles.Profile, r *reporter) (*built, error) {
	start := time.Now()
	st, err := c.store()
	if err != nil {
		return nil, err
	}
	w, err := c.workplace(p, st, r)
	if err != nil {
		return nil, err
	}
	g, err := c.guest(ctx, st, p)
	if err != nil {
		return nil, err
	}
	spec, err := w.Spec(ctx, p, g)
	if err != nil {
		return nil, err
	}
	m, err := builder.Build(ctx, spec, builder.Options{Store: st, Workplace: w, Jobs: c.jobs, Progress: r.event})
	if err != nil {
		return nil, err
	}
	dir := c.outDir(p)
	if err := export.Dir(ctx, st, m, c.provenance(p), dir); err != nil {
		return nil, err
	}
	return &built{m, dir, time.Since(start)}, nil
}

func (c *common) provenance(p *profiles.Profile) export.Provenance {
	host, _ := os.Hostname() // a host without a name is no reason to fail
	return export.Provenance{Schema: 1, Plinth: version(), Profile: p.Origin, Host: host, Time: c.env.now().UTC().Format(time.RFC3339)}
}

func (c *common) printBuild(b *built) error {
	if c.json {
		return printJSON(c.env.stdout, b.manifest)
	}
	if c.quiet {
		return nil
	}
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "artefact\tsize\tsha256\n")
	for _, a := range b.manifest.Artefacts {
		fmt.Fprintf(t, "%s/%s\t%s\t%s\n", b.dir, a.Name, size(a.Size), a.Digest.Short())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(c.env.stdout)
	if err := c.printMeasurementsOf(b); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.env.stdout, "\n%s built in %.2f s\n", b.dir, b.elapsed.Seconds())
	return err
}
