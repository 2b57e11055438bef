package attester

import (
	"bytes"
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tdx-guest/abi"
	pb "github.com/google/go-tdx-guest/proto/tdx"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/workload"
)

// tdQuote is a quote of a processor.
func tdQuote(t *testing.T, version string) []byte {
	t.Helper()
	quote, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/trustee/evidence", "tdx_quote_"+version+".dat"))
	if err != nil {
		t.Fatal(err)
	}
	return quote
}

// TestTDXLayout: where the report data is. Version 4 by another implementation; it
// knows no version 5, whose data starts behind RTMR 3, which is zero in this quote:
// sgx_quote_5.h, sgx_quote5_t and sgx_report2_body_v1_5_t.
func TestTDXLayout(t *testing.T) {
	four := tdQuote(t, "4")
	p, err := abi.QuoteToProto(four)
	if err != nil {
		t.Fatal(err)
	}
	data := p.(*pb.QuoteV4).GetTdQuoteBody().GetReportData()
	if !bytes.Equal(four[tdReportData[4]:][:64], data) {
		t.Errorf("report data is at %d, want %d", tdReportData[4], bytes.Index(four, data))
	}
	const rtmr3 = 48 + 6 + 472 // header, type and size, fields before it
	five := tdQuote(t, "5")
	if !bytes.Equal(five[rtmr3:][:48], make([]byte, 48)) || tdReportData[5] != rtmr3+48 || five[rtmr3+48] == 0 {
		t.Errorf("report data is at %d, want %d", tdReportData[5], rtmr3+48)
	}
}

// quotes is a provider that has one quote, and puts in what it is asked.
func quotes(quote []byte, at int) *fakeReports {
	return &fakeReports{provider: "tdx_guest", make: func(in []byte) []byte {
		q := bytes.Clone(quote)
		copy(q[at:], in)
		return q
	}}
}

