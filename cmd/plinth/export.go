package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
)

func newExport(c *common) *cobra.Command {
	var to, out string
	var force bool
	cmd := &cobra.Command{
		Use:   "export DIR --to FORM",
		Short: "Write a built image in the form that a hypervisor or cloud takes",
		Long: `Writes the disk in DIR in another container, without outside tools and with the
same bytes every time. The disk itself is not changed, so what was predicted holds;
what a cloud's own firmware measures (PCR 0 to 7) is the cloud's.

Forms: ` + formList() + `.
gce takes only a disk of whole GiB: name it in outputs.kinds when the image is built.
An image whose guest lacks the drivers of the place that takes the form is refused
with code 3, unless --force is given.`,
		Example: "  plinth export out/vtpm --to qcow2\n  plinth export out/azure --to vhd -o azure.vhd",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.exportDisk(a[0], to, out, force) },
	}
	cmd.Flags().StringVar(&to, "to", "", "form to write")
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write (default: image with the form's ending, in DIR)")
	cmd.Flags().BoolVar(&force, "force", false, "write a form whose drivers the guest lacks")
	return cmd
}

func formList() string {
	var out []string
	for _, f := range builder.Forms {
		out = append(out, fmt.Sprintf("%s (%s)", f.Name, f.For))
	}
	return strings.Join(out, ", ")
}
