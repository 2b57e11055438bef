package measure

import (
	"encoding/binary"
	"fmt"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// Boot options that the firmware makes in an NVRAM that has none, and measures
// into PCR 1: UEFI 2.10, section 3.1.3 (EFI_LOAD_OPTION); edk2,
// UefiBootManagerLib and OvmfPkg's PlatformBootManagerLib.

const (
	optionActive = 0x001
	optionHidden = 0x008
	optionApp    = 0x100 // LOAD_OPTION_CATEGORY_APP
)

// bootOption is one EFI_LOAD_OPTION.
type bootOption struct {
	attributes  uint32
	description string
	path        []byte // device path
	data        []byte // optional
}

func (o *bootOption) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, o.attributes)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(o.path)))
	b = append(b, utf16Bytes(o.description, true)...)
	return append(append(b, o.path...), o.data...)
}

var (
	dxeVolume   = mustGUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
	uiApp       = mustGUID("462caa21-7614-4503-836e-8ab6f4662331")
	bootMenuApp = mustGUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")
	shellFile   = mustGUID("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1")
	autoCreated = mustGUID("8108ac4e-9f11-4d59-850e-e21a522c59b2") // mBmAutoCreateBootOptionGuid
)

// volumeFile is the device path of a file in DXEFV.
func volumeFile(file ovmf.GUID) []byte {
	b := append([]byte{4, 7, 20, 0}, dxeVolume[:]...)
	b = append(append(b, 4, 6, 20, 0), file[:]...)
	return append(b, endOfPath...)
}

// pciDevice is the device path of function 0 of a device on the root bus.
func pciDevice(slot int) []byte {
	return append([]byte{
		2, 1, 12, 0, 0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0, // PNP0A03, UID 0
		1, 1, 6, 0, 0, byte(slot),
	}, endOfPath...)
}

var endOfPath = []byte{0x7f, 0xff, 4, 0}

// options are the boot options in their order.
func (p *predictor) options() []bootOption {
	var list []bootOption
	const menu = optionActive | optionHidden | optionApp
	switch {
	case p.Firmware.does(bootMenu):
		list = append(list, bootOption{menu, "BootManagerMenuApp", volumeFile(bootMenuApp), nil})
	case p.Firmware.does(setupFile):
		list = append(list, bootOption{menu, "UiApp", volumeFile(uiApp), nil})
	}
	if p.Firmware.does(setupOption) && p.Firmware.does(setupFile) {
		list = append(list, bootOption{optionActive | optionApp, "EFI Firmware Setup", volumeFile(uiApp), nil})
	}
	if p.Disk == nil {
		return list // QEMU's boot order names the kernel alone, and OVMF drops the rest
	}
	list = append(list, bootOption{optionActive, "UEFI Misc Device", pciDevice(p.m.DiskSlot), autoCreated[:]})
	if p.Firmware.does(shellOption) {
		shell := bootOption{optionActive, "EFI Internal Shell", volumeFile(shellFile), nil}
		if p.Firmware.does(shellApp) {
			shell.attributes |= optionApp
		}
		list = append(list, shell)
	}
	return list
}

// bootVariables adds BootOrder and the options in it.
func (p *predictor) bootVariables() {
	if p.vars.bootOptions() != "" {
		p.recordedBootVariables()
		return
	}
	list := p.options()
	var order []byte
	for i := range list {
		order = binary.LittleEndian.AppendUint16(order, uint16(i))
	}
	p.bootVariable("BootOrder", order)
	for i := range list {
		p.bootVariable(fmt.Sprintf("Boot%04X", i), list[i].bytes())
	}
}

// bootVariable adds one variable. Its digest is over the data alone, not over
// all of UEFI_VARIABLE_DATA as in PCR 7 (Tcg2Dxe, MeasureVariable).
func (p *predictor) bootVariable(name string, data []byte) {
	b := eventlog.Variable{GUID: globalVariable, Name: name, Data: data}.Bytes()
	p.add(1, eventlog.VariableBoot, b, data, "boot option")
}

// recordedBootVariables takes them from the record: with options of its own in
// the NVRAM they depend on what the firmware keeps of those.
func (p *predictor) recordedBootVariables() {
	n := p.record.count(recordBootVariable)
	if n == 0 {
		p.addUnknown(1, eventlog.VariableBoot, nil, "boot option", "the NVRAM has boot options of its own, and the firmware's are "+unrecorded)
	}
	for i := range n {
		e := Event{Event: eventlog.Event{Register: 1, Type: eventlog.VariableBoot, Source: "boot option"}}
		p.fill(&e, recordBootVariable, i)
		p.append(e)
	}
}
