package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
)

const measureSNPLong = `Computes the launch digest that an SEV-SNP attestation report will show, from the
firmware, what it starts by direct boot, and the virtual processors. The names of
the flags are those of sev-snp-measure.

With --kernel the digest covers kernel, initrd and command line, by their digests
in a table that QEMU writes (kernel-hashes=on), and the firmware must have a place
for it. A UKI is given as --kernel. Without --kernel nothing but the firmware is
measured.

Of the processors their number counts, and the signature of the type that QEMU
gives them with -cpu, which is not the host's. --vcpus and --vcpu-type take lists:
there is a value for each combination. Google (--vmm-type gce) and Amazon (ec2)
have no type. What Amazon runs cannot be confirmed: its firmware is not the
published source.

The host's kernel fills the registers of a new processor, and not every version in
the same way: --host-era names one, and --expect DIGEST says which of them, or
which other processors, would give the digest that a report shows (exit code 7).

With one value, stdout is this value. --explain lists the pages behind it. The ID
block (--id-block-out) binds a guest to its digest: QEMU takes it, and the
signature (--id-auth-out) under --id-key, as id-block= and id-auth= of the
sev-snp-guest object; both files are in base64.

--qemu-args FILE reads all of that from a QEMU command line, as typed, as libvirt
logs it, from /proc/PID/cmdline, or with one argument a line. Flags beat it. Paths
in it are taken from the current directory. What it says that does not change the
digest is listed on stderr.`

const measureSNPExample = `  plinth measure snp --vcpus 4 --vcpu-type EPYC-v4 --ovmf OVMF.amdsev.fd --kernel vmlinuz --initrd initrd --append 'console=ttyS0'
  plinth measure snp --vcpus 1,2,4,8 --vcpu-type EPYC-v4,EPYC-Milan --ovmf OVMF.amdsev.fd --kernel image.efi --json
  plinth measure snp --qemu-args guest.sh --explain
  plinth measure snp --qemu-args guest.sh --expect "$(cat digest-of-the-report)"
  plinth measure snp --vcpus 2 --vcpu-type EPYC-v4 --ovmf OVMF.amdsev.fd --id-key id.pem --id-block-out id-block --id-auth-out id-auth`

const measureSEVESLong = `Computes the launch digest of an SEV-ES guest: one SHA-256 over the firmware, the
table of kernel digests with --kernel, and the first registers of each processor.
The measurement that the firmware of the secure processor signs is an HMAC with
this digest in it.`

const measureSEVLong = `Computes the launch digest of an SEV guest: one SHA-256 over the firmware and, with
--kernel, the table of the digests of kernel, initrd and command line. Processors
are not in it. The measurement that the firmware of the secure processor signs is
an HMAC with this digest in it.`

// launchFlags are the flags of measure snp, seves and sev. Where a command lacks
// one, its field is the zero value.
type launchFlags struct {
	platform string
	given    func(flag string) bool

	vcpus                   []int
	types                   []string
	sig                     string
	family, model, stepping int

	ovmf, hash, seed, svsm, varsSize, varsFile string
	kernel, initrd, cmdline                    string

	vmm, product, era, features string

	format, qemuArgs     string
	expect               []string
	explain              bool
	dumpVMSA, dumpHashes string

	block blockFlags

	notes []string // what --qemu-args says that is for people
}

