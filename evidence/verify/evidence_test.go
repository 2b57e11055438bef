package verify

import (
	"bytes"
	"encoding/hex"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(testenv.Vectors(t) + "/guest/trustee/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An SNP guest's evidence as a broker is shown it, against what its bytes say.
func TestSNPEvidence(t *testing.T) {
	e, err := evidence.ParseSNP(vector(t, "attestation-service/e2e/evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := SNPEvidence(e, SNPOptions{Now: time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC),
		Measurement: Register{Values: []Value{{Digest: e.Report[0x90:0xc0]}}}, ReportData: e.Report[0x50:0x90]})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK {
		t.Errorf("refused: %q", r.Failures())
	}
	got, err := ReportData(vector(t, "attestation-service/e2e/evidence.json"))
	if err != nil || !bytes.Equal(got, e.Report[0x50:0x90]) {
		t.Errorf("report data %x, %v", got, err)
	}
}

// tdxShown is evidence whose event log does not belong to the quote.
func tdxShown(t *testing.T) *evidence.TDX {
	quote, err := os.ReadFile("testdata/tdx4.quote")
	if err != nil {
		t.Fatal(err)
	}
	return &evidence.TDX{Quote: quote, CCEventLog: vector(t, "eventlog/CCEL_AAEL_alibabacloud")}
}

func TestTDXLog(t *testing.T) {
	e := tdxShown(t)
	r, log, err := TDXEvidence(e, TDXOptions{Now: time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	got := r.Failures()
	for _, want := range []string{"event log", "log of RTMR0", "log of RTMR1", "log of RTMR2", "log of RTMR3"} {
		if !slices.Contains(got, want) {
			t.Errorf("refused by %q, want %q among them", got, want)
		}
	}
	if log == nil || len(log.Events) < 80 {
		t.Errorf("log %v", log)
	}
	e.CCEventLog = e.CCEventLog[:100]
	if r, log, err = TDXEvidence(e, TDXOptions{Now: time.Now()}); err != nil || log != nil || !slices.Contains(r.Failures(), "event log") {
		t.Errorf("half a log: %v, %q", err, r.Failures())
	}
	e.CCEventLog = nil
	if r, _, err = TDXEvidence(e, TDXOptions{Now: time.Now()}); err != nil || slices.Contains(r.Failures(), "event log") {
		t.Errorf("no log: %v, %q", err, r.Failures())
	}
}

// A quote whose registers are those of a log: the values are published with it.
func TestTDXLogAgrees(t *testing.T) {
	log := vector(t, "eventlog/CCEL_AAEL_alibabacloud")
	l, err := eventlog.ParseCC(log)
	if err != nil {
		t.Fatal(err)
	}
	values, err := l.Replay(eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	q := &quote{}
	for i := range q.body.RTMR {
		copy(q.body.RTMR[i][:], values[i+1])
	}
	const published = "5e4ecd49d3c7983d6f9ca36755b5cee0b423d7fa8c5a88aeb0681bd4698772bc37b4463dc5f722efe352a66417257dad"
	if got := hex.EncodeToString(q.body.RTMR[3][:]); got != published {
		t.Errorf("RTMR3 is %s, want %s", got, published)
	}
	var c checks
	if q.checkLog(&c, log) == nil || len(c) != 1 || c[0].Verdict != OK {
		t.Errorf("got %+v", c)
	}
	q.body.RTMR[3][0] ^= 1
	c = nil
	q.checkLog(&c, log)
	if len(c) != 2 || c[0].Verdict != Failed || c[1].Name != "log of RTMR3" {
		t.Errorf("got %+v", c)
	}
}

func TestReportData(t *testing.T) {
	for name, want := range map[string]int{"evidence/tpm_evidence.json": 64, "evidence/az-snp-vtpm/evidence-v1.json": 9, "evidence/az-tdx-vtpm/evidence-v1.json": 9, "evidence/az-snp-vtpm/evidence-v2.json": 48} {
		if got, err := ReportData(vector(t, name)); err != nil || len(got) != want {
			t.Errorf("%s: %x, %v: want %d bytes", name, got, err, want)
		}
	}
	b, err := tdxShown(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReportData(b); err != nil || len(got) != 64 {
		t.Errorf("TDX: %x, %v", got, err)
	}
	if got, err := ReportData([]byte(`{"svn":"1","report_data":"AQI="}`)); err != nil || !bytes.Equal(got, []byte{1, 2}) {
		t.Errorf("sample: %x, %v", got, err)
	}
	for _, in := range []string{``, `{}`, `{"quote":"AQI="}`, `{"tpm_quote":{},"ak_public":"AA=="}`} {
		if _, err := ReportData([]byte(in)); err == nil {
			t.Errorf("%s is taken", in)
		}
	}
}
