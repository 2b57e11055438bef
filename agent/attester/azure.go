package attester

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/plinth-os/plinth/evidence"
)

// Where Azure's paravisor keeps its things in the vTPM: Microsoft, "Confidential VM
// guest attestation design".
const (
	azureAK       = 0x81000003
	nvHCLReport   = 0x01400001
	nvHCLUserData = 0x01400002 // what the next report shall be about
)

const hclUserData = 64 // bytes

// maxQualifyingData is the largest digest that a TPM takes to be bound, in bytes:
// TPM 2.0 Library, Part 2, section 10.4.3, TPM2B_DATA.
const maxQualifyingData = 64

// How the paravisor is waited for: it makes a report at most every few seconds.
const (
	hclPause = 250 * time.Millisecond
	hclWait  = 15 * time.Second
)

// NewAzure returns an attester by the vTPM t of Azure's paravisor, which must be safe
// for concurrent use (Shared). tee is evidence.TEEAzSNP or evidence.TEEAzTDX; imds
// reaches the metadata service, nil: without a proxy; snapshot holds the agent's
// extends back. Its evidence has no place for the log that snapshot hands over.
func NewAzure(tee string, t transport.TPM, imds *http.Client, snapshot Snapshot) (Attester, error) {
	if tee != evidence.TEEAzSNP && tee != evidence.TEEAzTDX {
		return nil, fmt.Errorf("attester: azure: kind %q", tee)
	}
	if t == nil || snapshot == nil {
		return nil, fmt.Errorf("attester: %s: want a TPM and the log of its registers", tee)
	}
	return &azure{tee: tee, t: t, imds: newMetadata(imds), snapshot: snapshot, pause: hclPause, wait: hclWait}, nil
}

type azure struct {
	tee         string
	t           transport.TPM
	imds        metadata
	snapshot    Snapshot
	pause, wait time.Duration

	mu sync.Mutex // there is one place for user data
}

func (a *azure) TEE() string { return a.tee }

// Evidence takes some seconds: those for which the paravisor keeps its last report.
func (a *azure) Evidence(ctx context.Context, data []byte) (json.RawMessage, error) {
	e, err := a.evidence(ctx, data[:min(len(data), maxQualifyingData)])
	if err != nil {
		return nil, fmt.Errorf("attester: %s: %w", a.tee, err)
	}
	return e.Marshal()
}

// evidence binds data twice: in the hardware's report by way of its runtime data, and
// in the quote, where verifiers want it as it is, without zeros behind it.
func (a *azure) evidence(ctx context.Context, data []byte) (*evidence.Azure, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, err := readKey(a.t, azureAK)
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	report, err := a.report(ctx, fit(data, hclUserData))
	if err != nil {
		return nil, fmt.Errorf("HCL report: %w", err)
	}
	e := &evidence.Azure{Version: evidence.AzureVersion, HCLReport: report.bytes}
	if err := a.endorse(ctx, e, report); err != nil {
		return nil, fmt.Errorf("metadata service: %w", err)
	}
	err = a.snapshot(func([]byte) error {
		q, err := takeQuote(ctx, a.t, k, data)
		if err != nil {
			return err
		}
		rsa, err := q.signature.Signature.RSASSA()
		if err != nil {
			return fmt.Errorf("TPM2_Quote: %w", err)
		}
		e.Quote = evidence.AzureQuote{Signature: rsa.Sig.Buffer, Message: q.message, PCRs: q.pcrs}
		return nil
	})
	return e, err
}

// endorse adds what the host has to say about the report: a certificate or a quote.
func (a *azure) endorse(ctx context.Context, e *evidence.Azure, r *hclReport) (err error) {
	if a.tee == evidence.TEEAzSNP {
		e.VCEK, err = a.imds.vcek(ctx)
	} else {
		e.TDQuote, err = a.imds.tdQuote(ctx, r.hardware[:tdReportSize])
	}
	return err
}

