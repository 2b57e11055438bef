package main

import (
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/qemu"
)

// deviceFlags are what a booted machine has beside the image's own disk.
type deviceFlags struct {
	publish, disks []string
	tpm            string // directory of the TPM's state
}

// maxSerial is the length of a virtio disk's serial number: Virtual I/O Device
// 1.2, 5.2.6, VIRTIO_BLK_T_GET_ID.
const maxSerial = 20

// parseForward reads "[HOST:]GUEST[/udp]"; the host's port is the guest's where
// there is one alone.
func parseForward(s string) (f qemu.Forward, err error) {
	ports, protocol, ok := strings.Cut(s, "/")
	if !ok {
		protocol = "tcp"
	}
	host, guest, ok := strings.Cut(ports, ":")
	if !ok {
		guest = host
	}
	h, errHost := strconv.ParseUint(host, 10, 16)
	g, errGuest := strconv.ParseUint(guest, 10, 16)
	if errHost != nil || errGuest != nil || h == 0 || g == 0 || protocol != "tcp" && protocol != "udp" {
		return f, usagef("--publish %q: want [HOST:]GUEST[/udp], ports from 1 to 65535", s)
	}
	return qemu.Forward{Protocol: protocol, Host: int(h), Guest: int(g)}, nil
}

// parseDisk reads "SERIAL=FILE[:rw]".
func parseDisk(s string) (d qemu.Disk, err error) {
	serial, path, ok := strings.Cut(s, "=")
	path, writable := strings.CutSuffix(path, ":rw")
	if !ok || path == "" || serial == "" || len(serial) > maxSerial {
		return d, usagef("--disk %q: want SERIAL=FILE[:rw], with a serial number of at most %d bytes", s, maxSerial)
	}
	return qemu.Disk{Path: path, Serial: serial, Writable: writable}, nil
}

// attach adds the devices to a machine. network says that the image wants one.
func (f *deviceFlags) attach(m *qemu.Machine, network bool) error {
	m.TPMState = f.tpm
	if network || len(f.publish) > 0 {
		m.Network = &qemu.Network{}
	}
	for _, s := range f.publish {
		forward, err := parseForward(s)
		if err != nil {
			return err
		}
		m.Network.Forward = append(m.Network.Forward, forward)
	}
	for _, s := range f.disks {
		d, err := parseDisk(s)
		if err != nil {
			return err
		}
		m.Disks = append(m.Disks, d)
	}
	return nil
}
