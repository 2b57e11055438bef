package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/verity"
)

// KataCommit is the state of Kata Containers that this file was read from; paths
// in its comments are below src/runtime.
const KataCommit = "7c6ba40c54ea29b459b4997cff948caaba4e658b"

// Files of the form, beside those of the image.
const (
	KataConfigName = "kata.toml"
	KataDiskName   = "kata.img"
)

// ErrNotKata is an image that Kata could not start, or not so that it is
// measured.
var ErrNotKata = errors.New("not for Kata Containers")

// A Kata is an image as the Go runtime of Kata Containers starts it with QEMU.
// Kata has a command line of its own making, and sets the root up itself.
type Kata struct {
	manifest     *builder.Manifest
	measurements *measure.Measurements
	root         *verity.Root // nil: the initrd is the root
	seed         string
}

// NewKata judges whether Kata can start the image.
func NewKata(m *builder.Manifest, ms *measure.Measurements) (*Kata, error) {
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return nil, err
	}
	k := &Kata{manifest: m, measurements: ms, seed: p.Seed}
	switch {
	case m.Platform == profiles.PlatformSNP && ms.SNP == nil:
		return nil, errors.New("export: kata: measurements.json says nothing of SNP")
	case m.Platform != profiles.PlatformSNP && m.Platform != profiles.PlatformTDX:
		return nil, fmt.Errorf("export: %w: platform %s: Kata gives a guest no TPM, so nothing would measure it; want snp or tdx", ErrNotKata, m.Platform)
	case m.Root == nil:
		return k, nil
	}
	value, _ := strings.CutPrefix(m.Root.Argument, verity.Argument+"=")
	root, err := verity.ParseRoot(value)
	if err != nil {
		return nil, err
	}
	// What kernel_verity_params has no room for is fixed: GetKernelRootParams in
	// virtcontainers/hypervisor.go.
	if root.Format != 1 || root.Algorithm != "sha256" {
		return nil, fmt.Errorf("export: %w: the root is hashed with %s, format %d: want sha256 and 1", ErrNotKata, root.Algorithm, root.Format)
	}
	k.root = root
	return k, nil
}

// OwnKernel tells whether the image's kernel can set the root up without an
// initrd, as Kata has it do; if not, why.
func (k *Kata) OwnKernel() (bool, string) {
	if k.root == nil {
		return true, ""
	}
	return k.manifest.Root.DMInit == "yes", k.manifest.Root.DMInit
}

// params are what the profile has on the command line, without the root, which
// this image's initrd would set up and Kata has none of.
func (k *Kata) params() string {
	return strings.Join(slices.DeleteFunc(strings.Fields(k.manifest.Cmdline), func(w string) bool {
		return strings.HasPrefix(w, verity.Argument+"=")
	}), " ")
}

// Cmdline is the command line that Kata makes of Config: kernelParameters in
// virtcontainers/qemu.go, kernelParams in qemu_amd64.go, appendConsole in
// qemu_arch_base.go, SetKernelParams in pkg/katautils/config.go.
func (k *Kata) Cmdline() string {
	words := []string{
		"tsc=reliable", "no_timer_check", "rcupdate.rcu_expedited=1", "i8042.direct=1", "i8042.dumbkbd=1", "i8042.nopnp=1", "i8042.noaux=1",
		"noreplace-smp", "reboot=k", "cryptomgr.notests", "net.ifnames=0", "pci=lastbus=0",
	}
	if r := k.root; r != nil {
		words = append(words,
			fmt.Sprintf(`dm-mod.create="dm-verity,,,ro,0 %d verity 1 /dev/vda1 /dev/vda2 %d %d %d 0 sha256 %x %x"`,
				r.DataBlocks*uint64(r.DataBlockSize)/512, r.DataBlockSize, r.HashBlockSize, r.DataBlocks, r.RootHash, r.Salt),
			"root=/dev/dm-0", "rootflags=ro", "rootfstype=erofs")
	}
	words = append(words, "console=hvc0", "console=hvc1", "quiet")
	if k.root != nil {
		words = append(words, "systemd.show_status=false")
	}
	words = append(words, "panic=1", "selinux=0")
	if k.root != nil {
		words = append(words, "systemd.unit=kata-containers.target", "systemd.mask=systemd-networkd.service", "systemd.mask=systemd-networkd.socket")
	}
	words = append(words, "scsi_mod.scan=none", "agent.launch_process_timeout=6")
	for _, w := range strings.Fields(k.params()) {
		words = append(words, strings.TrimSuffix(w, "=")) // it writes back an empty value without its sign
	}
	return strings.Join(words, " ")
}

