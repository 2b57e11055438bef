package attester

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/evidence"
)

// ccel is where the kernel shows the firmware's log: the memory that the ACPI table
// CCEL points to, as large as was set aside. UEFI 2.10, section 38.4.
const ccel = "/sys/firmware/acpi/tables/data/CCEL"

// NewTDX returns an attester by quotes of a trust domain. log returns the agent's own
// records, TCG_PCR_EVENT2 one behind the other; nil: there are none. root is where the
// kernel's paths are found, "/" in a guest. It is an error if the kernel makes no
// reports.
func NewTDX(root string, log func() ([]byte, error)) (Attester, error) {
	a := &tdx{tsm: tsm{osFiles{}, filepath.Join(root, tsmReports)}, ccel: filepath.Join(root, ccel), log: log}
	if a.log == nil {
		a.log = func() ([]byte, error) { return nil, nil }
	}
	if _, err := os.Stat(a.tsm.dir); err != nil {
		return nil, fmt.Errorf("attester: tdx: %w", err)
	}
	return a, nil
}

type tdx struct {
	tsm  tsm
	ccel string
	log  func() ([]byte, error)
}

func (*tdx) TEE() string { return evidence.TEETDX }

// Evidence cannot be cancelled while the quote is made, for which the kernel waits 30
// seconds at most.
func (a *tdx) Evidence(ctx context.Context, data []byte) (json.RawMessage, error) {
	e, err := a.evidence(ctx, fit(data, reportData))
	if err != nil {
		return nil, fmt.Errorf("attester: tdx: %w", err)
	}
	return e.Marshal()
}

// evidence asks again when an event came between the log and the quote.
func (a *tdx) evidence(ctx context.Context, data []byte) (*evidence.TDX, error) {
	records, err := a.log()
	if err != nil {
		return nil, err
	}
	for range quoteAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		quote, err := a.quote(data)
		if err != nil {
			return nil, err
		}
		now, err := a.log()
		if err != nil {
			return nil, err
		}
		if bytes.Equal(now, records) {
			log, err := a.wholeLog(records)
			return &evidence.TDX{Quote: quote, CCEventLog: log}, err
		}
		records = now
	}
	return nil, fmt.Errorf("events come between log and quote, %d times", quoteAttempts)
}

// tdReportData is where REPORTDATA is in a quote, by its version: the body starts
// behind the header (48 bytes), in version 5 behind its type and size as well (6).
// Intel TDX DCAP Quoting Library API, appendix 3.
var tdReportData = map[byte]int{4: 48 + 520, 5: 48 + 6 + 520}

func (a *tdx) quote(data []byte) ([]byte, error) {
	q, _, err := a.tsm.report(providerTDX, data)
	if err != nil {
		return nil, err
	}
	if len(q) == 0 {
		return nil, errors.New("empty quote: the host has no quoting service")
	}
	if offset, ok := tdReportData[q[0]]; ok {
		err = reflects(q, offset, data)
	}
	return q, err
}

// wholeLog is the firmware's log and behind it records, nil without either.
func (a *tdx) wholeLog(records []byte) ([]byte, error) {
	firmware, err := readFile(a.ccel, evidence.MaxEventLog)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	used, err := usedLog(firmware)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.ccel, err)
	}
	switch {
	case len(used)+len(records) == 0:
		return nil, nil
	case len(used) == 0:
		used = emptyLog
	}
	return bytes.Join([][]byte{used, records, endOfLog}, nil), nil
}
