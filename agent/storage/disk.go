package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
)

const (
	diskWait = 20 * time.Second // for a disk whose driver was just loaded
	minDisk  = 16 << 20         // bytes

	integrityName = "plinth-disk-integrity"
	cryptName     = "plinth-disk"
)

// Disk makes a pool of a whole disk, whatever it held: dm-integrity with keyed MACs,
// and on it dm-crypt. The keys are random, nothing but the kernel has them when Disk
// returns, and with them the content is gone when the guest stops. Nothing that the
// disk held or holds is believed: dm-integrity writes a superblock of its own over
// one of zeros, and one that it did not write with these keys is refused. It waits
// for device, "/dev/vdb", for a while.
func Disk(ctx context.Context, device string) (*Pool, error) {
	b, err := disk(ctx, linux{}, device)
	if err != nil {
		return nil, fmt.Errorf("storage: %s: %w", device, err)
	}
	return newPool(linux{}, b), nil
}

func disk(ctx context.Context, k kernel, device string) (b base, err error) {
	keys := newKeys()
	defer keys.clear()
	integrity, sectors, err := newIntegrity(ctx, k, integrityName, device, diskLayout, keys)
	if err != nil {
		return b, err
	}
	crypt, err := k.createWritable(cryptName, []dm.Target{keys.crypt(integrity.Number(), sectors)}, nil)
	if err != nil {
		return b, errors.Join(err, k.remove(integrityName))
	}
	// Direct: what is written is read again through other devices.
	data, err := k.open(crypt)
	if err != nil {
		return b, errors.Join(err, k.remove(cryptName), k.remove(integrityName))
	}
	return base{
		number: crypt.Number(),
		size:   int64(sectors) * dm.SectorSize,
		data:   data,
		close:  func() error { return errors.Join(data.Close(), k.remove(cryptName), k.remove(integrityName)) },
	}, nil
}

// newIntegrity makes dm-integrity of a disk, whatever is in the superblock's place.
func newIntegrity(ctx context.Context, k kernel, name, device string, l layout, keys *keys) (d dm.Device, sectors uint64, err error) {
	// What only is to tell the size has keys that are used for nothing else.
	other := newKeys()
	defer other.clear()
	if err := wipe(ctx, device, l); err != nil {
		return d, 0, err
	}
	if sectors, err = provided(k, name, device, l, other); err != nil {
		return d, 0, err
	}
	if err := wipe(ctx, device, l); err != nil {
		return d, 0, err
	}
	d, err = k.createWritable(name, []dm.Target{l.integrity(device, sectors, keys)}, l.check)
	return d, sectors, err
}

// provided asks dm-integrity how many sectors of data a disk of this size has. The
// host can make the answer too small, which leaves room unused, or too large, with
// which the device is then refused.
func provided(k kernel, name, device string, l layout, keys *keys) (uint64, error) {
	const least = blockSize / dm.SectorSize
	status, err := k.try(name, []dm.Target{l.integrity(device, least, keys)})
	if err != nil {
		return 0, err
	}
	// dm-integrity.rst, "status": mismatches, provided data sectors, position of the
	// recalculation.
	if len(status) == 1 {
		if f := strings.Fields(status[0].Params); len(f) > 1 {
			if n, err := strconv.ParseUint(f[1], 10, 54); err == nil && n >= least {
				return n &^ (least - 1), nil
			}
		}
	}
	return 0, fmt.Errorf("dm-integrity: status %+v: want one line with the number of sectors", status)
}

// wipe writes zeros over the place of the superblock, which is what dm-integrity
// wants of a disk that it is to make one for. Linux, drivers/md/dm-integrity.c,
// dm_integrity_ctr.
func wipe(ctx context.Context, device string, l layout) error {
	f, err := openDisk(ctx, device)
	if err != nil {
		return err
	}
	err = largeEnough(f)
	if err == nil {
		_, err = f.WriteAt(aligned(blockSize), int64(l.start)*dm.SectorSize)
	}
	return errors.Join(err, f.Close())
}

