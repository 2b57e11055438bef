package export

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/pelletier/go-toml/v2"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/tests/synthetic"
	"github.com/plinth-os/plinth/verity"
)

// A kataImage is an image with a verity root, and its disk.
type kataImage struct {
	manifest     *builder.Manifest
	measurements *measure.Measurements
	root         *verity.Root
	data, disk   []byte
}

// newKataImage makes one whose kernel sets a root up by itself.
func newKataImage(t *testing.T, blocks int) *kataImage {
	t.Helper()
	i := &kataImage{data: make([]byte, blocks*4096)}
	rand.New(rand.NewSource(1)).Read(i.data)
	i.root = &verity.Root{
		Params:    verity.Params{Algorithm: "sha256", DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: uint64(blocks), Salt: bytes.Repeat([]byte{0x5a}, 32), Format: 1},
		HashStart: 1, OnCorruption: verity.Panic,
	}
	tree := make(file, 1<<20)
	var err error
	if i.root.RootHash, err = verity.Format(io.NewOffsetWriter(&tree, 4096), bytes.NewReader(i.data), i.root.Params); err != nil {
		t.Fatal(err)
	}
	copy(tree, "verity\x00\x00 the superblock")
	i.disk = i.layout(t, tree)
	i.manifest = &builder.Manifest{
		Name: "demo", Platform: profiles.PlatformSNP, Cmdline: "quiet plinth.verity=" + i.root.String() + " panic=-1 empty=",
		Machine: builder.Machine{Type: "q35", VCPUs: []int{2, 4}, Memory: 1024}, Profile: canonical(t),
		Root: &builder.Root{Argument: "plinth.verity=" + i.root.String(), DMInit: "yes",
			KataParams: fmt.Sprintf("root_hash=%x,salt=%x,data_blocks=%d,data_block_size=4096,hash_block_size=4096", i.root.RootHash, i.root.Salt, blocks)},
	}
	shapes := []measure.Shape{{Type: "q35", VCPUs: 2, MemoryMiB: 1024}, {Type: "q35", VCPUs: 4, MemoryMiB: 1024}}
	i.measurements = &measure.Measurements{
		Machine: shapes[0], Machines: shapes,
		SNP: &measure.SNPFacts{Policy: "0x30000", GuestFeatures: "0x1", VMM: "qemu", Era: snp.Eras[0].Name},
	}
	return i
}

// file is what is written to at offsets.
type file []byte

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(*f) {
		*f = append(*f, make([]byte, need-len(*f))...)
	}
	return copy((*f)[off:], p), nil
}

// layout is the image's own disk: an ESP first, and a signature last.
func (i *kataImage) layout(t *testing.T, tree []byte) []byte {
	t.Helper()
	section := func(b []byte) *io.SectionReader { return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))) }
	dataID, hashID := i.root.PartitionIDs()
	parts := []disk.Partition{{Type: disk.TypeESP, ID: disk.ID("x", "esp"), Name: "esp", Size: 4096, Content: func(w io.WriterAt) error {
		_, err := w.WriteAt([]byte("not FAT"), 0)
		return err
	}}}
	parts = append(parts, disk.Root(gpt.FromUUID(dataID), gpt.FromUUID(hashID), section(i.data), section(tree))...)
	parts = append(parts, disk.RootSignature(disk.ID("x", "sig"), []byte("{}")))
	var out file
	if err := disk.Write(&out, disk.Disk{ID: disk.ID("x", "disk"), Partitions: parts}); err != nil {
		t.Fatal(err)
	}
	return out
}

