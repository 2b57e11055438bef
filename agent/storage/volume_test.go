package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/internal/testenv"
)

// volumeLoaded is the table that Linux 6.12 shows for a volume with integrity.
const volumeLoaded = "254:0 2048 32 J 9 block_size:4096 journal_sectors:16368 interleave_sectors:32768 buffer_sectors:128 journal_watermark:50 commit_time:10000" +
	" fix_hmac internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key>"

func TestVolumeLayout(t *testing.T) {
	check := func(params string) error {
		return volumeLayout.check([]dm.Target{{Type: "integrity", Params: params}})
	}
	if err := check(volumeLoaded); err != nil {
		t.Error(err)
	}
	replace := func(old, new string) string { return strings.Replace(volumeLoaded, old, new, 1) }
	for name, params := range map[string]string{
		"a superblock without a MAC":     replace(" fix_hmac", ""),
		"tags are made of what is there": volumeLoaded + " recalculate",
		"a bitmap, not a journal":        replace(" J ", " B "),
		"no journal":                     replace(" J ", " D "),
		"over the mark":                  replace(" 2048 ", " 0 "),
		"short tags":                     replace(" 32 J", " 4 J"),
		"another journal":                replace("journal_sectors:16368", "journal_sectors:264"),
		"other places for tags":          replace("interleave_sectors:32768", "interleave_sectors:16384"),
		"a journal that is seldom kept":  replace("commit_time:10000", "commit_time:1000000"),
		"small blocks":                   replace(" block_size:4096", ""),
		"tags elsewhere":                 volumeLoaded + " meta_device:254:1",
		"blocks without tags are read":   volumeLoaded + " allow_discards",
		"no tags":                        replace(" internal_hash:hmac(sha256):<key>", ""),
		"no MAC of the journal":          replace(" journal_mac:hmac(sha256):<key>", ""),
		"another key":                    replace("journal_mac:hmac(sha256):<key>", "journal_mac:hmac(sha256):00"),
		"an image's disk":                asLoaded,
	} {
		if err := check(params); err == nil {
			t.Errorf("%s: %q is taken", name, params)
		}
	}
	if err := diskLayout.check([]dm.Target{{Type: "integrity", Params: volumeLoaded}}); err == nil {
		t.Error("a disk of images is opened as a volume")
	}
}

const testVolumeKey = "0123456789abcdef0123456789abcdef"

// volumeKernel shows what Linux would of a disk of this many bytes.
func volumeKernel(loaded string, size int) *fakeKernel {
	k := newFakeKernel()
	k.answer = []dm.Target{{Type: "integrity", Params: fmt.Sprintf("0 %d -", size/512)}}
	k.loaded = []dm.Target{{Type: "integrity", Params: loaded}}
	k.disk = &memoryDevice{b: make([]byte, size)}
	return k
}

