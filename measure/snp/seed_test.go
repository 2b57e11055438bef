package snp

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// svsmTail changes the tail of a firmware to that of an SVSM.
func svsmTail(offset uint32) func(*ovmftest.Tail) {
	return func(x *ovmftest.Tail) { x.SVSM, x.Hashes = &offset, [2]uint32{} }
}

func testSeed(t testing.TB) *Seed { return launch(t, Params{Firmware: firmware(nil)}).Seed() }

// TestSeed: a seed goes through JSON and gives the digest of the firmware.
func TestSeed(t *testing.T) {
	h, v := hashes(t, "k", "i", "c"), VCPUs{Count: 3, Signature: 0xa00f11}
	for name, p := range map[string]Params{
		"firmware": {Firmware: firmware(nil)},
		"SVSM":     {Firmware: firmware(nil), SVSM: firmware(svsmTail(0)), VarsSize: 0x1000},
		"bare":     {Firmware: firmware(func(x *ovmftest.Tail) { x.SEV, x.Hashes = [][3]uint32{}, [2]uint32{} })},
	} {
		l := launch(t, p)
		b, err := json.Marshal(l.Seed())
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseSeed(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(s, l.Seed()) {
			t.Errorf("%s: read back %+v, want %+v", name, s, l.Seed())
		}
		q := Params{Seed: s}
		if name == "firmware" {
			q.Hashes = h
			if l, err = l.WithHashes(h); err != nil {
				t.Fatal(err)
			}
		}
		if digest(t, launch(t, q), v) != digest(t, l, v) {
			t.Errorf("%s: from the seed: another digest", name)
		}
	}
}

// TestSeedIsACopy: who changes a seed does not change launches.
func TestSeedIsACopy(t *testing.T) {
	l := launch(t, Params{Firmware: firmware(nil)})
	was := digest(t, l, VCPUs{Count: 2})
	s := l.Seed()
	m := launch(t, Params{Seed: s})
	*s.Reset, s.Sections[0].GPA, s.Files[0].Digest[0], s.Hashes.Base = 1, 0, 1, 0
	for name, l := range map[string]*Launch{"it is of": l, "it made": m} {
		if other := launch(t, Params{Seed: l.Seed()}); digest(t, other, VCPUs{Count: 2}) != was {
			t.Errorf("the launch that %s: another digest", name)
		}
	}
}

// TestNewSeed: the digest of another tool, the metadata of a firmware.
func TestNewSeed(t *testing.T) {
	l := launch(t, Params{Firmware: firmware(nil)})
	other := firmware(nil)
	other[0] ^= 1 // the same metadata
	s, err := NewSeed(other, l.Seed().Digest())
	if err != nil {
		t.Fatal(err)
	}
	if digest(t, launch(t, Params{Seed: s}), VCPUs{Count: 2}) != digest(t, l, VCPUs{Count: 2}) {
		t.Error("another digest")
	}
	_, err = NewSeed(make([]byte, 4096), [48]byte{})
	wantError(t, "no metadata", err, "no SEV metadata")
	_, err = NewSeed(nil, [48]byte{})
	wantError(t, "nothing", err, "whole pages")
}

func TestSeedRefused(t *testing.T) {
	b, err := json.Marshal(testSeed(t))
	if err != nil {
		t.Fatal(err)
	}
	for old, row := range map[string]struct{ now, want string }{
		`"schema":1`:             {`"schema":2`, "schema 2: want 1"},
		`"name":"firmware"`:      {`"name":"svsm"`, `file 0 is "svsm": want "firmware"`},
		`"gpa":"0xffffd000"`:     {`"gpa":"0xffffc000"`, "want them to end at 0x100000000"},
		`"size":"0x3000"`:        {`"size":"0x3001"`, "want whole pages"},
		`"digest":"`:             {`"digest":"00`, "want 96 hexadecimal digits"},
		`"reset_eip":"0x80b004"`: {`"reset_eip":"0x0080b004"`, "as 0x80b004"},
		`"files":[`:              {`"files":[],"sections":[],"x":[`, "unknown key"},
		`"sections":[`:           {`"sections":[{"type":"0x1","gpa":"0x800000","size":"0x1000"},`, "overlaps section 0"},
		`"gpa":"0x80f000"`:       {`"gpa":"0x80f001"`, "whole pages"},
		`"type":"0x4"`:           {`"type":"0x5"`, "unknown"},
		`"gpa":"0x811000"`:       {`"gpa":"0xfffff000"`, "below 4 GiB"},
		`"type":"0x10"`:          {`"type":"0x100000000"`, "at most 32 bits"},
	} {
		if n := strings.Count(string(b), old); n < 1 {
			t.Errorf("%s: not in %s", old, b)
		}
		_, err := ParseSeed([]byte(strings.Replace(string(b), old, row.now, 1)))
		wantError(t, row.now, err, row.want)
	}
	_, err = ParseSeed(bytes.Repeat([]byte(" "), 1<<20+1))
	wantError(t, "long", err, "want at most")
	for name, row := range map[string]struct {
		edit func(*Seed)
		want string
	}{
		"no files":        {func(s *Seed) { s.Files = nil }, "0 files"},
		"no sections":     {func(s *Seed) { s.Sections = nil }, "no SEV metadata"},
		"empty file":      {func(s *Seed) { s.Files[0].Size = 0 }, "whole pages"},
		"in the firmware": {func(s *Seed) { s.Sections[0].GPA = 0xffffe000; s.Sections[0].Size = 0x1000 }, "overlap the firmware at 0xffffd000"},
		"SVSM above":      {func(s *Seed) { s.Files = append(s.Files, SeedFile{Name: "svsm", GPA: 0xffffc000, Size: 0x2000}) }, "below"},
		"SVSM's hashes":   {func(s *Seed) { s.Files = append(s.Files, SeedFile{Name: "svsm", GPA: 0xffff0000, Size: 0x2000}) }, "a table of kernel hashes"},
		"SVSM's start": {func(s *Seed) {
			s.Files = append(s.Files, SeedFile{Name: "svsm", GPA: 0xffff0000, Size: 0x2000})
			s.Reset = nil
		}, "no address where processors begin"},
		"a section again": {func(s *Seed) { s.Sections = append(s.Sections, s.Sections[0]) }, "overlaps section 0 (memory)"},
		"overlap unsorted": {func(s *Seed) {
			s.Sections = append(s.Sections, ovmf.SEVSection{GPA: 0x700000, Size: 0x200000, Type: 1})
		}, "overlap"},
	} {
		s := testSeed(t)
		row.edit(s)
		_, err := NewLaunch(Params{Seed: s})
		wantError(t, name, err, row.want)
	}
}
