package main

import (
	"fmt"
	"os/exec"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/qemu"
)

// A finding is one line of plinth doctor.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Is   string `json:"is"`
	Hint string `json:"hint,omitempty"`
}

func newDoctor(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do and what is missing",
		Long:  "Looks for what building and booting need. Building needs only a store and a mirror; everything else is for booting.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := c.diagnose(cmd)
			if c.json {
				return printJSON(c.env.stdout, list)
			}
			t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
			for _, f := range list {
				mark := "ok"
				if !f.OK {
					mark = "--"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", mark, f.What, f.Is, f.Hint)
			}
			return t.Flush()
		},
	}
}

func (c *common) diagnose(cmd *cobra.Command) []finding {
	var out []finding
	add := func(what string, err error, is, hint string) {
		f := finding{What: what, OK: err == nil, Is: is}
		if err != nil {
			f.Is, f.Hint = err.Error(), hint
		}
		out = append(out, f)
	}
	st, err := c.store()
	if err == nil {
		add("store", nil, st.Dir(), "")
	} else {
		add("store", err, "", "give --cache-dir or PLINTH_CACHE")
	}
	apt, err := source.HostApt("/")
	if err == nil && len(apt) == 0 {
		err = fmt.Errorf("none in the host's apt configuration")
	}
	add("mirror", err, "from the host's apt configuration", "give --mirror URL or PLINTH_MIRROR")
	if embedded("plinth-agent") != nil {
		add("guest agent", nil, "inside this program", "")
	} else {
		_, err = exec.LookPath("go")
		if err == nil {
			_, err = checkout()
		}
		add("guest agent", err, "built from the checkout", "run \"make build\" and use bin/plinth")
	}
	h := qemu.Probe(cmd.Context())
	program := func(what, pkg string, p qemu.Program) {
		f := finding{What: what, OK: p.Problem == "", Is: p.Path + " " + p.Version}
		if !f.OK {
			f.Is, f.Hint = p.Problem, "needed to boot; Debian package "+pkg
		}
		out = append(out, f)
	}
	program("QEMU", "qemu-system-x86", h.QEMU)
	program("swtpm", "swtpm", h.SWTPM)
	kvm := finding{What: "KVM", OK: h.KVM.Usable, Is: "runs OVMF"}
	if !kvm.OK {
		kvm.Is, kvm.Hint = h.KVM.Problem, "boots use TCG and take longer"
	}
	return append(out, kvm)
}
