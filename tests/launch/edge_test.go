package launch

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/snp"
)

// direct makes a guest of the smallest firmware that takes kernel hashes.
func direct(d *Direct, initrd, cmdline bool) testCase {
	r := rand.New(rand.NewPCG(1, 2))
	p := &parts{
		sections: []section{{0x800000, 0x3000, 1}, {0x803000, 0x1000, 2}, {0x804000, 0x1000, 3}, {0x805000, 0x1000, 0x10}},
		hashes:   area{0x805c00, 0x400},
		apReset:  0x80b004,
	}
	return testCase{
		name: "smallest", era: snp.Eras[0], initrd: initrd, cmdline: cmdline,
		guest: Guest{Firmware: p.firmware(r), Direct: d, VCPUs: 1, Signature: 0x800f12, Features: 1, MXCSR: 0x1f80, FCW: 0x37f},
	}
}

func digest(t *testing.T, g Guest) [48]byte {
	t.Helper()
	pages, err := g.SNP()
	if err != nil {
		t.Fatal(err)
	}
	return pages[len(pages)-1].Digest
}

// TestEdges: what a table of sizes would not reach. Rows with the same letter
// have the same digest, others another one.
func TestEdges(t *testing.T) {
	kernel := []byte("kernel")
	big := bytes.Repeat([]byte("0123456789abcdef"), 4<<20) // 64 MiB
	many := direct(nil, false, false)
	many.guest.VCPUs = 512
	digests := map[[48]byte]string{}
	for _, row := range []struct {
		name, letter string
		c            testCase
	}{
		{"no direct boot", "none", direct(nil, false, false)},
		{"512 vCPUs", "many", many},
		{"no initrd, no command line", "a", direct(&Direct{Kernel: kernel}, false, false)},
		{"empty initrd, no command line", "a", direct(&Direct{Kernel: kernel}, true, false)},
		{"no initrd, empty command line", "a", direct(&Direct{Kernel: kernel}, false, true)},
		{"empty initrd, empty command line", "a", direct(&Direct{Kernel: kernel}, true, true)},
		{"initrd of a zero byte", "b", direct(&Direct{Kernel: kernel, Initrd: []byte{0}}, true, false)},
		{"command line of a blank", "c", direct(&Direct{Kernel: kernel, Cmdline: " "}, false, true)},
		{"newline at the end", "d", direct(&Direct{Kernel: kernel, Cmdline: "quiet\n"}, false, true)},
		{"no newline at the end", "e", direct(&Direct{Kernel: kernel, Cmdline: "quiet"}, false, true)},
		{"UTF-8", "f", direct(&Direct{Kernel: kernel, Cmdline: "größe=日本語"}, false, true)},
		{"not UTF-8", "g", direct(&Direct{Kernel: kernel, Cmdline: "\xff\x80"}, false, true)},
		{"command line of 64 KiB", "h", direct(&Direct{Kernel: kernel, Cmdline: strings.Repeat("a=1 ", 16<<10)}, false, true)},
		{"empty kernel", "i", direct(&Direct{Kernel: []byte{}}, false, false)},
		{"kernel of 64 MiB", "j", direct(&Direct{Kernel: big}, false, false)},
	} {
		if err := row.c.compare(); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		d := digest(t, row.c.guest)
		if was, ok := digests[d]; ok && was != row.letter {
			t.Errorf("%s: has the digest of %s", row.name, was)
		}
		digests[d] = row.letter
	}
	if len(digests) != 12 {
		t.Errorf("%d different digests, want 12", len(digests))
	}
}

// TestNUL: QEMU takes a command line as a C string, so none holds a NUL. One that
// does would be hashed to a digest that no guest has.
func TestNUL(t *testing.T) {
	cmdline := "quiet\x00init=/bin/sh"
	if h, err := snp.HashDirectBoot(strings.NewReader("kernel"), nil, &cmdline); err == nil {
		t.Errorf("hashed to %x", h.Cmdline)
	}
}

// TestCPUs: the type of a vCPU counts by its signature alone.
func TestCPUs(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range snp.CPUs {
		name := c.Name
		for cpus[name] == [3]uint32{} && strings.Contains(name, "-") {
			name = name[:strings.LastIndex(name, "-")] // without -v4, -IBPB
		}
		seen[name] = true
		if want := signature(cpus[name]); c.Signature != want {
			t.Errorf("%s: signature %#x, want %#x", c.Name, c.Signature, want)
		}
		found, err := snp.FindCPU(c.Name)
		if err != nil || found != c {
			t.Errorf("%s: found %+v, %v", c.Name, found, err)
		}
		got, err := snp.Signature(int(cpus[name][0]), int(cpus[name][1]), int(cpus[name][2]))
		if err != nil || got != c.Signature {
			t.Errorf("%s: signature of its family, model and stepping %#x, %v, want %#x", c.Name, got, err, c.Signature)
		}
	}
	if len(seen) != len(cpus) {
		t.Errorf("types %v, want %v", seen, cpus)
	}
}

// TestFlip: one byte of any input moves the digest, and the first page that
// moves is the one which holds the byte.
func TestFlip(t *testing.T) {
	base := func() testCase {
		c := direct(&Direct{Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "quiet"}, true, true)
		c.guest.Firmware = append(make([]byte, 2*pageSize), c.guest.Firmware...)
		c.guest.VCPUs = 3
		return c
	}
	const hashPage, firstVMSA = 3 + 3 + 2, 3 + 3 + 3
	before, err := func() ([]Page, error) { c := base(); return c.guest.SNP() }()
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		page int
		flip func(*Guest)
	}{
		"firmware, second page": {1, func(g *Guest) { g.Firmware[pageSize+100] ^= 1 }},
		"firmware, reset":       {2, func(g *Guest) { g.Firmware[3*pageSize-1] ^= 1 }},
		"kernel":                {hashPage, func(g *Guest) { g.Direct.Kernel[5] ^= 1 }},
		"initrd":                {hashPage, func(g *Guest) { g.Direct.Initrd[0] ^= 1 }},
		"command line":          {hashPage, func(g *Guest) { g.Direct.Cmdline = "quies" }},
		"vCPU type":             {firstVMSA, func(g *Guest) { g.Signature ^= 1 }},
		"features":              {firstVMSA, func(g *Guest) { g.Features ^= 0x20 }},
		"vCPUs":                 {firstVMSA + 3, func(g *Guest) { g.VCPUs++ }},
	} {
		c := base()
		row.flip(&c.guest)
		if err := c.compare(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		after, err := c.guest.SNP()
		if err != nil {
			t.Fatal(err)
		}
		moved := 0
		for moved < min(len(before), len(after)) && before[moved] == after[moved] {
			moved++
		}
		if moved != row.page {
			t.Errorf("%s: page %d is the first that moves, want %d", name, moved, row.page)
		}
	}
}
