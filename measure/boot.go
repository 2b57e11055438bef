package measure

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/tdx"
)

// Machine is the shape of a virtual machine, as far as it decides what is
// measured.
type Machine struct {
	Type      string // QEMU's name, "q35" or "pc-q35-7.2"
	VCPUs     int
	MemoryMiB int
	VMM       string // "qemu 7.2.22"; "" is not known: then from the one record that fits
	Accel     string // "tcg" or "kvm"; "" as with VMM
	CPU       string // QEMU's name of the processor model; "" is the default for Accel
	TPM       string // its interface; "" is "tpm-tis"

	// DiskSlot is the PCI device number of the virtio disk on the root bus,
	// function 0; 0 is 1, where package qemu puts it.
	DiskSlot int
	// DiskWritable says that the guest can write to the disk.
	DiskWritable bool
	// NoReportPort says that the machine has no virtio-serial device, as package
	// qemu gives it for the guest's report.
	NoReportPort bool
}

// Boot is one boot: what is given to the machine, and the machine. Of Disk, UKI
// and Kernel one is given.
type Boot struct {
	Firmware *Firmware
	Vars     []byte            // NVRAM flash, as it is before the boot; of a trust domain nil or TD.Firmware
	Disk     *io.SectionReader // GPT disk with EFI/BOOT/BOOTX64.EFI, a unified kernel image, in its ESP
	UKI      *io.SectionReader // unified kernel image given to QEMU as -kernel, without -append
	Kernel   *io.SectionReader // bzImage given to QEMU as -kernel
	Initrd   *io.SectionReader // -initrd, with Kernel
	Cmdline  string            // -append, with Kernel
	Machine  Machine
	Phases   []string       // that the guest extends into PCR 11
	Modules  []Module       // that the guest loads, in its order; nil: not known
	Records  *Records       // platform records; nil: none
	Banks    []eventlog.Alg // of a trust domain there is sha384 alone, whatever is here
	TD       *TD            // nil: a machine with a TPM
}

// Module is a kernel module that the guest loads from a file (finit_module).
type Module struct {
	Path   string // absolute, in the guest
	SHA256 string // of the file, hex
}

// The paths by which a kernel is booted, as far as platform records differ.
const (
	pathDisk   = "disk"
	pathKernel = "kernel"
)

func (b *Boot) path() string {
	if b.Disk != nil {
		return pathDisk
	}
	return pathKernel
}

func (b *Boot) check() error {
	given := 0
	for _, r := range []*io.SectionReader{b.Disk, b.UKI, b.Kernel} {
		if r != nil {
			given++
		}
	}
	switch m := &b.Machine; {
	case given != 1:
		return fmt.Errorf("measure: boot: %d of disk, UKI and kernel given: want one", given)
	case b.Kernel == nil && (b.Initrd != nil || b.Cmdline != ""):
		return errors.New("measure: boot: initrd or command line without a kernel")
	case b.Firmware == nil || len(b.Vars) == 0:
		return errors.New("measure: boot: no firmware, or no NVRAM")
	case b.TD == nil && len(b.Firmware.Volumes) == 0:
		return errors.New("measure: boot: the firmware has no PEI phase: it measures in a trust domain only")
	case len(b.Banks) == 0:
		return errors.New("measure: boot: no bank")
	case chipset(m.Type) != "q35":
		return fmt.Errorf("measure: machine type %q: want q35", m.Type)
	case m.VCPUs < 1 || m.MemoryMiB < 1:
		return fmt.Errorf("measure: machine: %d vCPUs, %d MiB", m.VCPUs, m.MemoryMiB)
	}
	for _, bank := range b.Banks {
		if bank.Hash() == 0 {
			return fmt.Errorf("measure: bank %v: unsupported", bank)
		}
	}
	return nil
}

// Predict returns what the boot will measure.
func Predict(b *Boot) (*Prediction, error) {
	p, err := newPredictor(b)
	if err != nil {
		return nil, err
	}
	o, err := p.open()
	if err != nil {
		return nil, err
	}
	return p.predict(o)
}