// openDisk waits for a disk and opens it, unless something else uses it.
func openDisk(ctx context.Context, device string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, diskWait)
	defer cancel()
	for {
		f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC|unix.O_EXCL, 0)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENXIO) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func largeEnough(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size < minDisk {
		err = fmt.Errorf("%d bytes, want at least %d", size, minDisk)
	}
	return err
}

// keys are those of one disk.
type keys struct{ tag, superblock, cipher []byte }

func newKeys() *keys {
	// A MAC's key is as long as its digest: RFC 2104, section 3. AES-256-XTS takes two.
	k := &keys{make([]byte, 32), make([]byte, 32), make([]byte, 64)}
	for _, b := range [][]byte{k.tag, k.superblock, k.cipher} {
		rand.Read(b) // never fails
	}
	return k
}

func (k *keys) clear() {
	clear(k.tag)
	clear(k.superblock)
	clear(k.cipher)
}

// Both MACs, of blocks and of the superblock.
const (
	mac     = "hmac(sha256)"
	tagSize = 32 // bytes
)

// integrityOptions: fix_hmac puts the superblock under journal_mac, and a random
// salt and each block's place under internal_hash.
var integrityOptions = []string{"block_size:" + strconv.Itoa(blockSize), "fix_hmac"}

// A layout is how dm-integrity uses a disk.
type layout struct {
	start  uint64 // of its superblock, sectors
	mode   string
	create []string // options that count when a superblock is made
	pinned []string // words that the table must have then and later
	free   []string // names of those that may be in it
}

// diskLayout: there is no use for a journal after a crash; dm-integrity keeps one of
// at least a section anyway.
var diskLayout = layout{mode: "D", create: []string{"journal_sectors:1024"}, free: []string{"journal_sectors", "interleave_sectors", "buffer_sectors"}}

// integrity is the table of the lower device.
func (l layout) integrity(device string, sectors uint64, k *keys) dm.Target {
	i := dm.Integrity{
		Device: device, Start: l.start, TagSize: tagSize, Mode: l.mode, Sectors: sectors,
		Keyed:   []dm.Keyed{{Option: "internal_hash", Algorithm: mac, Key: k.tag}, {Option: "journal_mac", Algorithm: mac, Key: k.superblock}},
		Options: slices.Concat(l.create, integrityOptions),
	}
	return i.Target()
}

func (k *keys) crypt(device string, sectors uint64) dm.Target {
	c := dm.Crypt{Cipher: "aes-xts-plain64", Key: k.cipher, Device: device, Sectors: sectors, Options: []string{"sector_size:" + strconv.Itoa(blockSize)}}
	return c.Target()
}

// check looks at the table as dm-integrity holds it, before the device is started.
// The host can put a superblock on the disk, also between zeros and the kernel's look
// at them. Its flags then show here: without fix_hmac it is under no MAC and so not
// from this kernel and these keys; with it, the kernel has checked the MAC. Linux,
// drivers/md/dm-integrity.c, sync_rw_sb and dm_integrity_status.
func (l layout) check(loaded []dm.Target) error {
	if len(loaded) != 1 || loaded[0].Type != "integrity" {
		return fmt.Errorf("dm-integrity: table %+v: want one target", loaded)
	}
	f := strings.Fields(loaded[0].Params)
	if want := []string{strconv.FormatUint(l.start, 10), strconv.Itoa(tagSize), l.mode}; len(f) < 5 || !slices.Equal(f[1:4], want) {
		return fmt.Errorf("dm-integrity: table %q: want start, tag size and mode %q", loaded[0].Params, want)
	}
	missing := slices.Concat(integrityOptions, l.pinned,
		[]string{dm.Keyed{Option: "internal_hash", Algorithm: mac}.Word(), dm.Keyed{Option: "journal_mac", Algorithm: mac}.Word()})
	for _, o := range f[5:] {
		if i := slices.Index(missing, o); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if name, _, _ := strings.Cut(o, ":"); !slices.Contains(l.free, name) {
			return fmt.Errorf("dm-integrity: the superblock is not the one that was to be written: it says %s", o)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("dm-integrity: the superblock is not the one that was to be written: it lacks %s", strings.Join(missing, ", "))
	}
	return nil
}