// Config writes a drop-in for the directory config.d beside configuration.toml.
// The files of the image lie in dir on the node. All that shapes the command line
// is in it, defaults too, so that other drop-ins do not move the digest unseen.
func (k *Kata) Config(dir string, digests *measure.Measurements) []byte {
	var b bytes.Buffer
	m := k.manifest
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("# Image %q of plinth for Kata Containers with QEMU, Go runtime: a drop-in for config.d beside configuration.toml.", m.Name)
	k.explain(line, digests)
	line("\n[hypervisor.qemu]")
	own, why := k.OwnKernel()
	if own {
		line("kernel = %s", quoted(path.Join(dir, builder.KernelName)))
	} else {
		line("# kernel: keep one with CONFIG_DM_INIT, as Kata has it. The image's own cannot set its root up without an initrd:\n# %s", why)
	}
	if k.root == nil {
		line("initrd = %s\nimage = \"\"", quoted(path.Join(dir, builder.InitrdName)))
	} else {
		line("initrd = \"\"\nimage = %s\nrootfs_type = \"erofs\"", quoted(path.Join(dir, KataDiskName)))
		line("kernel_verity_params = %s", quoted(m.Root.KataParams))
	}
	line("kernel_params = %s", quoted(k.params()))
	line("firmware = %s\nfirmware_volume = \"\"", quoted(path.Join(dir, builder.FirmwareName)))
	line("machine_type = %s\nconfidential_guest = true", quoted(m.Machine.Type))
	if m.Platform == profiles.PlatformSNP {
		policy, _ := measure.ParseBits(k.measurements.SNP.Policy) // ParseMeasurements has looked
		line("sev_snp_guest = true\nsnp_guest_policy = %d", policy)
	}
	line("default_vcpus = %d\ndefault_maxvcpus = %d\ndefault_memory = %d # MiB", m.Machine.VCPUs[0], slices.Max(m.Machine.VCPUs), m.Machine.Memory)
	line("disable_image_nvdimm = true\nblock_device_driver = \"virtio-scsi\"\ndisable_guest_selinux = true\nuse_legacy_serial = false\nenable_debug = false")
	line("# A pod may bring its initdata, and no kernel, parameters or sizes of its own.\nenable_annotations = [\"cc_init_data\"]")
	line("\n[agent.kata]\nlaunch_process_timeout = 6\ncdh_api_timeout = 0\nenable_debug = false\nenable_tracing = false\ndebug_console_enabled = false")
	return b.Bytes()
}

// explain says at the top of the file what is measured of it.
func (k *Kata) explain(line func(string, ...any), digests *measure.Measurements) {
	line("#\n# Kata makes the command line itself. With this file, and Kata as of %.12s, it is", KataCommit)
	line("#\n#   %s\n#", k.Cmdline())
	line("# so the values in measurements.json, which are for the image's own command line, do not hold here.")
	if k.root != nil {
		line("# A block that does not fit the root hash is an I/O error in the guest: Kata's table does not say %s.", k.root.OnCorruption.Option())
	}
	own, _ := k.OwnKernel()
	switch {
	case digests != nil:
		line("# Kata starts SNP guests with -cpu EPYC-v4 and kernel-hashes=on. The launch digest is then, by number of vCPUs,\n#")
		for _, v := range digests.Values {
			line("#   %d  %s", v.Shape.VCPUs, v.Value)
		}
		line("#\n# A pod's limits add to default_vcpus. \"plinth export DIR --to rvps --launch kata\" writes the digests for a broker.")
	case k.manifest.Platform == profiles.PlatformSNP && !own:
		line("# The launch digest covers Kata's kernel: plinth measure snp --ovmf %s --kernel KERNEL --append '...' --vcpu-type EPYC-v4", builder.FirmwareName)
	default:
		line("# MRTD holds: it is the firmware's. RTMR 1 and 2 are those of a kernel started with -kernel:\n# plinth measure tdx --ovmf %s --kernel KERNEL --append '...'", builder.FirmwareName)
	}
}

// quoted writes a TOML string: TOML 1.0, "Basic strings", whose escapes JSON has,
// too.
func quoted(s string) string {
	b, _ := json.Marshal(s) // a string has a form
	return string(b)
}

