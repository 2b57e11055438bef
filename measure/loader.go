package measure

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/pcr"
	"github.com/plinth-os/plinth/uki"
)

// What is measured from the image on: by the firmware that loads it (PCR 4, 5
// and the authority in PCR 7), by systemd-stub (PCR 11, 1) and by the kernel's
// EFI stub (PCR 9).

// image adds the image that the firmware starts, before it the partition table
// of the disk that it is on (DxeTpm2MeasureBootLib), and before both the
// certificate that let it start (DxeImageVerificationLib, SecureBootHook).
func (p *predictor) image() {
	name, source := "image /EFI/BOOT/BOOTX64.EFI", "ESP /EFI/BOOT/BOOTX64.EFI"
	if p.Disk == nil {
		name, source = "image from -kernel", "-kernel"
	}
	if p.os.authority != nil {
		b := eventlog.Variable{GUID: imageSecurity, Name: "db", Data: p.os.authority}.Bytes()
		p.add(7, eventlog.VariableAuthority, b, b, "variable db")
	}
	if p.os.gpt != nil {
		p.add(5, eventlog.GPTEvent, p.os.gpt, p.os.gpt, "disk")
	}
	e := Event{
		Event:      eventlog.Event{Register: 4, Type: eventlog.BootApplication, Digests: p.os.image, Name: name, Source: source},
		Provenance: Predicted,
	}
	if e.Digests == nil {
		e.Provenance, e.Reason = Volatile, "QEMU's version decides what it changes in the kernel's setup header: not known"
	}
	p.append(e)
}

// innerMeasured tells whether the stub starts the kernel through the firmware,
// which then measures it. With Secure Boot stubs take over the verification of
// what is inside their own signature, and nothing is measured.
func (p *predictor) innerMeasured(stub *uki.Version) bool {
	return behaviour(innerKernel).holds(stub.Full) && !p.vars.enforced(p.Firmware)
}

// stub adds what systemd-stub measures.
func (p *predictor) stub() {
	o := p.os
	if o.stub == nil {
		return
	}
	if p.TD == nil || behaviour(stubCC).holds(o.stub.Full) {
		p.stubEvents()
	}
	if p.innerMeasured(o.stub) {
		p.append(Event{
			Event: eventlog.Event{Register: 4, Type: eventlog.BootApplication, Digests: o.inner,
				Name: "kernel inside the UKI", Source: "section .linux"},
			Provenance: Predicted,
		})
	}
}

// stubEvents adds what the stub itself extends registers by.
func (p *predictor) stubEvents() {
	for _, e := range slices.Concat(p.os.sections...) {
		e.Name = "" // as Describe has it
		p.append(Event{Event: e, Provenance: Predicted})
	}
	if behaviour(smbiosTags).holds(p.os.stub.Full) {
		p.smbiosTag()
	}
}

// smbiosTag adds the table of type 1, "System Information", which stubs measure
// as it is but for the wake-up type.
func (p *predictor) smbiosTag() {
	data := taggedEvent(tagSMBIOS1, utf16Bytes("smbios:type1", true))
	table, ok := systemInformation(p.m.Type, p.vmmVersion())
	if !ok {
		p.addUnknown(1, eventlog.EventTag, data, "SMBIOS table type 1", "QEMU's version decides the machine's name in SMBIOS: not known")
		return
	}
	p.add(1, eventlog.EventTag, data, table, "SMBIOS table type 1")
}

// systemInformation is QEMU's SMBIOS structure of type 1 on q35, without the
// wake-up type: DSP0134 3.7, section 7.2; QEMU, hw/smbios/smbios.c,
// smbios_build_type_1_table.
func systemInformation(machine, vmm string) ([]byte, bool) {
	if machine == "q35" {
		n := numbers(vmm)
		if len(n) < 2 {
			return nil, false
		}
		machine = fmt.Sprintf("pc-q35-%d.%d", n[0], n[1])
	}
	b := make([]byte, 27) // length of the structure's formatted area
	b[0], b[1] = 1, byte(len(b))
	binary.LittleEndian.PutUint16(b[2:], 0x100) // handle
	b[4], b[5], b[6] = 1, 2, 3                  // manufacturer, product, version; serial, SKU and family have no text
	text := strings.Join([]string{"QEMU", "Standard PC (Q35 + ICH9, 2009)", machine, "", ""}, "\x00")
	return append(b, text...), true
}

// Tags of EV_EVENT_TAG: systemd, src/fundamental/tpm2-pcr.h; Linux,
// drivers/firmware/efi/libstub/efistub.h.
const (
	tagSMBIOS1     = 0xd5cb7cbc
	tagLoadOptions = 0x8f3b22ed
	tagInitrd      = 0x8f3b22ec
)

// taggedEvent is a TCG_PCClientTaggedEvent: TCG PC Client Platform Firmware
// Profile 1.06, section 10.4.2.1.
func taggedEvent(tag uint32, text []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, tag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// passedOn is .cmdline as the stub hands it to the kernel. Newer ones append
// consoles to a command line that names none: the serial port, and the virtio
// console, which is there when any virtio-serial device is. A screen, for which
// they would add tty0, package qemu does not give.
func passedOn(cmdline string, stub *uki.Version, m *Machine) string {
	if !behaviour(consoleAppended).holds(stub.Full) || strings.Contains(" "+cmdline, " console=") {
		return cmdline
	}
	cmdline += " console=uart,io,0x3f8"
	if !m.NoReportPort {
		cmdline += " console=hvc0"
	}
	return strings.TrimPrefix(cmdline, " ")
}

// kernelStub adds what the kernel's EFI stub measures: its load options, and the
// initrd as the loader gives it.
func (p *predictor) kernelStub() {
	o := p.os
	if !behaviour(kernelLoadOptions).holds(o.release) || p.TD != nil && !behaviour(kernelCC).holds(o.release) {
		return
	}
	if o.cmdline != "" {
		p.add(9, eventlog.EventTag, taggedEvent(tagLoadOptions, []byte("LOADED_IMAGE::LoadOptions\x00")), pcr.LoadOptions(o.cmdline), "command line")
	}
	data := taggedEvent(tagInitrd, []byte("Linux initrd\x00"))
	switch {
	case o.stub != nil && behaviour(bootSecret).holds(o.stub.Full) && p.Disk != nil && p.m.DiskWritable:
		p.addUnknown(9, eventlog.EventTag, data, "initrd",
			"the stub adds a boot secret of its own to the initrd when it can write to the EFI system partition: attach the disk read-only")
	case o.initrd != nil:
		p.append(Event{
			Event:      eventlog.Event{Register: 9, Type: eventlog.EventTag, Data: data, Digests: o.initrd, Source: "initrd"},
			Provenance: Predicted,
		})
	}
}

// exitBootServices adds the end of the firmware's part. When the call has to be
// repeated the log has both.
func (p *predictor) exitBootServices() {
	actions := func(names ...string) {
		for _, n := range names {
			p.add(5, eventlog.EFIAction, []byte(n), []byte(n), "firmware")
		}
	}
	const call, failure, success = "Exit Boot Services Invocation", "Exit Boot Services Returned with Failure", "Exit Boot Services Returned with Success"
	before := len(p.events)
	if p.Disk != nil && p.m.DiskWritable && p.Firmware.does(exitRetry) {
		r := p.register(5)
		actions(call, failure, call, success)
		retried := p.lists(r)[0]
		p.events = p.events[:before]
		actions(call, success)
		p.variants[r] = [][]Event{p.lists(r)[0], retried}
		return
	}
	actions(call, success)
}
