package evidence

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// snpReportWire is AttestationReport of the Rust crate sev (7.1), as serde writes it.
// What a version of the report does not have is null or left out.
type snpReportWire struct {
	Version         uint32    `json:"version"`
	GuestSVN        uint32    `json:"guest_svn"`
	Policy          uint64    `json:"policy"`
	FamilyID        numbers   `json:"family_id"`
	ImageID         numbers   `json:"image_id"`
	VMPL            uint32    `json:"vmpl"`
	SigAlgo         uint32    `json:"sig_algo"`
	CurrentTCB      tcbWire   `json:"current_tcb"`
	PlatInfo        uint64    `json:"plat_info"`
	KeyInfo         uint32    `json:"key_info"`
	ReportData      numbers   `json:"report_data"`
	Measurement     numbers   `json:"measurement"`
	HostData        numbers   `json:"host_data"`
	IDKeyDigest     numbers   `json:"id_key_digest"`
	AuthorKeyDigest numbers   `json:"author_key_digest"`
	ReportID        numbers   `json:"report_id"`
	ReportIDMA      numbers   `json:"report_id_ma"`
	ReportedTCB     tcbWire   `json:"reported_tcb"`
	Family          *uint8    `json:"cpuid_fam_id"` // from version 3
	Model           *uint8    `json:"cpuid_mod_id"`
	Stepping        *uint8    `json:"cpuid_step"`
	ChipID          numbers   `json:"chip_id"`
	CommittedTCB    tcbWire   `json:"committed_tcb"`
	Current         fwWire    `json:"current"`
	Committed       fwWire    `json:"committed"`
	LaunchTCB       tcbWire   `json:"launch_tcb"`
	LaunchMIT       *uint64   `json:"launch_mit_vector,omitempty"` // from version 5
	CurrentMIT      *uint64   `json:"current_mit_vector,omitempty"`
	Signature       ecdsaWire `json:"signature"`
}

// tcbWire are versions of firmware. Where they stand differs by processor.
type tcbWire struct {
	FMC        *uint8 `json:"fmc"` // Turin and later
	Bootloader uint8  `json:"bootloader"`
	TEE        uint8  `json:"tee"`
	SNP        uint8  `json:"snp"`
	Microcode  uint8  `json:"microcode"`
}

type fwWire struct {
	Major uint8 `json:"major"`
	Minor uint8 `json:"minor"`
	Build uint8 `json:"build"`
}

type ecdsaWire struct {
	R numbers `json:"r"` // little-endian
	S numbers `json:"s"`
}

// snpReport is the report itself: little-endian; AMD 56860, ATTESTATION_REPORT. Blank
// fields are reserved and zero.
type snpReport struct {
	Version         uint32
	GuestSVN        uint32
	Policy          uint64
	FamilyID        [16]byte
	ImageID         [16]byte
	VMPL            uint32
	SigAlgo         uint32
	CurrentTCB      [8]byte
	PlatInfo        uint64
	KeyInfo         uint32
	_               [4]byte
	ReportData      [64]byte
	Measurement     [48]byte
	HostData        [32]byte
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	ReportID        [32]byte
	ReportIDMA      [32]byte
	ReportedTCB     [8]byte
	CPUID           [3]byte // family, model, stepping
	_               [21]byte
	ChipID          [64]byte
	CommittedTCB    [8]byte
	Current         [3]byte // build, minor, major
	_               [1]byte
	Committed       [3]byte
	_               [1]byte
	LaunchTCB       [8]byte
	LaunchMIT       uint64
	CurrentMIT      uint64
	_               [152]byte
	R, S            [72]byte
	_               [368]byte
}

func newSNPReport() snpReportWire {
	zeros := func(size int) numbers { return make(numbers, size) }
	return snpReportWire{FamilyID: zeros(16), ImageID: zeros(16), ReportData: zeros(64), Measurement: zeros(48), HostData: zeros(32),
		IDKeyDigest: zeros(48), AuthorKeyDigest: zeros(48), ReportID: zeros(32), ReportIDMA: zeros(32), ChipID: zeros(64),
		Signature: ecdsaWire{zeros(72), zeros(72)}}
}

