package erofs

// area is the blocks that inodes are in. They are kept until the end of the
// image: at most one block for each inode.
type area struct {
	blocks [][]byte
	// free lists, by how many slots are left at their ends, blocks that others
	// may still go into.
	free [BlockSize / slotSize][]int
}

func newArea() *area {
	a := &area{}
	a.reserve(slotSize) // nid 0 stands for no inode
	return a
}

// reserve finds a place for size bytes and returns its slot. What fits into one
// block does not cross the end of a block.
func (a *area) reserve(size int) uint64 {
	slots := (size + slotSize - 1) / slotSize
	const perBlock = BlockSize / slotSize
	if slots <= perBlock {
		for left := slots; left < perBlock; left++ {
			if list := a.free[left]; len(list) > 0 {
				block := list[0]
				a.free[left] = list[1:]
				a.keep(block, left-slots)
				return uint64(block*perBlock + perBlock - left)
			}
		}
	}
	block := len(a.blocks)
	for n := slots; n > 0; n -= perBlock {
		a.blocks = append(a.blocks, make([]byte, BlockSize))
	}
	a.keep(len(a.blocks)-1, (len(a.blocks)-block)*perBlock-slots)
	return uint64(block * perBlock)
}

func (a *area) keep(block, left int) {
	if left > 0 {
		a.free[left] = append(a.free[left], block)
	}
}

// write puts b at an offset from a slot.
func (a *area) write(slot uint64, off int, b []byte) {
	for at := int(slot)*slotSize + off; len(b) > 0; {
		n := copy(a.blocks[at/BlockSize][at%BlockSize:], b)
		at, b = at+n, b[n:]
	}
}
