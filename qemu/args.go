package qemu

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Machine is what runs. Relative paths are relative to the working directory.
type Machine struct {
	Binary     string   // QEMU; "": see Find
	Type       string   // machine type; "" is q35
	CPU        string   // CPU model; "" is host under KVM and max under TCG, see emulated
	VCPUs      int      // 0 is 1
	MemoryMiB  int      // 0 is 1024
	Firmware   string   // OVMF's code volume, attached read-only; "": QEMU's own BIOS
	Vars       string   // OVMF's variable volume; the guest gets a copy of it; "": none
	SMM        bool     // system management mode, as OVMF's secboot builds need: only they may write Vars
	Disk       string   // raw image, attached read-only; "": none
	Kernel     string   // bzImage or UKI that the firmware loads by fw_cfg; "": none
	Initrd     string   // for Kernel; "": none
	Append     string   // command line for Kernel
	TPM        bool     // a TPM 2.0, fresh in each run but for TPMState
	TPMState   string   // directory where the TPM keeps its seeds, and so its keys, from run to run; made when it is not there; "": it keeps nothing
	TPMDevice  string   // its interface; "" is tpm-tis, or tpm-crb
	ReportPort string   // name of the virtio-serial port that VM.Report reads; "": none
	Network    *Network // nil: none
	Disks      []Disk   // beside Disk
	ExtraArgs  []string // come last

	Accel     string // kvm or tcg; "" is tcg. Start decides, from Options.Accel
	NoSandbox bool   // this QEMU has no seccomp sandbox. Start finds out
}

// Network is a virtio interface with QEMU's user networking behind it: the guest
// gets its address by DHCP, and reaches the host at 10.0.2.2.
type Network struct{ Forward []Forward }

// A Forward leads from a port of the host's loopback interface to one of the guest.
type Forward struct {
	Protocol    string // tcp or udp
	Host, Guest int
}

// A Disk is one that the guest finds by its serial number.
type Disk struct {
	Path     string
	Serial   string // at most 20 bytes; virtio has no room for more
	Writable bool
}

// Sockets are the descriptors that QEMU inherits. Each is one end of a
// connected stream socket, so nothing of them is in a file system, nobody else
// can connect, and whoever holds the other end sees when QEMU is gone.
type Sockets struct {
	QMP, Console int
	TPM          int // swtpm's control channel, with Machine.TPM
	Report       int // with Machine.ReportPort
}

// Args returns QEMU's arguments for m. The guest waits for QMP's "cont", so
// that no event is lost.
//
// What the firmware measures is a function of these arguments. Therefore: no
// default devices, no option ROMs, fixed PCI slots for the disk (00:01.0), the
// report port (00:02.0), the network (00:03.0) and further disks (00:04.0 and up),
// a disk that nobody writes, and no sleep states, out of which a guest would come
// with a TPM that was reset.
func Args(m Machine, s Sockets) []string {
	a := args{"-S", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"}
	if !m.NoSandbox {
		a.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	a.machine(m)
	a.firmware(m)
	a.add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", s.QMP), "-qmp", "chardev:qmp")
	a.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", s.Console), "-serial", "chardev:console")
	a.kernel(m)
	if m.Disk != "" {
		a.add("-blockdev", "driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename="+escape(m.Disk),
			"-device", "virtio-blk-pci,drive=disk,addr=01.0")
	}
	if m.TPM {
		a.add("-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", s.TPM), "-tpmdev", "emulator,id=tpm0,chardev=tpm",
			"-device", cmp.Or(m.TPMDevice, "tpm-tis")+",tpmdev=tpm0")
	}
	if m.ReportPort != "" {
		a.add("-chardev", fmt.Sprintf("socket,id=report,fd=%d", s.Report), "-device", "virtio-serial-pci,addr=02.0",
			"-device", "virtserialport,chardev=report,name="+escape(m.ReportPort))
	}
	a.network(m)
	a.disks(m)
	return append(a, m.ExtraArgs...)
}

type args []string

func (a *args) add(s ...string) { *a = append(*a, s...) }

func (a *args) machine(m Machine) {
	// One thread for all emulated processors: with one each, QEMU 7.2 and 11.1
	// now and then lose a guest of several processors in early boot.
	accel, cpu, smm := "tcg,thread=single", emulated(cmp.Or(m.CPU, "max")), "off"
	if m.Accel == "kvm" {
		accel, cpu = "kvm", cmp.Or(m.CPU, "host")
	}
	if m.SMM {
		smm = "on"
	}
	a.add("-accel", accel,
		"-machine", fmt.Sprintf("%s,smm=%s", cmp.Or(m.Type, "q35"), smm),
		"-cpu", cpu,
		"-smp", strconv.Itoa(max(m.VCPUs, 1)),
		"-m", strconv.Itoa(m.memoryMiB())+"M",
		"-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1")
}

// emulated takes CMPXCHG16B out of the largest emulated CPU: TCG of QEMU 7.2
// corrupts the flags in it, and one boot in five of a kernel that uses it (Linux
// 6.4 and later) ends in a panic. With a model of one's own nothing is changed.
func emulated(cpu string) string {
	if cpu == "max" {
		return "max,-cx16"
	}
	return cpu
}

func (m Machine) memoryMiB() int {
	if m.MemoryMiB <= 0 {
		return 1024
	}
	return m.MemoryMiB
}

func (a *args) firmware(m Machine) {
	if m.Firmware != "" {
		a.add("-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(m.Firmware))
	}
	if m.Vars != "" {
		a.add("-drive", "if=pflash,unit=1,format=raw,file="+escape(m.Vars))
	}
	if m.SMM {
		a.add("-global", "driver=cfi.pflash01,property=secure,value=on")
	}
}

func (a *args) kernel(m Machine) {
	if m.Kernel == "" {
		return
	}
	a.add("-kernel", m.Kernel)
	if m.Initrd != "" {
		a.add("-initrd", m.Initrd)
	}
	if m.Append != "" {
		a.add("-append", m.Append)
	}
}

func (a *args) network(m Machine) {
	if m.Network == nil {
		return
	}
	user := "user,id=net"
	for _, f := range m.Network.Forward {
		user += fmt.Sprintf(",hostfwd=%s:127.0.0.1:%d-:%d", f.Protocol, f.Host, f.Guest)
	}
	// The MAC address is in the boot entry that the firmware makes for the interface.
	a.add("-netdev", user, "-device", "virtio-net-pci,netdev=net,addr=03.0,romfile=,mac=52:54:00:12:34:56")
}

func (a *args) disks(m Machine) {
	for i, d := range m.Disks {
		readOnly := "on"
		if d.Writable {
			readOnly = "off"
		}
		a.add("-blockdev", fmt.Sprintf("driver=raw,node-name=disk%d,read-only=%s,file.driver=file,file.filename=%s", i+1, readOnly, escape(d.Path)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,addr=%02x.0,serial=%s", i+1, 4+i, escape(d.Serial)))
	}
}

// escape makes s one value of a comma-separated option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