func newMeasureSNP(c *common) *cobra.Command {
	f := &launchFlags{platform: measure.PlatformSNP}
	cmd := c.launchCommand(f, &cobra.Command{
		Use:     "snp",
		Short:   "Compute the launch digest of an SEV-SNP guest",
		Long:    measureSNPLong,
		Example: measureSNPExample,
	})
	f.addProcessors(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.vmm, "vmm-type", "QEMU", "who runs the guest: QEMU, gce or ec2")
	fl.StringVar(&f.product, "product", "", "with gce: the processor, Milan (default), Genoa or Turin")
	fl.StringVar(&f.features, "guest-features", "", "SEV_FEATURES of the guest, as 0x1 (default: the era's)")
	fl.StringVar(&f.hash, "snp-ovmf-hash", "", `digest of the firmware's pages, from "measure ovmf-hash"; of --ovmf the metadata is read alone`)
	fl.StringVar(&f.seed, "ovmf-seed", "", `file that stands for --ovmf: digest and metadata, from "measure ovmf-hash --json"`)
	fl.StringVar(&f.svsm, "svsm", "", "SVSM binary that runs before the firmware")
	fl.StringVar(&f.varsSize, "vars-size", "", "with --svsm: size of the variable store below the firmware, in bytes")
	fl.StringVar(&f.varsFile, "vars-file", "", "with --svsm: the variable store, of which the size counts")
	fl.StringVar(&f.dumpVMSA, "dump-vmsa", "", "write the first registers of the boot processor and of the others to files in this directory")
	fl.StringVar(&f.dumpHashes, "dump-hashes", "", "write the page with the table of kernel digests to this file")
	fl.BoolVar(&f.explain, "explain", false, "print the pages behind each value, with the digest after them")
	f.block.add(fl)
	refuseFlags(cmd, map[string]string{"mode": noMode})
	return cmd
}

func newMeasureSEVES(c *common) *cobra.Command {
	f := &launchFlags{platform: measure.PlatformSEVES, vmm: "QEMU"}
	cmd := c.launchCommand(f, &cobra.Command{
		Use:     "seves",
		Short:   "Compute the launch digest of an SEV-ES guest",
		Long:    measureSEVESLong,
		Example: "  plinth measure seves --vcpus 2 --vcpu-type EPYC-v4 --ovmf OVMF.amdsev.fd --kernel vmlinuz --initrd initrd --append 'console=ttyS0'",
	})
	f.addProcessors(cmd)
	refuseFlags(cmd, onlySNP)
	return cmd
}

func newMeasureSEV(c *common) *cobra.Command {
	f := &launchFlags{platform: measure.PlatformSEV, vmm: "QEMU"}
	cmd := c.launchCommand(f, &cobra.Command{
		Use:     "sev",
		Short:   "Compute the launch digest of an SEV guest",
		Long:    measureSEVLong,
		Example: "  plinth measure sev --ovmf OVMF.amdsev.fd --kernel vmlinuz --initrd initrd --append 'console=ttyS0' --output-format base64",
	})
	refuseFlags(cmd, onlySNP)
	refuseFlags(cmd, map[string]string{
		"host-era": noProcessors, "vcpus": noProcessors, "vcpu-type": noProcessors, "vcpu-sig": noProcessors,
		"vcpu-family": noProcessors, "vcpu-model": noProcessors, "vcpu-stepping": noProcessors,
	})
	return cmd
}

// launchCommand gives a command what all three have.
func (c *common) launchCommand(f *launchFlags, cmd *cobra.Command) *cobra.Command {
	f.given = cmd.Flags().Changed
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(*cobra.Command, []string) error { return c.measureLaunch(f) }
	fl := cmd.Flags()
	fl.StringVar(&f.ovmf, "ovmf", "", "firmware file, the whole of it")
	fl.StringVar(&f.kernel, "kernel", "", "kernel or UKI that QEMU gets as -kernel")
	fl.StringVar(&f.initrd, "initrd", "", "initrd that QEMU gets as -initrd")
	fl.StringVar(&f.cmdline, "append", "", "command line that QEMU gets as -append")
	fl.StringVar(&f.format, "output-format", "hex", "hex or base64")
	fl.StringArrayVar(&f.expect, "expect", nil, "digest that must be among the values, in hex or base64; repeatable")
	fl.StringVar(&f.qemuArgs, "qemu-args", "", "file with a QEMU command line to take all of this from")
	return cmd
}

func (f *launchFlags) addProcessors(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.IntSliceVar(&f.vcpus, "vcpus", nil, "number of virtual CPUs; a list, repeatable")
	fl.StringSliceVar(&f.types, "vcpu-type", nil, "type that QEMU gives them with -cpu, as EPYC-v4; a list, repeatable")
	fl.StringVar(&f.sig, "vcpu-sig", "", "instead of a type: CPUID Fn1 EAX, as 0x800f12")
	fl.IntVar(&f.family, "vcpu-family", 0, "instead of a type, with the next two: family")
	fl.IntVar(&f.model, "vcpu-model", 0, "model")
	fl.IntVar(&f.stepping, "vcpu-stepping", 0, "stepping")
	fl.StringVar(&f.era, "host-era", "", "era of the host's kernel (default "+defaultEra()+"): "+eraNames())
}

