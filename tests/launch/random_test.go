package launch

import (
	"bytes"
	crand "crypto/rand"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/snp"
)

var seedFlag = flag.Uint64("seed", 0, "of the random combinations; 0: another one each run")

func newSeed() uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	var b [8]byte
	crand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// TestRandom compares measure/snp with this package's encoder.
func TestRandom(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 200
	}
	seed := newSeed()
	t.Logf("repeat with: go test ./tests/launch -run TestRandom -args -seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	files := realFirmware(t)
	refused := 0
	for n := range rounds {
		c := randomCase(r, files)
		if err := c.compare(); err != nil {
			t.Fatalf("seed %d, combination %d: %s: %v", seed, n, c, err)
		}
		if _, err := c.guest.SNP(); err != nil {
			refused++
		}
	}
	t.Logf("%d combinations agree, %d of them refused by both; %d real firmware files", rounds, refused, len(files))
	if refused == 0 || refused > rounds/2 {
		t.Errorf("%d of %d combinations refused", refused, rounds)
	}
}

// TestDamaged flips a bit of the metadata: measure/snp may refuse what results;
// if it takes it, both encoders have read the same in it.
func TestDamaged(t *testing.T) {
	seed := newSeed()
	t.Logf("repeat with: go test ./tests/launch -run TestDamaged -args -seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	taken := 0
	for n := range 500 {
		p := randomParts(r)
		p.code = p.code[:0]
		c := testCase{name: "damaged", era: snp.Eras[0], guest: Guest{Firmware: p.firmware(r), VCPUs: 1 + r.IntN(2), Features: 1, MXCSR: 0x1f80, FCW: 0x37f}}
		if r.IntN(2) > 0 {
			c.randomDirect(r)
		}
		at := []int{metaAt + r.IntN(140), pageSize - 32 - r.IntN(250)}[r.IntN(2)]
		c.guest.Firmware[at] ^= 1 << r.IntN(8)
		h, err := c.hashes()
		if err != nil {
			t.Fatal(err)
		}
		l, err := snp.NewLaunch(snp.Params{Firmware: c.guest.Firmware, Hashes: h})
		if err != nil {
			continue
		}
		if _, err := l.Digest(snp.VCPUs{Count: c.guest.VCPUs}); err != nil {
			continue
		}
		taken++
		if err := c.compareSNP(h); err != nil {
			t.Fatalf("seed %d, firmware %d, offset %#x: %s: %v", seed, n, at, c, err)
		}
	}
	t.Logf("%d of 500 taken", taken)
}

// realFirmware returns the firmware files of the published vectors and of the
// machine; without any of them the synthetic ones remain.
func realFirmware(t *testing.T) map[string][]byte {
	t.Helper()
	vectors := os.Getenv("PLINTH_VECTORS") // as testenv.Vectors, which skips where there are none
	if vectors == "" {
		vectors = filepath.Join(testenv.Root(t), "..", "shared", "vectors")
	}
	vectors = filepath.Join(vectors, "measure")
	files := map[string][]byte{}
	for _, dir := range append([]string{
		filepath.Join(vectors, "sev-snp-measure", "fixtures"), filepath.Join(vectors, "tdx-measure"), "/usr/share/ovmf",
	}, filepath.SplitList(os.Getenv("PLINTH_OVMF"))...) {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != ".fd" && !strings.HasSuffix(path, "_suffix.bin") {
				return nil
			}
			b, err := os.ReadFile(path)
			if _, bad := read(b); err == nil && bad == nil {
				files[path] = b
			}
			return err
		})
	}
	return files
}

// a testCase is a guest and what measure/snp is told of it.
type testCase struct {
	name    string // of the firmware
	guest   Guest
	era     snp.Era
	initrd  bool // with a kernel: an initrd is given, though it may be empty
	cmdline bool
}

func (c testCase) String() string {
	s := fmt.Sprintf("%s, %d bytes, %d vCPUs of %#x, features %#x, %s", c.name, len(c.guest.Firmware), c.guest.VCPUs, c.guest.Signature, c.guest.Features, c.era.Name)
	if d := c.guest.Direct; d != nil {
		s += fmt.Sprintf(", kernel of %d bytes, initrd %v of %d, command line %v %q", len(d.Kernel), c.initrd, len(d.Initrd), c.cmdline, d.Cmdline)
	}
	return s
}

