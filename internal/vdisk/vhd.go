package vdisk

import (
	"encoding/binary"
	"fmt"
	"io"
)

// VHD writes a fixed VHD, as Azure takes it: the disk, then a footer of 512
// bytes. The disk must be a multiple of 1 MiB. Document: Microsoft, Virtual Hard
// Disk Image Format Specification 1.0.
func VHD(w io.Writer, d Disk, epoch int64, id [16]byte) error {
	if err := d.check("VHD", 1<<20); err != nil {
		return err
	}
	footer, err := vhdFooter(d.Size, epoch, id)
	if err != nil {
		return err
	}
	if err := d.copy(w); err != nil {
		return err
	}
	_, err = w.Write(footer)
	return err
}

// copy writes the whole disk.
func (d *Disk) copy(w io.Writer) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < d.Size; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), d.Size-off)]
		if err := d.read(b, off); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// vhdEpoch is the beginning of VHD's time, 2000-01-01, in seconds since 1970.
const vhdEpoch = 946684800

func vhdFooter(size, epoch int64, id [16]byte) ([]byte, error) {
	if epoch < vhdEpoch || epoch-vhdEpoch > 1<<32-1 {
		return nil, fmt.Errorf("vdisk: VHD: time %d: want one from %d to %d", epoch, vhdEpoch, vhdEpoch+1<<32-1)
	}
	be := binary.BigEndian
	b := append([]byte("conectix"), 0, 0, 0, 2, 0, 1, 0, 0) // features: reserved, always set; version 1.0
	b = be.AppendUint64(b, 1<<64-1)                         // fixed: no further header
	b = be.AppendUint32(b, uint32(epoch-vhdEpoch))
	b = append(b, "win \x00\x0a\x00\x00Wi2k"...) // for readers that trust the size, and not the geometry, of known creators alone
	b = be.AppendUint64(b, uint64(size))         // original
	b = be.AppendUint64(b, uint64(size))         // current
	cylinders, heads, sectors := geometry(size / sectorSize)
	b = be.AppendUint16(b, cylinders)
	b = append(b, heads, sectors)
	b = be.AppendUint32(b, 2) // fixed
	sum := len(b)
	b = be.AppendUint32(b, 0)
	b = append(b, id[:]...)
	b = append(b, make([]byte, sectorSize-len(b))...)
	var total uint32
	for _, x := range b {
		total += uint32(x)
	}
	be.PutUint32(b[sum:], ^total)
	return b, nil
}

// geometry is CHS for a number of sectors: the specification's appendix.
func geometry(sectors int64) (cylinders uint16, heads, perTrack uint8) {
	sectors = min(sectors, 65535*16*255)
	var h, s, tracks int64
	if sectors >= 65535*16*63 {
		h, s = 16, 255
		tracks = sectors / s
	} else {
		s = 17
		tracks = sectors / s
		h = max((tracks+1023)/1024, 4)
		if tracks >= h*1024 || h > 16 {
			s, h = 31, 16
			tracks = sectors / s
		}
		if tracks >= h*1024 {
			s, h = 63, 16
			tracks = sectors / s
		}
	}
	return uint16(tracks / h), uint8(h), uint8(s)
}
