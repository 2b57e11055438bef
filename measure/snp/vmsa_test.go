package snp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// register is a value that stands in a save area: offset, bytes, value. Offsets
// are those of APM volume 2, table B-4; a segment is u16 selector, u16
// attributes, u32 limit, u64 base.
type register struct {
	at, size int
	value    uint64
}

// realMode is what all VMMs have.
func realMode() map[string]register {
	m := map[string]register{
		"cs selector": {0x10, 2, 0xf000}, "cs attributes": {0x12, 2, 0x9b}, "cs limit": {0x14, 4, 0xffff}, "cs base": {0x18, 8, 0xffff0000},
		"gdtr limit": {0x64, 4, 0xffff}, "ldtr attributes": {0x72, 2, 0x82}, "ldtr limit": {0x74, 4, 0xffff},
		"idtr limit": {0x84, 4, 0xffff}, "tr attributes": {0x92, 2, 0x8b}, "tr limit": {0x94, 4, 0xffff},
		"efer": {0xd0, 8, 0x1000}, "cr4": {0x148, 8, 0x40}, "cr0": {0x158, 8, 0x10}, "dr7": {0x160, 8, 0x400}, "dr6": {0x168, 8, 0xffff0ff0},
		"rflags": {0x170, 8, 2}, "rip": {0x178, 8, 0xfff0}, "g_pat": {0x268, 8, 0x0007040600070406},
		"sev_features": {0x3b0, 8, 1}, "xcr0": {0x3e8, 8, 1},
	}
	for name, at := range map[string]int{"es": 0x00, "ss": 0x20, "ds": 0x30, "fs": 0x40, "gs": 0x50} {
		m[name+" attributes"], m[name+" limit"] = register{at + 2, 2, 0x93}, register{at + 4, 4, 0xffff}
	}
	return m
}

// page writes registers into a page of zeros.
func page(registers map[string]register) []byte {
	b := make([]byte, 4096)
	for _, r := range registers {
		var v [8]byte
		binary.LittleEndian.PutUint64(v[:], r.value)
		copy(b[r.at:], v[:r.size])
	}
	return b
}

func TestVMSA(t *testing.T) {
	offset := uint32(0x1000)
	for _, row := range []struct {
		p         Params
		boot, app map[string]register // what differs from realMode
	}{
		{
			Params{}, map[string]register{"rdx": {0x310, 8, 0xa10f10}, "mxcsr": {0x408, 4, 0x1f80}, "fcw": {0x410, 2, 0x37f}},
			map[string]register{"cs base": {0x18, 8, 0x800000}, "rip": {0x178, 8, 0xb004}, "rdx": {0x310, 8, 0xa10f10}, "mxcsr": {0x408, 4, 0x1f80}, "fcw": {0x410, 2, 0x37f}},
		},
		{
			Params{Era: Eras[1]}, map[string]register{"rdx": {0x310, 8, 0xa10f10}, "sev_features": {0x3b0, 8, 0x21}},
			map[string]register{"cs base": {0x18, 8, 0x800000}, "rip": {0x178, 8, 0xb004}, "rdx": {0x310, 8, 0xa10f10}, "sev_features": {0x3b0, 8, 0x21}},
		},
		{
			Params{Era: Eras[2]}, map[string]register{"rdx": {0x310, 8, 0xa10f10}},
			map[string]register{"cs base": {0x18, 8, 0x800000}, "rip": {0x178, 8, 0xb004}, "rdx": {0x310, 8, 0xa10f10}},
		},
		{
			Params{VMM: EC2}, map[string]register{"cs attributes": {0x12, 2, 0x9a}, "ss attributes": {0x22, 2, 0x92}, "tr attributes": {0x92, 2, 0x83}, "rdx": {0x310, 8, 0x600}},
			map[string]register{"cs base": {0x18, 8, 0x800000}, "rip": {0x178, 8, 0xb004}, "ss attributes": {0x22, 2, 0x92}, "tr attributes": {0x92, 2, 0x83}, "rdx": {0x310, 8, 0x600}},
		},
		{
			Params{VMM: EC2RDX0}, map[string]register{"cs attributes": {0x12, 2, 0x9a}, "ss attributes": {0x22, 2, 0x92}, "tr attributes": {0x92, 2, 0x83}},
			map[string]register{"cs base": {0x18, 8, 0x800000}, "rip": {0x178, 8, 0xb004}, "ss attributes": {0x22, 2, 0x92}, "tr attributes": {0x92, 2, 0x83}},
		},
		{
			Params{VMM: GCE}, map[string]register{"g_pat": {0x268, 8, 0x70106}, "rdx": {0x310, 8, 0x600}},
			map[string]register{"cs base": {0x18, 8, 0x800000}, "rip": {0x178, 8, 0xb004}, "g_pat": {0x268, 8, 0x70106}, "rdx": {0x310, 8, 0x600}},
		},
		{
			Params{SVSM: firmware(svsmTail(offset))}, map[string]register{
				"es": {0x00, 8, 0xffffffff_0c93_0010}, "cs": {0x10, 8, 0xffffffff_0c9b_0008}, "cs base": {0x18, 8, 0}, "ss": {0x20, 8, 0xffffffff_0c93_0010},
				"ds": {0x30, 8, 0xffffffff_0c93_0010}, "fs": {0x40, 8, 0xffffffff_0c93_0010}, "cr0": {0x158, 8, 0x11},
				"rip": {0x178, 8, 1<<32 - 2*0x3000 + 0x1000}, "rdx": {0x310, 8, 0xa10f10}, "mxcsr": {0x408, 4, 0x1f80},
			}, nil,
		},
	} {
		row.p.Firmware = firmware(nil)
		name := fmt.Sprintf("%s, era %s, SVSM of %d bytes", row.p.VMM, row.p.Era.Name, len(row.p.SVSM))
		pages, err := launch(t, row.p).VMSA(VCPUs{Count: 2, Signature: 0xa10f10})
		if err != nil {
			t.Fatal(err)
		}
		for i, changes := range []map[string]register{row.boot, row.app} {
			if changes == nil {
				if len(pages) != i {
					t.Errorf("%s: %d pages, want %d", name, len(pages), i)
				}
				break
			}
			want := realMode()
			for what, r := range changes {
				for _, part := range []string{" selector", " attributes", " limit"} {
					delete(want, what+part) // the row has the segment as a whole
				}
				want[what] = r
			}
			for at, b := range page(want) {
				if pages[i][at] != b {
					t.Errorf("%s: page %d: byte %#x is %#02x, want %#02x", name, i, at, pages[i][at], b)
				}
			}
		}
	}
}

