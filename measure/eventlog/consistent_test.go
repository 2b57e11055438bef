package eventlog

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedLogsAreConsistent(t *testing.T) {
	for _, name := range recorded {
		l, _ := readLog(t, name)
		for _, f := range l.Inconsistent() {
			t.Errorf("%s: %v", name, f)
		}
	}
}

// Changing one byte of the text leaves the digests, and so the registers, as
// they are: only Inconsistent can see it.
func TestLiesAreNoticed(t *testing.T) {
	for _, name := range recorded {
		l, _ := readLog(t, name)
		checkable := 0
		for i := range l.Events {
			e := &l.Events[i]
			if hashedData(e) == nil {
				continue
			}
			checkable++
			e.Data = append([]byte(nil), e.Data...)
			e.Data[len(e.Data)-1] ^= 0x10
			if f := l.Inconsistent(); len(f) != 1 || f[0].Index != i {
				t.Errorf("%s: event %d, %v: a changed byte gives %v", name, i, e.Type, f)
			}
			e.Data[len(e.Data)-1] ^= 0x10
		}
		if checkable < 12 {
			t.Errorf("%s: %d events can be checked, want at least 12", name, checkable)
		}
	}
}

func TestInconsistent(t *testing.T) {
	hashed := func(typ Type, data, of string) Event {
		return Event{Register: 5, Type: typ, Data: []byte(data), Digests: []Digest{{SM3, make([]byte, 32)}, {SHA256, SHA256.Sum([]byte(of))}}}
	}
	v := Variable{Name: "db", Data: []byte("cert")}
	tests := []struct {
		name   string
		events []Event
		want   string
	}{
		{"separator", []Event{hashed(Separator, "\xff\xff\xff\xff", "\xff\xff\xff\xff")}, ""},
		{"error separator", []Event{hashed(Separator, "TPM", "\x01\x00\x00\x00")}, ""},
		{"separator of something", []Event{hashed(Separator, "TPM", "TPM")}, "event 0: sha256 digest"},
		{"second separator", []Event{hashed(Separator, "\x00\x00\x00\x00", "\x00\x00\x00\x00"), hashed(Separator, "\x00\x00\x00\x00", "\x00\x00\x00\x00")}, "event 1: second separator in pcr5"},
		{"boot variable by its data", []Event{hashed(VariableBoot, string(v.Bytes()), "cert")}, ""},
		{"boot variable whole", []Event{hashed(VariableBoot, string(v.Bytes()), string(v.Bytes()))}, ""},
		{"policy variable by its data", []Event{hashed(VariableDriver, string(v.Bytes()), "cert")}, "event 0: sha256 digest"},
		{"authority", []Event{hashed(VariableAuthority, string(v.Bytes()), string(v.Bytes()))}, ""},
		{"authority and a byte", []Event{hashed(VariableAuthority, string(v.Bytes())+"x", string(v.Bytes()))}, ""},
		{"authority and two bytes", []Event{hashed(VariableAuthority, string(v.Bytes())+"xy", string(v.Bytes()))}, "event 0: sha256 digest"},
		{"malformed variable", []Event{hashed(VariableBoot, "x", "x")}, ""},
		{"action", []Event{hashed(EFIAction, "Exit", "Exit Boot")}, "event 0: sha256 digest"},
		{"image", []Event{hashed(BootApplication, "x", "y")}, ""},
	}
	for _, tt := range tests {
		l := &Log{Algs: []Alg{SM3, SHA256}, Events: tt.events}
		got := ""
		for _, f := range l.Inconsistent() {
			got += f.String() + "; "
		}
		if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// PCR 1 of a TPM is not RTMR 0.
func TestSecondSeparatorTPM(t *testing.T) {
	e := Event{Register: 1, Type: Separator, Data: zeroSeparator}
	l := &Log{Algs: []Alg{SHA256}, Events: []Event{e, e}}
	if got := fmt.Sprint(l.Inconsistent()); got != "[event 1: second separator in pcr1]" {
		t.Error(got)
	}
}

// An RTMR takes in several PCRs and has one separator still. Old edk2 logged two
// in RTMR 0 and none in RTMR 1, and that is said.
func TestSecondSeparatorCC(t *testing.T) {
	old := "second separator in rtmr0, as edk2 before 202411 logs it; it is missing in rtmr1"
	for _, tt := range []struct {
		registers []int
		want      string
	}{
		{[]int{1, 2}, ""},
		{[]int{1, 1}, "[event 1: " + old + "]"},
		{[]int{1, 1, 2}, "[event 1: second separator in rtmr0]"},
		{[]int{1, 1, 1}, "[event 1: second separator in rtmr0 event 2: second separator in rtmr0]"},
		{[]int{1, 2, 2}, "[event 2: second separator in rtmr1]"},
		{[]int{3, 3}, "[event 1: second separator in rtmr2]"},
	} {
		l := &Log{CC: true, Algs: []Alg{SHA384}}
		for _, r := range tt.registers {
			l.Events = append(l.Events, Event{Register: r, Type: Separator, Data: zeroSeparator, Digests: []Digest{{SHA384, SHA384.Sum(zeroSeparator)}}})
		}
		got := ""
		if f := l.Inconsistent(); f != nil {
			got = fmt.Sprint(f)
		}
		if got != tt.want {
			t.Errorf("%v: %q, want %q", tt.registers, got, tt.want)
		}
	}
}
