package eventlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorded are the logs in testdata, see its README.
var recorded = []string{"edk2-2022.11-disk", "edk2-2025.02-disk", "edk2-2026.08-disk", "edk2-2025.02-secureboot", "edk2-2022.11-tpm12"}

func readLog(t testing.TB, name string) (*Log, []byte) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".bin"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return l, b
}

// readPCRs returns the registers that the guest read from its TPM after that boot.
func readPCRs(t testing.TB, name string) map[Alg]map[int][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".pcrs"))
	if err != nil {
		t.Fatal(err)
	}
	pcrs := map[Alg]map[int][]byte{}
	for line := range strings.Lines(string(b)) {
		var bank, value string
		var pcr int
		if _, err := fmt.Sscanf(line, "%s %d %s", &bank, &pcr, &value); err != nil {
			t.Fatal(err)
		}
		alg, err := ParseAlg(bank)
		if err != nil {
			t.Fatal(err)
		}
		if pcrs[alg] == nil {
			pcrs[alg] = map[int][]byte{}
		}
		if pcrs[alg][pcr], err = hex.DecodeString(value); err != nil {
			t.Fatal(err)
		}
	}
	return pcrs
}

// The registers of a TPM are the second opinion on the replay of its log.
func TestReplayIsTheTPM(t *testing.T) {
	for _, name := range recorded {
		l, _ := readLog(t, name)
		pcrs := readPCRs(t, name)
		if len(pcrs) != len(l.Algs) {
			t.Fatalf("%s: registers in %d banks, log in %v", name, len(pcrs), l.Algs)
		}
		for alg, want := range pcrs {
			got, err := l.Replay(alg)
			if err != nil {
				t.Fatal(err)
			}
			for pcr := range 16 {
				v := got[pcr]
				if v == nil {
					v = make([]byte, alg.Size())
				}
				if w, ok := want[pcr]; ok && !bytes.Equal(v, w) {
					t.Errorf("%s: %v PCR %d: replay gives %x, the TPM has %x", name, alg, pcr, v, w)
				}
			}
		}
	}
}

func TestMarshalGivesTheSameBytes(t *testing.T) {
	for _, name := range recorded {
		l, b := readLog(t, name)
		got, err := l.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes differ from the %d that were read", name, len(got), len(b))
		}
	}
}

func TestPadding(t *testing.T) {
	l, b := readLog(t, "edk2-2025.02-disk")
	for _, fill := range []byte{0, 0xff} {
		padded := append(bytes.Clone(b), bytes.Repeat([]byte{fill}, 1000)...)
		got, err := Parse(padded)
		if err != nil {
			t.Fatalf("padding of %#x: %v", fill, err)
		}
		if diff := cmp.Diff(l, got); diff != "" {
			t.Errorf("padding of %#x: %s", fill, diff)
		}
		if _, err := Parse(append(bytes.Clone(b), "AAAA"...)); err == nil {
			t.Error("letters are padding")
		}
		padded[len(padded)-1] ^= 1
		if _, err := Parse(padded); err == nil {
			t.Errorf("padding of %#x with another byte at its end was accepted", fill)
		}
	}
}

// one is a short log to spoil.
func one() *Log {
	event := func(r int, typ Type, data string) Event {
		return Event{Register: r, Type: typ, Data: []byte(data), Digests: []Digest{{SHA1, SHA1.Sum([]byte(data))}, {SHA256, SHA256.Sum([]byte(data))}}}
	}
	return &Log{
		Algs: []Alg{SHA1, SHA256}, Spec: EDK2, StartupLocality: 3,
		Events: []Event{event(0, NoAction, "StartupLocality\x00\x03"), event(4, EFIAction, "Calling"), event(4, Separator, "\x00\x00\x00\x00")},
	}
}