// UnmarshalJSON wants every field that serde wants.
func (w *snpReportWire) UnmarshalJSON(b []byte) error {
	type plain snpReportWire
	if err := json.Unmarshal(b, (*plain)(w)); err != nil {
		return err
	}
	given := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &given); err != nil {
		return err
	}
	for _, key := range []string{"version", "guest_svn", "policy", "family_id", "image_id", "vmpl", "sig_algo", "current_tcb", "plat_info",
		"key_info", "report_data", "measurement", "host_data", "id_key_digest", "author_key_digest", "report_id", "report_id_ma",
		"reported_tcb", "chip_id", "committed_tcb", "current", "committed", "launch_tcb", "signature"} {
		if v := given[key]; v == nil || string(v) == "null" {
			return fmt.Errorf("attestation_report: no %s", key)
		}
	}
	return nil
}

// Processors by family and model: AMD 57230. Those of Turin and later hold a version of
// the FMC before the others.
const (
	familyZen3 = 0x19 // Milan, Genoa
	familyZen5 = 0x1a // Turin, Venice
)

// isTurin tells which layout a report's TCB versions have. One of version 2 names no
// processor; there the chip tells: a Turin's ID has 8 bytes.
func (r *snpReport) isTurin() (bool, error) {
	if r.Version >= 3 {
		if f := r.CPUID[0]; f != familyZen3 && f != familyZen5 {
			return false, fmt.Errorf("evidence: snp: processor of family %#x: want %#x or %#x", f, familyZen3, familyZen5)
		}
		return r.CPUID[0] == familyZen5, nil
	}
	return r.ChipID != [64]byte{} && [56]byte(r.ChipID[8:]) == [56]byte{}, nil
}

