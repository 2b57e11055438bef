package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/measure/snp"
)

const measureHashLong = `Digests the pages of a firmware as SNP does before anything else, once and for all
launches with it: "measure snp" takes the digest as --snp-ovmf-hash beside --ovmf,
and with --json the whole answer, in which the metadata is too, as --ovmf-seed in
the place of --ovmf. The digest is the same under QEMU, gce and ec2.`

func newMeasureHash(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ovmf-hash FILE",
		Short:   "Digest the firmware of SEV-SNP guests beforehand",
		Long:    measureHashLong,
		Example: "  plinth measure ovmf-hash OVMF.amdsev.fd --json > seed.json\n  plinth measure snp --ovmf-seed seed.json --vcpus 4 --vcpu-type EPYC-v4",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.measureHash(a[0]) },
	}
	return cmd
}

func (c *common) measureHash(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	l, err := snp.NewLaunch(snp.Params{Firmware: b})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	seed := l.Seed()
	if c.json {
		return printJSON(c.env.stdout, seed)
	}
	_, err = fmt.Fprintf(c.env.stdout, "%x\n", seed.Digest())
	return err
}