// TestFeaturesDefault: the features of an era are those of QEMU's hosts only.
func TestFeaturesDefault(t *testing.T) {
	for vmm, want := range map[VMM]byte{QEMU: 0x21, GCE: 1, EC2: 1} {
		pages, err := launch(t, Params{VMM: vmm, Era: Eras[1], Firmware: firmware(nil)}).VMSA(VCPUs{Count: 1})
		if err != nil || len(pages) != 1 || pages[0][0x3b0] != want {
			t.Errorf("%s: features %#x, want %#x; %d pages, %v", vmm, pages[0][0x3b0], want, len(pages), err)
		}
	}
}

// TestSEVESEra: SEV-ES has the features of the era without SNPActive.
func TestSEVESEra(t *testing.T) {
	image, v := firmware(nil), VCPUs{Count: 2, Signature: 0x800f12}
	sev := func(e Era, v VCPUs) [32]byte {
		d, err := e.SEVES(image, nil, v)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	seen := map[[32]byte]string{}
	for _, e := range Eras {
		if was, ok := seen[sev(e, v)]; ok {
			t.Errorf("%s: as %s", e.Name, was)
		}
		seen[sev(e, v)] = e.Name
	}
	debugSwap := v
	debugSwap.Features = 0x20
	if sev(Eras[2], debugSwap) != sev(Eras[1], v) {
		t.Error("DebugSwap is not what the era of DebugSwap has")
	}
	newest, err := SEVES(image, nil, v)
	if err != nil || newest != sev(Eras[0], v) {
		t.Error("the default is not the newest era")
	}
}

func TestFindEra(t *testing.T) {
	for _, e := range Eras {
		for _, name := range []string{e.Name, e.Name[len("linux-"):]} {
			if got, err := FindEra(name); err != nil || got != e {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
	}
	_, err := FindEra("6.9")
	wantError(t, "6.9", err, "want one of linux-6.10, linux-6.6, linux-5.19")
	for name, want := range map[string]VMM{"QEMU": QEMU, "ec2": EC2, "GCE": GCE, "ec2-rdx0": EC2RDX0} {
		if got, err := FindVMM(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

// TestPageSize: the wire structures have the sizes of their specifications.
func TestPageSize(t *testing.T) {
	if n := binary.Size(saveArea{}); n != 4096 {
		t.Errorf("save area: %d bytes, want 4096", n)
	}
	if n := binary.Size(wireBlock{}); n != 96 {
		t.Errorf("ID block: %d bytes, want 96", n)
	}
	if n := len((&Hashes{}).Table()); n != 176 {
		t.Errorf("hash table: %d bytes, want 176", n)
	}
	if !bytes.Equal((&saveArea{}).page(), make([]byte, 4096)) {
		t.Error("an empty save area is not zero")
	}
}
