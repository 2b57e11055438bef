package storage

import (
	"fmt"
	"slices"
)

// blockSize is the unit of everything in a pool, bytes: of EROFS, of dm-verity and
// of the sectors that dm-integrity and dm-crypt present.
const blockSize = 4096

// What a file takes from a pool at a time: little at first, so that a small layer
// leaves others their room, and more as it grows, so that tables stay short.
const (
	firstExtent = 1 << 20 / blockSize
	mostExtent  = 16 << 20 / blockSize
)

// An extent is a range of a pool, in blocks.
type extent struct{ start, blocks uint64 }

func (e extent) end() uint64   { return e.start + e.blocks }
func (e extent) offset() int64 { return int64(e.start) * blockSize }
func (e extent) size() int64   { return int64(e.blocks) * blockSize }

// space is what is free of a pool: extents in order, none touching the next.
type space struct{ free []extent }

func newSpace(blocks uint64) space { return space{[]extent{{0, blocks}}} }

// blocks is how much is free.
func (s *space) blocks() (n uint64) {
	for _, e := range s.free {
		n += e.blocks
	}
	return n
}

// take returns at most want blocks: the first range that has so many, else all of
// the largest. None is an empty extent.
func (s *space) take(want uint64) extent {
	best := -1
	for i, e := range s.free {
		if e.blocks >= want {
			best = i
			break
		}
		if best < 0 || e.blocks > s.free[best].blocks {
			best = i
		}
	}
	if best < 0 || want == 0 {
		return extent{}
	}
	e := &s.free[best]
	out := extent{e.start, min(want, e.blocks)}
	e.start += out.blocks
	if e.blocks -= out.blocks; e.blocks == 0 {
		s.free = slices.Delete(s.free, best, best+1)
	}
	return out
}

// give takes blocks back that take returned.
func (s *space) give(e extent) {
	if e.blocks == 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(s.free, e.start, func(f extent, start uint64) int {
		if f.start < start {
			return -1
		}
		return 1
	})
	if i < len(s.free) && e.end() > s.free[i].start || i > 0 && s.free[i-1].end() > e.start {
		panic(fmt.Sprintf("storage: blocks %d to %d are free already", e.start, e.end()))
	}
	s.free = slices.Insert(s.free, i, e)
	if i+1 < len(s.free) && e.end() == s.free[i+1].start {
		s.free[i].blocks += s.free[i+1].blocks
		s.free = slices.Delete(s.free, i+1, i+2)
	}
	if i > 0 && s.free[i-1].end() == e.start {
		s.free[i-1].blocks += s.free[i].blocks
		s.free = slices.Delete(s.free, i, i+1)
	}
}