// rawFile stands in for a disk.
func rawFile(t *testing.T, size int, parts map[int][]byte) string {
	t.Helper()
	b := make([]byte, size)
	for at, p := range parts {
		copy(b[at:], p)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenVolume(t *testing.T) {
	superblock := map[int][]byte{0: mark, marginSize: []byte("integrt\x00")}
	const integrity = "plinth-volume-x-integrity"
	for name, x := range map[string]struct {
		o      VolumeOptions
		parts  map[int][]byte
		loaded string
		made   bool   // before
		lower  string // table
		length uint64 // of the plaintext, sectors
	}{
		"random": {o: VolumeOptions{Random: true, Filesystem: "ext4"}, parts: map[int][]byte{0: []byte("LUKS\xba\xbe")}, length: 65536},
		"random with integrity": {
			o: VolumeOptions{Random: true, Filesystem: "ext4", Integrity: true}, parts: superblock, loaded: asLoaded,
			lower: " 0 32 D 5 internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key> journal_sectors:1024 block_size:4096 fix_hmac", length: 65536,
		},
		"made": {o: VolumeOptions{Filesystem: "ext4", Key: []byte(testVolumeKey), Format: true}, length: 65536},
		"made with integrity": {
			o: VolumeOptions{Filesystem: "ext4", Key: []byte(testVolumeKey), Format: true, Integrity: true}, loaded: volumeLoaded,
			parts: map[int][]byte{marginSize: []byte("what an interrupted formatting left")},
			lower: " 2048 32 J 6 internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key> journal_sectors:16368 interleave_sectors:32768 block_size:4096 fix_hmac", length: 65536 - 2048,
		},
		"opened": {o: VolumeOptions{Filesystem: "ext4", Key: []byte(testVolumeKey), Format: true}, parts: map[int][]byte{0: {1}}, made: true, length: 65536},
		"opened with integrity": {
			o: VolumeOptions{Filesystem: "ext4", Key: []byte(testVolumeKey), Integrity: true}, loaded: volumeLoaded, parts: superblock, made: true,
			lower: " 2048 32 J 6 internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key> journal_sectors:16368 interleave_sectors:32768 block_size:4096 fix_hmac", length: 65536 - 2048,
		},
		"device": {o: VolumeOptions{Key: []byte(testVolumeKey)}, parts: map[int][]byte{0: {1}}, made: true, length: 65536},
	} {
		t.Run(name, func(t *testing.T) {
			path := rawFile(t, 32<<20, x.parts)
			k := volumeKernel(x.loaded, 32<<20)
			if x.made {
				e, err := newExt4(24<<20, testExt4)
				if err := errors.Join(err, e.write(t.Context(), k.disk)); err != nil {
					t.Fatal(err)
				}
			}
			before := bytes.Clone(k.disk.b)
			x.o.Device, x.o.Name = path, "x"
			v, err := openVolume(t.Context(), k, x.o)
			if err != nil {
				t.Fatal(err)
			}
			below := path
			if x.lower != "" {
				below = "254:1"
				if got := k.devices[integrity][0]; got.Params != path+x.lower || got.Length != 65536 {
					t.Errorf("%+v\nwant %s", got, x.lower)
				}
			}
			if got, want := k.devices["plinth-volume-x"][0], "aes-xts-plain64 <key> 0 "+below+" 0 1 sector_size:4096"; got.Params != want || got.Length != x.length {
				t.Errorf("%+v\nwant %s, %d sectors", got, want, x.length)
			}
			if x.made != bytes.Equal(before, k.disk.b) {
				t.Error("what was made before was written to, or nothing was made")
			}
			if !x.made {
				if err := checkExt4(k.disk); err != nil {
					t.Error(err)
				}
			}
			disk, err := os.ReadFile(path)
			if err != nil || bytes.Equal(disk[:blockSize], mark) != (x.o.Integrity && x.o.Key != nil) {
				t.Errorf("the mark is there, or is not: %q, %v", disk[:40], err)
			}
			if x.o.Filesystem != "" {
				if err := v.Mount(filepath.Join(t.TempDir(), "a/b"), false); err != nil {
					t.Error(err)
				}
			} else if err := v.Mount(t.TempDir(), false); err == nil {
				t.Error("a device without a file system is mounted")
			}
			if err := errors.Join(v.Close(), v.Close()); err != nil || len(k.devices) > 0 {
				t.Errorf("%v, devices %v", err, k.devices)
			}
		})
	}
}

// TestVolumeFails: after an error at any step nothing stays behind.
func TestVolumeFails(t *testing.T) {
	made := VolumeOptions{Name: "x", Filesystem: "ext4", Key: []byte(testVolumeKey), Format: true, Integrity: true}
	old := made
	old.Format = false
	superblock := map[int][]byte{0: mark, marginSize: []byte("integrt\x00")}
	const integrity, crypt = "plinth-volume-x-integrity", "plinth-volume-x"
	for name, x := range map[string]struct {
		o     VolumeOptions
		parts map[int][]byte
		spoil func(*fakeKernel)
		want  string
	}{
		"size":             {made, nil, func(k *fakeKernel) { k.fail = failing("try " + integrity) }, "invalid argument"},
		"no size":          {old, superblock, func(k *fakeKernel) { k.answer[0].Params = "0" }, "number of sectors"},
		"few sectors":      {old, superblock, func(k *fakeKernel) { k.answer[0].Params = "0 4096 -" }, "4096 sectors: want more than 4096"},
		"integrity":        {made, nil, func(k *fakeKernel) { k.fail = failing("create " + integrity) }, "invalid argument"},
		"crypt":            {made, nil, func(k *fakeKernel) { k.fail = failing("create " + crypt) }, "invalid argument"},
		"open":             {made, nil, func(k *fakeKernel) { k.fail = failing("open " + crypt) }, "invalid argument"},
		"write":            {made, nil, func(k *fakeKernel) { k.disk.err = unix.EIO }, "format: input/output error"},
		"too small":        {made, nil, func(k *fakeKernel) { k.answer[0].Params = "0 8192 -" }, "3145728 bytes are too few"},
		"foreign table":    {old, superblock, func(k *fakeKernel) { k.loaded[0].Params = asLoaded }, "want start, tag size and mode"},
		"other key":        {old, superblock, func(k *fakeKernel) { k.fail = errorAt("try "+integrity, unix.EILSEQ) }, "another key, or the superblock was altered"},
		"no file system":   {old, superblock, func(k *fakeKernel) {}, "no ext4 file system: the disk was encrypted with another key"},
		"altered":          {old, superblock, func(k *fakeKernel) { k.disk.reads = unix.EILSEQ }, "the first block, or the journal, was altered"},
		"cannot be read":   {old, superblock, func(k *fakeKernel) { k.disk.reads = unix.EIO }, "first block: input/output error"},
		"superblock wiped": {old, map[int][]byte{0: mark}, func(k *fakeKernel) {}, "dm-integrity's superblock is gone"},
	} {
		k := volumeKernel(volumeLoaded, 32<<20)
		x.spoil(k)
		x.o.Device = rawFile(t, 32<<20, x.parts)
		v, err := openVolume(t.Context(), k, x.o)
		if v != nil || err == nil || !strings.Contains(err.Error(), x.want) || len(k.devices) > 0 {
			t.Errorf("%s: %v, want %q; devices %v", name, err, x.want, k.devices)
		}
		if b, _ := os.ReadFile(x.o.Device); bytes.Equal(b[:blockSize], mark) != (x.parts != nil) {
			t.Errorf("%s: a disk that was not formatted to the end says that it was", name)
		}
	}
}

func errorAt(which string, err error) func(what, name string) error {
	return func(what, name string) error {
		if what+" "+name == which {
			return err
		}
		return nil
	}
}

// TestInspect: what disks are opened, made, or left alone.
func TestInspect(t *testing.T) {
	const size = 33<<20 + 512*3 // not whole blocks
	last := size&^(blockSize-1) - 1
	luks := []byte("LUKS\xba\xbe\x00\x02")
	for name, x := range map[string]struct {
		parts            map[int][]byte
		plain, integrity string // errors; "fresh", "old"
		empty            string
	}{
		"zeros":                {nil, "fresh", "fresh", "fresh"},
		"the middle":           {map[int][]byte{marginSize: {1}, 20 << 20: {1}, last - marginSize: {1}}, "fresh", "fresh", "fresh"},
		"first byte":           {map[int][]byte{0: {1}}, "old", "something else", "not empty"},
		"last byte":            {map[int][]byte{last: {1}}, "begins with zeros", "something else", "not empty"},
		"end of the first MiB": {map[int][]byte{marginSize - 1: {1}}, "begins with zeros", "something else", "not empty"},
		"last MiB":             {map[int][]byte{last + 1 - marginSize: {1}}, "begins with zeros", "something else", "not empty"},
		"LUKS":                 {map[int][]byte{0: luks}, "LUKS", "LUKS", "not empty"},
		"mark":                 {map[int][]byte{0: mark, marginSize: {1}}, "with integrity", "old", "not empty"},
		"mark and zeros":       {map[int][]byte{0: mark}, "with integrity", "is gone", "not empty"},
		"mark, more":           {map[int][]byte{0: mark[:40], 41: {1}, marginSize: {1}}, "old", "something else", "not empty"},
	} {
		path := rawFile(t, size, x.parts)
		for _, y := range []struct {
			o    VolumeOptions
			want string
		}{
			{VolumeOptions{Key: []byte(testVolumeKey), Format: true}, x.plain}, {VolumeOptions{Key: []byte(testVolumeKey), Format: true, Integrity: true}, x.integrity},
			{VolumeOptions{Key: []byte(testVolumeKey), Format: true, Empty: true}, x.empty}, {VolumeOptions{Random: true}, "fresh"}, {VolumeOptions{Random: true, Integrity: true}, "fresh"},
		} {
			d, err := inspect(t.Context(), path, &y.o)
			got := fmt.Sprint(err)
			if err == nil {
				got = map[bool]string{true: "fresh", false: "old"}[d.fresh]
				if d.size != size&^(blockSize-1) {
					t.Errorf("%d bytes", d.size)
				}
			}
			if !strings.Contains(got, y.want) {
				t.Errorf("%s: %+v: %s, want %s", name, y.o, got, y.want)
			}
			if y.o.Format = false; y.want == "fresh" && !y.o.Random {
				if _, err := inspect(t.Context(), path, &y.o); err == nil || !strings.Contains(err.Error(), "is not to be formatted") {
					t.Errorf("%s: not to be formatted: %v", name, err)
				}
			}
		}
	}
	for size, o := range map[int]VolumeOptions{16<<20 - 1: {Random: true}, 32<<20 - 1: {Key: []byte(testVolumeKey), Integrity: true}} {
		if _, err := inspect(t.Context(), rawFile(t, size, nil), &o); err == nil || !strings.Contains(err.Error(), "want at least") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestVolumeOptions(t *testing.T) {
	good := VolumeOptions{Name: "db_1.x", Key: make([]byte, 32), Filesystem: "ext4"}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*VolumeOptions){
		"no name":        func(o *VolumeOptions) { o.Name = "" },
		"slash":          func(o *VolumeOptions) { o.Name = "a/b" },
		"dots":           func(o *VolumeOptions) { o.Name = ".." },
		"space":          func(o *VolumeOptions) { o.Name = "a b" },
		"long":           func(o *VolumeOptions) { o.Name = strings.Repeat("a", 64) },
		"short key":      func(o *VolumeOptions) { o.Key = make([]byte, 31) },
		"key of nothing": func(o *VolumeOptions) { o.Key = []byte{} },
		"no key":         func(o *VolumeOptions) { o.Key = nil }, // as a secret of no bytes may arrive
		"two keys":       func(o *VolumeOptions) { o.Random = true },
		"file system":    func(o *VolumeOptions) { o.Filesystem = "xfs" },
		"inodes":         func(o *VolumeOptions) { o.Ext4.BytesPerInode = -1 },
		"reserved":       func(o *VolumeOptions) { o.Ext4.ReservedPercent = 51 },
		"empty":          func(o *VolumeOptions) { o.Empty = true },
	} {
		o := good
		spoil(&o)
		if err := o.check(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	_, err := OpenVolume(t.Context(), VolumeOptions{Name: "x", Device: "/dev/none", Key: []byte("SECRET-CANARY")})
	if err == nil || strings.Contains(err.Error(), "CANARY") || !strings.HasPrefix(err.Error(), "storage: volume x: /dev/none: key of 13 bytes") {
		t.Error(err)
	}
}

// TestVolumeKeys compares with OpenSSL's HKDF, by the command that the documents give.
func TestVolumeKeys(t *testing.T) {
	testenv.Need(t, "openssl")
	secret := random(5, 48)
	k, err := volumeKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, x := range []struct {
		got  []byte
		info string
	}{
		{k.cipher, "plinth volume: dm-crypt aes-xts-plain64"}, {k.tag, "plinth volume: dm-integrity internal_hash"},
		{k.superblock, "plinth volume: dm-integrity journal_mac"},
	} {
		out, err := exec.Command(testenv.Tool("openssl"), "kdf", "-keylen", fmt.Sprint(len(x.got)), "-kdfopt", "digest:SHA256", "-kdfopt", "hexkey:"+hex.EncodeToString(secret),
			"-kdfopt", "info:"+x.info, "-binary", "HKDF").Output()
		if err != nil || !bytes.Equal(out, x.got) {
			t.Errorf("%s: %x, OpenSSL says %x, %v", x.info, x.got, out, err)
		}
		seen[string(x.got[:32])] = true
	}
	if len(seen) != 3 || len(k.cipher) != 64 {
		t.Error("keys are equal, or short")
	}
	k.clear()
	if !bytes.Equal(slices.Concat(k.cipher, k.tag, k.superblock), make([]byte, 128)) {
		t.Error("a key is left")
	}
}

// recorder keeps the order of writes.
type recorder struct {
	memoryDevice
	writes [][2]int64 // offset, size; size 0: sync
	fail   int        // at this write or sync; 0: never
}

func (r *recorder) step(off, size int64) error {
	r.writes = append(r.writes, [2]int64{off, size})
	if len(r.writes) == r.fail {
		return unix.EIO
	}
	return nil
}

func (r *recorder) WriteAt(b []byte, off int64) (int, error) {
	if err := r.step(off, int64(len(b))); err != nil {
		return 0, err
	}
	return r.memoryDevice.WriteAt(b, off)
}

func (r *recorder) Sync() error { return r.step(0, 0) }

// TestFormatInterrupted ends formatting at each write: the disk is empty still, or
// refused, or complete. On it is ciphertext, which is never zero where it was written.
func TestFormatInterrupted(t *testing.T) {
	const size = 16 << 20
	o := VolumeOptions{Key: []byte(testVolumeKey), Format: true, Filesystem: "ext4"}
	count := map[string]int{}
	for fail := 1; ; fail++ {
		r := &recorder{memoryDevice: memoryDevice{b: make([]byte, size)}, fail: fail}
		err := format(t.Context(), &o, &rawDisk{size: size, fresh: true}, r, size)
		raw := map[int][]byte{}
		for i, w := range r.writes {
			if (i < len(r.writes)-1 || err == nil) && w[1] > 0 {
				raw[int(w[0])] = bytes.Repeat([]byte{0xcc}, int(w[1]))
			}
		}
		d, e := inspect(t.Context(), rawFile(t, size, raw), &o)
		state := "refused"
		if e == nil {
			state = map[bool]string{true: "empty", false: "complete"}[d.fresh]
		}
		count[state]++
		if complete := checkExt4(&r.memoryDevice) == nil && bytes.HasPrefix(r.b[blockSize:], r.b[blockSize:][:1]); state == "complete" && !complete || state == "empty" && raw[0] != nil {
			t.Errorf("write %d: %s, %v", fail, state, e)
		}
		if err == nil {
			if state != "complete" {
				t.Errorf("at the end: %s, %v", state, e)
			}
			// The last MiB is never written to, so it tells nothing about an interruption.
			if blocks := binary.LittleEndian.Uint32(r.b[ext4SuperAt+4:]); int64(blocks)*blockSize > size-marginSize {
				t.Errorf("%d blocks, of a disk of %d", blocks, size/blockSize)
			}
			break
		}
	}
	// The last steps: sync, the first MiB, sync, its first block, sync.
	if count["empty"] < 5 || count["refused"] != 2 || count["complete"] != 2 {
		t.Errorf("%v", count)
	}
}

func TestFormatIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, o := range []VolumeOptions{{Random: true, Filesystem: "ext4"}, {Random: true, Integrity: true}} {
		r := &recorder{memoryDevice: memoryDevice{b: make([]byte, 32<<20)}}
		if err := format(ctx, &o, &rawDisk{size: 32 << 20}, r, 32<<20); !errors.Is(err, context.Canceled) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestDeviceContent: with integrity everything is written once, so that all of it can
// be read; without, as much as tells that the disk is in use.
func TestDeviceContent(t *testing.T) {
	const size = 20 << 20
	for integrity, want := range map[bool]int{true: size, false: marginSize} {
		r := &recorder{memoryDevice: memoryDevice{b: bytes.Repeat([]byte{7}, size)}}
		if err := format(t.Context(), &VolumeOptions{Random: true, Integrity: integrity}, &rawDisk{size: size}, r, size); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(r.b, []byte{0}); got != want {
			t.Errorf("integrity %v: %d bytes were written, want %d", integrity, got, want)
		}
	}
}

func TestDevicePath(t *testing.T) {
	sys := t.TempDir()
	for number, text := range map[string]string{"254:16": "MAJOR=254\nMINOR=16\nDEVNAME=vdb\nDEVTYPE=disk\n", "7:0": "MAJOR=7\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(sys, number), 0o755), os.WriteFile(filepath.Join(sys, number, "uevent"), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for device, want := range map[string]string{"254:16": "/dev/vdb", "/dev/vdc": "/dev/vdc", "7:0": "", "1:2": ""} {
		if got, err := devicePath(sys, device); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", device, got, err)
		}
	}
}

// TestVolumeClose: in the order in which nothing is in use, and again after an error.
func TestVolumeClose(t *testing.T) {
	k := newFakeKernel()
	for _, name := range []string{"i", "c"} {
		if _, err := k.create(name, []dm.Target{{}}); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	v := &Volume{kernel: k, filesystem: true, crypt: dm.Device{Name: "c", Minor: 5}, devices: []string{"i", "c"}}
	if err := errors.Join(v.Mount(dir+"/1", false), v.Mount(fmt.Sprintf("/proc/self/fd/%d", two.Fd()), true)); err != nil {
		t.Fatal(err)
	}
	if got := v.Device(); got != "/dev/dm-5" {
		t.Error(got)
	}
	k.log = nil
	k.fail = errorAt("unmount "+dir+"/1", unix.EBUSY)
	if err := v.Close(); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	k.fail = func(what, name string) error { // which somebody else unmounted meanwhile
		return errors.Join(errorAt("unmount "+dir+"/1", unix.EINVAL)(what, name), errorAt("remove i", unix.EBUSY)(what, name))
	}
	if err := v.Close(); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	k.fail = nil
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Error(err)
	}
	if want := []string{"unmount " + two.Name(), "remove c", "remove i"}; !reflect.DeepEqual(k.log, want) {
		t.Errorf("%q, want %q", k.log, want)
	}
}

// TestMountFlags: MS_NOSUID 2, MS_NODEV 4, MS_NOATIME 0x400, MS_RDONLY 1: mount(2).
func TestMountFlags(t *testing.T) {
	k := newFakeKernel()
	dir := t.TempDir()
	v := &Volume{kernel: k, filesystem: true, crypt: dm.Device{Name: "c", Minor: 5}}
	if err := errors.Join(v.Mount(dir, false), v.Mount(dir, true)); err != nil {
		t.Fatal(err)
	}
	if want := []string{"mount /dev/dm-5 " + dir + " ext4 0x406", "mount /dev/dm-5 " + dir + " ext4 0x407"}; !reflect.DeepEqual(k.log, want) {
		t.Errorf("%q, want %q", k.log, want)
	}
}
