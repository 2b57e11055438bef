package tdx

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// layout is what a firmware's metadata says of memory: the sections that edk2's
// builds have in that order.
func layout(ranges ...[2]uint64) *ovmf.Metadata {
	m := &ovmf.Metadata{TDX: []ovmf.TDXSection{
		{GPA: 0xffc84000, MemSize: 0x37c000, Size: 0x37c000, Offset: 0x84000, Type: ovmf.TDXBFV, Attributes: ovmf.TDXExtend},
		{GPA: 0xffc00000, MemSize: 0x84000, Size: 0x84000, Type: ovmf.TDXCFV},
	}}
	for _, r := range ranges {
		kind := ovmf.TDXTempMem
		if r[0] == 0x809000 {
			kind = ovmf.TDXHOB
		}
		m.TDX = append(m.TDX, ovmf.TDXSection{GPA: r[0], MemSize: r[1], Type: kind})
	}
	return m
}

// The sections of edk2's IntelTdx build, and of its generic build since 2024.
var (
	intelTDX = layout([2]uint64{0x810000, 0x10000}, [2]uint64{0x80b000, 0x2000}, [2]uint64{0x809000, 0x2000}, [2]uint64{0x800000, 0x6000})
	generic  = layout([2]uint64{0x811000, 0xf000}, [2]uint64{0x80b000, 0x2000}, [2]uint64{0x809000, 0x2000}, [2]uint64{0x800000, 0x6000})
)

// The bytes of the list for a small machine, by hand: PI 1.8, volume 3, 5.3 and
// 5.5.
func TestHOBByHand(t *testing.T) {
	const zero = "00000000" + "00000000"
	resource := func(kind, start, size string) string {
		return "0300" + "3000" + "00000000" + zero + zero + kind + "07000000" + start + size
	}
	want := "0100" + "3800" + "00000000" + "09000000" + "00000000" + zero + zero + zero + zero + "d090800000000000" + // 56 + 3·48 + 8 = 0xd0 bytes
		resource("07000000", "0000000000000000", "0090800000000000") +
		resource("00000000", "0090800000000000", "0020000000000000") +
		resource("07000000", "00b0800000000000", "0050ff0000000000") // 24 MiB - 0x80b000
	got, err := HOB(layout([2]uint64{0x809000, 0x2000}), 24)
	if err != nil || hex.EncodeToString(got) != want {
		t.Errorf("%x, %v: want %s", got, err, want)
	}
}

// sizes lists start and size of each range in a list.
func sizes(b []byte) (out [][2]uint64) {
	for b = b[handoffSize:]; len(b) > 0; b = b[resourceSize:] {
		le := func(b []byte) (n uint64) {
			for i := 7; i >= 0; i-- {
				n = n<<8 | uint64(b[i])
			}
			return n
		}
		out = append(out, [2]uint64{le(b[32:]), le(b[40:])})
	}
	return out
}

// q35 moves all memory above 2 GiB to 4 GiB once there is 2.75 GiB.
func TestHOBSplit(t *testing.T) {
	const tail = 0x820000 // behind the last section
	for mib, want := range map[int][][2]uint64{
		1024:    {{tail, 1024<<20 - tail}},
		2815:    {{tail, 2815<<20 - tail}},
		2816:    {{tail, 2048<<20 - tail}, {4 << 30, 768 << 20}},
		4096:    {{tail, 2048<<20 - tail}, {4 << 30, 2048 << 20}},
		1 << 20: {{tail, 2048<<20 - tail}, {4 << 30, 1<<40 - 2048<<20}},
	} {
		b, err := HOB(intelTDX, mib)
		if err != nil {
			t.Fatalf("%d MiB: %v", mib, err)
		}
		got := sizes(b)
		if n := len(got) - len(want); n < 0 || !slices.Equal(got[n:], want) {
			t.Errorf("%d MiB: %#x, want %#x at the end", mib, got, want)
		}
	}
}

// The ranges do not overlap, leave no gap, and do not depend on the order of the
// sections.
func TestHOBOrder(t *testing.T) {
	a, err := HOB(intelTDX, 2048)
	if err != nil {
		t.Fatal(err)
	}
	turned := &ovmf.Metadata{TDX: slices.Clone(intelTDX.TDX)}
	slices.Reverse(turned.TDX)
	if b, err := HOB(turned, 2048); err != nil || !bytes.Equal(a, b) {
		t.Errorf("sections turned around: %v", err)
	}
	at := uint64(0)
	for _, r := range sizes(a) {
		if r[0] != at {
			t.Errorf("range at %#x, want %#x", r[0], at)
		}
		at = r[0] + r[1]
	}
	if at != 2048<<20 {
		t.Errorf("the ranges end at %#x", at)
	}
}