// cpus are the family, model and stepping of QEMU's processors, whatever their
// version: target/i386/cpu.c, builtin_x86_defs.
var cpus = map[string][3]uint32{
	"EPYC": {23, 1, 2}, "EPYC-Rome": {23, 49, 0}, "EPYC-Milan": {25, 1, 1}, "EPYC-Genoa": {25, 17, 0}, "EPYC-Turin": {26, 0, 0},
}

// signature is CPUID Fn0000_0001 EAX: APM volume 3, appendix E.3.2.
func signature(c [3]uint32) uint32 {
	const base = 15 // families above it have the rest in the extended field
	family, model, stepping := c[0], c[1], c[2]
	return (family-base)<<20 | model>>4<<16 | base<<8 | model&15<<4 | stepping
}

func randomCase(r *rand.Rand, files map[string][]byte) testCase {
	c := testCase{name: "synthetic", era: snp.Eras[r.IntN(len(snp.Eras))]}
	if names := slices.Sorted(maps.Keys(files)); len(names) > 0 && r.IntN(32) == 0 {
		c.name = names[r.IntN(len(names))]
		c.guest.Firmware = files[c.name]
	} else {
		c.guest.Firmware = randomParts(r).firmware(r)
	}
	cpu := slices.Sorted(maps.Keys(cpus))[r.IntN(len(cpus))]
	c.guest.Signature = signature(cpus[cpu])
	if r.IntN(8) == 0 {
		c.guest.Signature = r.Uint32()
	}
	c.guest.VCPUs = 1 + r.IntN(8)
	if r.IntN(16) == 0 {
		c.guest.VCPUs = 1 + r.IntN(512)
	}
	c.guest.Features = []uint64{1, 0x21, 1 | r.Uint64()>>16}[r.IntN(3)]
	c.guest.MXCSR, c.guest.FCW = c.era.MXCSR, c.era.FCW
	c.guest.ESBits = c.era.Features &^ 1 // without SNPActive
	if r.IntN(3) > 0 {
		c.randomDirect(r)
	}
	return c
}

func (c *testCase) randomDirect(r *rand.Rand) {
	blob := func() []byte {
		b := make([]byte, []int{0, 1, r.IntN(70000)}[r.IntN(3)])
		fill(r, b)
		return b
	}
	d := &Direct{Kernel: blob()}
	if c.initrd = r.IntN(4) > 0; c.initrd {
		d.Initrd = blob()
	}
	if c.cmdline = r.IntN(4) > 0; c.cmdline {
		words := []string{"console=ttyS0", "root=/dev/vda", "ünïcødé=日本", "a=\"b c\"", "\n", "\t", "\xff\xfe", "x'y"}
		for range r.IntN(6) {
			d.Cmdline += words[r.IntN(len(words))] + " "
		}
	}
	c.guest.Direct = d
}

// hashes is what measure/snp makes of the direct boot.
func (c testCase) hashes() (*snp.Hashes, error) {
	d := c.guest.Direct
	if d == nil {
		return nil, nil
	}
	var initrd io.Reader
	if c.initrd {
		initrd = bytes.NewReader(d.Initrd)
	}
	var cmdline *string
	if c.cmdline {
		cmdline = &d.Cmdline
	}
	return snp.HashDirectBoot(bytes.NewReader(d.Kernel), initrd, cmdline)
}

// compare returns the first difference between the two encoders.
func (c testCase) compare() error {
	h, err := c.hashes()
	if err != nil {
		return err
	}
	if h != nil && !bytes.Equal(h.Table(), c.guest.Direct.table()) {
		return fmt.Errorf("hash table %x, want %x", h.Table(), c.guest.Direct.table())
	}
	if err := c.compareSNP(h); err != nil {
		return fmt.Errorf("SNP: %w", err)
	}
	got, err := snp.SEV(c.guest.Firmware, h)
	want, refused := c.guest.SEV()
	if err := same(got[:], err, want[:], refused); err != nil {
		return fmt.Errorf("SEV: %w", err)
	}
	got, err = c.era.SEVES(c.guest.Firmware, h, snp.VCPUs{Count: c.guest.VCPUs, Signature: c.guest.Signature})
	want, refused = c.guest.SEVES()
	if err := same(got[:], err, want[:], refused); err != nil {
		return fmt.Errorf("SEV-ES: %w", err)
	}
	return nil
}

