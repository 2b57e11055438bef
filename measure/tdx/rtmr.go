package tdx

import (
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// RTMR returns the register that takes the place of a PCR in a trust domain: UEFI
// 2.10, section 38.4.1. PCR 0 has none, what it covers is in MRTD; no firmware
// extends RTMR 3.
func RTMR(pcr int) (rtmr int, ok bool) {
	switch {
	case pcr == 1 || pcr == 7:
		return 0, true
	case 2 <= pcr && pcr <= 6:
		return 1, true
	case 8 <= pcr && pcr <= 15:
		return 2, true
	}
	return 0, false
}

// RTMRs returns RTMR 0 to 3 after replaying l, which must hold SHA-384 digests: a
// CC log, or a list of events with PCR numbers in the order of their time, since
// several PCRs share a register. A register without events is zero, as RTMR 3 is
// before the agent runs. It fails on an event for MRTD, which nothing extends at
// run time, and for a PCR that has no RTMR.
func RTMRs(l *eventlog.Log) ([4][48]byte, error) {
	var out [4][48]byte
	cc := eventlog.Log{CC: true, Algs: l.Algs, Events: slices.Clone(l.Events)}
	for i := range cc.Events {
		e := &cc.Events[i]
		if e.Type == eventlog.NoAction {
			continue
		}
		rtmr, ok := RTMR(e.Register)
		if l.CC {
			rtmr, ok = e.Register-1, 1 <= e.Register && e.Register <= len(out)
		}
		if !ok {
			return out, fmt.Errorf("tdx: RTMRs: event %d: %s: no RTMR stands for it", i, l.RegisterName(e.Register))
		}
		e.Register = rtmr + 1
	}
	values, err := cc.Replay(eventlog.SHA384)
	if err != nil {
		return out, fmt.Errorf("tdx: RTMRs: %w", err)
	}
	for i := range out {
		copy(out[i][:], values[i+1])
	}
	return out, nil
}
