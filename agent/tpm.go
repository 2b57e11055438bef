package agent

import (
	"context"
	"crypto"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
)

// TPM is what the agent uses of one.
type TPM interface {
	Banks() []Bank                                 // active ones
	Read() (evidence.PCRs, error)                  // PCR 0 to 23 of every active bank
	ReadRegister(pcr int) (values, error)          // of every active bank
	Extend(pcr int, digests map[Bank][]byte) error // by a digest each; a bank without one stays as it is
}

// A Bank holds the registers of one hash algorithm.
type Bank struct {
	Name string // "sha256"
	Alg  tpm2.TPMAlgID
	Hash crypto.Hash
}

var knownBanks = []Bank{
	{"sha1", tpm2.TPMAlgSHA1, crypto.SHA1},
	{"sha256", tpm2.TPMAlgSHA256, crypto.SHA256},
	{"sha384", tpm2.TPMAlgSHA384, crypto.SHA384},
	{"sha512", tpm2.TPMAlgSHA512, crypto.SHA512},
}

// How long the agent waits for a driver that was just loaded: where nothing goes
// on without a TPM, and where there seldom is one.
const (
	tpmWait         = 10 * time.Second
	optionalTPMWait = time.Second
)

// errNoTPM ends the boot. In a debug build, which goes on, it is what every
// later stage says that needs one.
var errNoTPM = errors.New("no TPM")

