package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"
)

// A change is one to the disk before a boot.
type change struct {
	name string
	read bool // the boot reads what is changed
	// Reading block of the root then gives an error; -1 for none: no code reads
	// what is changed.
	block int64
	at    []span // on the disk; two are swapped, of one a bit is flipped
	bit   int64  // from the beginning of the span
}

// A span is a part of the disk, in bytes.
type span struct{ off, size int64 }

// flipper chooses what to change.
type flipper struct {
	*verityImage
	rand *rand.Rand
	read []int64 // blocks of data that a boot reads, sorted
}

// changes lists the kinds, of which each choice is another one at random.
func (f *flipper) changes() []func() change {
	kinds := []func() change{f.dataRead, f.swapData, f.header, f.dataUnread, f.swapHashes, f.superblock}
	for i := range f.levels() {
		kinds = append(kinds, func() change { return f.levelRead(i) })
	}
	return append(kinds, f.entries, f.levelUnread, f.backup)
}

// flipsForCI is how many changes an ordinary run boots: each kind once.
// PLINTH_FLIPS=n is n more, and PLINTH_SEED repeats a run.
const flipsForCI = 12

// TestVerityFlips changes one thing on the disk and boots, many times. A guest
// that reports all the same has not read it: reading it is an error then.
func TestVerityFlips(t *testing.T) {
	img := builtVerity(t)
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("PLINTH_SEED"), 10, 64); err == nil {
		seed = s
	}
	more, _ := strconv.Atoi(cmp.Or(os.Getenv("PLINTH_FLIPS"), "0"))
	t.Logf("PLINTH_SEED=%d, %d changes", seed, flipsForCI+more)
	f := &flipper{verityImage: img, rand: rand.New(rand.NewPCG(seed, 0))}
	clean := f.clean(t)
	kinds := f.changes()
	read, ends := 0, map[string]int{}
	for n := range flipsForCI + more {
		c := kinds[n%len(kinds)]()
		if c.read {
			read++
		}
		t.Run(fmt.Sprintf("%d %s", n, c.name), func(t *testing.T) {
			end := f.try(t, c, clean)
			ends[end]++
			t.Logf("block %d, bit %d of %+v: %s", c.block, c.bit, c.at, end)
		})
	}
	t.Logf("%v; %d of %d changes are in what the boot reads", ends, read, flipsForCI+more)
	if 2*read < flipsForCI+more {
		t.Errorf("%d of %d changes are in what the boot reads: want half", read, flipsForCI+more)
	}
}

// clean boots the disk as it is. It returns the report, and notes which blocks of
// data were read for it: all of them came through dm-verity.
func (f *flipper) clean(t *testing.T) string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	g := f.boot(t, "-trace", "enable=virtio_blk_handle_read,file="+trace)
	g.mustReport(t)
	lines := read(t, trace) // now: services go on reading
	f.checkRoot(t, g.report)
	g.close(t)
	for _, m := range regexp.MustCompile(`virtio_blk_handle_read .* sector (\d+) nsectors (\d+)`).FindAllSubmatch(lines, -1) {
		first, _ := strconv.ParseInt(string(m[1]), 10, 64)
		n, _ := strconv.ParseInt(string(m[2]), 10, 64)
		size := int64(f.root.DataBlockSize)
		for off := first*512 - f.data; off < (first+n)*512-f.data; off += size {
			if off >= size && off < f.root.DataSize() { // the kernel reads the first block itself, too
				f.read = append(f.read, off/size)
			}
		}
	}
	slices.Sort(f.read)
	f.read = slices.Compact(f.read)
	t.Logf("the boot reads %d of %d blocks", len(f.read), f.root.DataBlocks)
	if len(f.read) < 16 {
		t.Fatalf("the boot reads %d blocks: that is not a boot from this disk", len(f.read))
	}
	return fingerprint(t, g.report)
}

// try boots with one change and returns how it ended.
func (f *flipper) try(t *testing.T, c change, clean string) string {
	f.apply(t, c)
	defer f.apply(t, c) // twice is none
	g := f.boot(t)
	defer g.close(t)
	end := g.end()
	switch {
	case end == unknown:
		t.Errorf("the guest ended in another way: %v\n%s", g.why, g.vm.ConsoleTail())
	case end != reported:
	case fingerprint(t, g.report) != clean:
		t.Errorf("another report:\n%s\nwant\n%s", fingerprint(t, g.report), clean)
	case c.block >= 0:
		return end + ", then " + f.mustNotRead(t, g, c.block)
	case c.read:
		t.Error("the guest reports, and what was changed is something that it reads")
	}
	return end
}

// mustNotRead reads a block beside the root, which is an error, and then of the
// root, which ends the guest. A service may have done so before.
func (f *flipper) mustNotRead(t *testing.T, g *guest, block int64) string {
	t.Helper()
	beside := g.ask(t, fmt.Sprintf("beside %d", block))
	if beside == "" && corruption.MatchString(g.vm.ConsoleTail()) {
		return corrupted
	}
	if beside != "EIO" {
		t.Errorf("reading block %d: %q, want EIO", block, beside)
	}
	if got := g.ask(t, fmt.Sprintf("root %d", block)); got != "" || !corruption.MatchString(g.vm.ConsoleTail()) {
		t.Errorf("reading block %d of the root: %q, want the kernel to stop\n%s", block, got, g.vm.ConsoleTail())
	}
	return beside
}

// apply makes the change, or undoes it.
func (f *flipper) apply(t *testing.T, c change) {
	t.Helper()
	f.edit(t, func(d *os.File) error {
		if len(c.at) == 2 {
			return swap(d, c.at[0], c.at[1])
		}
		var b [1]byte
		off := c.at[0].off + c.bit/8
		if _, err := d.ReadAt(b[:], off); err != nil {
			return err
		}
		b[0] ^= 1 << (c.bit % 8)
		_, err := d.WriteAt(b[:], off)
		return err
	})
}

