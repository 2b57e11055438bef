package ovmf_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/measure/tdx"
)

// keys are no certificates: firmware would refuse them, Enroll does not look
// inside.
var keys = ovmf.Keys{
	Owner: ovmf.GUID{0x7f}, PK: []byte("\x30\x02PK"), KEK: [][]byte{[]byte("\x30\x03KEK")}, DB: [][]byte{[]byte("\x30\x02db")},
	Epoch: 1767225600,
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// withVariables adds variables to a flash.
func withVariables(t *testing.T, flash []byte, vars ...ovmf.Variable) []byte {
	t.Helper()
	s := must[*ovmf.VarStore](t)(ovmf.ParseVars(flash))
	for _, v := range vars {
		if err := s.Set(v); err != nil {
			t.Fatal(err)
		}
	}
	return must[[]byte](t)(s.Bytes())
}

func TestSetupMode(t *testing.T) {
	order := ovmf.Variable{Name: "BootOrder", GUID: ovmf.GlobalVariable, Attributes: 7, Data: []byte{0, 0}}
	other := ovmf.Variable{Name: "PK", GUID: ovmf.GUID{1}, Attributes: 7, Data: []byte("of another vendor")}
	for name, blank := range map[string][]byte{"variables": ovmftest.BlankVars(0x84000), "whole flash": ovmftest.IntelTDX("2026.08-1")} {
		owned := must[[]byte](t)(ovmf.Enroll(blank, keys))
		for _, list := range []string{"dbx", "dbt", "dbr"} {
			owned = withVariables(t, owned, ovmf.Variable{Name: list, GUID: ovmf.ImageSecurity, Attributes: 0x27, Data: []byte(list)})
		}
		owned = withVariables(t, owned, order, other)
		before := bytes.Clone(owned)
		got := must[[]byte](t)(ovmf.SetupMode(owned))
		if !bytes.Equal(got, withVariables(t, blank, order, other)) {
			t.Errorf("%s: more or less is left than BootOrder and the other vendor's PK: %v", name, must[*ovmf.VarStore](t)(ovmf.ParseVars(got)).List())
		}
		if !bytes.Equal(owned, before) {
			t.Errorf("%s: the argument was altered", name)
		}
		if again := must[[]byte](t)(ovmf.SetupMode(got)); !bytes.Equal(again, got) {
			t.Errorf("%s: a second time gives other bytes", name)
		}
		if bare := must[[]byte](t)(ovmf.SetupMode(blank)); !bytes.Equal(bare, blank) {
			t.Errorf("%s: a flash without keys changes", name)
		}
	}
	if _, err := ovmf.SetupMode(ovmftest.Code(ovmftest.Volumes(""))); !errors.Is(err, ovmf.ErrNoStore) {
		t.Errorf("code alone: %v", err)
	}
}

// Rewriting the variables of a combined firmware touches nothing else: neither
// code nor the digest of it, but the volume of the CFV section, which RTMR 0
// covers.
func TestVariablesAreNotInMRTD(t *testing.T) {
	original := ovmftest.IntelTDX("2026.08-1")
	checkRewrites(t, "synthetic", original)
	flipped := bytes.Clone(original)
	flipped[len(flipped)-0x1000] ^= 1 // of the code
	for _, o := range []tdx.Order{tdx.SinglePass, tdx.TwoPass} {
		if must[[48]byte](t)(tdx.MRTD(flipped, o)) == must[[48]byte](t)(tdx.MRTD(original, o)) {
			t.Errorf("%s: MRTD does not cover the code", o)
		}
	}
}

// checkRewrites compares a combined firmware with keys and without.
func checkRewrites(t *testing.T, name string, original []byte) {
	t.Helper()
	enrolled := must[[]byte](t)(ovmf.Enroll(original, keys))
	setup := must[[]byte](t)(ovmf.SetupMode(enrolled))
	m := must[*ovmf.Metadata](t)(ovmf.ReadMetadata(original))
	cfv := section(t, m, ovmf.TDXCFV)
	if cfv.Offset != 0 || uint64(cfv.Size) != binary.LittleEndian.Uint64(original[0x20:]) {
		t.Errorf("%s: the CFV section, %+v, is not the volume at the front", name, cfv)
	}
	seen := map[[32]byte]string{}
	for what, file := range map[string][]byte{"enrolled": enrolled, "setup mode": setup} {
		if !bytes.Equal(file[cfv.Size:], original[cfv.Size:]) || len(file) != len(original) {
			t.Errorf("%s: %s: bytes behind the variables changed", name, what)
		}
		content := must[[]byte](t)(m.Content(file, cfv))
		if other := seen[sha256.Sum256(content)]; other != "" {
			t.Errorf("%s: the CFV is the same %s and %s", name, what, other)
		}
		seen[sha256.Sum256(content)] = what
		for _, o := range []tdx.Order{tdx.SinglePass, tdx.TwoPass} {
			want := must[[48]byte](t)(tdx.MRTD(original, o))
			if got := must[[48]byte](t)(tdx.MRTD(file, o)); got != want {
				t.Errorf("%s: %s: %s: MRTD is %x, was %x", name, what, o, got, want)
			}
		}
	}
}

func section(t *testing.T, m *ovmf.Metadata, kind ovmf.TDXType) ovmf.TDXSection {
	t.Helper()
	for _, s := range m.TDX {
		if s.Type == kind {
			return s
		}
	}
	t.Fatalf("no section %v", kind)
	return ovmf.TDXSection{}
}

func TestRealVariablesAreNotInMRTD(t *testing.T) {
	for path, b := range ovmf.RealFirmware(t) {
		m := must[*ovmf.Metadata](t)(ovmf.ReadMetadata(b))
		if m.TDX == nil || m.Whole != m.Size {
			continue
		}
		checkRewrites(t, path, b)
		s := must[*ovmf.VarStore](t)(ovmf.ParseVars(must[[]byte](t)(ovmf.SetupMode(b))))
		if n := len(s.List()); n > 0 {
			t.Errorf("%s: %d variables are left in setup mode", path, n)
		}
	}
}