// openTPM finds the TPM, waiting for a driver that was loaded a moment ago.
func openTPM(ctx context.Context, s *State) error {
	wait := tpmWait
	if s.tpmOptional() {
		wait = optionalTPMWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		t, err := s.tryTPM()
		if err == nil {
			return s.useTPM(t)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			if s.tpmOptional() {
				return nil
			}
			return fmt.Errorf("%w: %w", errNoTPM, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tpmOptional tells whether the guest does without a TPM.
func (s *State) tpmOptional() bool { return s.Config != nil && s.Config.TPM == config.TPMOptional }

// tryTPM opens the device behind the kernel's resource manager or, where there
// is none, the plain one.
func (s *State) tryTPM() (transport.TPM, error) {
	t, err := s.machine.openTPM(s.path("/dev/tpmrm0"))
	if errors.Is(err, fs.ErrNotExist) {
		t, err = s.machine.openTPM(s.path("/dev/tpm0"))
	}
	return t, err
}

func (s *State) useTPM(t transport.TPM) error {
	t = attester.Shared(t)
	d, err := newDevice(t)
	if err != nil {
		return err
	}
	s.TPM, s.tpm = d, t
	s.Extender = newExtender(d, s.journal())
	for _, b := range d.Banks() {
		s.Report.Banks = append(s.Report.Banks, b.Name)
	}
	return nil
}

// device is a TPM 2.0.
type device struct {
	t     transport.TPM
	banks []Bank
}

func newDevice(t transport.TPM) (*device, error) {
	banks, err := activeBanks(t)
	if err != nil {
		return nil, err
	}
	return &device{t, banks}, nil
}

func (d *device) Banks() []Bank { return d.banks }

// activeBanks asks which banks have registers. One that is left out here would
// never be extended and would vouch for a boot that stands still, so a bank
// that the agent cannot extend, or that lacks registers, is an error.
func activeBanks(t transport.TPM) ([]Bank, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability: %w", err)
	}
	assigned, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability: %w", err)
	}
	var banks []Bank
	for _, sel := range assigned.PCRSelections {
		switch selected := registersOf(sel); {
		case len(selected) == 0: // supported, not active
		case !covers(selected):
			return nil, fmt.Errorf("bank %#x: registers %v, want 0 to %d", uint16(sel.Hash), selected, evidence.Registers-1)
		default:
			b, err := knownBank(sel.Hash)
			if err != nil {
				return nil, err
			}
			banks = append(banks, b)
		}
	}
	if len(banks) == 0 {
		return nil, errors.New("no PCR bank is active")
	}
	return banks, nil
}

func knownBank(alg tpm2.TPMAlgID) (Bank, error) {
	for _, b := range knownBanks {
		if b.Alg == alg {
			return b, nil
		}
	}
	return Bank{}, fmt.Errorf("bank %#x is active: want sha1, sha256, sha384 or sha512", uint16(alg))
}

// registersOf lists the registers in a selection, a bit each from the lowest of
// the first byte on. TPM 2.0 Library, Part 2, 10.6.1, TPMS_PCR_SELECT.
func registersOf(sel tpm2.TPMSPCRSelection) []int {
	var out []int
	for i, b := range sel.PCRSelect {
		for bit := range 8 {
			if b>>bit&1 != 0 {
				out = append(out, 8*i+bit)
			}
		}
	}
	return out
}

// covers reports whether PCR 0 to 23 are all there.
func covers(registers []int) bool {
	n := 0
	for _, r := range registers {
		if r < evidence.Registers {
			n++
		}
	}
	return n == evidence.Registers
}

func (d *device) Read() (evidence.PCRs, error) {
	out := evidence.PCRs{}
	for _, b := range d.banks {
		values, err := d.readBank(b)
		if err != nil {
			return nil, fmt.Errorf("TPM2_PCR_Read: %s: %w", b.Name, err)
		}
		out[b.Name] = values
	}
	return out, nil
}

// readBank asks for what is still missing until nothing is: a TPM answers with
// as many registers as fit, eight or fewer.
func (d *device) readBank(b Bank) (map[int]string, error) {
	values := map[int]string{}
	for len(values) < evidence.Registers {
		sel := tpm2.TPMSPCRSelection{Hash: b.Alg, PCRSelect: make([]byte, evidence.Registers/8)}
		for r := range evidence.Registers {
			if _, ok := values[r]; !ok {
				sel.PCRSelect[r/8] |= 1 << (r % 8)
			}
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}}.Execute(d.t)
		if err != nil {
			return nil, err
		}
		if err := takeValues(values, b, rsp); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func (d *device) ReadRegister(pcr int) (values, error) {
	if pcr < 0 || pcr >= evidence.Registers {
		return nil, fmt.Errorf("PCR %d: want 0 to %d", pcr, evidence.Registers-1)
	}
	out := values{}
	for _, b := range d.banks {
		sel := tpm2.TPMSPCRSelection{Hash: b.Alg, PCRSelect: make([]byte, evidence.Registers/8)}
		sel.PCRSelect[pcr/8] = 1 << (pcr % 8)
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}}.Execute(d.t)
		got := map[int]string{}
		if err == nil {
			err = takeValues(got, b, rsp)
		}
		if _, ok := got[pcr]; err == nil && (!ok || len(got) != 1) {
			err = fmt.Errorf("the answer is about %v, want PCR %d", sortedNumbers(got), pcr)
		}
		if err == nil {
			out[b.Name], err = hex.DecodeString(got[pcr])
		}
		if err != nil {
			return nil, fmt.Errorf("TPM2_PCR_Read: %s: %w", b.Name, err)
		}
	}
	return out, nil
}

func sortedNumbers(m map[int]string) []int { return slices.Sorted(maps.Keys(m)) }

// takeValues adds an answer to values. Each answer must bring something new.
func takeValues(values map[int]string, b Bank, rsp *tpm2.PCRReadResponse) error {
	sels := rsp.PCRSelectionOut.PCRSelections
	if len(sels) != 1 || sels[0].Hash != b.Alg {
		return fmt.Errorf("the answer is about %v, want bank %s alone", sels, b.Name)
	}
	registers, digests := registersOf(sels[0]), rsp.PCRValues.Digests
	if len(registers) == 0 || len(registers) != len(digests) {
		return fmt.Errorf("%d values for registers %v", len(digests), registers)
	}
	for i, r := range registers {
		if _, ok := values[r]; ok || r >= evidence.Registers {
			return fmt.Errorf("PCR %d was not asked for", r)
		}
		v := digests[i].Buffer
		if len(v) != b.Hash.Size() {
			return fmt.Errorf("PCR %d has %d bytes, want %d", r, len(v), b.Hash.Size())
		}
		values[r] = hex.EncodeToString(v)
	}
	return nil
}

func (d *device) Extend(pcr int, digests map[Bank][]byte) error {
	var values tpm2.TPMLDigestValues
	for _, b := range d.banks {
		if digest, ok := digests[b]; ok {
			values.Digests = append(values.Digests, tpm2.TPMTHA{HashAlg: b.Alg, Digest: digest})
		}
	}
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   values,
	}.Execute(d.t)
	if err != nil {
		return fmt.Errorf("TPM2_PCR_Extend: %w", err)
	}
	return nil
}

// readEventLog returns the firmware's log as the kernel kept it, nil when the
// kernel has none. It is the host's word until it was replayed.
func (s *State) readEventLog() ([]byte, error) {
	b, err := s.readFile("/sys/kernel/security/tpm0/binary_bios_measurements", evidence.MaxEventLog)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
