package measure

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/tdx"
)

// TD says that a boot is one of a trust domain: what measures is the TDX module
// and, through the CC measurement protocol, the firmware. There is no TPM, and the
// RTMRs get what PCR 1 to 15 would, in the order of its time (UEFI 2.10, section
// 38.4.1). Nobody extends RTMR 3 before userspace runs.
type TD struct {
	Metadata *ovmf.Metadata // of Firmware; nil: read from it
	Firmware []byte         // the whole file, variables included
	Order    tdx.Order      // "" is that of Machine.VMM; where that is not known, MRTD is one of several
	Tables   *Tables        // ACPI files as QEMU made them; nil: from Boot.Records
}

// Tables are the files of fw_cfg from which the firmware makes the ACPI tables,
// as they are when it reads them.
type Tables struct {
	Loader []byte // etc/table-loader
	RSDP   []byte // etc/acpi/rsdp
	Tables []byte // etc/acpi/tables
	Source string // "QEMU 7.2.22 asked by qtest"

	// SMBIOS is the table that the firmware installs, as a guest of this machine has
	// it in /sys/firmware/dmi/tables/DMI; nil: not known. It names the host's
	// processor, so that QEMU asked elsewhere does not tell it.
	SMBIOS []byte
}

func (t *Tables) complete() bool { return len(t.Loader) > 0 && len(t.RSDP) > 0 && len(t.Tables) > 0 }

func (t *Tables) incomplete() error {
	return fmt.Errorf("measure: trust domain: ACPI files of %d, %d and %d bytes: want all three", len(t.Loader), len(t.RSDP), len(t.Tables))
}

// inTD returns b with what follows for it from being a trust domain's.
func (b *Boot) inTD() (*Boot, error) {
	out, td := *b, *b.TD
	out.TD = &td
	switch {
	case len(td.Firmware) == 0:
		return nil, errors.New("measure: trust domain: no firmware file")
	case b.Firmware == nil || !b.Firmware.does(tdFirmware):
		return nil, errors.New("measure: trust domain: the firmware does not measure in one: it has no TdTcg2Dxe")
	case td.Tables != nil && !td.Tables.complete():
		return nil, td.Tables.incomplete()
	case len(b.Phases) > 0:
		return nil, errors.New("measure: trust domain: phases: want a TPM")
	}
	if td.Metadata == nil {
		var err error
		if td.Metadata, err = ovmf.ReadMetadata(td.Firmware); err != nil {
			return nil, fmt.Errorf("measure: trust domain: %w", err)
		}
	}
	if len(out.Vars) == 0 {
		out.Vars = td.Firmware
	}
	out.Banks = []eventlog.Alg{eventlog.SHA384}
	return &out, nil
}

// beginTD computes MRTD and adds what the firmware measures before any driver
// starts: SecMain the hand-off blocks of the VMM and the variables, then
// QemuFwCfgLib items of fw_cfg.
func (p *predictor) beginTD() error {
	if err := p.measureFirmware(); err != nil {
		return err
	}
	if err := p.handOff(); err != nil {
		return err
	}
	if err := p.configurationVolume(); err != nil {
		return err
	}
	p.fwcfg()
	return nil
}

// measureFirmware fills the value of MRTD.
func (p *predictor) measureFirmware() error {
	v := &Value{Platform: PlatformTDX, Register: "mrtd", Bank: eventlog.SHA384.String(), Provenance: Predicted}
	orders := []tdx.Order{p.TD.Order}
	if p.TD.Order == "" {
		if o, known := tdx.OrderFor(p.m.VMM); known {
			orders[0] = o
		} else {
			orders = tdx.Orders
		}
	}
	var values []string
	for i, o := range orders {
		ranges, err := tdx.ExplainMRTD(p.TD.Firmware, o)
		if err != nil {
			return fmt.Errorf("measure: trust domain: %w", err)
		}
		if i == 0 {
			v.Events = mrtdEvents(ranges)
		}
		last := ranges[len(ranges)-1].Digest
		if h := hex.EncodeToString(last[:]); !slices.Contains(values, h) {
			values = append(values, h)
		}
	}
	if v.Value = values[0]; len(values) > 1 {
		v.Value, v.Provenance, v.OneOf = "", OneOf, values
		v.Reason = fmt.Sprintf("the VMM decides in which order pages are added and measured: %s here means KVM as it is upstream, %s Canonical's before that",
			orders[0], orders[1])
	}
	p.mrtd = v
	return nil
}

