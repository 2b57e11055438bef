package fat

import "fmt"

const (
	sectorSize = 512 // bytes, of what this package writes
	numFATs    = 2

	// MinFAT32 is the size in bytes from which Write makes FAT32: the first whole
	// MiB that has the 65525 clusters which FAT32 needs.
	MinFAT32 = 33 << 20
	minFAT16 = 4085 + 16 // clusters; a few more, as others count them otherwise
	maxSize  = (1<<32 - 1) * sectorSize
)

// clusterSizes are Microsoft's choices, up to and including a volume's size in
// bytes; FAT spec, "FAT Volume Initialization".
var clusterSizes16 = []struct{ size, cluster int64 }{
	{8400 * sectorSize, 512}, // not in Microsoft's table, which starts above it
	{16 << 20, 1 << 10},
	{MinFAT32, 2 << 10},
}

var clusterSizes32 = []struct{ size, cluster int64 }{
	{260 << 20, 512},
	{8 << 30, 4 << 10},
	{16 << 30, 8 << 10},
	{32 << 30, 16 << 10},
	{maxSize, 32 << 10},
}

// layout returns the geometry of a new volume of size bytes.
func layout(size int64) (*geometry, error) {
	if size%sectorSize != 0 || size < 0 || size > maxSize {
		return nil, fmt.Errorf("fat: size is %d bytes: want a multiple of %d, at most %d", size, sectorSize, int64(maxSize))
	}
	g := &geometry{bits: 32, sectorSize: sectorSize, sectors: uint32(size / sectorSize), reserved: 32, fats: numFATs}
	table := clusterSizes32
	if size < MinFAT32 {
		g.bits, g.reserved, g.rootEntries = 16, 1, 512
		table = clusterSizes16
	}
	for _, row := range table {
		if size <= row.size {
			g.clusterSize = int(row.cluster)
			break
		}
	}
	if uint64(g.sectors) < g.overhead() {
		return nil, fmt.Errorf("fat: size is %d bytes: too small", size)
	}
	// f sectors hold f*perSector entries, and (data-2f)/perCluster+2 are needed.
	data := uint64(g.sectors) - g.overhead()
	perCluster := uint64(g.clusterSize / sectorSize)
	perSector := uint64(sectorSize * 8 / g.bits)
	per := perSector*perCluster + numFATs
	g.fatSectors = uint32((data + 2*perCluster + per - 1) / per)
	g.clusters = uint32((data - numFATs*uint64(g.fatSectors)) / perCluster)
	if g.clusters < minFAT16 {
		return nil, fmt.Errorf("fat: size is %d bytes: %d clusters, FAT16 needs %d", size, g.clusters, minFAT16)
	}
	return g, nil
}
