package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
)

func newPlan(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan PROFILE",
		Short: "Print the steps of a build, their keys and what is cached",
		Long:  "Prints what plinth build would do. It reads the profile and its lock, and nothing else.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			w, p, err := c.workplaceOf(a[0])
			if err != nil {
				return err
			}
			g, err := c.guest(cmd.Context(), w.Store, p)
			if err != nil {
				return err
			}
			spec, err := w.LockedSpec(p, g)
			if err != nil {
				return err
			}
			plan, err := builder.NewPlan(spec)
			if err != nil {
				return err
			}
			return c.printPlan(plan, plan.Cached(w.Store))
		},
	}
	c.profileFlags(cmd)
	return cmd
}

func (c *common) printPlan(p *builder.Plan, cached []bool) error {
	if c.json {
		type row struct {
			Step   string `json:"step"`
			Key    string `json:"key"`
			Cached bool   `json:"cached"`
			Does   string `json:"does"`
		}
		rows := make([]row, len(p.Steps))
		for i, s := range p.Steps {
			rows[i] = row{s.Name, s.Key.String(), cached[i], s.Does}
		}
		return printJSON(c.env.stdout, rows)
	}
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for i, s := range p.Steps {
		state := "to do"
		if cached[i] {
			state = "cached"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Name, s.Key.Short(), state, s.Does)
	}
	return t.Flush()
}