func TestTDXQuote(t *testing.T) {
	four, five := tdQuote(t, "4"), tdQuote(t, "5")
	at4, at5 := tdReportData[4], tdReportData[5]
	for _, tt := range []struct {
		name string
		fake *fakeReports
		want string
	}{
		{"version 4", quotes(four, at4), ""},
		{"version 5", quotes(five, at5), ""},
		{"other data", quotes(four, at4+1), "other data"},
		{"other data, version 5", quotes(five, at5+1), "other data"},
		{"version of the future", &fakeReports{provider: "tdx_guest", make: func([]byte) []byte { return []byte{9, 0, 1} }}, ""},
		{"truncated", &fakeReports{provider: "tdx_guest", make: func([]byte) []byte { return four[:600] }}, "report of 600 bytes"},
		{"empty", &fakeReports{provider: "tdx_guest", make: func([]byte) []byte { return []byte{} }}, "no quoting service"},
		{"of SNP", &fakeReports{provider: "sev_guest"}, `by "sev_guest"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &tdx{tsm: tt.fake.client(), ccel: filepath.Join(t.TempDir(), "none"), log: func() ([]byte, error) { return nil, nil }}
			b, err := a.Evidence(t.Context(), sum384)
			wantError(t, err, tt.want)
			if err != nil {
				return
			}
			if !strings.Contains(string(b), `"cc_eventlog":null`) {
				t.Errorf("a log out of nothing: %.80s", b)
			}
			e, err := evidence.ParseTDX(b)
			if err != nil || !bytes.Equal(e.Quote, tt.fake.make(fit(sum384, 64))) {
				t.Errorf("another quote, or %v", err)
			}
		})
	}
}

// TestTDXLog appends records to published logs, and has another package replay them.
func TestTDXLog(t *testing.T) {
	four := tdQuote(t, "4")
	event := workload.Event{Domain: "example.com", Operation: "op", Content: "{}"}
	records := event.Record(workload.RTMRIndex, crypto.SHA384)
	dir := filepath.Join(testenv.Vectors(t), "guest/trustee/eventlog")
	for _, tt := range []struct {
		file   string
		events int
		rtmrs  map[int]string // published: Trustee, deps/eventlog/src/lib.rs
	}{
		{"CCEL_data_ovmf", 0, map[int]string{1: "8566f998", 2: "775b9f6b", 3: "94eaf7a7"}},
		{"CCEL_data_grub", 0, map[int]string{1: "cec0a104", 2: "6c289e0c", 3: "08919d01"}},
		{"CCEL_AAEL_alibabacloud", 87, map[int]string{4: "5e4ecd49d3c7983d6f9ca36755b5cee0b423d7fa8c5a88aeb0681bd4698772bc37b4463dc5f722efe352a66417257dad"}},
	} {
		t.Run(tt.file, func(t *testing.T) {
			firmware, err := os.ReadFile(filepath.Join(dir, tt.file))
			if err != nil {
				t.Fatal(err)
			}
			log, registers := replay(t, firmware)
			for i, want := range tt.rtmrs {
				if got := hex.EncodeToString(registers[i]); !strings.HasPrefix(got, want) {
					t.Errorf("register %d is %s, want %s", i, got, want)
				}
			}
			if tt.events != 0 && len(log.Events) != tt.events {
				t.Errorf("%d events, want %d", len(log.Events), tt.events)
			}
			ccel := filepath.Join(t.TempDir(), "CCEL")
			if err := os.WriteFile(ccel, firmware, 0o600); err != nil {
				t.Fatal(err)
			}
			a := &tdx{tsm: quotes(four, tdReportData[4]).client(), ccel: ccel, log: func() ([]byte, error) { return records, nil }}
			b, err := a.Evidence(t.Context(), sum384)
			if err != nil {
				t.Fatal(err)
			}
			e, err := evidence.ParseTDX(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasSuffix(e.CCEventLog, slices.Concat(records, bytes.Repeat([]byte{0xff}, 8))) {
				t.Error("the records are not at the end")
			}
			now, after := replay(t, e.CCEventLog)
			if len(now.Events) != len(log.Events)+1 {
				t.Errorf("%d events, want %d", len(now.Events), len(log.Events)+1)
			}
			before := registers[4]
			if before == nil {
				before = make([]byte, 48)
			}
			h := crypto.SHA384.New()
			h.Write(before)
			h.Write(event.Digest(crypto.SHA384))
			if want := h.Sum(nil); !bytes.Equal(after[4], want) {
				t.Errorf("RTMR 3 is %x, want %x", after[4], want)
			}
			for i := 1; i < 4; i++ {
				if !bytes.Equal(after[i], registers[i]) {
					t.Errorf("register %d has changed", i)
				}
			}
		})
	}
}

func replay(t *testing.T, b []byte) (*eventlog.Log, map[int][]byte) {
	t.Helper()
	l, err := eventlog.ParseCC(b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Replay(eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	return l, r
}

// TestTDXOwnLog: without a log of the firmware, the agent's stands behind a header.
func TestTDXOwnLog(t *testing.T) {
	records := workload.Event{Domain: "d", Operation: "o", Content: "c"}.Record(workload.RTMRIndex, crypto.SHA384)
	a := &tdx{ccel: filepath.Join(t.TempDir(), "none")}
	b, err := a.wholeLog(records)
	if err != nil {
		t.Fatal(err)
	}
	l, registers := replay(t, b)
	if len(l.Events) != 1 || len(registers[4]) != 48 {
		t.Errorf("%d events, RTMR 3 %x", len(l.Events), registers[4])
	}
}

// TestTDXRace: an event that comes between log and quote is noticed.
func TestTDXRace(t *testing.T) {
	four := tdQuote(t, "4")
	for _, tt := range []struct {
		events int
		want   string
	}{{0, ""}, {2, ""}, {quoteAttempts - 1, ""}, {quoteAttempts, "events come between"}} {
		f := quotes(four, tdReportData[4])
		var log []byte
		left, make := tt.events, f.make
		f.make = func(in []byte) []byte {
			if left > 0 {
				left--
				log = append(log, workload.Event{Domain: "d", Operation: "o", Content: "c"}.Record(workload.RTMRIndex, crypto.SHA384)...)
			}
			return make(in)
		}
		a := &tdx{tsm: f.client(), ccel: filepath.Join(t.TempDir(), "none"), log: func() ([]byte, error) { return bytes.Clone(log), nil }}
		b, err := a.Evidence(t.Context(), sum384)
		wantError(t, err, tt.want)
		if err != nil {
			continue
		}
		if e, err := evidence.ParseTDX(b); err != nil || !bytes.Contains(e.CCEventLog, log) {
			t.Errorf("%d events: %v, or an older log", tt.events, err)
		}
	}
}

func TestTDXErrors(t *testing.T) {
	root := t.TempDir()
	_, err := NewTDX(root, nil)
	wantError(t, err, "attester: tdx: stat")
	if err := os.MkdirAll(filepath.Join(root, tsmReports), 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := NewTDX(root, nil)
	if err != nil || a.TEE() != "tdx" {
		t.Fatalf("%v, %v", a, err)
	}
	_, err = a.Evidence(t.Context(), nil) // a plain folder has no attributes
	wantError(t, err, "provider")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Evidence(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	a, err = NewTDX(root, func() ([]byte, error) { return nil, errors.New("log is open") })
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Evidence(t.Context(), nil)
	wantError(t, err, "attester: tdx: log is open")
}

func TestUsedLog(t *testing.T) {
	header := emptyLog
	event := workload.Event{Domain: "d", Operation: "o", Content: "c"}.Record(4, crypto.SHA384, crypto.SHA256)
	whole := slices.Concat(header, event)
	for _, tt := range []struct {
		name string
		in   []byte
		used int
		want string
	}{
		{"nothing", nil, 0, ""},
		{"zeros", make([]byte, 4096), 0, ""},
		{"ones", bytes.Repeat([]byte{0xff}, 4096), 0, ""},
		{"header", header, len(header), ""},
		{"event", whole, len(whole), ""},
		{"zeros behind", append(slices.Clone(whole), make([]byte, 100)...), len(whole), ""},
		{"ones behind", append(slices.Clone(whole), bytes.Repeat([]byte{0xff}, 100)...), len(whole), ""},
		{"a few behind", append(slices.Clone(whole), 1, 2, 3), len(whole), ""},
		{"no header", event, 0, "header of type 0x6"},
		{"short header", header[:31], 0, "middle of an event"},
		{"header without its data", header[:40], 0, "middle of an event"},
		{"truncated count", whole[:len(header)+11], 0, "middle of an event"},
		{"truncated algorithm", whole[:len(header)+13], 0, "middle of an event"},
		{"truncated digest", whole[:len(header)+30], 0, "middle of an event"},
		{"truncated data", whole[:len(whole)-1], 0, "middle of an event"},
		{"unknown algorithm", slices.Concat(header, []byte{4, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0x99, 0}), 0, "algorithm 0x99"},
		{"endless digests", slices.Concat(header, []byte{4, 0, 0, 0, 6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 4, 0}), 0, "middle of an event"},
		{"endless data", slices.Concat(header, []byte{4, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}), 0, "middle of an event"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := usedLog(tt.in)
			wantError(t, err, tt.want)
			if err == nil && !bytes.Equal(got, tt.in[:tt.used]) {
				t.Errorf("%d bytes are used, want %d", len(got), tt.used)
			}
		})
	}
}

// FuzzUsedLog: what is used is the start of the log, and the whole of itself.
func FuzzUsedLog(f *testing.F) {
	f.Add(slices.Concat(emptyLog, workload.Event{Domain: "d", Operation: "o", Content: "c"}.Record(4, crypto.SHA384), endOfLog))
	f.Fuzz(func(t *testing.T, b []byte) {
		used, err := usedLog(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, used) {
			t.Fatal("not the start of the log")
		}
		if again, err := usedLog(used); err != nil || !bytes.Equal(again, used) {
			t.Fatalf("again: %d bytes of %d, %v", len(again), len(used), err)
		}
	})
}
