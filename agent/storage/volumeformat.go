package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
)

// marginSize is how much of a disk with a key is zeros at the beginning and the end
// until it was formatted completely, bytes. By that a disk is known that was never
// formatted, or not to the end, and by nothing that a crash can leave.
const marginSize = 1 << 20

// minVolume: a disk that is also to have room for dm-integrity's journal, bytes.
const minVolume = 32 << 20

// mark is the first block of a disk with dm-integrity that was formatted completely.
// It only tells that there is something: a host that takes it away makes the disk an
// empty one, which it can do anyway, and one that puts it there faces the MAC of the
// superblock behind it.
var mark = append([]byte("plinth volume: dm-integrity at 1 MiB\n"), make([]byte, blockSize)...)[:blockSize]

// volumeLayout is that of a disk with a key. With its journal (mode J) a crash leaves
// no block whose tag does not fit. It has 62 sections of 264 sectors, about 8 MiB: 32
// blocks each, with their tags, and a block for what they are.
var volumeLayout = layout{
	start:  marginSize / dm.SectorSize,
	mode:   "J",
	create: []string{"journal_sectors:16368", "interleave_sectors:32768"},
	pinned: []string{"journal_sectors:16368", "interleave_sectors:32768", "journal_watermark:50", "commit_time:10000"},
	free:   []string{"buffer_sectors"}, // of memory
}

// oldIntegrity opens what newIntegrity made in another boot: the superblock is under
// a MAC, and its parameters are volumeLayout's.
func oldIntegrity(k kernel, name, device string, keys *keys) (d dm.Device, sectors uint64, err error) {
	if sectors, err = provided(k, name, device, volumeLayout, keys); err == nil {
		d, err = k.createWritable(name, []dm.Target{volumeLayout.integrity(device, sectors, keys)}, volumeLayout.check)
	}
	if errors.Is(err, unix.EILSEQ) {
		err = fmt.Errorf("another key, or the superblock was altered: %w", err)
	}
	return d, sectors, err
}

// A rawDisk is a disk as it was found.
type rawDisk struct {
	path  string
	size  int64 // bytes, whole blocks
	fresh bool  // is made a volume now
}

// inspect looks at a disk, and decides whether it is to be opened or made anew.
// Nothing is written.
func inspect(ctx context.Context, path string, o *VolumeOptions) (d *rawDisk, err error) {
	f, err := openDisk(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	if err := largeEnough(f); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	d = &rawDisk{path: path, size: size &^ (blockSize - 1), fresh: true}
	if !o.persistent() {
		return d, nil
	}
	if o.Integrity && size < minVolume {
		return nil, fmt.Errorf("%d bytes, want at least %d", size, minVolume)
	}
	first, last := aligned(marginSize), aligned(marginSize)
	if _, err := f.ReadAt(first, 0); err != nil {
		return nil, err
	}
	if _, err := f.ReadAt(last, d.size-marginSize); err != nil {
		return nil, err
	}
	if d.fresh, err = o.blank(first, last); err != nil || d.fresh || !o.Integrity {
		return d, err
	}
	// dm-integrity makes a superblock where there are zeros.
	if _, err := f.ReadAt(first[:blockSize], marginSize); err != nil {
		return nil, err
	}
	if allZero(first[:blockSize]) {
		return nil, errors.New("dm-integrity's superblock is gone")
	}
	return d, nil
}

// blank tells whether a disk is to be made a volume, by its first and last MiB.
func (o *VolumeOptions) blank(first, last []byte) (bool, error) {
	if allZero(first) && allZero(last) {
		if !o.Format {
			return false, errors.New("the disk is empty, and is not to be formatted")
		}
		return true, nil
	}
	switch {
	case o.Empty:
		return false, errors.New("the disk is not empty: its first and last MiB are not zeros; nothing was written")
	case bytes.HasPrefix(first, []byte("LUKS\xba\xbe")):
		return false, errors.New("the disk has a LUKS header, which nobody here believes; nothing was written")
	case bytes.Equal(first[:blockSize], mark) && !o.Integrity:
		return false, errors.New("the disk was formatted with integrity, and is to be opened without")
	case !bytes.Equal(first[:blockSize], mark) && o.Integrity:
		return false, errors.New("the disk holds something else than a volume with integrity; nothing was written")
	case allZero(first[:blockSize]):
		return false, errors.New("the disk begins with zeros, but was written to: formatting was interrupted, or it holds something else; with zeros in its first and last MiB it is formatted anew")
	}
	return false, nil
}

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBlock))
		if !bytes.Equal(b[:n], zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// format makes what is on a new volume. Of a disk with a key the first MiB is
// written when everything else is on the disk, its first block at the very end.
func format(ctx context.Context, o *VolumeOptions, d *rawDisk, data volumeDevice, size int64) error {
	w := &lateWriter{device: data, held: aligned(marginSize)}
	if o.persistent() && !o.Integrity {
		size -= marginSize // at the end; with dm-integrity its room was left already
	}
	if err := content(ctx, o, w, size); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if err := w.finish(); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if o.persistent() && o.Integrity {
		return setMark(d.path)
	}
	return nil
}

func content(ctx context.Context, o *VolumeOptions, w *lateWriter, size int64) error {
	if o.Filesystem != "" {
		p := ext4Params{
			Time: time.Now(), Journal: o.persistent() && !o.Ext4.NoJournal, Lazy: !o.Integrity,
			BytesPerInode: o.Ext4.BytesPerInode, ReservedPercent: o.Ext4.ReservedPercent,
		}
		rand.Read(p.UUID[:]) // never fails
		rand.Read(p.HashSeed[:])
		e, err := newExt4(size, p)
		if err != nil {
			return err
		}
		return e.write(ctx, w)
	}
	// Without a file system nobody knows what is read before it was written: with
	// integrity all of it is written. Else its first MiB, so that the disk is not empty.
	if !o.Integrity {
		size = marginSize
	}
	out := &blockWriter{ctx: ctx, w: w, buf: aligned(bufferSize)}
	out.zeros(uint64(size) / blockSize)
	out.flush()
	return out.err
}

// A lateWriter keeps what is written to the beginning of a device until the end.
type lateWriter struct {
	device volumeDevice
	held   []byte
}

func (w *lateWriter) WriteAt(b []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(w.held)) {
		n = copy(w.held[off:], b)
		if n == len(b) {
			return n, nil
		}
	}
	m, err := w.device.WriteAt(b[n:], off+int64(n))
	return n + m, err
}

func (w *lateWriter) finish() error {
	for _, x := range []struct{ from, to int }{{0, 0}, {blockSize, len(w.held)}, {0, blockSize}} {
		if x.from < x.to {
			if _, err := w.device.WriteAt(w.held[x.from:x.to], int64(x.from)); err != nil {
				return err
			}
		}
		if err := w.device.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// setMark writes past the devices on the disk, to what they do not use.
func setMark(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	b := aligned(blockSize)
	copy(b, mark)
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}
