package vdisk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
)

// VMDK writes a stream-optimised VMDK: the disk in compressed grains, behind
// them the tables that find them. Document: VMware, Virtual Disk Format 5.0.
func VMDK(w io.Writer, d Disk, name string) error {
	if err := d.check("VMDK", sectorSize); err != nil {
		return err
	}
	v := &vmdk{w: w, capacity: uint64(d.Size / sectorSize)}
	v.sectors(v.header(0))
	v.sectors(v.descriptor(name))
	v.pad(vmdkOverhead)
	if err := v.grains(&d); err != nil {
		return err
	}
	v.directory()
	v.marker(1, markerFooter)
	v.sectors(v.header(v.gd))
	v.marker(0, markerEnd)
	return v.err
}

const (
	grainSectors = 128
	grain        = grainSectors * sectorSize
	perTable     = 512 // entries of a grain table
	vmdkOverhead = 128 // sectors before the first grain
	atTheEnd     = 1<<64 - 1
)

// Kinds of markers.
const (
	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

type vmdk struct {
	w        io.Writer
	capacity uint64 // sectors
	at       uint64 // sectors written
	tables   []uint32
	gd       uint64
	err      error
}

func (v *vmdk) write(b []byte) {
	if v.err == nil {
		_, v.err = v.w.Write(b)
	}
}

// sectors writes b and zeros up to the end of a sector.
func (v *vmdk) sectors(b []byte) {
	v.write(b)
	v.write(zeros[:-len(b)&(sectorSize-1)])
	v.at += uint64(len(b)+sectorSize-1) / sectorSize
}

func (v *vmdk) pad(to uint64) {
	for v.at < to {
		v.sectors(zeros[:sectorSize])
	}
}

// header is a SparseExtentHeader. The one at the beginning does not know where
// the grain directory is, the footer does.
func (v *vmdk) header(gd uint64) []byte {
	if gd == 0 {
		gd = atTheEnd
	}
	le := binary.LittleEndian
	b := append([]byte("KDMV"), 3, 0, 0, 0) // version 3
	const newlines, compressed, markers = 1, 1 << 16, 1 << 17
	b = le.AppendUint32(b, newlines|compressed|markers)
	b = le.AppendUint64(b, v.capacity)
	b = le.AppendUint64(b, grainSectors)
	b = le.AppendUint64(b, 1)                 // descriptor
	b = le.AppendUint64(b, descriptorSectors) // its size
	b = le.AppendUint32(b, perTable)
	b = le.AppendUint64(b, 0) // no second directory
	b = le.AppendUint64(b, gd)
	b = le.AppendUint64(b, vmdkOverhead)
	b = append(b, 0, '\n', ' ', '\r', '\n') // clean; what a transfer as text would change
	b = le.AppendUint16(b, 1)               // deflate
	return append(b, make([]byte, sectorSize-len(b))...)
}

const descriptorSectors = 20

func (v *vmdk) descriptor(name string) []byte {
	cylinders := min(v.capacity/(255*63), 65535)
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
`, v.capacity, name, cylinders)
	return append([]byte(text), make([]byte, descriptorSectors*sectorSize-len(text))...)
}

// grains writes what is not zeros, and a table after each perTable grains that
// have any.
func (v *vmdk) grains(d *Disk) error {
	n := (d.Size + grain - 1) / grain
	buf := make([]byte, grain)
	for first := int64(0); first < n; first += perTable {
		table := make([]byte, 0, perTable*4)
		any := false
		for i := first; i < first+perTable; i++ {
			at := uint32(0)
			if i < n {
				if err := d.read(buf, i*grain); err != nil {
					return err
				}
				if !allZero(buf) {
					at, any = uint32(v.at), true
					if err := v.grain(uint64(i)*grainSectors, buf); err != nil {
						return err
					}
				}
			}
			table = binary.LittleEndian.AppendUint32(table, at)
		}
		if !any {
			v.tables = append(v.tables, 0)
			continue
		}
		v.marker(uint64(len(table)/sectorSize), markerTable)
		v.tables = append(v.tables, uint32(v.at))
		v.sectors(table)
	}
	if v.at > 1<<32-1 {
		return fmt.Errorf("vdisk: VMDK: %d sectors: more than it can address", v.at)
	}
	return v.err
}

// grain writes a grain marker with the compressed data: u64 sector, u32 size.
func (v *vmdk) grain(sector uint64, data []byte) error {
	var z bytes.Buffer
	c := zlib.NewWriter(&z)
	if _, err := c.Write(data); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint64(nil, sector)
	b = binary.LittleEndian.AppendUint32(b, uint32(z.Len()))
	v.sectors(append(b, z.Bytes()...))
	return nil
}

func (v *vmdk) directory() {
	var b []byte
	for _, t := range v.tables {
		b = binary.LittleEndian.AppendUint32(b, t)
	}
	v.marker(uint64(len(b)+sectorSize-1)/sectorSize, markerDirectory)
	v.gd = v.at
	v.sectors(b)
}

// marker is a sector that says what follows: u64 sectors, u32 0, u32 kind.
func (v *vmdk) marker(sectors uint64, kind uint32) {
	b := binary.LittleEndian.AppendUint64(nil, sectors)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, kind)
	v.sectors(append(b, make([]byte, sectorSize-len(b))...))
}
