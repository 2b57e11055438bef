package storage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

func ext4Image(t *testing.T, size int64, p ext4Params) (path string, e *ext4) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if e, err = newExt4(size, p); err != nil {
		t.Fatalf("%d bytes: %v", size, err)
	}
	if err := errors.Join(f.Truncate(size), e.write(t.Context(), f), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, e
}

var testExt4 = ext4Params{UUID: [16]byte{1, 2, 3}, HashSeed: [16]byte{4, 5, 6}, Time: time.Unix(1767225600, 0), Journal: true}

// TestExt4 has e2fsck look at file systems of many sizes: those at which a group
// begins, is left out, or has a backup, and those at which the journal grows.
func TestExt4(t *testing.T) {
	testenv.Need(t, "e2fsck", "dumpe2fs")
	const group = ext4PerGroup * blockSize
	sizes := []int64{8 << 20, 16<<20 - blockSize, 16 << 20, 100<<20 + 4095, group - blockSize, group, group + blockSize, group + 400*blockSize, group + 700*blockSize,
		2 * group, 3*group + 5<<20, 8 * group, 16 * group, 28*group - blockSize, 64*group + 60<<20, 5 << 30, 20 << 30}
	for _, size := range sizes {
		for name, p := range map[string]ext4Params{
			"": testExt4, "no journal": {UUID: [16]byte{9}, Time: time.Unix(1, 0)},
			"lazy": {UUID: [16]byte{9}, Time: time.Unix(1, 0), Lazy: true, Journal: true}, "many inodes": {UUID: [16]byte{7}, Time: time.Unix(1, 0), BytesPerInode: 1, ReservedPercent: 7}, "few inodes": {UUID: [16]byte{7}, BytesPerInode: 1 << 40},
		} {
			if size > 64<<20 && p.BytesPerInode == 1 && size != 3*group+5<<20 || size < 16<<20 && p.BytesPerInode == 1 || name != "" && size > 1<<30 {
				continue
			}
			t.Run(fmt.Sprint(size, name), func(t *testing.T) {
				path, e := ext4Image(t, size, p)
				out, err := exec.Command(testenv.Tool("e2fsck"), "-f", "-n", path).CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				out, err = exec.Command(testenv.Tool("dumpe2fs"), "-h", path).CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				for _, want := range []string{"Filesystem state: +clean", "Errors behavior: +Remount read-only", "metadata_csum", "Checksum type: +crc32c", fmt.Sprintf("Block count: +%d\n", e.blocks)} {
					if !regexp.MustCompile(want).Match(out) {
						t.Errorf("dumpe2fs does not say %q:\n%s", want, out)
					}
				}
				if got := strings.Contains(string(out), "has_journal"); got != p.Journal {
					t.Errorf("journal: %v", got)
				}
				if lost := size/blockSize - int64(e.blocks); lost > 5000 {
					t.Errorf("%d blocks are left out", lost)
				}
			})
		}
	}
}

// TestExt4WritesWholeBlocks once each, the superblock last, and nothing else is needed:
// what is not written may hold anything.
func TestExt4WritesWholeBlocks(t *testing.T) {
	testenv.Need(t, "e2fsck", "debugfs")
	const size = ext4PerGroup*blockSize + 20<<20
	for _, lazy := range []bool{false, true} {
		wholeBlocks(t, size, lazy)
	}
}

func wholeBlocks(t *testing.T, size int, lazy bool) {
	t.Helper()
	p := testExt4
	p.Lazy = lazy
	e, err := newExt4(int64(size), p)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{memoryDevice: memoryDevice{b: bytes.Repeat([]byte{0xe7}, size)}}
	if err := e.write(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	blocks := map[int64]bool{}
	for i, w := range r.writes {
		for off := w[0]; off < w[0]+w[1]; off += blockSize {
			if blocks[off] {
				t.Errorf("block at %d is written twice", off)
			}
			blocks[off] = true
		}
		if blocks[0] != (i == len(r.writes)-1) {
			t.Errorf("write %d of %d has the superblock, or has not", i, len(r.writes))
		}
	}
	if last := r.writes[len(r.writes)-1]; last != [2]int64{0, blockSize} || uint64(len(blocks)) != e.written() {
		t.Errorf("last write %v; %d blocks, want %d", last, len(blocks), e.written())
	}
	path := filepath.Join(t.TempDir(), "ext4")
	if err := os.WriteFile(path, r.b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool("e2fsck"), "-f", "-n", path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := exec.Command(testenv.Tool("debugfs"), "-R", "stat <2>", path).CombinedOutput(); err != nil || !regexp.MustCompile(`Mode: +01777 `).Match(out) {
		t.Errorf("not everybody writes: %v\n%s", err, out)
	}
	if err := checkExt4(r); err != nil {
		t.Error(err)
	}
	for _, at := range []int{ext4SuperAt, ext4SuperAt + 0x38, ext4SuperAt + 0x3ff} {
		r.b[at] ^= 1
		if err := checkExt4(r); !errors.Is(err, errNoExt4) {
			t.Errorf("byte %d altered: %v", at, err)
		}
		r.b[at] ^= 1
	}
}

func TestExt4Sizes(t *testing.T) {
	for size, want := range map[int64]string{0: "too few", 1 << 20: "too few", 4 << 20: "too few", 1 << 44: "want at most"} {
		if _, err := newExt4(size, testExt4); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	// The largest, with the most inodes: numbers that are 32 bits on disk.
	p := testExt4
	p.BytesPerInode = 1
	e, err := newExt4(ext4MostBlocks*blockSize, p)
	if err != nil || e.groups*e.inodesPerGroup > 1<<32-1 || e.used(0) > ext4PerGroup {
		t.Errorf("%+v, %v", e, err)
	}
}
