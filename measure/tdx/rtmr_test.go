package tdx

import (
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
)

func TestRTMR(t *testing.T) {
	want := map[int]int{1: 0, 7: 0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 8: 2, 9: 2, 10: 2, 11: 2, 12: 2, 13: 2, 14: 2, 15: 2}
	for pcr := -1; pcr < 25; pcr++ {
		w, known := want[pcr]
		if got, ok := RTMR(pcr); got != w || ok != known {
			t.Errorf("PCR %d: %d, %v: want %d, %v", pcr, got, ok, w, known)
		}
	}
}

// A list by PCR and the CC log of the same events end in the same registers.
func TestRTMRsOfPCRs(t *testing.T) {
	cc := readCC(t, "coco-kernel")
	pcrs := &eventlog.Log{Algs: cc.Algs, Events: slices.Clone(cc.Events)}
	some := []int{0, 7, 4, 9} // by measurement register index, any PCR of each
	for i := range pcrs.Events {
		pcrs.Events[i].Register = some[pcrs.Events[i].Register]
	}
	want, err := RTMRs(cc)
	if err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(pcrs.Events)
	got, err := RTMRs(pcrs)
	if err != nil || got != want {
		t.Errorf("%x, %v: want %x", got, err, want)
	}
	for i := range before {
		if before[i].Register != pcrs.Events[i].Register {
			t.Fatalf("event %d has another register now", i)
		}
	}
	// Startup locality belongs to PCR 0 alone, which has no RTMR.
	pcrs.StartupLocality = 3
	if got, err := RTMRs(pcrs); err != nil || got != want {
		t.Errorf("with a startup locality: %x, %v", got, err)
	}
}

// One bit in one digest moves the register of that event, and no other.
func TestRTMRsMove(t *testing.T) {
	l := readCC(t, "dstack-app")
	before, err := RTMRs(l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range l.Events {
		e := &l.Events[i]
		digest := e.Digests[0].Value
		digest[0] ^= 1
		after, err := RTMRs(l)
		digest[0] ^= 1
		if err != nil {
			t.Fatal(err)
		}
		for r := range after {
			if moved := after[r] != before[r]; moved != (r == e.Register-1) {
				t.Errorf("event %d (%s) of RTMR %d: RTMR %d moves: %v", i, e.Name, e.Register-1, r, moved)
			}
		}
	}
}

func TestRTMRsRefuse(t *testing.T) {
	digest := eventlog.Digest{Alg: eventlog.SHA384, Value: make([]byte, 48)}
	event := func(register int, typ eventlog.Type, d ...eventlog.Digest) eventlog.Event {
		return eventlog.Event{Register: register, Type: typ, Digests: d}
	}
	sha384 := []eventlog.Alg{eventlog.SHA384}
	for _, tt := range []struct {
		name string
		log  eventlog.Log
		want string
	}{
		{"PCR 0", eventlog.Log{Algs: sha384, Events: []eventlog.Event{event(0, eventlog.Action, digest)}}, "tdx: RTMRs: event 0: pcr0: no RTMR stands for it"},
		{"PCR 16", eventlog.Log{Algs: sha384, Events: []eventlog.Event{event(16, eventlog.Action, digest)}}, "tdx: RTMRs: event 0: pcr16: "},
		{"MRTD", eventlog.Log{CC: true, Algs: sha384, Events: []eventlog.Event{event(0, eventlog.Action, digest)}}, "tdx: RTMRs: event 0: mrtd: "},
		{"index 5", eventlog.Log{CC: true, Algs: sha384, Events: []eventlog.Event{event(5, eventlog.Action, digest)}}, "tdx: RTMRs: event 0: mr5: "},
		{"no digest", eventlog.Log{CC: true, Algs: sha384, Events: []eventlog.Event{event(1, eventlog.Action)}}, "tdx: RTMRs: eventlog: event 0: sha384 digest of 0 bytes"},
		{"another bank", eventlog.Log{CC: true, Algs: []eventlog.Alg{eventlog.SHA256}}, "tdx: RTMRs: eventlog: replay in sha384"},
	} {
		if _, err := RTMRs(&tt.log); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %s", tt.name, err, tt.want)
		}
	}
	// NO_ACTION extends nothing, whatever register it names.
	l := eventlog.Log{CC: true, Algs: sha384, Events: []eventlog.Event{event(0, eventlog.NoAction), event(0xffff, eventlog.NoAction)}}
	if got, err := RTMRs(&l); err != nil || got != [4][48]byte{} {
		t.Errorf("NO_ACTION alone: %x, %v", got, err)
	}
}