// predict adds the events in the order of the log.
func (p *predictor) predict(o *payload) (*Prediction, error) {
	p.os = o
	p.refuseOwnRecord()
	p.findVersions()
	if err := p.begin(); err != nil {
		return nil, err
	}
	p.secureBootPolicy()
	p.acpi()
	early := p.Disk == nil && p.Firmware.does(kernelFirst)
	if early {
		p.image()
	}
	if err := p.smbios(false); err != nil {
		return nil, err
	}
	p.bootVariables()
	p.readyToBoot()
	if err := p.smbios(true); err != nil {
		return nil, err
	}
	if !early {
		p.image()
	}
	p.stub()
	p.kernelStub()
	p.exitBootServices()
	if p.TD == nil {
		p.ima()
	}
	return p.prediction(), nil
}

// begin adds what is measured before the drivers of the firmware start.
func (p *predictor) begin() error {
	if p.TD != nil {
		return p.beginTD()
	}
	return p.firmwareVolumes()
}

// withSHA256 adds the bank that IMA takes its aggregate from.
func withSHA256(banks []eventlog.Alg) []eventlog.Alg {
	if slices.Contains(banks, eventlog.SHA256) {
		return banks
	}
	return append(slices.Clone(banks), eventlog.SHA256)
}

func newPredictor(b *Boot) (*predictor, error) {
	if b.TD != nil {
		var err error
		if b, err = b.inTD(); err != nil {
			return nil, err
		}
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	p := &predictor{Boot: b, m: b.Machine, banks: withSHA256(b.Banks), variants: map[int][][]Event{}}
	var err error
	if p.vars, err = readNVRAM(b.Vars); err != nil {
		return nil, err
	}
	p.platform()
	return p, nil
}

// platform finds the record, and what it says of the machine.
func (p *predictor) platform() {
	p.record, _ = p.Records.Lookup(p.key())
	if p.record != nil && p.m.VMM == "" {
		p.m.VMM = p.record.Key.VMM
	}
	if p.record != nil && p.m.Accel == "" {
		p.m.Accel = p.record.Key.Accel
	}
	if p.m.DiskSlot == 0 {
		p.m.DiskSlot = 1
	}
}

// refuseOwnRecord drops a record that was made with the very image that is
// predicted: nothing that this image was seen to measure may become its
// prediction.
func (p *predictor) refuseOwnRecord() {
	if p.record != nil && p.record.Image != "" && p.record.Image == p.os.digest() {
		p.record = nil
		p.notes = append(p.notes, "the platform record is of a boot of this image: not used")
	}
}

// predictor gathers the events of one boot.
type predictor struct {
	*Boot
	m     Machine // with what a record says of it
	banks []eventlog.Alg

	record   *Record // nil: none fits
	vars     *nvram
	os       *payload
	versions Versions
	notes    []string

	mrtd     *Value // of a trust domain
	events   []Event
	variants map[int][][]Event // of a register's events, where more than one is possible
}

// add appends an event whose digest is over hashed.
func (p *predictor) add(register int, t eventlog.Type, data, hashed []byte, source string) {
	p.append(Event{
		Event:      eventlog.Event{Register: register, Type: t, Data: data, Digests: digestsOf(p.banks, hashed), Source: source},
		Provenance: Predicted,
	})
}

// addUnknown appends an event of which all but the digest is known.
func (p *predictor) addUnknown(register int, t eventlog.Type, data []byte, source, reason string) {
	p.append(Event{
		Event:      eventlog.Event{Register: register, Type: t, Data: data, Source: source},
		Provenance: Volatile,
		Reason:     reason,
	})
}

// register returns the register for what a PCR holds: its number, or in a trust
// domain the index in the CC log of the RTMR that stands for it.
func (p *predictor) register(pcr int) int {
	if p.TD == nil {
		return pcr
	}
	rtmr, ok := tdx.RTMR(pcr)
	if !ok {
		panic(fmt.Sprintf("measure: no RTMR stands for PCR %d", pcr)) // no event is made for it
	}
	return rtmr + 1
}

// append adds an event of a PCR, or what stands for that, and names it as a log's
// reader does.
func (p *predictor) append(e Event) {
	e.Register = p.register(e.Register)
	if e.Name == "" {
		l := eventlog.Log{Events: []eventlog.Event{e.Event}}
		l.Describe()
		e.Name = l.Events[0].Name
	}
	p.events = append(p.events, e)
}
