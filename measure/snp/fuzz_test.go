package snp

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// addFirmware seeds a fuzz target with real tails, if the vectors are there, and
// made ones.
func addFirmware(f *testing.F) {
	f.Add(firmware(nil)[2*pageSize:])
	f.Add(firmware(svsmTail(0x100))[2*pageSize:])
	f.Add(ovmftest.TDXTail(0x1000, 0x1000).Bytes())
	dir := os.Getenv("PLINTH_VECTORS")
	if dir == "" {
		dir = filepath.Join(testenv.Root(f), "..", "shared", "vectors")
	}
	tails, err := filepath.Glob(filepath.Join(dir, "measure", "sev-snp-measure", "fixtures", "*.bin"))
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range tails {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[len(b)-pageSize:])
	}
}

// FuzzLaunch measures any file as firmware and as SVSM. What can be measured has
// a seed that gives the same digest, and an explanation that ends in it.
func FuzzLaunch(f *testing.F) {
	addFirmware(f)
	h := &Hashes{Kernel: [32]byte{1}}
	base := firmware(nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []Params{
			{Firmware: b}, {Firmware: b, Hashes: h}, {VMM: EC2, Firmware: b}, {Firmware: base, SVSM: b},
		} {
			l, err := NewLaunch(p)
			if err != nil {
				continue
			}
			v := VCPUs{Count: 2}
			want, err := l.Digest(v)
			if err != nil {
				continue
			}
			ranges, err := l.Explain(v)
			if err != nil || ranges[len(ranges)-1].Digest != want {
				t.Errorf("explanation ends in %x, %v, want %x", ranges[len(ranges)-1].Digest, err, want)
			}
			text, err := json.Marshal(l.Seed())
			if err != nil {
				t.Fatal(err)
			}
			s, err := ParseSeed(text)
			if err != nil {
				t.Fatal(err)
			}
			if got := digest(t, launch(t, Params{VMM: p.VMM, Seed: s, Hashes: p.Hashes}), v); got != want {
				t.Errorf("from the seed %x, want %x", got, want)
			}
		}
		// The older modes take any file of whole pages.
		if _, err := SEV(b, h); err == nil {
			if _, err := SEVES(b, h, VCPUs{Count: 1}); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzSeed: what parses writes back to the same seed.
func FuzzSeed(f *testing.F) {
	for _, p := range []Params{{Firmware: firmware(nil)}, {Firmware: firmware(nil), SVSM: firmware(svsmTail(0))}} {
		b, err := json.Marshal(launch(f, p).Seed())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSeed(b)
		if err != nil {
			return
		}
		launch(t, Params{Seed: s})
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseSeed(text); err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("%s: %+v, %v, want %+v", text, again, err, s)
		}
	})
}

// FuzzIDAuth: what parses has its bytes from the fields alone.
func FuzzIDAuth(f *testing.F) {
	b := &IDBlock{Policy: DefaultPolicy}
	for _, author := range []bool{false, true} {
		key := authorKey(f)
		if !author {
			key = nil
		}
		auth, err := SignIDBlock(b, testKey(f, rfcKey), key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(auth)
	}
	f.Fuzz(func(t *testing.T, auth []byte) {
		a, err := ParseIDAuth(auth)
		if err != nil {
			return
		}
		if got := a.marshal(t); !bytes.Equal(got, auth) {
			t.Errorf("%x, want %x", got, auth)
		}
		_ = VerifyIDAuth(b, auth)
	})
}

// marshal writes the wire form by its offsets.
func (a *IDAuth) marshal(t *testing.T) []byte {
	b := make([]byte, IDAuthSize)
	put := func(algo, signature, key int, s ECDSASignature, wire []byte) {
		b[algo] = 1
		copy(b[signature:], append(littleEndian(s.R), littleEndian(s.S)...))
		copy(b[key:], wire)
	}
	wire, err := wireKey(a.Key)
	if err != nil {
		t.Fatal(err)
	}
	put(0, 0x40, 0x240, a.Signature, wire)
	if a.Author != nil {
		if wire, err = wireKey(a.Author); err != nil {
			t.Fatal(err)
		}
		put(4, 0x680, 0x880, a.AuthorSignature, wire)
	}
	return b
}

// FuzzIDBlock: what parses writes back to the same bytes.
func FuzzIDBlock(f *testing.F) {
	b := (&IDBlock{Digest: [48]byte{1}, SVN: 2, Policy: DefaultPolicy}).Marshal()
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, block []byte) {
		b, err := ParseIDBlock(block)
		if err != nil {
			return
		}
		if got := b.Marshal(); !bytes.Equal(got[:], block) {
			t.Errorf("%x, want %x", got, block)
		}
	})
}

// FuzzText: policies and host data that parse are those that they write.
func FuzzText(f *testing.F) {
	f.Add("0x30000")
	f.Add(HostData{1, 2, 3}.String())
	f.Add("qwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePolicy(s); err == nil {
			if again, err := ParsePolicy(p.String()); err != nil || again != p || p.Check() != nil {
				t.Errorf("%q: %v, %v", s, again, err)
			}
		}
		if h, err := ParseHostData(s); err == nil {
			if again, err := ParseHostData(h.String()); err != nil || again != h {
				t.Errorf("%q: %v, %v", s, again, err)
			}
		}
		if _, err := FindCPU(s); err == nil && len(s) > 32 {
			t.Errorf("%q is a CPU", s)
		}
	})
}
