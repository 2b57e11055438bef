package measure

import (
	"encoding/binary"
	"unicode/utf16"

	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/pcr"
)

// What the firmware measures of itself and of the machine, before it starts
// anything else: PCR 0 to 3 and 6, and PCR 7 without authorities.

const unrecorded = "not recorded for this firmware, VMM and machine: run plinth boot --record"

// firmwareVolumes adds PCR 0: the version (Tcg2Pei, MeasureCRTMVersion) and the
// volumes that the PEI phase found.
func (p *predictor) firmwareVolumes() error {
	version := utf16Bytes(p.Firmware.Version, true)
	p.add(0, eventlog.SCRTMVersion, version, version, "firmware version")
	for i := range p.Firmware.Volumes {
		v := &p.Firmware.Volumes[i]
		e := Event{Event: eventlog.Event{Register: 0, Type: eventlog.FirmwareBlob, Data: v.blob(), Source: "firmware volume " + v.Name}}
		var err error
		if e.Digests, err = v.measured(p.m.Type, p.banks); err != nil {
			return err
		}
		if e.Provenance = Predicted; e.Digests == nil {
			p.fill(&e, recordPEIFV, 0)
		}
		p.append(e)
	}
	return nil
}

// blob is a UEFI_PLATFORM_FIRMWARE_BLOB: TCG PC Client Platform Firmware Profile
// 1.06, section 10.2.3.
func (v *Volume) blob() []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, v.Base), v.Size)
}

// A UEFI_HANDOFF_TABLE_POINTERS with one table: u64 count, GUID, u64 address;
// section 10.2.5.
const tablePointers = 8 + 16 + 8

var smbiosTable = mustGUID("eb9d2d31-2d88-11d3-9a16-0090273fc14d")

// secureBootPolicy adds the variables of PCR 7 (Tcg2Dxe,
// MeasureAllSecureVariables). What is not set is measured with no data.
func (p *predictor) secureBootPolicy() {
	for _, v := range []struct {
		name string
		guid gpt.GUID
		data []byte
	}{
		{"SecureBoot", globalVariable, p.vars.secureBoot(p.Firmware)},
		{"PK", globalVariable, p.vars.data("PK", globalVariable)},
		{"KEK", globalVariable, p.vars.data("KEK", globalVariable)},
		{"db", imageSecurity, p.vars.data("db", imageSecurity)},
		{"dbx", imageSecurity, p.vars.data("dbx", imageSecurity)},
	} {
		b := eventlog.Variable{GUID: v.guid, Name: v.name, Data: v.data}.Bytes()
		p.add(7, eventlog.VariableDriver, b, b, "variable "+v.name)
	}
	p.separator(7)
}

// acpiFiles are the files of fw_cfg from which OVMF makes the ACPI tables, in
// the order in which QEMU's script names them.
var acpiFiles = []string{"etc/table-loader", "etc/acpi/rsdp", "etc/tpm/log", "etc/acpi/tables"}

const (
	acpiTPMLog = 2 // in acpiFiles
	acpiData   = "ACPI DATA"
)

// acpi adds the files of fw_cfg from which the firmware makes the ACPI tables,
// in the order in which QEMU's script loads them.
func (p *predictor) acpi() {
	if p.TD != nil {
		p.acpiTD()
		return
	}
	if !p.Firmware.does(acpiTables) {
		return
	}
	for i, file := range acpiFiles {
		e := Event{Event: eventlog.Event{Register: 1, Type: eventlog.PlatformConfig, Data: []byte(acpiData), Source: "fw_cfg " + file}}
		if i == acpiTPMLog {
			// Where the log will be: 64 KiB of zeros by then.
			e.Digests, e.Provenance = digestsOf(p.banks, make([]byte, 64<<10)), Predicted
		} else {
			p.fill(&e, recordACPI, i)
		}
		p.append(e)
	}
}

// smbios adds the event of the SMBIOS tables. Its place depends on the build:
// before the boot variables, or (late) after the separators.
func (p *predictor) smbios(late bool) error {
	if !p.Firmware.does(smbiosTables) || late != (p.Firmware.SMM && p.Firmware.does(smbiosLate)) {
		return nil
	}
	e := Event{Event: eventlog.Event{Register: 1, Type: eventlog.HandoffTables, Source: "SMBIOS tables"}}
	if p.TD == nil {
		p.fill(&e, recordSMBIOS, 0)
	} else if err := p.fillSMBIOS(&e); err != nil {
		return err
	}
	if e.Data == nil { // where they lie is not measured
		e.Name = "SMBIOS tables"
	}
	p.append(e)
	return nil
}

// readyToBoot adds what is measured when the firmware is about to start the
// first boot option.
func (p *predictor) readyToBoot() {
	action := []byte("Calling EFI Application from Boot Option")
	p.add(4, eventlog.EFIAction, action, action, "firmware")
	if p.TD != nil {
		p.separatorTD()
		return
	}
	for r := range 7 {
		p.separator(r)
	}
}

func (p *predictor) separator(register int) {
	p.append(Event{
		Event:      eventlog.Event{Register: register, Type: eventlog.Separator, Data: make([]byte, 4), Digests: pcr.Separator(p.banks), Source: "firmware"},
		Provenance: Predicted,
	})
}

// fill takes the i-th event of a kind from the platform record.
func (p *predictor) fill(e *Event, kind recordKind, i int) {
	recorded, ok := p.record.event(kind, i, p.banks)
	if !ok {
		e.Provenance, e.Reason = Volatile, unrecorded
		return
	}
	e.Digests, e.Provenance = recorded.Digests, Recorded
	if e.Data == nil {
		e.Data = recorded.Data
	}
}

// utf16Bytes returns s in UTF-16LE.
func utf16Bytes(s string, zero bool) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	if zero {
		b = append(b, 0, 0)
	}
	return b
}