// report has the paravisor make a report about data, and waits until it has.
func (a *azure) report(ctx context.Context, data []byte) (*hclReport, error) {
	if err := writeUserData(a.t, data); err != nil {
		return nil, fmt.Errorf("user data: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.wait, errors.New("it does not show the user data"))
	defer cancel()
	for {
		b, err := readNV(a.t, nvHCLReport)
		if err != nil {
			return nil, err
		}
		r, err := parseHCL(b, a.tee)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(r.userData, data) {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(a.pause):
		}
	}
}

// writeUserData fills the index, which it makes when there is none of its size that
// the owner may write.
func writeUserData(t transport.TPM, data []byte) error {
	public, name, err := nvPublic(t, nvHCLUserData)
	if err != nil {
		return err
	}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if public != nil && (int(public.DataSize) != len(data) || !public.Attributes.OwnerWrite) {
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: nvHCLUserData, Name: name}}).Execute(t); err != nil {
			return fmt.Errorf("TPM2_NV_UndefineSpace: %w", err)
		}
		public = nil
	}
	if public == nil {
		if name, err = defineUserData(t, owner, len(data)); err != nil {
			return err
		}
	}
	_, err = tpm2.NVWrite{
		AuthHandle: owner,
		NVIndex:    tpm2.NamedHandle{Handle: nvHCLUserData, Name: name},
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data},
	}.Execute(t)
	if err != nil {
		return fmt.Errorf("TPM2_NV_Write: %w", err)
	}
	return nil
}

func defineUserData(t transport.TPM, owner tpm2.AuthHandle, size int) (tpm2.TPM2BName, error) {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: owner,
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex:    nvHCLUserData,
			NameAlg:    tpm2.TPMAlgSHA256,
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NT: tpm2.TPMNTOrdinary},
			DataSize:   uint16(size),
		}),
	}.Execute(t)
	if err != nil {
		return tpm2.TPM2BName{}, fmt.Errorf("TPM2_NV_DefineSpace: %w", err)
	}
	public, name, err := nvPublic(t, nvHCLUserData)
	if err == nil && public == nil {
		err = errors.New("it is not there after TPM2_NV_DefineSpace")
	}
	return name, err
}

// Layout of an HCL report, in bytes: header, hardware report, request data.
// Little-endian. OpenHCL, openhcl_attestation_protocol, igvm_attest/get.rs.
const (
	hclHeader    = 32
	hclHardware  = 1184
	hclRequest   = 20
	hclRuntime   = hclHeader + hclHardware + hclRequest // where the runtime data starts, JSON
	tdReportSize = 1024

	hclSNP, hclTDX = 2, 4 // types of the hardware report
)

type hclReport struct {
	bytes    []byte
	hardware []byte
	userData []byte
}

// parseHCL reads what the attester needs to know. A verifier checks the rest.
func parseHCL(b []byte, tee string) (*hclReport, error) {
	if len(b) < hclRuntime || string(b[:4]) != "HCLA" {
		return nil, fmt.Errorf("%d bytes at %#x: no report", len(b), nvHCLReport)
	}
	request := b[hclHeader+hclHardware:]
	kind, size := binary.LittleEndian.Uint32(request[8:]), binary.LittleEndian.Uint32(request[16:])
	want := uint32(hclSNP)
	if tee == evidence.TEEAzTDX {
		want = hclTDX
	}
	if kind != want {
		return nil, fmt.Errorf("hardware report of type %d, want %d for %s", kind, want, tee)
	}
	if int64(size) > int64(len(b)-hclRuntime) {
		return nil, fmt.Errorf("runtime data of %d bytes in %d", size, len(b)-hclRuntime)
	}
	var runtime struct {
		UserData string `json:"user-data"`
	}
	if err := json.Unmarshal(b[hclRuntime:][:size], &runtime); err != nil {
		return nil, fmt.Errorf("runtime data: %w", err)
	}
	data, err := hex.DecodeString(runtime.UserData)
	if err != nil {
		return nil, fmt.Errorf("runtime data: user-data: %w", err)
	}
	return &hclReport{bytes: b, hardware: b[hclHeader:][:hclHardware], userData: data}, nil
}