// Measurements are the launch digests of an SNP guest that Kata starts: its
// command line, its only CPU model, no initrd where there is an image. Open opens
// an artefact of the image. nil for what is not predicted: a trust domain, or
// another kernel than the image's.
func (k *Kata) Measurements(open func(name string) (*io.SectionReader, error)) (*measure.Measurements, error) {
	if own, _ := k.OwnKernel(); !own || k.manifest.Platform != profiles.PlatformSNP {
		return nil, nil
	}
	g, err := k.guest()
	if err != nil {
		return nil, err
	}
	firmware, err := open(builder.FirmwareName)
	if err != nil {
		return nil, err
	}
	g.Params.Firmware = make([]byte, firmware.Size())
	if _, err := firmware.ReadAt(g.Params.Firmware, 0); err != nil && err != io.EOF {
		return nil, err
	}
	kernel, err := open(builder.KernelName)
	if err != nil {
		return nil, err
	}
	var initrd io.Reader
	if k.root == nil {
		if initrd, err = open(builder.InitrdName); err != nil {
			return nil, err
		}
	}
	cmdline := k.Cmdline()
	if g.Params.Hashes, err = snp.HashDirectBoot(kernel, initrd, &cmdline); err != nil {
		return nil, err
	}
	return measure.NewSNPMeasurements(k.manifest.Name, g)
}

// kataCPU is the model that Kata gives every SNP guest: cpuModel in qemu_amd64.go.
const kataCPU = "EPYC-v4"

// guest is what measurements.json says of the image, but for what is started.
func (k *Kata) guest() (*measure.SNPGuest, error) {
	f := k.measurements.SNP
	era, err := snp.FindEra(f.Era)
	if err != nil {
		return nil, err
	}
	cpu, err := snp.FindCPU(kataCPU)
	if err != nil {
		return nil, err
	}
	features, err := measure.ParseBits(f.GuestFeatures)
	if err != nil {
		return nil, err
	}
	policy, err := measure.ParseBits(f.Policy)
	if err != nil {
		return nil, err
	}
	return &measure.SNPGuest{
		Params: snp.Params{VMM: snp.QEMU, Era: era}, Machines: k.measurements.Machines, CPUs: []snp.CPU{cpu},
		Features: features, Policy: snp.Policy(policy), Versions: k.measurements.Versions,
	}, nil
}

// WriteDisk writes the disk that Kata attaches: the root as first partition and,
// as second, its hash tree from the first block on, as the table that Kata makes
// begins it there. from is the image's disk, which has an ESP before and a
// superblock between them.
func (k *Kata) WriteDisk(w io.WriterAt, from *io.SectionReader) error {
	if k.root == nil {
		return errors.New("export: kata: the initrd is the root, there is no disk")
	}
	table, err := gpt.Read(from, from.Size())
	if err != nil {
		return err
	}
	dataID, hashID := k.root.PartitionIDs()
	data, err := partition(from, table, gpt.FromUUID(dataID))
	if err != nil {
		return err
	}
	hash, err := partition(from, table, gpt.FromUUID(hashID))
	if err != nil {
		return err
	}
	r := k.root
	size, skip := int64(r.DataBlocks)*int64(r.DataBlockSize), int64(r.HashStart)*int64(r.HashBlockSize)
	if data.Size() < size || hash.Size() <= skip {
		return fmt.Errorf("export: kata: partitions of %d and %d bytes: want %d and more than %d", data.Size(), hash.Size(), size, skip)
	}
	data, hash = io.NewSectionReader(data, 0, size), io.NewSectionReader(hash, skip, hash.Size()-skip)
	return disk.Write(w, disk.Disk{
		ID:         disk.ID(k.seed, "kata disk", r.RootHash),
		Partitions: disk.Root(gpt.FromUUID(dataID), gpt.FromUUID(hashID), data, hash),
	})
}

// partition returns the one of that GUID.
func partition(from *io.SectionReader, t *gpt.Table, id gpt.GUID) (*io.SectionReader, error) {
	for _, p := range t.Partitions {
		if p.ID == id {
			first, size := int64(p.First)*int64(t.SectorSize), int64(p.Last-p.First+1)*int64(t.SectorSize)
			return io.NewSectionReader(from, first, size), nil
		}
	}
	return nil, fmt.Errorf("export: kata: no partition %v", id)
}
