package oracle

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-eventlog/testdata"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/tdx"
)

// logs are plinth's recorded logs and go-eventlog's: servers, laptops and clouds
// with firmware, boot loaders and TPMs of many makers.
func logs(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{
		"arch":          testdata.ArchLinuxWorkstationEventLog,
		"glinux":        testdata.GlinuxAlexEventLog,
		"rhel8":         testdata.Rhel8EventLog,
		"ubuntu-1804":   testdata.Ubuntu1804AmdSevEventLog,
		"ubuntu-2104":   testdata.Ubuntu2104NoSecureBootEventLog,
		"ubuntu-no-dbx": testdata.Ubuntu2104NoDbxEventLog,
		"ubuntu-snp":    testdata.Ubuntu2404AmdSevSnpEventLog,
		"ubuntu-tdx":    testdata.Ubuntu2404IntelTdxA4HighGpu8GEventLog,
		"cos-85":        testdata.Cos85AmdSevEventLog,
		"cos-121":       testdata.Cos121AmdSevEventLog,
		"cos-125":       testdata.Cos125IntelTdxSecureBootA4HighGpu8GEventLog,
		"gdc":           testdata.GdcHost,
		"gmes":          testdata.HostGMESEventLog,
	}
	paths, err := filepath.Glob(filepath.Join(testenv.Root(t), "measure", "eventlog", "testdata", "*.bin"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d recorded logs, %v", len(paths), err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(p)] = b
	}
	return all
}

func TestEventsAndReplay(t *testing.T) {
	for name, b := range logs(t) {
		l, err := eventlog.Parse(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if out, err := l.Marshal(); err != nil || !bytes.Equal(out, b) {
			t.Errorf("%s: written anew it differs: %v", name, err)
		}
		for _, alg := range l.Algs {
			if alg != eventlog.SHA512 { // go-eventlog has no such bank
				compare(t, name, b, l, alg)
			}
		}
	}
}

// compare lets go-eventlog parse the log and replay it against the registers
// that plinth's replay ends with.
func compare(t *testing.T, name string, b []byte, l *eventlog.Log, alg eventlog.Alg) {
	t.Helper()
	values, err := l.Replay(alg)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var mrs []register.MR
	for r, v := range values {
		if l.CC {
			mrs = append(mrs, register.RTMR{Index: r - 1, Digest: v})
		} else {
			mrs = append(mrs, register.PCR{Index: r, Digest: v, DigestAlg: alg.Hash()})
		}
	}
	events, err := tcg.ParseAndReplay(b, mrs, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		t.Errorf("%s: %v: %v", name, alg, err)
		return
	}
	var want, got []string
	for _, e := range events {
		if e.UntrustedType() != tcg.NoAction {
			want = append(want, fmt.Sprintf("%d %#x %x %x", e.MRIndex(), uint32(e.UntrustedType()), e.ReplayedDigest(), e.RawData()))
		}
	}
	for _, e := range l.Events {
		if e.Type != eventlog.NoAction {
			got = append(got, fmt.Sprintf("%d %#x %x %x", e.Register, uint32(e.Type), e.Digest(alg), e.Data))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %v: %s", name, alg, diff)
	}
}

// The event logs of TDs end in the RTMRs of their quotes, which go-eventlog's
// tests have.
func TestCCEventLogs(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-eventlog").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "testdata", "eventlogs", "ccel")
	for name, want := range map[string][3]string{
		"cos-113-intel-tdx.bin":                         {"3fa2f61f395b7f5feefb4ec2df61297f109ad8abcd6410c1b7df60f21f37b19297fc35e544039c7e1edece752afd17f6", "f62dbc072bd5d3f3438b7b35c39a727f5aea2ffc2473f43723953f530daf62504f0a7944aa62c41a86e8a878c2b122c1", "4969684dc87381fc3b3134176c8d8806eaf0a901859f5f70cfae8d17714b46c10a8de219048c9fc09f11f381a6fbe7c1"},
		"cos-113-intel-tdx-dupe-separator.bin":          {"a4de2df23e9611299123ba4359c42a5e578b0f8488bf1bba8ef5606d9ea5d81c97c064b482a5eac537d166bd0f0f752d", "0ee9366c928a77092f55e9e114c7394181fd264699155f0df77d23577618d5f650568a17d379355a07bd846e552f4e20", "4969684dc87381fc3b3134176c8d8806eaf0a901859f5f70cfae8d17714b46c10a8de219048c9fc09f11f381a6fbe7c1"},
		"cos-113-intel-tdx-dupe-separator-unpadded.bin": {"a4de2df23e9611299123ba4359c42a5e578b0f8488bf1bba8ef5606d9ea5d81c97c064b482a5eac537d166bd0f0f752d", "0ee9366c928a77092f55e9e114c7394181fd264699155f0df77d23577618d5f650568a17d379355a07bd846e552f4e20", "4969684dc87381fc3b3134176c8d8806eaf0a901859f5f70cfae8d17714b46c10a8de219048c9fc09f11f381a6fbe7c1"},
		"gdc-tdx.bin":               {},
		"ubuntu-2404-intel-tdx.bin": {},
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		l, err := eventlog.ParseCC(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		compare(t, name, b, l, eventlog.SHA384)
		values, err := l.Replay(eventlog.SHA384)
		if err != nil {
			t.Error(err)
		}
		rtmrs, err := tdx.RTMRs(l)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i, w := range want {
			if got := hex.EncodeToString(values[i+1]); w != "" && got != w {
				t.Errorf("%s: RTMR %d is %s, want %s", name, i, got, w)
			}
			if v := values[i+1]; v != nil && !bytes.Equal(rtmrs[i][:], v) {
				t.Errorf("%s: measure/tdx: RTMR %d is %x, replayed %x", name, i, rtmrs[i], v)
			}
		}
	}
}
