package tdx

import (
	"slices"
	"strings"
	"testing"
)

// The values are those of published quotes: gce-cos-113 and a debuggable one of
// confidential-containers/trustee, deps/verifier/test_data/tdx_quote_4.dat.
func TestAttributes(t *testing.T) {
	for _, tt := range []struct {
		text  string
		a     Attributes
		debug bool
		names []string // how each begins
	}{
		{"0x0000000010000000", 0x10000000, false, []string{"SEPT_VE_DISABLE"}},
		{"0x0000000010000001", 0x10000001, true, []string{"DEBUG", "SEPT_VE_DISABLE"}},
		{"0x0000000000000000", 0, false, nil},
		{"0xc000000000000002", 0xc000000000000002, false, []string{"bit 1, not known", "TPA", "PERFMON"}},
	} {
		a, err := ParseAttributes(tt.text)
		if err != nil || a != tt.a || a.String() != tt.text || a.Debug() != tt.debug {
			t.Errorf("%s: %v, debug %v, %v", tt.text, a, a.Debug(), err)
		}
		same := func(got, want string) bool { return strings.HasPrefix(got, want) }
		if got := a.Describe(); !slices.EqualFunc(got, tt.names, same) {
			t.Errorf("%s: %q, want %q", tt.text, got, tt.names)
		}
	}
}

func TestXFAM(t *testing.T) {
	x, err := ParseXFAM("600e7")
	want := []string{"x87", "SSE", "AVX", "AVX-512 masks", "AVX-512 ZMM 0-15", "AVX-512 ZMM 16-31", "AMX configuration", "AMX data"}
	if err != nil || x.String() != "0x00000000000600e7" || !slices.Equal(x.Describe(), want) {
		t.Errorf("%v, %q, %v", x, x.Describe(), err)
	}
}

func TestParseBitsRefuses(t *testing.T) {
	for _, s := range []string{"", "0x", "0x0x1", "-1", "+1", "1_0", "10000000000000000", "xyz", " 1"} {
		if a, err := ParseAttributes(s); err == nil || !strings.HasPrefix(err.Error(), "tdx: attributes ") {
			t.Errorf("%q: %v, %v", s, a, err)
		}
		if x, err := ParseXFAM(s); err == nil || !strings.HasPrefix(err.Error(), "tdx: XFAM ") {
			t.Errorf("%q: %v, %v", s, x, err)
		}
	}
}