func readTCB(b [8]byte, turin bool) tcbWire {
	if turin {
		return tcbWire{FMC: &b[0], Bootloader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return tcbWire{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

func (t *tcbWire) bytes(turin bool) ([8]byte, error) {
	switch {
	case turin != (t.FMC != nil):
		return [8]byte{}, fmt.Errorf("evidence: snp: fmc: want one for a Turin, and null for others")
	case turin:
		return [8]byte{*t.FMC, t.Bootloader, t.TEE, t.SNP, 7: t.Microcode}, nil
	}
	return [8]byte{t.Bootloader, t.TEE, 6: t.SNP, 7: t.Microcode}, nil
}

// read takes a report apart.
func (w *snpReportWire) read(report []byte) error {
	var r snpReport
	if len(report) != SNPReportSize {
		return fmt.Errorf("evidence: snp: report of %d bytes, want %d", len(report), SNPReportSize)
	}
	if _, err := binary.Decode(report, binary.LittleEndian, &r); err != nil {
		return fmt.Errorf("evidence: snp: %w", err)
	}
	if err := checkVersion(r.Version); err != nil {
		return err
	}
	turin, err := r.isTurin()
	if err != nil {
		return err
	}
	*w = snpReportWire{Version: r.Version, GuestSVN: r.GuestSVN, Policy: r.Policy, FamilyID: r.FamilyID[:], ImageID: r.ImageID[:],
		VMPL: r.VMPL, SigAlgo: r.SigAlgo, CurrentTCB: readTCB(r.CurrentTCB, turin), PlatInfo: r.PlatInfo, KeyInfo: r.KeyInfo,
		ReportData: r.ReportData[:], Measurement: r.Measurement[:], HostData: r.HostData[:], IDKeyDigest: r.IDKeyDigest[:],
		AuthorKeyDigest: r.AuthorKeyDigest[:], ReportID: r.ReportID[:], ReportIDMA: r.ReportIDMA[:],
		ReportedTCB: readTCB(r.ReportedTCB, turin), ChipID: r.ChipID[:], CommittedTCB: readTCB(r.CommittedTCB, turin),
		Current: readFirmware(r.Current), Committed: readFirmware(r.Committed), LaunchTCB: readTCB(r.LaunchTCB, turin),
		Signature: ecdsaWire{r.R[:], r.S[:]}}
	if r.Version >= 3 {
		w.Family, w.Model, w.Stepping = &r.CPUID[0], &r.CPUID[1], &r.CPUID[2]
	}
	if r.Version >= 5 {
		w.LaunchMIT, w.CurrentMIT = &r.LaunchMIT, &r.CurrentMIT
	}
	again, err := w.bytes()
	if err != nil {
		return err
	}
	for i := range again {
		if again[i] != report[i] {
			return fmt.Errorf("evidence: snp: report: offset %#x: byte %#x is reserved in version %d: want 0", i, report[i], r.Version)
		}
	}
	return nil
}

func checkVersion(v uint32) error {
	if v < 2 || v > 5 {
		return fmt.Errorf("evidence: snp: report of version %d: want 2 to 5", v)
	}
	return nil
}

func readFirmware(b [3]byte) fwWire { return fwWire{Build: b[0], Minor: b[1], Major: b[2]} }

func (f fwWire) bytes() [3]byte { return [3]byte{f.Build, f.Minor, f.Major} }

// bytes puts the report together.
func (w *snpReportWire) bytes() ([]byte, error) {
	r := snpReport{Version: w.Version, GuestSVN: w.GuestSVN, Policy: w.Policy, VMPL: w.VMPL, SigAlgo: w.SigAlgo, PlatInfo: w.PlatInfo,
		KeyInfo: w.KeyInfo, Current: w.Current.bytes(), Committed: w.Committed.bytes()}
	for _, f := range []struct {
		to   []byte
		from numbers
	}{{r.FamilyID[:], w.FamilyID}, {r.ImageID[:], w.ImageID}, {r.ReportData[:], w.ReportData}, {r.Measurement[:], w.Measurement},
		{r.HostData[:], w.HostData}, {r.IDKeyDigest[:], w.IDKeyDigest}, {r.AuthorKeyDigest[:], w.AuthorKeyDigest}, {r.ReportID[:], w.ReportID},
		{r.ReportIDMA[:], w.ReportIDMA}, {r.ChipID[:], w.ChipID}, {r.R[:], w.Signature.R}, {r.S[:], w.Signature.S}} {
		copy(f.to, f.from)
	}
	if err := w.later(&r); err != nil {
		return nil, err
	}
	turin, err := r.isTurin()
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		to   *[8]byte
		from *tcbWire
	}{{&r.CurrentTCB, &w.CurrentTCB}, {&r.ReportedTCB, &w.ReportedTCB}, {&r.CommittedTCB, &w.CommittedTCB}, {&r.LaunchTCB, &w.LaunchTCB}} {
		if *f.to, err = f.from.bytes(turin); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	b.Grow(SNPReportSize)
	err = binary.Write(&b, binary.LittleEndian, &r)
	return b.Bytes(), err
}

// later sets what came with later versions.
func (w *snpReportWire) later(r *snpReport) error {
	if err := checkVersion(w.Version); err != nil {
		return err
	}
	cpuid := []*uint8{w.Family, w.Model, w.Stepping}
	if (w.Version >= 3) == slices.Contains(cpuid, nil) || w.Version < 3 && (w.Family != nil || w.Model != nil || w.Stepping != nil) {
		return fmt.Errorf("evidence: snp: cpuid: want family, model and stepping from version 3, and none in version 2")
	}
	if (w.Version >= 5) != (w.LaunchMIT != nil && w.CurrentMIT != nil) || w.Version < 5 && (w.LaunchMIT != nil || w.CurrentMIT != nil) {
		return fmt.Errorf("evidence: snp: mitigation vectors: want them in version 5 alone")
	}
	if w.Version >= 3 {
		r.CPUID = [3]byte{*w.Family, *w.Model, *w.Stepping}
	}
	if w.Version >= 5 {
		r.LaunchMIT, r.CurrentMIT = *w.LaunchMIT, *w.CurrentMIT
	}
	return nil
}
