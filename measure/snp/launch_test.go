package snp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// firmware is three pages: two of code and the tail of edk2's AmdSev build with
// changes.
func firmware(edit func(*ovmftest.Tail)) []byte {
	tail := ovmftest.AmdSevTail()
	if edit != nil {
		edit(&tail)
	}
	code := bytes.Repeat([]byte("plinth: code... "), 2*pageSize/16)
	code[pageSize] = 'P' // the pages differ
	return append(code, tail.Bytes()...)
}

func launch(t testing.TB, p Params) *Launch {
	t.Helper()
	l, err := NewLaunch(p)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func digest(t testing.TB, l *Launch, v VCPUs) [48]byte {
	t.Helper()
	d, err := l.Digest(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func hashes(t testing.TB, kernel, initrd, cmdline string) *Hashes {
	t.Helper()
	h, err := HashDirectBoot(strings.NewReader(kernel), strings.NewReader(initrd), &cmdline)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func wantError(t *testing.T, name string, err error, want string) {
	t.Helper()
	if err == nil || !strings.HasPrefix(err.Error(), "snp: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want one of snp with %q", name, err, want)
	}
}

// TestFlip moves one byte of each input and names the first range that follows.
func TestFlip(t *testing.T) {
	type inputs struct {
		p                       Params
		v                       VCPUs
		kernel, initrd, cmdline string
	}
	explain := func(edit func(*inputs)) []PageRange {
		in := inputs{
			p: Params{Firmware: firmware(nil)}, v: VCPUs{Count: 3, Signature: 0x800f12},
			kernel: "kernel", initrd: "initrd", cmdline: "quiet",
		}
		edit(&in)
		in.p.Hashes = hashes(t, in.kernel, in.initrd, in.cmdline)
		ranges, err := launch(t, in.p).Explain(in.v)
		if err != nil {
			t.Fatal(err)
		}
		return ranges
	}
	before := explain(func(*inputs) {})
	for name, row := range map[string]struct {
		edit func(*inputs)
		want string
	}{
		"first byte of the firmware": {func(in *inputs) { in.p.Firmware[0] ^= 1 }, "firmware"},
		"last byte of the firmware":  {func(in *inputs) { in.p.Firmware[3*pageSize-1] ^= 1 }, "firmware"},
		"kernel":                     {func(in *inputs) { in.kernel = "kernem" }, "SEV metadata 6: kernel hashes"},
		"initrd":                     {func(in *inputs) { in.initrd = "initre" }, "SEV metadata 6: kernel hashes"},
		"command line":               {func(in *inputs) { in.cmdline = "quiet " }, "SEV metadata 6: kernel hashes"},
		"type":                       {func(in *inputs) { in.v.Signature++ }, "vCPU 0 (BSP)"},
		"features":                   {func(in *inputs) { in.v.Features = 0x21 }, "vCPU 0 (BSP)"},
		"era":                        {func(in *inputs) { in.p.Era = Eras[2] }, "vCPU 0 (BSP)"},
		"count":                      {func(in *inputs) { in.v.Count = 4 }, "vCPUs 1-3 (AP)"},
		"VMM":                        {func(in *inputs) { in.p.VMM = GCE }, "SEV metadata 0: memory"},
	} {
		after := explain(row.edit)
		i := slices.IndexFunc(after, func(r PageRange) bool { return !slices.Contains(before, r) })
		if i < 0 || after[i].Source != row.want {
			t.Errorf("%s: range %d moves first, want %s", name, i, row.want)
		}
		if after[len(after)-1].Digest == before[len(before)-1].Digest {
			t.Errorf("%s: the digest does not move", name)
		}
	}
}

// TestExplain folds the ranges anew, page by page, with nothing but SHA-384.
func TestExplain(t *testing.T) {
	l := launch(t, Params{Firmware: firmware(nil), Hashes: hashes(t, "k", "", "")})
	v := VCPUs{Count: 2, Signature: 0xa00f11}
	ranges, err := l.Explain(v)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&text, "%s %#x %d %s\n", r.Type, r.GPA, r.Pages, r.Source)
	}
	const want = `normal 0xffffd000 3 firmware
zero 0x800000 9 SEV metadata 0: memory
zero 0x80a000 3 SEV metadata 1: memory
secrets 0x80d000 1 SEV metadata 2: secrets
cpuid 0x80e000 1 SEV metadata 3: CPUID
zero 0x80f000 1 SEV metadata 4: SVSM calling area
zero 0x811000 31 SEV metadata 5: memory
normal 0x810000 1 SEV metadata 6: kernel hashes
vmsa 0xfffffffff000 1 vCPU 0 (BSP)
vmsa 0xfffffffff000 1 vCPU 1 (AP)
`
	if text.String() != want {
		t.Errorf("%s\nwant\n%s", &text, want)
	}
	if last := ranges[len(ranges)-1].Digest; last != digest(t, l, v) {
		t.Errorf("last running digest %x, launch digest %x", last, digest(t, l, v))
	}
	if page := l.HashPage(); len(page) != 4096 || !bytes.Equal(page[0xc00:0xc00+176], hashes(t, "k", "", "").Table()) {
		t.Error("the table is not where the firmware looks for it")
	}
	if page := launch(t, Params{Firmware: firmware(nil)}).HashPage(); page != nil {
		t.Errorf("%d bytes of hashes that are off", len(page))
	}
}

// TestVMMOrder: EC2 measures the CPUID page last, GCE does not measure that
// memory is zero.
func TestVMMOrder(t *testing.T) {
	for vmm, want := range map[VMM]string{
		QEMU: "zero zero secrets cpuid zero zero zero", GCE: "unmeasured unmeasured secrets cpuid zero unmeasured zero",
		EC2: "zero zero secrets zero zero zero cpuid", EC2RDX0: "zero zero secrets zero zero zero cpuid",
	} {
		ranges, err := launch(t, Params{VMM: vmm, Firmware: firmware(nil)}).Explain(VCPUs{Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range ranges[1 : len(ranges)-1] {
			got = append(got, r.Type)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, want %s", vmm, s, want)
		}
	}
}

// TestProduct: only the address of the register pages differs.
func TestProduct(t *testing.T) {
	for product, want := range map[string]uint64{"": 1<<48 - 4096, "Milan": 1<<48 - 4096, "Genoa": 1<<52 - 4096, "Turin": 1<<52 - 4096} {
		ranges, err := launch(t, Params{VMM: GCE, Firmware: firmware(nil), Product: product}).Explain(VCPUs{Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		if got := ranges[len(ranges)-1].GPA; got != want {
			t.Errorf("%q: %#x, want %#x", product, got, want)
		}
	}
}

// TestCounts: digests that share their pages, asked for in any order and at once,
// are those of launches of their own.
func TestCounts(t *testing.T) {
	l := launch(t, Params{Firmware: firmware(nil)})
	want := map[VCPUs][48]byte{}
	seen := map[[48]byte]bool{}
	for _, count := range []int{512, 1, 2, 64, 3, 511} {
		for _, signature := range []uint32{0x800f12, 0xa00f11} {
			v := VCPUs{Count: count, Signature: signature}
			want[v] = digest(t, launch(t, Params{Firmware: firmware(nil)}), v)
			seen[want[v]] = true
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d digests for %d sets of vCPUs", len(seen), len(want))
	}
	var wg sync.WaitGroup
	for v, d := range want {
		wg.Go(func() {
			if got, err := l.Digest(v); err != nil || got != d {
				t.Errorf("%+v: %x, %v, want %x", v, got, err, d)
			}
		})
	}
	wg.Wait()
	for range maxRuns + 1 { // more than are remembered
		v := VCPUs{Count: 1, Signature: uint32(len(seen))}
		seen[digest(t, l, v)] = true
	}
	if len(l.runs) > maxRuns {
		t.Errorf("%d runs are remembered, want at most %d", len(l.runs), maxRuns)
	}
	for _, count := range []int{-1, 0, MaxVCPUs + 1} {
		_, err := l.Digest(VCPUs{Count: count})
		wantError(t, fmt.Sprint(count), err, "want 1 to 65536")
		_, err = SEVES(firmware(nil), nil, VCPUs{Count: count})
		wantError(t, fmt.Sprint(count), err, "want 1 to 65536")
	}
}

// TestWithHashes: a kernel that comes later gives the same digest.
func TestWithHashes(t *testing.T) {
	h, v := hashes(t, "kernel", "initrd", "quiet"), VCPUs{Count: 2}
	whole, bare := launch(t, Params{Firmware: firmware(nil), Hashes: h}), launch(t, Params{Firmware: firmware(nil)})
	joined, err := bare.WithHashes(h)
	if err != nil {
		t.Fatal(err)
	}
	if digest(t, joined, v) != digest(t, whole, v) {
		t.Error("joined later: another digest")
	}
	if again, err := joined.WithHashes(nil); err != nil || digest(t, again, v) != digest(t, bare, v) {
		t.Error("taken off again: another digest")
	}
	if digest(t, bare, v) == digest(t, whole, v) {
		t.Error("the kernel does not count")
	}
}

// TestDirectBootEdges: what is absent is as if it were empty.
func TestDirectBootEdges(t *testing.T) {
	text := func(s string) *string { return &s }
	absent, err := HashDirectBoot(strings.NewReader("k"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if empty := hashes(t, "k", "", ""); *empty != *absent {
		t.Error("empty initrd and command line differ from absent ones")
	}
	seen := map[Hashes]string{*absent: "nothing"}
	for _, cmdline := range []string{"quiet", "quiet\n", "größe=日本語", "\xff\x80", " "} {
		h := hashes(t, "k", "", cmdline)
		if was, ok := seen[*h]; ok {
			t.Errorf("command line %q: as %s", cmdline, was)
		}
		seen[*h] = cmdline
	}
	_, err = HashDirectBoot(strings.NewReader("k"), nil, text("quiet\x00debug"))
	wantError(t, "NUL", err, "NUL at byte 5 of 11")
	_, err = HashDirectBoot(nil, nil, nil)
	wantError(t, "no kernel", err, "no kernel")
	broken := errors.New("broken")
	_, err = HashDirectBoot(iotest.ErrReader(broken), nil, nil)
	wantError(t, "broken kernel", err, "kernel: broken")
	_, err = HashDirectBoot(strings.NewReader("k"), iotest.ErrReader(broken), nil)
	wantError(t, "broken initrd", err, "initrd: broken")
	if !errors.Is(err, broken) {
		t.Errorf("%v does not wrap the cause", err)
	}
}

// TestTable builds the table by hand, with the SHA-256 of "", of a NUL and of 64
// MiB of zeros (sha256sum) in it.
func TestTable(t *testing.T) {
	const nothing, nul = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
	const zeros64M = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"
	for _, row := range []struct {
		size   int
		kernel string
	}{{0, nothing}, {64 << 20, zeros64M}} {
		h, err := HashDirectBoot(bytes.NewReader(make([]byte, row.size)), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := "06d63894" + "224f" + "c94c" + "b479a793d411fd21" + "a800" + // header, 168 bytes
			"d82dd097" + "20bd" + "944c" + "aa78e7714d36ab2a" + "3200" + nul + // command line, 50 bytes
			"31f7ba44" + "2f3a" + "d74b" + "9af141e29169781d" + "3200" + nothing + // initrd
			"3794e74d" + "d2ab" + "7f42" + "b835d5b172d2045b" + "3200" + row.kernel + "0000000000000000"
		if got := fmt.Sprintf("%x", h.Table()); got != want {
			t.Errorf("kernel of %d bytes:\n%s, want\n%s", row.size, got, want)
		}
	}
}

// TestNoHashArea: a kernel that would not be measured is refused, by its cause.
func TestNoHashArea(t *testing.T) {
	h := hashes(t, "k", "", "")
	for name, row := range map[string]struct {
		edit func(*ovmftest.Tail)
		snp  string // error of SNP
		flat string // error of SEV and SEV-ES
	}{
		"no area":           {func(x *ovmftest.Tail) { x.Hashes = [2]uint32{} }, "no hash table", "no hash table"},
		"small area":        {func(x *ovmftest.Tail) { x.Hashes[1] = 175 }, "175 bytes at 0x810c00", "175 bytes at 0x810c00"},
		"area over a page":  {func(x *ovmftest.Tail) { x.Hashes[0] = 0x810f51 }, "within a page", "within a page"},
		"no section":        {func(x *ovmftest.Tail) { x.SEV = x.SEV[:6] }, "no section for them", ""},
		"empty section":     {func(x *ovmftest.Tail) { x.SEV[6][1] = 0 }, "no section for them", ""},
		"two sections":      {func(x *ovmftest.Tail) { x.SEV = append(x.SEV, [3]uint32{0x900000, 0x1000, 0x10}) }, "a second one: the first is section 6", ""},
		"area elsewhere":    {func(x *ovmftest.Tail) { x.Hashes[0] = 0x811c00 }, "looks for the table at 0x811c00", ""},
		"last byte of page": {func(x *ovmftest.Tail) { x.Hashes[0] = 0x810f50 }, "", ""},
	} {
		image := firmware(row.edit)
		_, err := NewLaunch(Params{Firmware: image, Hashes: h})
		_, sev := SEV(image, h)
		_, seves := SEVES(image, h, VCPUs{Count: 1})
		for kind, c := range map[string]struct {
			err  error
			want string
		}{"SNP": {err, row.snp}, "SEV": {sev, row.flat}, "SEV-ES": {seves, row.flat}} {
			if c.want != "" {
				wantError(t, name+", "+kind, c.err, c.want)
			} else if c.err != nil {
				t.Errorf("%s, %s: %v", name, kind, c.err)
			}
		}
		if l, err := NewLaunch(Params{Firmware: image}); err == nil {
			if _, err := l.WithHashes(h); (err != nil) != (row.snp != "") {
				t.Errorf("%s: hashes that come later: %v", name, err)
			}
		} else {
			t.Errorf("%s: without a kernel: %v", name, err)
		}
	}
}

// TestHashSectionOfPages: what is behind the table's page is measured as zeros.
func TestHashSectionOfPages(t *testing.T) {
	one := launch(t, Params{Firmware: firmware(nil), Hashes: hashes(t, "k", "", "")})
	two := launch(t, Params{
		Firmware: firmware(func(x *ovmftest.Tail) { x.SEV[6][0], x.SEV[6][1], x.Hashes[0] = 0x900000, 0x2000, 0x900c00 }),
		Hashes:   hashes(t, "k", "", ""),
	})
	part := two.parts[6]
	c := chain{two.parts[5].digest}
	c.add(pageNormal, 0x900000, pageDigest(one.HashPage()))
	c.add(pageNormal, 0x901000, pageDigest(make([]byte, 4096)))
	if part.size != 0x2000 || part.digest != c.digest {
		t.Errorf("%#x bytes, %x, want %x", part.size, part.digest, c.digest)
	}
}

// TestRefusedFirmware: the cause and the place, never a panic.
func TestRefusedFirmware(t *testing.T) {
	section := func(i int, s [3]uint32) func(*ovmftest.Tail) { return func(x *ovmftest.Tail) { x.SEV[i] = s } }
	for name, row := range map[string]struct {
		file []byte
		want string
	}{
		"none":            {nil, "no firmware"},
		"not whole pages": {firmware(nil)[1:], "12287 bytes: want whole pages"},
		"no table":        {make([]byte, 8192), "no SEV metadata"},
		"no SEV":          {firmware(func(x *ovmftest.Tail) { x.SEV = nil }), "no SEV metadata"},
		"unknown type":    {firmware(section(5, [3]uint32{0x811000, 0x1000, 7})), "SEV metadata 5 (type 0x7) at 0x811000: unknown"},
		"overlap":         {firmware(section(1, [3]uint32{0x808000, 0x3000, 1})), "overlap"},
		"same page twice": {firmware(section(5, [3]uint32{0x80d000, 0x1000, 1})), "overlap"},
		"unaligned":       {firmware(section(5, [3]uint32{0x811010, 0x1000, 1})), "whole pages"},
		"part of a page":  {firmware(section(5, [3]uint32{0x811000, 0x1010, 1})), "whole pages"},
		"out of range":    {firmware(section(5, [3]uint32{0xfffff000, 0x2000, 1})), "4 GiB"},
		"in the firmware": {firmware(section(5, [3]uint32{0xffffe000, 0x1000, 1})), "overlap"},
		"secrets empty":   {firmware(section(2, [3]uint32{0x80d000, 0, 2})), "SEV metadata 2 (secrets) at 0x80d000: 0x0 bytes: want one page"},
		"two CPUID pages": {firmware(section(3, [3]uint32{0x900000, 0x2000, 3})), "0x2000 bytes: want one page"},
		"much memory":     {firmware(section(5, [3]uint32{0x10000000, 0x10000000, 1})), "want at most 0x10000000"},
	} {
		_, err := NewLaunch(Params{Firmware: row.file})
		wantError(t, name, err, row.want)
	}
	for name, edit := range map[string]func(*ovmftest.Tail){
		"empty memory":       section(5, [3]uint32{0x811000, 0, 1}),
		"empty calling area": section(4, [3]uint32{0x811000, 0, 4}),
		"no sections":        func(x *ovmftest.Tail) { x.SEV = [][3]uint32{} },
	} {
		ranges, err := launch(t, Params{Firmware: firmware(edit)}).Explain(VCPUs{Count: 1})
		if err != nil || slices.ContainsFunc(ranges, func(r PageRange) bool { return r.Pages == 0 }) {
			t.Errorf("%s: %v, %+v", name, err, ranges)
		}
	}
}

// TestTruncated cuts the firmware at each entry of its table, from both ends, and
// takes each entry's bytes away.
func TestTruncated(t *testing.T) {
	image := firmware(nil)
	m, err := ovmf.ReadMetadata(image)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Table) != 4 {
		t.Fatalf("%d entries, want 4", len(m.Table))
	}
	for _, e := range m.Table {
		end := e.Offset + len(e.Data) + 18
		for name, b := range map[string][]byte{
			"end":         image[:e.Offset],
			"end, padded": append(slices.Clone(image[:e.Offset]), make([]byte, len(image)-e.Offset)...),
			"start":       image[e.Offset:],
			"in the data": image[:e.Offset+len(e.Data)/2],
			"removed":     append(make([]byte, end-e.Offset), append(slices.Clone(image[:e.Offset]), image[end:]...)...),
		} {
			l, err := NewLaunch(Params{Firmware: b})
			if name == "removed" {
				// The table says that it is longer than what is left of it, so the walk
				// goes on into bytes that are no entries.
				wantError(t, e.Name+": "+name, err, "ovmf: ")
			} else if err == nil {
				t.Errorf("%s: %s: %x", e.Name, name, l.Seed().Digest())
			}
		}
	}
}

// TestNoResetBlock: one vCPU starts at the reset vector, others need an address.
func TestNoResetBlock(t *testing.T) {
	image := firmware(nil)
	m, err := ovmf.ReadMetadata(image)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(m.Table, func(e ovmf.TableEntry) bool { return e.Name == "SEV-ES reset block" })
	e := m.Table[i]
	image[e.Offset+len(e.Data)+2] ^= 1 // its GUID is another one's
	l := launch(t, Params{Firmware: image})
	digest(t, l, VCPUs{Count: 1})
	if _, err := SEVES(image, nil, VCPUs{Count: 1}); err != nil {
		t.Error(err)
	}
	_, err = l.Digest(VCPUs{Count: 2})
	wantError(t, "SNP", err, "2 vCPUs: the firmware has no SEV-ES reset block")
	_, err = l.Explain(VCPUs{Count: 2})
	wantError(t, "explain", err, "no SEV-ES reset block")
	_, err = SEVES(image, nil, VCPUs{Count: 2})
	wantError(t, "SEV-ES", err, "2 vCPUs: the firmware has no SEV-ES reset block")
}

func TestRefusedParams(t *testing.T) {
	image := firmware(nil)
	seed := launch(t, Params{Firmware: image}).Seed()
	for name, row := range map[string]struct {
		p    Params
		want string
	}{
		"VMM":               {Params{VMM: "xen", Firmware: image}, "want one of qemu, gce, ec2"},
		"seed and firmware": {Params{Seed: seed, Firmware: image}, "want one of them"},
		"seed and SVSM":     {Params{Seed: seed, SVSM: image}, "want one of them"},
		"variables":         {Params{Firmware: image, VarsSize: 4096}, "it counts with an SVSM only"},
		"product of QEMU":   {Params{Firmware: image, Product: "Milan"}, "it counts with gce only"},
		"product":           {Params{VMM: GCE, Firmware: image, Product: "milan"}, "want Milan, Genoa or Turin"},
		"no SVSM info":      {Params{Firmware: image, SVSM: image}, "no SVSM info"},
	} {
		_, err := NewLaunch(row.p)
		wantError(t, name, err, row.want)
	}
	l := launch(t, Params{Firmware: image})
	_, err := l.Digest(VCPUs{Count: 1, Features: 0x20})
	wantError(t, "features", err, "features 0x20: bit 0, SNPActive, is not set")
	_, err = SEVES(image, nil, VCPUs{Count: 1, Features: 0x21})
	wantError(t, "features of SEV-ES", err, "bit 0, SNPActive, is set for SEV-ES")
}

// TestSVSM checks what the published values do not: refusals, and where things
// are.
func TestSVSM(t *testing.T) {
	offset := uint32(0x1234)
	svsm := firmware(func(x *ovmftest.Tail) { x.SVSM, x.Hashes = &offset, [2]uint32{} })
	p := Params{Firmware: firmware(nil), SVSM: svsm, VarsSize: 0x2000}
	l := launch(t, p)
	ranges, err := l.Explain(VCPUs{Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	if r := ranges[1]; r.GPA != 0xffffd000-0x2000-0x3000 || r.Pages != 3 || r.Source != "svsm" {
		t.Errorf("SVSM: %+v", r)
	}
	pages, err := l.VMSA(VCPUs{Count: 3})
	if err != nil || len(pages) != 1 {
		t.Errorf("%d register pages, want 1: %v", len(pages), err)
	}
	if rip := binary.LittleEndian.Uint64(pages[0][0x178:]); rip != 0xffff8000+0x1234 {
		t.Errorf("it begins at %#x", rip)
	}
	seeded := launch(t, Params{Seed: l.Seed()})
	if digest(t, seeded, VCPUs{Count: 3}) != digest(t, l, VCPUs{Count: 3}) {
		t.Error("from the seed: another digest")
	}
	far := firmware(func(x *ovmftest.Tail) { n := uint32(0x3000); x.SVSM, x.Hashes = &n, [2]uint32{} })
	over := firmware(func(x *ovmftest.Tail) {
		x.SVSM, x.Hashes, x.SEV[5][0] = &offset, [2]uint32{}, 0xfff00000
		x.SEV[5][1] = 0x100000 - 0x6000
	})
	for name, row := range map[string]struct {
		edit func(*Params)
		want string
	}{
		"kernel":            {func(p *Params) { p.Hashes = hashes(t, "k", "", "") }, "an SVSM does not measure them"},
		"EC2":               {func(p *Params) { p.VMM = EC2 }, "want qemu"},
		"variables":         {func(p *Params) { p.VarsSize = 0x800 }, "whole pages"},
		"negative":          {func(p *Params) { p.VarsSize = -0x1000 }, "whole pages"},
		"many variables":    {func(p *Params) { p.VarsSize = 17 << 20 }, "at most 16777216"},
		"start beyond":      {func(p *Params) { p.SVSM = far }, "it starts at byte 0x3000: it has 0x3000"},
		"section over SVSM": {func(p *Params) { p.SVSM = over }, "overlap the svsm"},
		"not whole pages":   {func(p *Params) { p.SVSM = svsm[16:] }, "SVSM: 12272 bytes"},
	} {
		p := p
		row.edit(&p)
		_, err := NewLaunch(p)
		wantError(t, name, err, row.want)
	}
}

// TestBounds: a firmware of the largest size takes little memory beside itself.
func TestBounds(t *testing.T) {
	image := append(make([]byte, 16<<20-3*pageSize), firmware(nil)...)
	for i := 0; i < len(image)-3*pageSize; i += pageSize {
		binary.LittleEndian.PutUint32(image[i:], uint32(i))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	launch(t, Params{Firmware: image})
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes for a firmware of %d", used, len(image))
	}
	_, err := NewLaunch(Params{Firmware: append(make([]byte, pageSize), image...)})
	wantError(t, "17 MiB", err, "want at most 16777216")
}
