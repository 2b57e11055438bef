package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/refvalue"
)

// A report's registers are those after the agent's own extends, and its log and
// these extends explain them.
func TestBootOfReport(t *testing.T) {
	log, err := os.ReadFile(filepath.Join("..", "..", "measure", "eventlog", "testdata", "edk2-2025.02-disk.bin"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	values, err := l.Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("ready"))
	end := sha256.Sum256(append(slices.Clone(values[11]), digest[:]...))
	phase := evidence.Extend{PCR: 11, What: "ready", Digests: map[string]string{"sha256": hex.EncodeToString(digest[:])}}
	pcr11 := hex.EncodeToString(end[:])
	after := map[int]string{8: strings.Repeat("0", 64), 9: hex.EncodeToString(values[9]), 11: pcr11}
	r := &evidence.Report{
		Schema: evidence.ReportSchema, Agent: "test", Kernel: "6.12", Root: evidence.RootVerity, Banks: []string{"sha256"},
		Before: evidence.PCRs{"sha256": {11: hex.EncodeToString(values[11])}}, After: evidence.PCRs{"sha256": after},
		EventLog: log, Extends: []evidence.Extend{phase},
	}
	var b bytes.Buffer
	if err := printJSON(&b, r); err != nil {
		t.Fatal(err)
	}
	boot, err := parseBoot(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	s := refvalue.Common([]refvalue.Boot{boot, boot})
	if len(s.Same) != 3 {
		t.Fatalf("%+v", s.Same)
	}
	for i, want := range []refvalue.Agreement{
		{Register: refvalue.Register{Name: "pcr8", Bank: "sha256"}, Value: after[8], Trivial: "nothing extends it"},
		{Register: refvalue.Register{Name: "pcr9", Bank: "sha256"}, Value: after[9], Events: []string{"load options", "initrd"}},
		{Register: refvalue.Register{Name: "pcr11", Bank: "sha256"}, Value: pcr11},
	} {
		got := s.Same[i]
		if got.Register != want.Register || got.Value != want.Value || got.Trivial != want.Trivial || want.Events != nil && !slices.Equal(got.Events, want.Events) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if e := s.Same[2].Events; len(e) < 2 || e[len(e)-1] != "phase ready" {
		t.Errorf("PCR 11 is explained by %q", e)
	}
}