func TestStartupLocality(t *testing.T) {
	l := one()
	l.Events = append(l.Events, Event{Register: 0, Type: SCRTMVersion, Digests: []Digest{{SHA1, make([]byte, 20)}, {SHA256, make([]byte, 32)}}})
	b, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	pcrs, err := got.Replay(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	start := append(make([]byte, 31), 3)
	if want := SHA256.Sum(start, make([]byte, 32)); !bytes.Equal(pcrs[0], want) {
		t.Errorf("PCR 0 is %x, want %x", pcrs[0], want)
	}
}

func TestHCRTM(t *testing.T) {
	event := Event{Register: 0, Type: HCRTM, Digests: []Digest{{SHA256, make([]byte, 32)}}}
	l := &Log{Algs: []Alg{SHA256}, Events: []Event{event, event}}
	pcrs, err := l.Replay(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	first := SHA256.Sum(append(make([]byte, 31), 4), make([]byte, 32))
	if want := SHA256.Sum(first, make([]byte, 32)); !bytes.Equal(pcrs[0], want) {
		t.Errorf("PCR 0 is %x, want %x", pcrs[0], want)
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := one().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const (
		spec  = 32 + 16           // of the Spec ID event's fields after its signature
		first = spec + 8 + 13     // the first event: locality
		next  = first + 72 + 0x11 // the second
	)
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		spoil func(b []byte) []byte
		want  string
	}{
		{"empty", func(b []byte) []byte { return nil }, "first event: truncated"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, "event 2: offset 0xed: truncated"},
		{"too long", func(b []byte) []byte { return make([]byte, maxLog+1) }, "want at most"},
		{"spec register", func(b []byte) []byte { b[0] = 1; return b }, "register 1: want 0"},
		{"spec digest", func(b []byte) []byte { b[8] = 1; return b }, "a digest of zeros"},
		{"no banks", func(b []byte) []byte { b[spec+8] = 0; return b }, "0 banks"},
		{"many banks", func(b []byte) []byte { b[spec+11] = 0x40; return b }, "banks: want 1 to 5"},
		{"unknown bank", func(b []byte) []byte { b[spec+12] = 0x27; return b }, "unsupported"},
		{"bank size", func(b []byte) []byte { b[spec+14] = 21; return b }, "sha1 with digests of 21 bytes"},
		{"bank twice", func(b []byte) []byte { copy(b[spec+16:], b[spec+12:][:4]); return b }, "bank sha1 comes twice"},
		{"vendor info", func(b []byte) []byte { b[spec+20] = 1; return b }, "do not match its fields"},
		{"locality", func(b []byte) []byte { b[next-1] = 2; return b }, "startup locality 2"},
		{"register", func(b []byte) []byte { b[next] = 24; return b }, "register 24: want at most 23"},
		{"digest count", func(b []byte) []byte { b[next+8] = 3; return b }, "3 digests: the log has 2 banks"},
		{"digest twice", func(b []byte) []byte { b[next+34] = 4; return b }, "digest in bank sha1"},
		{"digest of no bank", func(b []byte) []byte { b[next+12] = 0xc; return b }, "digest in bank sha384"},
		{"event size", func(b []byte) []byte { b[next+71] = 0xff; return b }, "event 1: offset 0x9e: truncated"},
	}
	for _, tt := range tests {
		_, err := Parse(tt.spoil(bytes.Clone(good)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := Parse(good[:len(good)-1]); !errors.Is(err, ErrTruncated) {
		t.Errorf("a cut log gives %v, want ErrTruncated", err)
	}
}

func TestTooManyEvents(t *testing.T) {
	b, err := (&Log{Algs: []Alg{SHA1}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	event := appendAgile(nil, &Event{Type: IPL})
	b = append(b, bytes.Repeat(event, maxEvents)...)
	if _, err := Parse(b); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(append(b, event...)); err == nil || !strings.Contains(err.Error(), "more than 65536 events") {
		t.Errorf("error %v", err)
	}
}

func TestSecondLocalityIsRefused(t *testing.T) {
	l := one()
	l.Events = append(l.Events, l.Events[0])
	if _, err := l.Marshal(); err == nil || !strings.Contains(err.Error(), "second startup locality") {
		t.Errorf("error %v", err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(l *Log)
		want  string
	}{
		{"no banks", func(l *Log) { l.Algs = nil }, "want a bank"},
		{"foreign digest", func(l *Log) { l.Events[1].Digests[0].Alg = SHA512 }, "digest 0 is 20 bytes of sha512"},
		{"digest twice", func(l *Log) { l.Events[1].Digests[0] = l.Events[1].Digests[1] }, "digest 1"},
		{"short digest", func(l *Log) { l.Events[1].Digests[0].Value = []byte{1} }, "digest 0 is 1 bytes of sha1"},
		{"register", func(l *Log) { l.Events[1].Register = 24 }, "register 24"},
		{"locality without event", func(l *Log) { l.Events = l.Events[1:] }, "startup locality 3, its event says 0"},
		{"legacy banks", func(l *Log) { l.Legacy = true }, "SHA-1 log with banks"},
		{"legacy digests", func(l *Log) { l.Legacy, l.Algs, l.Events[0].Digests = true, l.Algs[:1], nil }, "event 0: 0 digests"},
		{"vendor info", func(l *Log) { l.Spec.VendorInfo = make([]byte, 256) }, "at most 255 bytes"},
	}
	for _, tt := range tests {
		l := one()
		tt.spoil(l)
		if _, err := l.Marshal(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
}

func TestReplayRefuses(t *testing.T) {
	l := one()
	if _, err := l.Replay(SHA384); err == nil {
		t.Error("replay in a bank that the log has not")
	}
	for _, alg := range []Alg{SHA256, SM3} {
		if _, err := (&Log{Algs: []Alg{SHA1, SM3}}).Replay(alg); err == nil {
			t.Errorf("replay in %v of a log without it or without its hash", alg)
		}
	}
	l.Events[1].Digests = l.Events[1].Digests[:1]
	if _, err := l.Replay(SHA256); err == nil || !strings.Contains(err.Error(), "event 1: sha256 digest of 0 bytes") {
		t.Errorf("replay over a missing digest: %v", err)
	}
	if _, err := l.Replay(SHA1); err != nil {
		t.Error(err)
	}
}

// A CC log has SHA-384 alone, and its registers count from MRTD.
func TestCC(t *testing.T) {
	l := &Log{Algs: []Alg{SHA384}, CC: true, Spec: EDK2}
	for mr := range 5 {
		l.Events = append(l.Events, Event{Register: mr, Type: Separator, Data: make([]byte, 4), Digests: []Digest{{SHA384, SHA384.Sum(make([]byte, 4))}}})
	}
	b, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCC(append(b, bytes.Repeat([]byte{0xff}, 4096)...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l, got, cmp.Transformer("empty", func(s SpecID) SpecID { s.VendorInfo = nil; return s })); diff != "" {
		t.Error(diff)
	}
	const event = 4 + 4 + 4 + 2 + 48 + 4 + 4
	b[len(b)-event] = 5
	if _, err := ParseCC(b); err == nil || !strings.Contains(err.Error(), "register 5: want at most 4") {
		t.Errorf("error %v", err)
	}
	if _, err := Parse(b); err == nil || !strings.Contains(err.Error(), "register 1: want 0") {
		t.Errorf("a CC log as that of a TPM: %v", err)
	}
}

func TestAlg(t *testing.T) {
	for _, name := range []string{"sha1", "sha256", "sha384", "sha512", "sm3_256"} {
		a, err := ParseAlg(name)
		if err != nil || a.String() != name || a.Size() == 0 {
			t.Errorf("%s: %v, %d bytes, %v", name, a, a.Size(), err)
		}
		if h := a.Hash(); h != 0 && h.Size() != a.Size() {
			t.Errorf("%v: %d bytes, the hash has %d", a, a.Size(), h.Size())
		}
	}
	if _, err := ParseAlg("md5"); err == nil {
		t.Error("md5 is a bank")
	}
	if got := Alg(0x27).String(); got != "alg 0x0027" {
		t.Error(got)
	}
}

// seeds are logs of one real event each, one a type: short ones, as the fuzzer
// spends its time on shortening what it keeps.
func seeds(f *testing.F) [][]byte {
	var out [][]byte
	seen := map[Type]bool{}
	for _, name := range recorded {
		l, _ := readLog(f, name)
		for _, e := range l.Events {
			if seen[e.Type] && !l.Legacy {
				continue
			}
			seen[e.Type] = true
			small := Log{Algs: l.Algs[:1], Legacy: l.Legacy, Spec: l.Spec}
			e.Digests = []Digest{{SHA1, e.Digest(SHA1)}}
			small.Events = []Event{e}
			b, err := small.Marshal()
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, b)
		}
	}
	return out
}

func FuzzParse(f *testing.F) {
	b, err := one().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range append(seeds(f), b) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := Parse(b); err == nil {
			checkParsed(t, b, l)
		}
	})
}

// checkParsed holds what is true of every log that was read from b.
func checkParsed(t *testing.T, b []byte, l *Log) {
	t.Helper()
	out, err := l.Marshal()
	if err != nil {
		t.Fatalf("parsed, but cannot be written: %v", err)
	}
	if !bytes.HasPrefix(b, out) || padding(b) > len(out) {
		t.Fatalf("%d bytes do not begin with the %d that were written", len(b), len(out))
	}
	l.Describe()
	l.Inconsistent()
	for _, a := range l.Algs {
		if _, err := l.Replay(a); err == nil {
			if d := Diff(l.Events, l.Events, a); len(d) > 0 {
				t.Fatalf("a log differs from itself: %v", d[0])
			}
		}
	}
	var back Log
	if j, err := l.MarshalJSON(); err != nil {
		t.Fatal(err)
	} else if err := back.UnmarshalJSON(j); err != nil {
		t.Fatal(err)
	}
}
