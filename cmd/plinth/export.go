package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
)

func newExport(c *common) *cobra.Command {
	var to, out string
	cmd := &cobra.Command{
		Use:   "export DIR --to FORM",
		Short: "Write a built image in the form that a hypervisor or cloud takes",
		Long: `Writes the disk in DIR in another container, without outside tools and with the
same bytes every time. The disk itself is not changed, so what was predicted holds;
what a cloud's own firmware measures (PCR 0 to 7) is the cloud's.

Forms: ` + containerList() + `.
gce takes only a disk of whole GiB, which no profile makes yet.`,
		Example: "  plinth export out/vtpm --to qcow2\n  plinth export out/vtpm --to vhd -o azure.vhd",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.export(a[0], to, out) },
	}
	cmd.Flags().StringVar(&to, "to", "", "form to write")
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write (default: image with the form's ending, in DIR)")
	return cmd
}

func containerList() string {
	var out []string
	for _, f := range export.Containers {
		out = append(out, fmt.Sprintf("%s (%s)", f.Name, f.For))
	}
	return strings.Join(out, ", ")
}

func (c *common) export(dir, to, out string) error {
	if to == "" {
		return usagef("--to is needed")
	}
	form, err := export.FindContainer(to)
	if err != nil {
		return usagef("--to is %w", err)
	}
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, builder.DiskName)
	got, err := fileDigest(path)
	if err != nil {
		return err
	}
	if want := m.Artefact(builder.DiskName).Digest.String(); got != want {
		return mismatchError{fmt.Errorf("%s: sha256 is %s, want %s", path, got, want)}
	}
	f, size, err := openSized(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if out == "" {
		out = filepath.Join(dir, form.File)
	}
	err = builder.ReplaceFile(out, func(w *os.File) error { return form.Convert(w, m, io.NewSectionReader(f, 0, size)) })
	if err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	digest, err := fileDigest(out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.env.stdout, "%s  %s\n", digest, out)
	return err
}