// mrtdEvents names the sections of the firmware that MRTD covers. The digest is
// what MRTD would be after them.
func mrtdEvents(ranges []tdx.PageRange) []EventRef {
	out := make([]EventRef, len(ranges))
	for i, r := range ranges {
		out[i] = EventRef{
			Name:   fmt.Sprintf("section %d, %v at %#x, %d pages", r.Section, r.Type, r.GPA, r.Pages),
			Type:   string(r.Treatment),
			Digest: hex.EncodeToString(r.Digest[:]),
			Source: "firmware",
		}
	}
	return out
}

// handOff adds the hand-off blocks, which list the memory. The event is a
// UEFI_HANDOFF_TABLE_POINTERS2: TCG PC Client Platform Firmware Profile 1.06,
// section 10.2.5; OvmfPkg, TdxMeasurementHob.c.
func (p *predictor) handOff() error {
	list, err := tdx.HOB(p.TD.Metadata, p.m.MemoryMiB)
	if err != nil {
		return fmt.Errorf("measure: trust domain: %w", err)
	}
	var gpa uint64
	for _, s := range p.TD.Metadata.TDX {
		if s.Type == ovmf.TDXHOB {
			gpa = s.GPA
		}
	}
	const name = "TdxTable\x00"
	data := append([]byte{byte(len(name))}, name...)
	data = binary.LittleEndian.AppendUint64(data, 1)
	data = append(data, ovmfTokens[:]...)
	data = binary.LittleEndian.AppendUint64(data, gpa)
	p.add(1, eventlog.HandoffTables2, data, list, "hand-off blocks for the memory")
	return nil
}

var ovmfTokens = mustGUID("93bb96af-b9f2-4eb8-9462-e0ba74564236") // gUefiOvmfPkgTokenSpaceGuid

// configurationVolume adds the variables in the firmware file, as they lie there.
// The event is a UEFI_PLATFORM_FIRMWARE_BLOB2: section 10.2.3. The volume has no
// name, and edk2 leaves the place for one as it is.
func (p *predictor) configurationVolume() error {
	content, s, err := tdx.CFV(p.TD.Firmware)
	if err != nil {
		return fmt.Errorf("measure: trust domain: %w", err)
	}
	const name = "Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\x00"
	data := append([]byte{byte(len(name))}, name...)
	data = binary.LittleEndian.AppendUint64(data, s.GPA)
	data = binary.LittleEndian.AppendUint64(data, uint64(len(content)))
	p.add(1, eventlog.FirmwareBlob2, data, content, "variables in the firmware file")
	return nil
}

// Items of fw_cfg that the firmware measures, of those that a machine without
// options for the boot has: QEMU, hw/nvram/fw_cfg.c and hw/i386/x86-common.c.
const (
	bootMenuItem  = "BootMenu"
	bootOrderItem = "bootorder"

	linuxROM = "/rom@genroms/linuxboot_dma.bin" // what starts a kernel given by -kernel where there is no UEFI
)

// fwcfg adds the items of fw_cfg.
func (p *predictor) fwcfg() {
	if !p.Firmware.does(fwcfgItems) {
		return
	}
	p.fwcfgItem(bootMenuItem, []byte{0, 0}) // u16: no menu
	if p.path() == pathKernel {
		p.fwcfgItem(bootOrderItem, append([]byte(linuxROM), 0))
	}
}

func (p *predictor) fwcfgItem(name string, content []byte) {
	const nameSize = 56 // QEMU_FW_CFG_FNAME_SIZE
	data := append([]byte("QEMU FW CFG\x00"), name...)
	data = append(data, make([]byte, nameSize-len(name))...)
	p.add(1, eventlog.PlatformConfig, data, content, "fw_cfg "+name)
}

// acpiFilesTD are acpiFiles of a machine without a TPM.
var acpiFilesTD = slices.Delete(slices.Clone(acpiFiles), acpiTPMLog, acpiTPMLog+1)

// digests returns those of the files, in the order of acpiFilesTD.
func (t *Tables) digests(banks []eventlog.Alg) (out [][]eventlog.Digest) {
	for _, b := range [][]byte{t.Loader, t.RSDP, t.Tables} {
		out = append(out, digestsOf(banks, b))
	}
	return out
}

