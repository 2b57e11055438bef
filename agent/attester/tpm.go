package attester

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/plinth-os/plinth/evidence"
)

// TPMOptions say by which key a TPM attests, and what its registers hold.
type TPMOptions struct {
	AKHandle uint32   // persistent handle of the attestation key; 0: CoCo's, if there is one, else one is made
	Snapshot Snapshot // required
}

// NewTPM returns an attester by quotes of t, which must be safe for concurrent use
// (Shared). Nothing is asked of t yet. The attester is an io.Closer: after the first
// evidence it may keep a key in t.
func NewTPM(t transport.TPM, o TPMOptions) (Attester, error) {
	if t == nil || o.Snapshot == nil {
		return nil, errors.New("attester: tpm: want a TPM and the log of its registers")
	}
	return &tpmAttester{t: t, o: o}, nil
}

type tpmAttester struct {
	t transport.TPM
	o TPMOptions

	mu             sync.Mutex
	key            *key   // nil until the first evidence
	ekCert, akCert []byte // X.509, DER; nil where there is none
}

func (*tpmAttester) TEE() string { return evidence.TEETPM }

func (a *tpmAttester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	b, err := a.evidence(ctx, reportData)
	if err != nil {
		return nil, fmt.Errorf("attester: tpm: %w", err)
	}
	return b, nil
}

func (a *tpmAttester) evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.prepare(); err != nil {
		return nil, err
	}
	e := evidence.TPM{AKPublic: a.key.public, EKCertificate: a.ekCert, AKCertificate: a.akCert}
	err := a.o.Snapshot(func(log []byte) error {
		q, err := takeQuote(ctx, a.t, a.key, fit(reportData, evidence.TPMReportData))
		if err != nil {
			return err
		}
		e.EventLog = bytes.Clone(log)
		e.Quote = evidence.TPMQuote{Signature: tpm2.Marshal(q.signature), Message: q.message, PCRs: q.pcrs}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return e.Marshal()
}

// prepare finds the key and its certificates, once.
func (a *tpmAttester) prepare() error {
	if a.key != nil {
		return nil
	}
	k, err := findKey(a.t, a.o.AKHandle)
	if err != nil {
		return fmt.Errorf("attestation key: %w", err)
	}
	if err := a.certificates(k); err != nil {
		return errors.Join(fmt.Errorf("certificate: %w", err), k.flush(a.t))
	}
	a.key = k
	return nil
}

func (a *tpmAttester) certificates(k *key) error {
	ek, err := readCertificate(a.t, nvEKCertificate)
	if err != nil {
		return err
	}
	ak, err := readCertificate(a.t, nvAKCertificate)
	if err != nil {
		return err
	}
	a.ekCert = ek
	if certifies(ak, k.public) {
		a.akCert = ak
	}
	return nil
}

// Close flushes the key, if one was made. Evidence after it makes another one.
func (a *tpmAttester) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.key == nil {
		return nil
	}
	err := a.key.flush(a.t)
	a.key = nil
	if err != nil {
		return fmt.Errorf("attester: tpm: attestation key: %w", err)
	}
	return nil
}
