package snp

import (
	"strings"
	"testing"
)

func TestPolicy(t *testing.T) {
	for _, row := range []struct {
		text, says string
	}{
		{"0x30000", "SMT allowed; migration agent refused; debugging refused; any number of sockets"},
		{"196608", "SMT allowed"},
		{"0x20000", "SMT refused"},
		{"0x60000", "SMT refused; migration agent allowed"},
		{"0xa0000", "debugging allowed"},
		{"0x120000", "one socket only; CXL refused"},
		{"0x220000", "CXL allowed; AES-128-XEX or AES-256-XTS"},
		{"0x420000", "AES-256-XTS required"},
		{"0x820000", "RAPL must be off; ciphertext hiding not required"},
		{"0x1020000", "ciphertext hiding required; page move and swap allowed"},
		{"0x2020000", "page move and swap refused"},
		{"0x2011f", "firmware ABI at least 1.31; "},
	} {
		p, err := ParsePolicy(row.text)
		if err != nil {
			t.Errorf("%s: %v", row.text, err)
		}
		if got := strings.Join(p.Describe(), "; "); !strings.Contains(got, row.says) {
			t.Errorf("%s: %s, want %q", row.text, got, row.says)
		}
		if p.Debug() != (row.text == "0xa0000") {
			t.Errorf("%s: debug %v", row.text, p.Debug())
		}
	}
	for text, want := range map[string]string{
		"": "want a number", "0x": "want a number", "-1": "want a number", "smt": "want a number",
		"0": "bit 17", "0x10000": "bit 17", "0x4020000": "bits 0x4000000", "0x8000000000020000": "bits 0x8000000000000000",
	} {
		if _, err := ParsePolicy(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if s := strings.Join(Policy(0).Describe(), "; "); !strings.Contains(s, "invalid: policy 0x0: bit 17") {
		t.Error(s)
	}
	if DefaultPolicy.String() != "0x30000" {
		t.Error(DefaultPolicy)
	}
}

func TestHostData(t *testing.T) {
	want := HostData{0: 0xab, 31: 0x01}
	for _, text := range []string{want.String(), strings.ToUpper(want.String()), "qwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="} {
		if got, err := ParseHostData(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "ab", strings.Repeat("0", 66), "qwAA", "qwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAF=", "qwAAAAAAAAAAAAAAAAAAAAAA\nAAAAAAAAAAAAAAAAAAE=", strings.Repeat("!", 44)} {
		if _, err := ParseHostData(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestFeatureNames(t *testing.T) {
	for features, want := range map[uint64]string{
		0: "", 1: "SNPActive", 0x21: "SNPActive DebugSwap", 0x8201: "SNPActive SecureTSC SmtProtection", 1<<11 | 1<<63: "bit 11 bit 63",
	} {
		if got := strings.Join(FeatureNames(features), " "); got != want {
			t.Errorf("%#x: %s, want %s", features, got, want)
		}
	}
}
