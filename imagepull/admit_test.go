package imagepull

import (
	"strings"
	"testing"

	"github.com/plinth-os/plinth/imagepull/policy"
)

func TestAdmit(t *testing.T) {
	signedBy := []policy.Outcome{{Type: policy.SignedBy, Accepted: true}}
	anything := []policy.Outcome{{Type: policy.AcceptAnything, Accepted: true}}
	e, p := Layer{Encrypted: true}, Layer{}
	for _, tt := range []struct {
		name     string
		layers   []Layer
		outcomes []policy.Outcome
		rejected bool
		kind     Kind
	}{
		{"encrypted and signed", []Layer{e, e}, signedBy, false, EncryptedSigned},
		{"signed by sigstore", []Layer{e}, []policy.Outcome{{Type: policy.SigstoreSigned, Accepted: true}}, false, EncryptedSigned},
		{"one layer plain", []Layer{e, p}, signedBy, false, PlainSigned},
		{"no layers", nil, signedBy, false, PlainSigned},
		{"anything, encrypted", []Layer{e}, anything, false, EncryptedUnsigned},
		{"anything, plain", []Layer{p}, anything, false, PlainUnsigned},
		{"anything and signed", []Layer{p}, append(anything[:1:1], signedBy...), false, PlainSigned},
		{"signature not met", []Layer{p}, []policy.Outcome{{Type: policy.SignedBy}}, true, PlainUnsigned},
		{"signed but rejected", []Layer{p}, append(signedBy[:1:1], policy.Outcome{Type: policy.Reject}), true, PlainUnsigned},
	} {
		im := &Image{Layers: tt.layers, Verdict: &policy.Verdict{Accepted: !tt.rejected, Requirements: tt.outcomes}}
		if got := im.kind(); got != tt.kind {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.kind)
		}
		for _, k := range kinds {
			if err := (Admit{k}).Check(im); (err == nil) != (k == tt.kind) {
				t.Errorf("%s: admitting %s: %v", tt.name, k, err)
			}
		}
		if err := (Admit)(nil).Check(im); (err == nil) != strings.HasSuffix(string(tt.kind), "+signed") {
			t.Errorf("%s: by default: %v", tt.name, err)
		}
	}
	if err := (Admit{PlainUnsigned}).Check(&Image{}); err != nil {
		t.Errorf("not judged: %v", err)
	}
	if err := (&Image{}).Err(); err == nil {
		t.Error("an image that was not judged is taken")
	}
}

func TestParseAdmit(t *testing.T) {
	if a, err := ParseAdmit(nil); a != nil || err != nil {
		t.Errorf("got %v, %v", a, err)
	}
	if a, err := ParseAdmit([]string{"plain+unsigned", "encrypted+signed"}); err != nil || len(a) != 2 || a[0] != PlainUnsigned {
		t.Errorf("got %v, %v", a, err)
	}
	for _, names := range [][]string{{""}, {"signed"}, {"plain+signed", "plain+signed"}, {"Plain+signed"}, {"signed+plain"}} {
		if _, err := ParseAdmit(names); err == nil {
			t.Errorf("%q: accepted", names)
		}
	}
}
