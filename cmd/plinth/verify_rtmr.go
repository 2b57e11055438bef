package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// explainRTMRs finds the events by which the run-time registers of a trust domain differ.
// The verdict on each is among the checks of the quote.
func explainRTMRs(m *measure.Measurements, r *verify.Result, log *eventlog.Log) *registerReport {
	out := &measure.CheckResult{Profile: m.Profile, Machine: m.Machine, Passed: true, Notes: []string{}, Registers: []measure.RegisterCheck{}}
	for _, x := range r.Checks {
		n, ok := strings.CutPrefix(x.Name, "RTMR")
		if !ok || x.Verdict != verify.Failed || log == nil {
			continue
		}
		if y, err := explainRTMR(m, "rtmr"+n, log); err == nil {
			y.Got, y.Want = x.Got, []string{}
			out.Registers, out.Passed = append(out.Registers, y), false
		}
	}
	return &registerReport{CheckResult: out}
}

var errNoValue = errors.New("the document has no events of it")

func explainRTMR(m *measure.Measurements, name string, log *eventlog.Log) (measure.RegisterCheck, error) {
	x := measure.RegisterCheck{Register: name, Bank: eventlog.SHA384.String(), Verdict: measure.Mismatch, Differences: []measure.EventDifference{}}
	i := slices.IndexFunc(m.Values, func(v measure.Value) bool { return v.Platform == measure.PlatformTDX && v.Register == name })
	var n int
	if _, err := fmt.Sscanf(name, "rtmr%d", &n); err != nil || i < 0 {
		return x, errNoValue
	}
	var want, got []eventlog.Event
	for _, e := range m.Values[i].Events {
		digest, err := hex.DecodeString(e.Digest)
		t, err2 := eventlog.ParseType(e.Type)
		if err != nil || err2 != nil || len(digest) == 0 {
			continue // not known
		}
		want = append(want, eventlog.Event{Register: n + 1, Type: t, Name: e.Name, Source: e.Source, Digests: []eventlog.Digest{{Alg: eventlog.SHA384, Value: digest}}})
	}
	for _, e := range log.Events {
		if e.Register == n+1 {
			got = append(got, e)
		}
	}
	for _, d := range eventlog.Diff(want, got, eventlog.SHA384) {
		x.Differences = append(x.Differences, differenceOf(d))
	}
	return x, nil
}

func differenceOf(d eventlog.Difference) measure.EventDifference {
	out := measure.EventDifference{Index: d.Index, Kind: d.Kind}
	if d.Got != nil {
		out.Name, out.Type, out.Got = d.Got.Name, d.Got.Type.String(), hex.EncodeToString(d.Got.Digest(eventlog.SHA384))
	}
	if d.Want != nil {
		out.Name, out.Type, out.Source, out.Want = d.Want.Name, d.Want.Type.String(), d.Want.Source, hex.EncodeToString(d.Want.Digest(eventlog.SHA384))
	}
	return out
}
