package eventlog

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// published are the CC logs in testdata/cc, see the README there.
var published = []string{
	"alibaba-agent", "coco-grub", "coco-kernel", "dstack-app", "dstack-kernel", "gce-cos-113",
	"gce-two-separators", "gce-uki", "gke-grub", "hygon-csv", "intel-kernel", "td-shim",
}

func readCC(t testing.TB, name string) (*Log, []byte) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "cc", name+".bin"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ParseCC(b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l, b
}

// readRTMRs returns the registers that were published with the log, by
// measurement register index; nil if none were.
func readRTMRs(t testing.TB, name string) map[int][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "cc", name+".rtmrs"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	out := map[int][]byte{}
	for line := range strings.Lines(string(b)) {
		var rtmr int
		var value string
		if _, err := fmt.Sscanf(line, "%d %s", &rtmr, &value); err != nil {
			t.Fatal(err)
		}
		if out[rtmr+1], err = hex.DecodeString(value); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestPublishedCCLogs(t *testing.T) {
	entries, err := filepath.Glob(filepath.Join("testdata", "cc", "*.bin"))
	if err != nil || len(entries) != len(published) {
		t.Errorf("%d logs in testdata/cc, %d in the list: %v", len(entries), len(published), err)
	}
	for _, name := range published {
		l, b := readCC(t, name)
		if out, err := l.Marshal(); err != nil || !bytes.Equal(out, b) {
			t.Errorf("%s: it is not written as it was read: %v", name, err)
		}
		for register, want := range readRTMRs(t, name) {
			values, err := l.Replay(SHA384)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := values[register]
			if got == nil {
				got = make([]byte, SHA384.Size())
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %s: %x, want %x", name, l.RegisterName(register), got, want)
			}
		}
	}
}

// The ACPI table reserves room for a log; what follows the last event there is
// all ones, in td-shim zeros.
func TestPublishedCCLogsPadded(t *testing.T) {
	for _, name := range published {
		want, b := readCC(t, name)
		for _, pad := range []byte{0, 0xff} {
			got, err := ParseCC(append(slices.Clone(b), bytes.Repeat([]byte{pad}, 0x10000)...))
			if err != nil {
				t.Errorf("%s: padded with %#x: %v", name, pad, err)
			} else if len(got.Events) != len(want.Events) {
				t.Errorf("%s: padded with %#x: %d events, want %d", name, pad, len(got.Events), len(want.Events))
			}
		}
		if _, err := ParseCC(append(slices.Clone(b), 0, 0, 0, 1)); err == nil {
			t.Errorf("%s: padding that is none is taken", name)
		}
	}
}

// Of the published logs, those of edk2 before 202411 have a second separator; no
// other event contradicts its digest.
func TestPublishedCCLogsAreConsistent(t *testing.T) {
	const old = "[event 15: second separator in rtmr0, as edk2 before 202411 logs it; it is missing in rtmr1]"
	want := map[string]string{"coco-grub": old, "coco-kernel": old, "gce-two-separators": old, "intel-kernel": old}
	for _, name := range published {
		l, _ := readCC(t, name)
		got := ""
		if f := l.Inconsistent(); f != nil {
			got = fmt.Sprint(f)
		}
		if got != want[name] {
			t.Errorf("%s: %s, want %q", name, got, want[name])
		}
	}
}

// The names of four of them, as a person reads them, are in testdata/cc/NAME.txt.
func TestDescribePublished(t *testing.T) {
	for _, name := range []string{"coco-kernel", "dstack-app", "gce-uki", "td-shim"} {
		l, _ := readCC(t, name)
		l.Describe()
		var got strings.Builder
		for _, e := range l.Events {
			fmt.Fprintf(&got, "%s %s\n", l.RegisterName(e.Register), e.Name)
		}
		path := filepath.Join("testdata", "cc", name+".txt")
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestDescribeCC(t *testing.T) {
	volume := "\x28Fv(48DB5E17-707C-472D-91CD-1613E7EF51B0)" + "\x00\x00\xe0\xff\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00"
	for _, tt := range []struct {
		typ      Type
		data     string
		cc, none string
	}{
		{HandoffTables2, "\x09TdxTable\x00\x00\x00\x00\x00\x00\x00\x00\x00", "TD hand-off blocks", "TdxTable"},
		{PlatformConfig, "td_hob\x00\x01", "TD hand-off blocks", "td_hob"},
		{PlatformConfig, "TdxTable", "TdxTable", "TdxTable"},
		{FirmwareBlob2, volume, "configuration firmware volume at 0xffe00000, 131072 bytes", "firmware blob Fv(48DB5E17-707C-472D-91CD-1613E7EF51B0) at 0xffe00000, 131072 bytes"},
		{EventTag, "LOADED_IMAGE::LoadOptions\x00", "load options", "load options"},
		{EventTag, "Linux initrd\x00", "initrd", "initrd"},
		{EventTag, "other\x00", "EV_EVENT_TAG", "EV_EVENT_TAG"},
		{EventTag, "LEAA\x04\x00\x00\x00a b c", `attestation agent "a b "`, `attestation agent "a b "`},
	} {
		for _, cc := range []bool{true, false} {
			l := &Log{CC: cc, Events: []Event{{Type: tt.typ, Data: []byte(tt.data)}}}
			l.Describe()
			want := tt.none
			if cc {
				want = tt.cc
			}
			if got := l.Events[0].Name; got != want {
				t.Errorf("%v, CC %v: %q, want %q", tt.typ, cc, got, want)
			}
		}
	}
}

func TestRegisterName(t *testing.T) {
	tpm, cc := &Log{}, &Log{CC: true}
	for _, tt := range []struct {
		l           *Log
		r           int
		name, holds string
	}{
		{tpm, 0, "pcr0", "firmware code"},
		{tpm, 7, "pcr7", "Secure Boot"},
		{tpm, 11, "pcr11", "sections of the UKI"},
		{tpm, 23, "pcr23", ""},
		{cc, 0, "mrtd", "what the VMM loaded"},
		{cc, 1, "rtmr0", "firmware configuration"},
		{cc, 2, "rtmr1", "what the firmware started"},
		{cc, 3, "rtmr2", "what these measured"},
		{cc, 4, "rtmr3", "what the guest measures"},
		{cc, 5, "mr5", ""},
		{cc, -1, "mr-1", ""},
	} {
		if got := tt.l.RegisterName(tt.r); got != tt.name {
			t.Errorf("register %d: %q, want %q", tt.r, got, tt.name)
		}
		if got := tt.l.RegisterHolds(tt.r); !strings.HasPrefix(got, tt.holds) || (got == "") != (tt.holds == "") {
			t.Errorf("%s holds %q, want %q", tt.name, got, tt.holds)
		}
	}
}

func TestParseCCRefuses(t *testing.T) {
	legacy := Log{Algs: []Alg{SHA1}, Legacy: true, Events: []Event{{Register: 1, Type: Action, Data: []byte("x"), Digests: []Digest{{SHA1, make([]byte, 20)}}}}}
	b, err := legacy.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	_, real := readCC(t, "coco-kernel")
	other := slices.Clone(real)
	other[0] = 2 // the register of the Spec ID event
	for name, tt := range map[string]struct {
		b    []byte
		want string
	}{
		"SHA-1 form": {b, "eventlog: first event: not the Spec ID event that a CC log begins with"},
		"register 2": {other, "eventlog: Spec ID event: register 2: want 1"},
		"empty":      {nil, "eventlog: first event: truncated"},
		"all ones":   {bytes.Repeat([]byte{0xff}, 0x1000), "eventlog: first event: truncated"},
	} {
		if _, err := ParseCC(tt.b); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %s", name, err, tt.want)
		}
	}
}

// td-shim's first record names register 0. No other register moves with that.
func TestZeroRegister(t *testing.T) {
	shim, _ := readCC(t, "td-shim")
	edk2, _ := readCC(t, "coco-kernel")
	if !shim.Spec.ZeroRegister || edk2.Spec.ZeroRegister {
		t.Errorf("zero register: td-shim %v, edk2 %v", shim.Spec.ZeroRegister, edk2.Spec.ZeroRegister)
	}
	tpm, b := readLog(t, recorded[0])
	if out, err := tpm.Marshal(); err != nil || !bytes.Equal(out, b[:len(out)]) || tpm.Spec.ZeroRegister {
		t.Errorf("the log of a TPM: zero register %v, %v", tpm.Spec.ZeroRegister, err)
	}
}

func FuzzParseCC(f *testing.F) {
	for _, name := range []string{"coco-kernel", "dstack-app", "td-shim"} {
		l, _ := readCC(f, name)
		for _, e := range l.Events {
			if len(e.Data) > 256 {
				continue
			}
			small := Log{CC: true, Algs: l.Algs, Spec: l.Spec, Events: []Event{e}}
			b, err := small.Marshal()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := ParseCC(b); err == nil {
			checkParsed(t, b, l)
		}
	})
}