// acpiTD adds the files of the ACPI tables, as they are given or recorded.
func (p *predictor) acpiTD() {
	if !p.Firmware.does(acpiTables) {
		return
	}
	for i, file := range acpiFilesTD {
		e := Event{Event: eventlog.Event{Register: 1, Type: eventlog.PlatformConfig, Data: []byte(acpiData), Source: "fw_cfg " + file}}
		source := ""
		if t := p.TD.Tables; t != nil {
			e.Digests, e.Provenance, source = t.digests(p.banks)[i], Recorded, t.Source
		} else if p.fill(&e, recordACPI, i); p.record != nil {
			source = p.record.Source
		}
		if source != "" {
			e.Source += ", " + source
		}
		p.append(e)
	}
}

// fillSMBIOS completes the event of the SMBIOS tables in a trust domain.
func (p *predictor) fillSMBIOS(e *Event) error {
	t := p.TD.Tables
	if t == nil || t.SMBIOS == nil {
		if p.fill(e, recordSMBIOS, 0); e.Provenance == Volatile {
			e.Reason = "the SMBIOS tables name the host's processor: known from a guest of the machine, /sys/firmware/dmi/tables/DMI"
		}
		return nil
	}
	measured, err := filteredSMBIOS(t.SMBIOS)
	if err != nil {
		return err
	}
	e.Digests, e.Provenance = digestsOf(p.banks, measured), Recorded
	return nil
}

// separatorTD adds the one separator at the end of the firmware's part.
func (p *predictor) separatorTD() {
	// A build that measures fw_cfg is newer than the change, even if it does not
	// name its version.
	if p.Firmware.does(separatorMoved) || p.Firmware.does(fwcfgItems) {
		p.separator(4)
		return
	}
	p.separator(1)
}

// valuesTD returns those of MRTD and the RTMRs.
func (p *predictor) valuesTD() []Value {
	const bank, rtmrs = eventlog.SHA384, 4
	out := []Value{*p.mrtd}
	for i := range rtmrs {
		v := Value{Platform: PlatformTDX, Register: fmt.Sprintf("rtmr%d", i), Bank: bank.String()}
		out = append(out, p.value(v, i+1, bank, p.lists(i+1)))
	}
	return out
}

// noTPM is the TPM of a trust domain in a record's key.
const noTPM = "none"

// NewTablesRecord makes a platform record of the ACPI files, for a trust domain
// such as b.
func NewTablesRecord(b *Boot, t *Tables) (*Record, error) {
	switch {
	case b.TD == nil:
		return nil, errors.New("measure: record: ACPI tables alone are recorded for a trust domain only")
	case b.Machine.VMM == "" || b.Machine.Accel == "":
		return nil, errors.New("measure: record: VMM or acceleration is not known")
	case !t.complete():
		return nil, t.incomplete()
	}
	without := *b
	without.Records = nil
	p, err := newPredictor(&without)
	if err != nil {
		return nil, err
	}
	r := &Record{Key: p.key(), Source: cmp.Or(t.Source, "given as files"), Events: []RecordedEvent{}}
	for _, digests := range t.digests(p.banks) {
		e := &eventlog.Event{Data: []byte(acpiData), Digests: digests}
		r.Events = append(r.Events, recorded(recordACPI, e, p.banks))
	}
	if t.SMBIOS != nil {
		measured, err := filteredSMBIOS(t.SMBIOS)
		if err != nil {
			return nil, err
		}
		r.Events = append(r.Events, recorded(recordSMBIOS, &eventlog.Event{Digests: digestsOf(p.banks, measured)}, p.banks))
	}
	return r, r.check()
}

// checkTD is the part of check for a trust domain's record; n has how many events
// there are of each kind.
func (r *Record) checkTD(n map[recordKind]int) error {
	if n[recordACPI] != len(acpiFilesTD) || n[recordSMBIOS] > 1 || len(r.Events) != n[recordACPI]+n[recordSMBIOS] {
		return fmt.Errorf("measure: record: without a TPM: %d ACPI and %d SMBIOS events of %d: want %d, at most 1, and no others",
			n[recordACPI], n[recordSMBIOS], len(r.Events), len(acpiFilesTD))
	}
	if r.Image != "" || r.Source == "" {
		return fmt.Errorf("measure: record: without a TPM: image %q, source %q: want a source and no image", r.Image, r.Source)
	}
	return nil
}