// Why flags of one command have no meaning for another.
const (
	noProcessors = "the digest of SEV covers no processor"
	notSNP       = "only SNP has that"
	noMode       = "the mode is the name of the command"
)

var onlySNP = map[string]string{
	"mode":     noMode,
	"vmm-type": "only QEMU's order of measuring is known for it", "product": notSNP, "guest-features": "SEV_FEATURES of SEV-ES are those of the host's era",
	"snp-ovmf-hash": notSNP, "ovmf-seed": notSNP, "svsm": notSNP, "vars-size": notSNP, "vars-file": notSNP, "dump-vmsa": notSNP,
	"dump-hashes": notSNP, "explain": "it is one digest over all bytes, not a chain of pages",
	"id-key": notSNP, "author-key": notSNP, "family-id": notSNP, "image-id": notSNP, "guest-svn": notSNP, "policy": "it is in no digest",
	"id-block-out": notSNP, "id-auth-out": notSNP,
}

// refuseFlags makes a command know flags of its neighbours, to say why it has
// none of them instead of "unknown flag".
func refuseFlags(cmd *cobra.Command, why map[string]string) {
	fl := cmd.Flags()
	for _, name := range slices.Sorted(maps.Keys(why)) {
		fl.String(name, "", "")
		fl.Lookup(name).NoOptDefVal = " " // a switch has no value either
		fl.Lookup(name).Hidden = true
	}
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		for _, name := range slices.Sorted(maps.Keys(why)) {
			if fl.Changed(name) {
				return usagef("--%s does not apply to %q: %s", name, cmd.CommandPath(), why[name])
			}
		}
		return run(cmd, a)
	}
	// With NoOptDefVal the value after a space is an argument: let the reason come
	// before the complaint about it.
	cmd.Args = func(cmd *cobra.Command, a []string) error {
		for name := range why {
			if fl.Changed(name) {
				return nil
			}
		}
		return cobra.NoArgs(cmd, a)
	}
}

// check refuses what makes no sense together. It comes after --qemu-args.
func (f *launchFlags) check() error {
	if f.kernel == "" {
		for _, name := range []string{"initrd", "append", "dump-hashes"} {
			if f.given(name) {
				return usagef("--%s goes with --kernel", name)
			}
		}
	}
	if f.ovmf == "" && f.seed == "" {
		return usagef("--ovmf is needed")
	}
	if f.format != "hex" && f.format != "base64" {
		return usagef("--output-format is %q: want hex or base64", f.format)
	}
	if f.given("output-format") && f.given("json") {
		return usagef("--output-format and --json exclude each other: digests in the document are in hex")
	}
	if f.platform == measure.PlatformSNP {
		return f.checkSNP()
	}
	return nil
}

// exclusive are pairs of flags of which one may be given.
var exclusive = [][2]string{
	{"ovmf", "ovmf-seed"}, {"snp-ovmf-hash", "ovmf-seed"}, {"svsm", "ovmf-seed"}, {"svsm", "snp-ovmf-hash"}, {"svsm", "kernel"},
	{"vars-size", "vars-file"},
}

func (f *launchFlags) checkSNP() error {
	for _, p := range exclusive {
		if f.given(p[0]) && f.given(p[1]) {
			return usagef("--%s and --%s exclude each other", p[0], p[1])
		}
	}
	for _, name := range []string{"vars-size", "vars-file"} {
		if f.given(name) && f.svsm == "" {
			return usagef("--%s goes with --svsm", name)
		}
	}
	if f.svsm != "" && !f.given("vars-size") && !f.given("vars-file") {
		return usagef("--svsm needs --vars-size or --vars-file: the SVSM is placed below the variables")
	}
	if f.given("product") && !strings.EqualFold(f.vmm, string(snp.GCE)) {
		return usagef("--product goes with --vmm-type gce")
	}
	if f.given("host-era") && !strings.EqualFold(f.vmm, string(snp.QEMU)) {
		return usagef("--host-era goes with --vmm-type QEMU")
	}
	return f.block.check(f)
}