func swap(d *os.File, a, b span) error {
	x, y := make([]byte, a.size), make([]byte, b.size)
	_, errX := d.ReadAt(x, a.off)
	_, errY := d.ReadAt(y, b.off)
	if err := errors.Join(errX, errY); err != nil {
		return err
	}
	if bytes.Equal(x, y) {
		return fmt.Errorf("%+v and %+v are equal", a, b)
	}
	_, errX = d.WriteAt(y, a.off)
	_, errY = d.WriteAt(x, b.off)
	return errors.Join(errX, errY)
}

// flip is one bit of a part of the disk.
func (f *flipper) flip(name string, read bool, block int64, at span) change {
	return change{name: name, read: read, block: block, at: []span{at}, bit: f.rand.Int64N(8 * at.size)}
}

func (f *flipper) dataSpan(block int64) span {
	size := int64(f.root.DataBlockSize)
	return span{f.data + block*size, size}
}

// readBlock is one that the boot reads.
func (f *flipper) readBlock() int64 { return f.read[f.rand.IntN(len(f.read))] }

// unread is a block that the boot does not read, of those that pass a test.
func (f *flipper) unread(ok func(int64) bool) int64 {
	for range 100_000 {
		b := f.rand.Int64N(int64(f.root.DataBlocks))
		if _, found := slices.BinarySearch(f.read, b); !found && b > 0 && ok(b) {
			return b
		}
	}
	panic("the boot reads the whole root: it is too small for this test")
}

func (f *flipper) dataRead() change {
	b := f.readBlock()
	return f.flip("data, read", true, b, f.dataSpan(b))
}

func (f *flipper) dataUnread() change {
	b := f.unread(func(int64) bool { return true })
	return f.flip("data, not read", false, b, f.dataSpan(b))
}

// levels are the numbers of hash blocks, from the lowest level to the top. They
// follow from the format; package verity is not asked.
func (f *flipper) levels() (blocks []int64) {
	per := int64(f.root.HashBlockSize / f.root.Algorithm.Size())
	for n := int64(f.root.DataBlocks); n > 1; {
		n = (n + per - 1) / per
		blocks = append(blocks, n)
	}
	return blocks
}

// above is the hash block of a level over a block of data.
func (f *flipper) above(block int64, level int) int64 {
	for range level + 1 {
		block /= int64(f.root.HashBlockSize / f.root.Algorithm.Size())
	}
	return block
}

// hashSpan is a block of a level. The top comes first on the disk.
func (f *flipper) hashSpan(level int, block int64) span {
	at := int64(f.root.HashStart) + block
	for _, n := range f.levels()[level+1:] {
		at += n
	}
	size := int64(f.root.HashBlockSize)
	return span{f.hash + at*size, size}
}

func (f *flipper) levelRead(level int) change {
	b := f.readBlock()
	return f.flip(fmt.Sprintf("level %d, read", level), true, b, f.hashSpan(level, f.above(b, level)))
}

// levelUnread is a block of the lowest level with nothing below that the boot
// reads.
func (f *flipper) levelUnread() change {
	used := map[int64]bool{}
	for _, b := range f.read {
		used[f.above(b, 0)] = true
	}
	b := f.unread(func(b int64) bool { return !used[f.above(b, 0)] })
	return f.flip("level 0, not read", false, b, f.hashSpan(0, f.above(b, 0)))
}

func (f *flipper) swapData() change {
	for range 1000 {
		a, b := f.readBlock(), f.rand.Int64N(int64(f.root.DataBlocks))
		if f.differ(f.dataSpan(a), f.dataSpan(b)) {
			return change{name: "two data blocks swapped, one read", read: true, block: a, at: []span{f.dataSpan(a), f.dataSpan(b)}}
		}
	}
	panic("the root is the same everywhere")
}

func (f *flipper) swapHashes() change {
	for range 1000 {
		block := f.readBlock()
		a, b := f.hashSpan(0, f.above(block, 0)), f.hashSpan(0, f.rand.Int64N(f.levels()[0]))
		if a != b && f.differ(a, b) {
			return change{name: "two hash blocks swapped, one read", read: true, block: block, at: []span{a, b}}
		}
	}
	panic("the tree is the same everywhere")
}

func (f *flipper) differ(a, b span) bool {
	d, err := os.Open(f.machine.Disk)
	if err != nil {
		panic(err)
	}
	defer d.Close()
	x, y := make([]byte, a.size), make([]byte, b.size)
	_, errX := d.ReadAt(x, a.off)
	_, errY := d.ReadAt(y, b.off)
	return errors.Join(errX, errY) == nil && !bytes.Equal(x, y)
}

// superblock is for tools: no guest reads it.
func (f *flipper) superblock() change {
	return f.flip("superblock", false, -1, span{f.hash, 512})
}

// Of a table the header is 92 bytes, and the entries 128 times 128: UEFI 2.10, 5.3.
// Behind the header the sector is not checked by anybody.
const gptHeader, gptEntries, sector = 92, 128 * 128, 512

func (f *flipper) header() change {
	return f.flip("partition table, header", true, -1, span{sector, gptHeader})
}

func (f *flipper) entries() change {
	return f.flip("partition table, entries", true, -1, span{2 * sector, gptEntries})
}

func (f *flipper) backup() change {
	last := int64(f.table.Sectors-1) * sector
	at := span{last - gptEntries, gptEntries}
	if f.rand.IntN(4) == 0 {
		at = span{last, gptHeader}
	}
	return f.flip("partition table, backup", true, -1, at)
}