// canonical is a resolved profile.
func canonical(t *testing.T) []byte {
	t.Helper()
	p, err := profiles.Load(fstest.MapFS{"profiles/demo.toml": {Data: []byte(synthetic.SNPProfile)}}, "demo", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Canonical()
}

func (i *kataImage) kata(t *testing.T) *Kata {
	t.Helper()
	k, err := NewKata(i.manifest, i.measurements)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The command line of a guest that Kata started, published with the quote whose
// RTMR 2 it leads to: see measure/tdx, TestPublishedCommandLine. That one had an
// ext4 root, parameters of its owner's, and a release that still said nr_cpus to a
// confidential guest.
func TestPublishedKataCmdline(t *testing.T) {
	const published = `tsc=reliable no_timer_check rcupdate.rcu_expedited=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 i8042.noaux=1 noreplace-smp reboot=k cryptomgr.notests net.ifnames=0 pci=lastbus=0 dm-mod.create="dm-verity,,,ro,0 772096 verity 1 /dev/vda1 /dev/vda2 4096 4096 96512 0 sha256 768cd7e848f6cb7eb4f59467b26ee5c5e45ece570cb96a5c952d97dbc89bb150 63f8dacc786bd19f307be8668c7792a8fe07818df4aae55b63e76c4931d35c76" root=/dev/dm-0 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4 console=hvc0 console=hvc1 quiet systemd.show_status=false panic=1 nr_cpus=1 selinux=0 systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service systemd.mask=systemd-networkd.socket scsi_mod.scan=none agent.launch_process_timeout=6 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1`
	const root = "root_hash=768cd7e848f6cb7eb4f59467b26ee5c5e45ece570cb96a5c952d97dbc89bb150,salt=63f8dacc786bd19f307be8668c7792a8fe07818df4aae55b63e76c4931d35c76," +
		"data_blocks=96512,data_block_size=4096,hash_block_size=4096,hash_start=1,hash=sha256,format=1,on_corruption=panic"
	k, err := NewKata(&builder.Manifest{
		Platform: profiles.PlatformTDX, Profile: canonical(t), Root: &builder.Root{Argument: "plinth.verity=" + root},
		Cmdline: "cgroup_no_v1=all plinth.verity=" + root + " systemd.unified_cgroup_hierarchy=1",
	}, &measure.Measurements{})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(" nr_cpus=1", "", "rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4", "rootflags=ro rootfstype=erofs").Replace(published)
	if got := k.Cmdline(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestKataInitrd(t *testing.T) {
	i := newKataImage(t, 1)
	i.manifest.Root, i.manifest.Cmdline = nil, "loglevel=3"
	k := i.kata(t)
	if got, want := k.Cmdline(), "pci=lastbus=0 console=hvc0 console=hvc1 quiet panic=1 selinux=0 scsi_mod.scan=none agent.launch_process_timeout=6 loglevel=3"; !strings.HasSuffix(got, want) {
		t.Errorf("%s\nwant at its end\n%s", got, want)
	}
	c := parseKata(t, k.Config("/opt/x", nil))
	if c["initrd"] != "/opt/x/initrd" || c["image"] != "" || c["kernel_verity_params"] != nil || c["kernel"] != "/opt/x/vmlinuz" {
		t.Errorf("%v", c)
	}
	if err := k.WriteDisk(&file{}, nil); err == nil {
		t.Error("a disk of an image without one")
	}
}

// parseKata returns the table of the hypervisor.
func parseKata(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var c struct {
		Hypervisor struct{ Qemu map[string]any }
		Agent      struct{ Kata map[string]any }
	}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if c.Agent.Kata["launch_process_timeout"] != int64(6) {
		t.Errorf("agent: %v", c.Agent.Kata)
	}
	return c.Hypervisor.Qemu
}

func TestKataConfig(t *testing.T) {
	i := newKataImage(t, 3)
	c := parseKata(t, i.kata(t).Config(`/opt/a "b"\c`, nil))
	for key, want := range map[string]any{
		"kernel": `/opt/a "b"\c/vmlinuz`, "image": `/opt/a "b"\c/kata.img`, "initrd": "", "rootfs_type": "erofs",
		"kernel_verity_params": i.manifest.Root.KataParams, "kernel_params": "quiet panic=-1 empty=",
		"firmware": `/opt/a "b"\c/firmware.fd`, "firmware_volume": "", "confidential_guest": true, "sev_snp_guest": true, "snp_guest_policy": int64(0x30000),
		"default_vcpus": int64(2), "default_maxvcpus": int64(4), "default_memory": int64(1024), "disable_image_nvdimm": true,
	} {
		if c[key] != want {
			t.Errorf("%s is %v, want %v", key, c[key], want)
		}
	}
	if !strings.HasSuffix(i.kata(t).Cmdline(), " quiet panic=-1 empty") {
		t.Errorf("%s", i.kata(t).Cmdline())
	}

	// A kernel that cannot is not named, and nothing is said of its digests.
	i.manifest.Root.DMInit = "no: not built in: CONFIG_DM_INIT"
	k := i.kata(t)
	b := k.Config("/opt/x", nil)
	if own, why := k.OwnKernel(); own || why == "" || parseKata(t, b)["kernel"] != nil || !bytes.Contains(b, []byte("CONFIG_DM_INIT")) {
		t.Errorf("%t, %s\n%s", own, why, b)
	}
	if m, err := k.Measurements(nil); m != nil || err != nil {
		t.Errorf("%v, %v", m, err)
	}
}

func TestNotKata(t *testing.T) {
	for name, change := range map[string]func(*kataImage){
		"a TPM":          func(i *kataImage) { i.manifest.Platform = profiles.PlatformVTPM },
		"another hash":   func(i *kataImage) { i.root.Algorithm, i.root.RootHash = "sha512", bytes.Repeat([]byte{1}, 64) },
		"another format": func(i *kataImage) { i.root.Format = 0 },
	} {
		i := newKataImage(t, 1)
		change(i)
		i.manifest.Root.Argument = "plinth.verity=" + i.root.String()
		if _, err := NewKata(i.manifest, i.measurements); !errors.Is(err, ErrNotKata) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The table that Kata makes of the parameters fits the disk.
func TestKataDisk(t *testing.T) {
	table := regexp.MustCompile(`"dm-verity,,,ro,0 (\d+) verity 1 /dev/vda1 /dev/vda2 4096 4096 (\d+) 0 sha256 ([0-9a-f]+) ([0-9a-f]+)"`)
	for _, blocks := range []int{1, 2, 127, 128, 129, 300} {
		i := newKataImage(t, blocks)
		k := i.kata(t)
		var out file
		if err := k.WriteDisk(&out, io.NewSectionReader(bytes.NewReader(i.disk), 0, int64(len(i.disk)))); err != nil {
			t.Fatal(err)
		}
		parts := partitions(t, out)
		if len(parts) != 2 {
			t.Fatalf("%d partitions", len(parts))
		}
		m := table.FindStringSubmatch(k.Cmdline())
		if m == nil || m[1] != fmt.Sprint(blocks*8) || m[2] != fmt.Sprint(blocks) || m[3] != fmt.Sprintf("%x", i.root.RootHash) || m[4] != fmt.Sprintf("%x", i.root.Salt) {
			t.Fatalf("table %q of %d blocks", m, blocks)
		}
		if !bytes.Equal(parts[0][:len(i.data)], i.data) {
			t.Error("the first partition is not the root")
		}
		if err := verity.Verify(bytes.NewReader(parts[0]), bytes.NewReader(parts[1]), i.root.Params, i.root.RootHash); err != nil {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		verifyWithTool(t, parts, blocks, m[3], m[4])
	}
}

func partitions(t *testing.T, image []byte) (out [][]byte) {
	t.Helper()
	table, err := gpt.Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Partitions {
		out = append(out, image[p.First*512:(p.Last+1)*512])
	}
	return out
}

// verifyWithTool is a second opinion: what the kernel would be told.
func verifyWithTool(t *testing.T, parts [][]byte, blocks int, root, salt string) {
	t.Helper()
	tool := testenv.Tool("veritysetup")
	if tool == "" {
		if testenv.Required("veritysetup") {
			t.Fatal("veritysetup: not installed")
		}
		return
	}
	dir := t.TempDir()
	var names []string
	for i, b := range parts {
		names = append(names, filepath.Join(dir, fmt.Sprint(i)))
		if err := os.WriteFile(names[i], b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := exec.Command(tool, "verify", "--no-superblock", "--format=1", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096",
		fmt.Sprint("--data-blocks=", blocks), "--salt="+salt, "--hash-offset=0", names[0], names[1], root).CombinedOutput()
	if err != nil {
		t.Errorf("veritysetup, %d blocks: %v\n%s", blocks, err, b)
	}
}

// The digests are those of Kata's command line, the one CPU model, and no initrd.
func TestKataMeasurements(t *testing.T) {
	i := newKataImage(t, 1)
	k := i.kata(t)
	files := map[string][]byte{builder.FirmwareName: ovmftest.AmdSev("2026.08-1"), builder.KernelName: synthetic.Kernel("6.12")}
	open := func(name string) (*io.SectionReader, error) {
		b, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("%s is not for Kata", name)
		}
		return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), nil
	}
	m, err := k.Measurements(open)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Values) != 2 || m.Values[0].CPU != "EPYC-v4" || m.Values[0].Shape.VCPUs != 2 || m.Values[1].Shape.VCPUs != 4 || m.Values[0].Value == m.Values[1].Value {
		t.Fatalf("%+v", m.Values)
	}
	cmdline := k.Cmdline()
	hashes, err := snp.HashDirectBoot(bytes.NewReader(files[builder.KernelName]), nil, &cmdline)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.SNP.KernelHashes.Cmdline, fmt.Sprintf("%x", hashes.Cmdline); got != want || m.SNP.Policy != "0x30000" {
		t.Errorf("hash of the command line %s, want %s; policy %s", got, want, m.SNP.Policy)
	}
	if len(m.Values[0].Value) != 2*sha512.Size384 {
		t.Errorf("digest %s", m.Values[0].Value)
	}
	b := k.Config("/opt/x", m)
	for _, v := range m.Values {
		if !bytes.Contains(b, []byte(fmt.Sprintf("%d  %s", v.Shape.VCPUs, v.Value))) {
			t.Errorf("no %s in\n%s", v.Value, b)
		}
	}
	i.manifest.Cmdline += " more"
	if other, err := i.kata(t).Measurements(open); err != nil || other.Values[0].Value == m.Values[0].Value {
		t.Errorf("another command line, the same digest; %v", err)
	}
}