// same compares a digest, or whether both encoders refuse.
func same(got []byte, err error, want []byte, refused error) error {
	switch {
	case (err == nil) != (refused == nil):
		return fmt.Errorf("error %v, the other encoder's is %v", err, refused)
	case err == nil && !bytes.Equal(got, want):
		return fmt.Errorf("%x, want %x", got, want)
	}
	return nil
}

func (c testCase) compareSNP(h *snp.Hashes) error {
	v := snp.VCPUs{Count: c.guest.VCPUs, Signature: c.guest.Signature, Features: c.guest.Features}
	want, refused := c.guest.SNP()
	l, err := snp.NewLaunch(snp.Params{VMM: snp.QEMU, Firmware: c.guest.Firmware, Hashes: h, Era: c.era})
	var got [48]byte
	if err == nil {
		got, err = l.Digest(v)
	}
	if err != nil || refused != nil {
		return same(nil, err, nil, refused)
	}
	if err := c.compareVMSAs(l, v); err != nil {
		return err
	}
	if last := want[len(want)-1].Digest; got != last {
		return fmt.Errorf("%x, want %x", got, last)
	}
	if err := c.compareSeed(l, h, v, got); err != nil {
		return err
	}
	ranges, err := l.Explain(v)
	if err != nil {
		return err
	}
	return comparePages(ranges, want)
}

// compareVMSAs compares the pages that differ: the first processor's, and any
// other's.
func (c testCase) compareVMSAs(l *snp.Launch, v snp.VCPUs) error {
	got, err := l.VMSA(v)
	if err != nil {
		return err
	}
	fw, err := read(c.guest.Firmware)
	if err != nil {
		return err
	}
	all, err := c.guest.states(fw, c.guest.Features)
	if err != nil {
		return err
	}
	want := all[:min(2, len(all))]
	if len(got) != len(want) {
		return fmt.Errorf("%d VMSAs, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			return fmt.Errorf("VMSA %d differs at offset %#x", i, differs(got[i], want[i]))
		}
	}
	return nil
}

// compareSeed computes the digest anew without the firmware.
func (c testCase) compareSeed(l *snp.Launch, h *snp.Hashes, v snp.VCPUs, want [48]byte) error {
	s, err := snp.NewLaunch(snp.Params{VMM: snp.QEMU, Seed: l.Seed(), Hashes: h, Era: c.era})
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	got, err := s.Digest(v)
	if err := same(got[:], err, want[:], nil); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	return nil
}

func differs(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// kinds are the words of Explain.
var kinds = map[uint8]string{Normal: "normal", VMSA: "vmsa", Zero: "zero", Unmeasured: "unmeasured", Secrets: "secrets", CPUID: "cpuid"}

// comparePages goes through the ranges of an explanation, page by page.
func comparePages(ranges []snp.PageRange, want []Page) error {
	at := 0
	for _, r := range ranges {
		if r.Pages == 0 {
			continue
		}
		if at+r.Pages > len(want) {
			return fmt.Errorf("%s: page %d of %d", r.Source, at+r.Pages, len(want))
		}
		for i, p := range want[at : at+r.Pages] {
			gpa := r.GPA + uint64(i)*pageSize
			if p.Type == VMSA {
				gpa = r.GPA // every processor's is at the same address
			}
			if r.Type != kinds[p.Type] || gpa != p.GPA {
				return fmt.Errorf("page %d, %s: %s at %#x, want %s at %#x", at+i, r.Source, r.Type, gpa, kinds[p.Type], p.GPA)
			}
		}
		if at += r.Pages; r.Digest != want[at-1].Digest {
			return fmt.Errorf("after page %d, %s: %x, want %x", at-1, r.Source, r.Digest, want[at-1].Digest)
		}
	}
	if at != len(want) {
		return fmt.Errorf("%d pages, want %d", at, len(want))
	}
	return nil
}