// Sections without a gap, and one that ends where the memory ends.
func TestHOBWithoutGaps(t *testing.T) {
	b, err := HOB(layout([2]uint64{0x809000, 0x2000}, [2]uint64{0, 0x809000}, [2]uint64{0x80b000, 0x7f5000}), 16)
	want := [][2]uint64{{0, 0x809000}, {0x809000, 0x2000}, {0x80b000, 0x7f5000}}
	if err != nil || !slices.Equal(sizes(b), want) {
		t.Errorf("%#x, %v: want %#x", sizes(b), err, want)
	}
}

// QEMU leaves the list in the first section for it.
func TestHOBTwoPlaces(t *testing.T) {
	m := layout([2]uint64{0x809000, 0x2000}, [2]uint64{0x810000, 0x1000})
	m.TDX[3].Type = ovmf.TDXHOB
	b, err := HOB(m, 1024)
	if err != nil {
		t.Fatal(err)
	}
	const end = 0x809000 + handoffSize + 5*resourceSize + endSize
	if got := int(b[48]) | int(b[49])<<8 | int(b[50])<<16; got != end {
		t.Errorf("the list ends at %#x, want %#x", got, end)
	}
}

func TestHOBRefuses(t *testing.T) {
	hob := [2]uint64{0x809000, 0x2000}
	many := []([2]uint64){hob}
	for i := range uint64(90) {
		many = append(many, [2]uint64{0x1000000 + i*0x2000, 0x1000})
	}
	payload := layout(hob)
	payload.TDX = append(payload.TDX, ovmf.TDXSection{GPA: 0x1000000, MemSize: 0x1000, Type: ovmf.TDXPayload})
	for _, tt := range []struct {
		name string
		m    *ovmf.Metadata
		mib  int
		want string
	}{
		{"no memory", intelTDX, 0, "tdx: hand-off blocks: 0 MiB of memory"},
		{"negative memory", intelTDX, -1, "tdx: hand-off blocks: -1 MiB of memory"},
		{"too much memory", intelTDX, maxMemoryMiB + 1, "tdx: hand-off blocks: 268435457 MiB of memory"},
		{"less memory than the sections", intelTDX, 8, "tdx: hand-off blocks: section 5 (temporary memory): 0x6000 bytes at 0x800000: the machine has no such memory"},
		{"above all memory", layout(hob, [2]uint64{0x40000000, 0x1000}), 1024, "tdx: hand-off blocks: section 3 (temporary memory): 0x1000 bytes at 0x40000000: the machine has no such memory"},
		{"in the hole", layout(hob, [2]uint64{0x90000000, 0x1000}), 4096, "tdx: hand-off blocks: section 3 (temporary memory): 0x1000 bytes at 0x90000000: the machine has no such memory"},
		{"across the end", layout(hob, [2]uint64{0x3ffff000, 0x2000}), 1024, "tdx: hand-off blocks: section 3 (temporary memory): 0x2000 bytes at 0x3ffff000"},
		{"wraps around", layout(hob, [2]uint64{0x810000, ^uint64(0)}), 1024, "tdx: hand-off blocks: section 3 (temporary memory): 0xffffffffffffffff bytes"},
		{"twice", layout(hob, [2]uint64{0x80a000, 0x1000}), 1024, "tdx: hand-off blocks: section 3 (temporary memory): 0x1000 bytes at 0x80a000: another section has some of them"},
		{"empty", layout(hob, [2]uint64{0x810000, 0}), 1024, "tdx: hand-off blocks: section 3 (temporary memory): it is empty"},
		{"no place for the list", layout([2]uint64{0x810000, 0x1000}), 1024, "tdx: hand-off blocks: the firmware has no section for them"},
		{"list longer than its place", layout(many...), 1024, "tdx: hand-off blocks: 8848 bytes: their section has 8192"},
		{"payload", payload, 1024, "tdx: hand-off blocks: section 3 (payload): QEMU does not load it"},
		{"no metadata", &ovmf.Metadata{}, 1024, "tdx: hand-off blocks: the firmware has no section for them"},
	} {
		if _, err := HOB(tt.m, tt.mib); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %s", tt.name, err, tt.want)
		}
	}
}
