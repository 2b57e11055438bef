package snp

import (
	"strings"
	"testing"
)

// TestCandidates: a digest of other inputs names what differs, and the inputs
// that it names give the digest.
func TestCandidates(t *testing.T) {
	image, h := firmware(nil), hashes(t, "k", "", "")
	asked := VCPUs{Count: 4, Signature: 0x800f12}
	for _, row := range []struct {
		name   string
		at     Params // hand
		p      Params // of the machine
		v      VCPUs
		change string
		c      Candidate // what counts of it
	}{
		{"nothing", Params{Hashes: h}, Params{Hashes: h}, asked, "", Candidate{Era: Eras[0], Features: 1, Count: 4, Hashes: true}},
		{"DebugSwap", Params{Hashes: h}, Params{Hashes: h, Era: Eras[1]}, asked, "host-kernel era", Candidate{Era: Eras[1], Features: 0x21, Count: 4, Hashes: true}},
		{"old", Params{Hashes: h}, Params{Hashes: h, Era: Eras[2]}, asked, "host-kernel era", Candidate{Era: Eras[2], Features: 1, Count: 4, Hashes: true}},
		{"from old to new", Params{Era: Eras[2]}, Params{}, asked, "host-kernel era", Candidate{Era: Eras[0], Features: 1, Count: 4}},
		{"features", Params{}, Params{}, VCPUs{4, 0x800f12, 0x21}, "features", Candidate{Era: Eras[0], Features: 0x21, Count: 4}},
		{"secure TSC", Params{}, Params{}, VCPUs{4, 0x800f12, 0x201}, "features", Candidate{Era: Eras[0], Features: 0x201, Count: 4}},
		{"count", Params{}, Params{}, VCPUs{512, 0x800f12, 0}, "vCPUs", Candidate{Era: Eras[0], Features: 1, Count: 512}},
		{"type", Params{}, Params{}, VCPUs{4, 0xb00f00, 0}, "vCPU type", Candidate{Era: Eras[0], Features: 1, Count: 4, Signature: 0xb00f00}},
		{"no hashes", Params{Hashes: h}, Params{}, asked, "kernel hashes", Candidate{Era: Eras[0], Features: 1, Count: 4}},
		{"all of it", Params{Hashes: h}, Params{Era: Eras[1]}, VCPUs{1, 0xa00f11, 0}, "host-kernel era, vCPUs, vCPU type, kernel hashes", Candidate{Era: Eras[1], Features: 0x21, Count: 1, Signature: 0xa00f11}},
		{"EC2", Params{VMM: EC2}, Params{VMM: EC2RDX0}, asked, "VMM", Candidate{VMM: EC2RDX0, Features: 1, Count: 4}},
		{"GCE", Params{VMM: GCE}, Params{VMM: GCE, Product: "Turin"}, asked, "product", Candidate{VMM: GCE, Product: "Genoa", Features: 1, Count: 4}},
		{"GCE, the same address", Params{VMM: GCE, Product: "Turin"}, Params{VMM: GCE, Product: "Genoa"}, asked, "", Candidate{VMM: GCE, Product: "Genoa", Features: 1, Count: 4}},
	} {
		row.at.Firmware, row.p.Firmware = image, image
		want := digest(t, launch(t, row.p), row.v)
		got, err := launch(t, row.at).Candidates(want, asked)
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %d candidates, want 1: %+v, %v", row.name, len(got), got, err)
			continue
		}
		c := got[0]
		if s := strings.Join(c.Changed, ", "); s != row.change {
			t.Errorf("%s: changed %q, want %q", row.name, s, row.change)
		}
		if row.c.VMM == "" {
			row.c.VMM = QEMU
		}
		if row.c.Signature == 0 {
			row.c.Signature = asked.Signature
		}
		if c.VMM != row.c.VMM || c.Era != row.c.Era || c.Product != row.c.Product || c.Features != row.c.Features || c.Count != row.c.Count || c.Signature != row.c.Signature || c.Hashes != row.c.Hashes {
			t.Errorf("%s: %+v, want %+v", row.name, c, row.c)
		}
		p := Params{VMM: c.VMM, Era: c.Era, Product: c.Product, Firmware: image}
		if c.Hashes {
			p.Hashes = h
		}
		if digest(t, launch(t, p), VCPUs{c.Count, c.Signature, c.Features}) != want {
			t.Errorf("%s: %+v does not give the digest", row.name, c)
		}
	}
}

// TestNoCandidates: another file is nothing that they find.
func TestNoCandidates(t *testing.T) {
	image := firmware(nil)
	l := launch(t, Params{Firmware: image})
	image[0] ^= 1
	want := digest(t, launch(t, Params{Firmware: image}), VCPUs{Count: 1})
	if got, err := l.Candidates(want, VCPUs{Count: 1}); err != nil || len(got) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := l.Candidates(want, VCPUs{}); err == nil {
		t.Error("no vCPUs: no error")
	}
}

// TestCandidatesOfOne: without a reset block there is one vCPU, and no second of
// which the page would be made up.
func TestCandidatesOfOne(t *testing.T) {
	s := testSeed(t)
	s.Reset = nil
	l := launch(t, Params{Seed: s})
	v := VCPUs{Count: 1, Features: 1}
	r, err := l.newRun(v)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Candidates(r.after(2), v); err != nil || len(got) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := l.Candidates(r.after(1), v); err != nil || len(got) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
