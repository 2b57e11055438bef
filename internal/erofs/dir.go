package erofs

import (
	"encoding/binary"
	"slices"
	"strings"
)

// A dirent names an inode. A directory's blocks each begin with all dirents of
// the block, and their names follow: names are in order within a block and from
// block to block.
type dirent struct {
	name string
	to   *node
	kind uint8
}

const direntSize = 12 // u64 nid, u16 offset of the name, u8 type, u8 reserved

// dirBlocks sorts a directory's entries and deals them out to blocks.
func dirBlocks(all []dirent) [][]dirent {
	slices.SortFunc(all, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	var blocks [][]dirent
	first, used := 0, 0
	for i, d := range all {
		n := direntSize + len(d.name)
		if used+n > BlockSize {
			blocks = append(blocks, all[first:i])
			first, used = i, 0
		}
		used += n
	}
	return append(blocks, all[first:])
}

func dirBlockSize(block []dirent) (n int) {
	for _, d := range block {
		n += direntSize + len(d.name)
	}
	return n
}

// dirSize is the length of a directory: full blocks, and what is in the last.
func dirSize(blocks [][]dirent) int64 {
	last := len(blocks) - 1
	return int64(last)*BlockSize + int64(dirBlockSize(blocks[last]))
}

// dirBlock writes one block, without the zeros that fill it.
func dirBlock(block []dirent) []byte {
	b := make([]byte, 0, BlockSize)
	name := len(block) * direntSize
	for _, d := range block {
		b = binary.LittleEndian.AppendUint64(b, d.to.slot)
		b = binary.LittleEndian.AppendUint16(b, uint16(name))
		b = append(b, d.kind, 0)
		name += len(d.name)
	}
	for _, d := range block {
		b = append(b, d.name...)
	}
	return b
}
