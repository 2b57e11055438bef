// Package fat writes FAT16 and FAT32 file systems and reads FAT12, FAT16 and
// FAT32 ones. What it writes follows from its arguments alone.
//
// Format: Microsoft, FAT32 File System Specification, version 1.03 (2000),
// below "FAT spec". All numbers are little-endian.
package fat

// bootSector is what the first sector starts with; FAT spec, "Boot Sector and
// BPB Structure".
type bootSector struct {
	Jump              [3]byte
	OEMName           [8]byte
	BytesPerSector    uint16
	SectorsPerCluster uint8
	ReservedSectors   uint16 // before the first FAT
	FATs              uint8
	RootEntries       uint16 // 0 with FAT32
	Sectors16         uint16 // of the volume; 0 when Sectors32 says it
	Media             uint8
	FATSectors16      uint16 // of one FAT; 0 with FAT32
	SectorsPerTrack   uint16
	Heads             uint16
	HiddenSectors     uint32 // before the volume, for BIOS calls
	Sectors32         uint32
}

// bootSector32 follows at offset 36 with FAT32.
type bootSector32 struct {
	FATSectors32 uint32
	Flags        uint16 // 0: all FATs are kept alike
	Version      uint16 // 0
	RootCluster  uint32
	FSInfo       uint16 // sector
	BackupBoot   uint16 // sector
	_            [12]byte
}

// bootSectorEnd follows at offset 36, or at 64 with FAT32.
type bootSectorEnd struct {
	Drive         uint8
	_             uint8
	BootSignature uint8 // 0x29: the next three are there
	VolumeID      uint32
	Label         [11]byte
	Type          [8]byte // for people
}

// infoSector is the FSInfo sector of FAT32.
type infoSector struct {
	Lead   uint32
	_      [480]byte
	Struct uint32
	Free   uint32 // clusters
	Next   uint32 // where to look for a free cluster
	_      [12]byte
	Trail  uint32
}

const (
	leadSignature   = 0x41615252
	structSignature = 0x61417272
	trailSignature  = 0xaa550000

	bootSignature    = 0xaa55 // at offset 510
	extBootSignature = 0x29
	mediaFixed       = 0xf8
)

// dirEntry is a short-name directory entry; FAT spec, "FAT Directory Structure".
type dirEntry struct {
	Name        [11]byte // 8 of name and 3 of extension, filled up with spaces
	Attr        uint8
	Case        uint8 // bits 3 and 4: name, extension is in lower case (Windows NT)
	CreateTenth uint8 // 10 ms, 0 to 199
	CreateTime  uint16
	CreateDate  uint16
	AccessDate  uint16
	ClusterHigh uint16
	WriteTime   uint16
	WriteDate   uint16
	ClusterLow  uint16
	Size        uint32 // bytes; 0 of a directory
}

// longEntry is a part of a long name, before the short-name entry; FAT spec,
// "FAT Long Directory Entries".
type longEntry struct {
	Order    uint8 // 1 for the first 13 units, which lie last
	Name1    [5]uint16
	Attr     uint8 // attrLong
	Type     uint8 // 0
	Checksum uint8 // of the short name
	Name2    [6]uint16
	Cluster  uint16 // 0
	Name3    [2]uint16
}

const (
	entrySize     = 32 // bytes
	unitsPerEntry = 13 // UTF-16 units in a longEntry
	lastLong      = 0x40

	maxLongEntries = 20 // of a name
	maxDirEntries  = 65536

	attrVolume    = 0x08
	attrDirectory = 0x10
	attrArchive   = 0x20
	attrLong      = 0x0f
	attrLongMask  = 0x3f

	caseName, caseExt = 0x08, 0x10
)

// Clusters are numbered from 2; below that a FAT holds the media byte and flags.
const firstCluster = 2

// A geometry is where things lie in a volume.
type geometry struct {
	bits        int // of a FAT entry: 12, 16 or 32
	sectorSize  int // bytes
	clusterSize int // bytes
	sectors     uint32
	reserved    int // sectors
	fats        int
	fatSectors  uint32
	rootEntries int // 0 with FAT32
	clusters    uint32
}

// overhead returns the number of sectors before the first cluster.
func (g *geometry) overhead() uint64 {
	root := (g.rootEntries*entrySize + g.sectorSize - 1) / g.sectorSize
	return uint64(g.reserved) + uint64(g.fats)*uint64(g.fatSectors) + uint64(root)
}

func (g *geometry) fatOffset(i int) int64 {
	return (int64(g.reserved) + int64(i)*int64(g.fatSectors)) * int64(g.sectorSize)
}

// rootOffset is where FAT12 and FAT16 have their root directory.
func (g *geometry) rootOffset() int64 { return g.fatOffset(g.fats) }

func (g *geometry) clusterOffset(c uint32) int64 {
	return int64(g.overhead())*int64(g.sectorSize) + int64(c-firstCluster)*int64(g.clusterSize)
}

// clustersOf returns how many clusters hold n bytes.
func (g *geometry) clustersOf(n int64) int64 {
	return (n + int64(g.clusterSize) - 1) / int64(g.clusterSize)
}

// fatMask covers the bits of a FAT entry that count: 28 with FAT32. An entry of
// all ones ends a chain.
func fatMask(bits int) uint32 {
	if bits == 32 {
		return 0x0fffffff
	}
	return 1<<bits - 1
}
