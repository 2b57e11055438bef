package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/tree"
)

// Params is what else shapes a volume.
type Params struct {
	VolumeID uint32 // serial number
	Label    string // at most 11 characters of a short name; "" for none
	Epoch    int64  // seconds since 1970, of every file; limited to 1980 to 2107
}

const (
	infoSectorNumber = 1
	backupBootSector = 6
)

// Write writes a volume of size bytes to w, which must read as zero where
// nothing is written: FAT32 from MinFAT32 on, else FAT16. Files lie contiguous,
// in the order of tree.Normalize, which Write applies. Owners and permissions
// are dropped; links, device nodes and extended attributes are refused, as are
// names that differ only in case, content that does not fit and blobs whose
// length is not their Size.
func Write(w io.WriterAt, size int64, entries []tree.Entry, p Params) error {
	label, err := packLabel(p.Label)
	if err != nil {
		return err
	}
	g, err := layout(size)
	if err != nil {
		return err
	}
	nodes, err := plan(entries, p.Label != "")
	if err != nil {
		return err
	}
	if n := nodes[0].slots; g.rootEntries > 0 && n > g.rootEntries {
		return fmt.Errorf("fat: root: %d directory entries: FAT16 has %d", n, g.rootEntries)
	}
	used := g.allocate(nodes)
	if used > int64(g.clusters) {
		return fmt.Errorf("fat: the files need %d clusters of %d bytes, a volume of %d bytes has %d", used, g.clusterSize, size, g.clusters)
	}
	v := &volume{w: w, g: g, p: p, label: label}
	v.bootSectors(uint32(used))
	v.fats(nodes, int(used))
	for _, n := range nodes {
		v.node(n)
	}
	return v.err
}

func packLabel(label string) ([11]byte, error) {
	if label == "" {
		return pack("NO NAME", ""), nil
	}
	for i := range len(label) {
		if c := label[i]; !shortChar(c) && (c != ' ' || i == 0) {
			return [11]byte{}, fmt.Errorf("fat: label %q: want capitals, digits and $%%'-_@~`!(){}^#&", label)
		}
	}
	if len(label) > 11 {
		return [11]byte{}, fmt.Errorf("fat: label %q: want at most 11 characters", label)
	}
	return [11]byte(fmt.Appendf(nil, "%-11s", label)), nil
}

// A volume is a volume being written. After an error nothing more is.
type volume struct {
	w     io.WriterAt
	g     *geometry
	p     Params
	label [11]byte
	err   error
}

func (v *volume) writeAt(b []byte, off int64) {
	if v.err == nil {
		_, v.err = v.w.WriteAt(b, off)
	}
}

// structs returns structures one after the other.
func structs(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		b, _ = binary.Append(b, binary.LittleEndian, p) // fixed sizes: cannot fail
	}
	return b
}

// bootSectors writes the boot sector, with FAT32 also the FSInfo sector, and the
// backups of both.
func (v *volume) bootSectors(used uint32) {
	g := v.g
	common := bootSector{
		OEMName:           [8]byte([]byte("MSWIN4.1")), // what the specification recommends
		BytesPerSector:    sectorSize,
		SectorsPerCluster: uint8(g.clusterSize / sectorSize),
		ReservedSectors:   uint16(g.reserved),
		FATs:              numFATs,
		RootEntries:       uint16(g.rootEntries),
		Media:             mediaFixed,
		SectorsPerTrack:   63,
		Heads:             255,
	}
	end := bootSectorEnd{Drive: 0x80, BootSignature: extBootSignature, VolumeID: v.p.VolumeID, Label: v.label}
	if g.bits == 16 {
		common.Jump = [3]byte{0xeb, 0x3c, 0x90}
		common.FATSectors16 = uint16(g.fatSectors)
		if g.sectors <= 0xffff {
			common.Sectors16 = uint16(g.sectors)
		} else {
			common.Sectors32 = g.sectors
		}
		copy(end.Type[:], "FAT16   ")
		v.writeAt(sector(structs(common, end)), 0)
		return
	}
	common.Jump = [3]byte{0xeb, 0x58, 0x90}
	common.Sectors32 = g.sectors
	copy(end.Type[:], "FAT32   ")
	boot := sector(structs(common, bootSector32{
		FATSectors32: g.fatSectors,
		RootCluster:  firstCluster,
		FSInfo:       infoSectorNumber,
		BackupBoot:   backupBootSector,
	}, end))
	info := structs(infoSector{
		Lead:   leadSignature,
		Struct: structSignature,
		Free:   g.clusters - used,
		Next:   min(firstCluster+used, firstCluster+g.clusters-1),
		Trail:  trailSignature,
	})
	for _, first := range []int64{0, backupBootSector} {
		v.writeAt(boot, first*sectorSize)
		v.writeAt(info, (first+infoSectorNumber)*sectorSize)
	}
}

