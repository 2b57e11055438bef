package verify

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// ReportData returns what a guest asked to be signed, from its evidence: the field as it
// is there, with what it was filled up by. Nothing is checked.
func ReportData(primary []byte) ([]byte, error) {
	tee, err := evidence.Detect(primary)
	if err != nil {
		return nil, err
	}
	switch tee {
	case evidence.TEETPM:
		e, err := evidence.ParseTPM(primary)
		if err != nil {
			return nil, err
		}
		return attested(e.Quote.Message)
	case evidence.TEEAzSNP, evidence.TEEAzTDX:
		e, err := evidence.ParseAzure(primary)
		if err != nil {
			return nil, err
		}
		return attested(e.Quote.Message)
	case evidence.TEESNP:
		e, err := evidence.ParseSNP(primary)
		if err != nil {
			return nil, err
		}
		r, err := parseReport(e.Report)
		if err != nil {
			return nil, err
		}
		return r.ReportData[:], nil
	case evidence.TEETDX:
		e, err := evidence.ParseTDX(primary)
		if err != nil {
			return nil, err
		}
		q, err := parseQuote(e.Quote)
		if err != nil {
			return nil, err
		}
		return q.body.ReportData[:], nil
	}
	e, err := evidence.ParseSample(primary)
	if err != nil {
		return nil, err
	}
	return e.ReportData, nil
}

func attested(message []byte) ([]byte, error) {
	a, err := parseAttest(message)
	if err != nil {
		return nil, err
	}
	return a.extra, nil
}

// SNPEvidence checks a report as the broker is shown it.
func SNPEvidence(e *evidence.SNP, o SNPOptions) (*Result, error) {
	table, err := e.Table()
	if err != nil {
		return nil, err
	}
	return SNP(append(bytes.Clone(e.Report), table...), o)
}

// TDXEvidence checks a quote as the broker is shown it, and that the event log leads to
// the run-time registers that are in it. The log is nil where there is none that can be
// read.
func TDXEvidence(e *evidence.TDX, o TDXOptions) (*Result, *eventlog.Log, error) {
	q, err := parseQuote(e.Quote)
	if err != nil {
		return nil, nil, err
	}
	r, err := TDX(e.Quote, o)
	if err != nil {
		return nil, nil, err
	}
	c := checks(r.Checks)
	l := q.checkLog(&c, e.CCEventLog)
	return c.result(r.Platform, r.Evidence), l, nil
}

// checkLog replays a CC event log to each RTMR.
func (q *quote) checkLog(c *checks, log []byte) *eventlog.Log {
	const name = "event log"
	if len(log) == 0 {
		c.skip(name, "", "the evidence has none: nothing says why a register is what it is")
		return nil
	}
	l, values, err := replayCC(log)
	if err != nil {
		c.fault(name, fmt.Sprintf("%d bytes", len(log)), "a CC event log with bank sha384", err).Required = true
		return nil
	}
	l.Describe()
	var bad checks
	for i, got := range q.body.RTMR {
		replayed := values[i+1] // index 0 is MRTD
		if replayed == nil {
			replayed = make([]byte, len(got))
		}
		if !bytes.Equal(got[:], replayed) {
			x := bad.add(fmt.Sprintf("log of RTMR%d", i), hex.EncodeToString(got[:]), hex.EncodeToString(replayed), false)
			x.Required, x.Reason = true, lastEvent(l, i+1)
		}
	}
	c.add(name, fmt.Sprintf("%d events", len(l.Events)), "leads to each register", len(bad) == 0).Required = true
	*c = append(*c, bad...)
	return l
}

func replayCC(log []byte) (*eventlog.Log, map[int][]byte, error) {
	l, err := eventlog.ParseCC(log)
	if err != nil {
		return nil, nil, err
	}
	if len(l.Events) == 0 {
		return nil, nil, errors.New("no events")
	}
	values, err := l.Replay(eventlog.SHA384)
	return l, values, err
}

const noEvent = "the log has no event of it"

// lastEvent says where a replay of a register ended.
func lastEvent(l *eventlog.Log, register int) string {
	last, n := "", 0
	for _, e := range l.Events {
		if e.Register == register && e.Type != eventlog.NoAction {
			last, n = e.Name, n+1
		}
	}
	if n == 0 {
		return noEvent
	}
	return fmt.Sprintf("that is where the last of its %d events leads, %s", n, last)
}