// sector fills b up to a sector that ends with the boot signature.
func sector(b []byte) []byte {
	b = append(b, make([]byte, sectorSize-2-len(b))...)
	return binary.LittleEndian.AppendUint16(b, bootSignature)
}

// fats writes all FATs as far as clusters are used; the rest is zero, free.
func (v *volume) fats(nodes []*node, used int) {
	mask := fatMask(v.g.bits)
	table := make([]uint32, firstCluster+used)
	table[0] = mask&^0xff | mediaFixed
	table[1] = mask // shut down cleanly, no errors
	for _, n := range nodes {
		for c := n.first; c < n.first+n.count; c++ {
			table[c] = c + 1
		}
		if n.count > 0 {
			table[n.first+n.count-1] = mask
		}
	}
	b := make([]byte, 0, len(table)*v.g.bits/8)
	for _, entry := range table {
		if v.g.bits == 16 {
			b = binary.LittleEndian.AppendUint16(b, uint16(entry))
		} else {
			b = binary.LittleEndian.AppendUint32(b, entry)
		}
	}
	for i := range v.g.fats {
		v.writeAt(b, v.g.fatOffset(i))
	}
}

// node writes a file or a directory.
func (v *volume) node(n *node) {
	if v.err != nil {
		return
	}
	off := v.g.rootOffset()
	if n.count > 0 {
		off = v.g.clusterOffset(n.first)
	}
	if n.isDir() {
		v.writeAt(v.directory(n), off)
		return
	}
	if err := n.entry.Content.Copy(io.NewOffsetWriter(v.w, off)); err != nil {
		v.err = fmt.Errorf("fat: %s: %w", n.entry.Path, err)
	}
}

// directory returns the entries of a directory.
func (v *volume) directory(n *node) []byte {
	var b bytes.Buffer
	if n.parent != nil {
		b.Write(structs(v.entry(pack(".", ""), attrDirectory, n.first, 0)))
		up := n.parent.first
		if n.parent.parent == nil {
			up = 0 // stands for the root, wherever that is
		}
		b.Write(structs(v.entry(pack("..", ""), attrDirectory, up, 0)))
	} else if v.p.Label != "" {
		b.Write(structs(v.entry(v.label, attrVolume, 0, 0)))
	}
	for _, c := range n.children {
		for _, l := range longEntries(c.long, c.short) {
			b.Write(structs(l))
		}
		if c.isDir() {
			b.Write(structs(v.entry(c.short, attrDirectory, c.first, 0)))
		} else {
			b.Write(structs(v.entry(c.short, attrArchive, c.first, uint32(c.size()))))
		}
	}
	return b.Bytes()
}

func (v *volume) entry(name [11]byte, attr uint8, first, size uint32) dirEntry {
	date, clock, rest := encodeTime(v.p.Epoch)
	return dirEntry{
		Name: name, Attr: attr, Size: size,
		CreateTenth: rest, CreateTime: clock, CreateDate: date,
		AccessDate: date, WriteTime: clock, WriteDate: date,
		ClusterHigh: uint16(first >> 16), ClusterLow: uint16(first),
	}
}
