package storage

import (
	"bytes"
	"crypto/aes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"github.com/plinth-os/plinth/internal/testenv"
	fstree "github.com/plinth-os/plinth/internal/tree"
)

// bootKey is what testdata/guest/volume.go opens volumes with.
const bootKey = "VOLUME-KEY-CANARY-0123456789abcdef"

// foreign is how a disk begins that holds something else.
var foreign = random(9, marginSize)

// preparedDisk is a disk as a host makes one for a guest: mkfs.ext4, and each sector
// of 4 KiB encrypted by XTS with the number of its first 512 bytes, as cryptsetup's
// plain mode does. Another XTS than the kernel's.
func preparedDisk(t *testing.T, size int) []byte {
	t.Helper()
	testenv.Need(t, "mkfs.ext4")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "from-host"), random(33, 70000), 0o640); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command(testenv.Tool("mkfs.ext4"), "-q", "-b", "4096", "-E", "root_owner=0:0", "-d", dir, image, fmt.Sprint(size>>10)+"k").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disk, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	c := volumeXTS(t)
	for off := 0; off < len(disk); off += blockSize {
		c.Encrypt(disk[off:][:blockSize], disk[off:][:blockSize], uint64(off/512))
	}
	return disk
}

func volumeXTS(t *testing.T) *xts.Cipher {
	t.Helper()
	key, err := hkdf.Key(sha256.New, []byte(bootKey), nil, "plinth volume: dm-crypt aes-xts-plain64", 64)
	if err != nil {
		t.Fatal(err)
	}
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// said returns what a guest said of something, in order.
func said(console, what string) (out []string) {
	for _, m := range regexp.MustCompile(`(?m)^guest: `+regexp.QuoteMeta(what)+`: (.*)$`).FindAllStringSubmatch(console, -1) {
		out = append(out, m[1])
	}
	return out
}

// TestBootVolumes makes volumes in one guest and opens them in another, on disks of
// a host that changes them.
func TestBootVolumes(t *testing.T) {
	kernels := guestKernels(t)
	body, err := os.ReadFile(buildGuest(t))
	if err != nil {
		t.Fatal(err)
	}
	files := []fstree.Entry{fstree.File("init", 0o755, fstree.Bytes(body)), fstree.CharDev("dev/console", 0o600, 5, 1)}
	for kernel, modules := range kernels {
		t.Run(filepath.Base(kernel), func(t *testing.T) {
			files := append(files[:len(files):len(files)], modules...)
			h := &volumeHost{t: t}
			for _, size := range []int{48 << 20, 40<<20 + 4096*5, 32 << 20, 40 << 20, 32 << 20, 32 << 20, 8 << 20} {
				h.disks = append(h.disks, newHostDisk(t, size, nil))
			}
			h.disks[2].restore(preparedDisk(t, 32<<20))
			h.disks[3].restore(random(4, 40<<20)) // a disk that was used
			h.disks[4].restore(foreign)
			h.disks[5].restore([]byte("LUKS\xba\xbe\x00\x02"))
			first := bootGuest(t, kernel, files, "make-volumes", h.disks, nil)
			untouched := append(foreign[:len(foreign):len(foreign)], make([]byte, 31<<20)...)
			if !bytes.Equal(h.disks[4].snapshot(), untouched) || !bytes.HasPrefix(h.disks[5].snapshot(), append([]byte("LUKS\xba\xbe\x00\x02"), make([]byte, 31<<20)...)) {
				t.Error("a disk that was refused was written to")
			}
			h.checkPlain()
			second := bootGuest(t, kernel, files, "use-volumes", h.disks, h.step)
			checkMade(t, first)
			checkUsed(t, first, second)
			for i, d := range h.disks {
				for _, c := range []string{canary, "KEY-CANARY", "OTHER-VOLUME-KEY"} {
					if bytes.Contains(d.snapshot(), []byte(c)) {
						t.Errorf("disk %d holds %q", i, c)
					}
				}
			}
			for _, m := range said(first+second, "time") {
				t.Log(m)
			}
			if t.Failed() {
				t.Log(first)
				t.Log(second)
			}
		})
	}
}

func expect(t *testing.T, console, what string, want ...string) {
	t.Helper()
	got := said(console, what)
	if len(got) != len(want) {
		t.Errorf("%s: %q, want %d lines", what, got, len(want))
		return
	}
	for i := range got {
		if !strings.Contains(got[i], want[i]) || strings.Contains(got[i], "not refused") {
			t.Errorf("%s: %q, want %q", what, got[i], want[i])
		}
	}
}

func checkMade(t *testing.T, console string) {
	t.Helper()
	const none = ", devices []"
	const notFormat = "the disk is empty, and is not to be formatted"
	expect(t, console, "error")
	expect(t, console, "empty", "storage: volume a: /dev/vda: "+notFormat+none, "storage: volume b: /dev/vdb: "+notFormat+none)
	expect(t, console, "foreign", "holds something else than a volume with integrity; nothing was written"+none, "no ext4 file system: the disk was encrypted with another key")
	expect(t, console, "luks", "LUKS header", "LUKS header")
	expect(t, console, "small", "8388608 bytes, want at least 16777216", "8388608 bytes, want at least 16777216")
	expect(t, console, "device", "MiB, zeros true")
	expect(t, console, "from-host", fmt.Sprintf("%x", sha256.Sum256(random(33, 70000))))
	for _, what := range []string{"temporary", "emptydir"} {
		if got := said(console, what); len(got) != 1 || strings.Contains(got[0], "error") {
			t.Errorf("%s: %q", what, got)
		}
	}
	if a, b := said(console, "a made"), said(console, "b made"); len(a) != 1 || len(b) != 1 || strings.Contains(a[0]+b[0], "error") {
		t.Errorf("%q, %q", a, b)
	}
	for _, name := range []string{"a", "b"} {
		expect(t, console, name+" empty", "the disk is not empty")
	}
	if strings.Contains(console, "Checksum failed") {
		t.Error("blocks were read that nobody had written")
	}
}

func checkUsed(t *testing.T, first, second string) {
	t.Helper()
	expect(t, second, "error")
	for _, name := range []string{"a", "b"} {
		if before, after := said(first, name+" before"), said(second, name+" after"); len(before) != 1 || len(after) != 1 || before[0] != after[0] {
			t.Errorf("%s: %q after a power failure, want %q", name, after, before)
		}
	}
	const journal = "the first block, or the journal, was altered: read /dev/dm-1: invalid or incomplete"
	expect(t, second, "journal-entries", journal)
	expect(t, second, "journal-data", journal)
	expect(t, second, "a wrong key", "another key, or the superblock was altered")
	expect(t, second, "b wrong key", "no ext4 file system: the disk was encrypted with another key")
	expect(t, second, "a without integrity", "formatted with integrity, and is to be opened without")
	expect(t, second, "b with integrity", "holds something else than a volume with integrity")
	if clean, _, _ := strings.Cut(second, "guest: step flip"); strings.Contains(clean, "Checksum failed") {
		t.Error("blocks were read that nobody had written")
	}
	const io = "read /v/a/big: input/output error"
	old := fmt.Sprintf("%x", sha256.Sum256(random(1, 4<<20)))
	expect(t, second, "flip", io)
	expect(t, second, "swap", io)
	expect(t, second, "restore", old)
	expect(t, second, "replay-data", io)
	expect(t, second, "replay-all", old) // nothing outside the disk tells how old it is
	const altered = "another key, or the superblock was altered"
	for what, want := range map[string]string{
		"sb-interleave": altered, "sb-journal": altered, "sb-sectors": altered, "sb-salt": altered, "sb-mac": altered,
		"sb-bitmap": altered, "sb-recalculate": altered, "sb-flags": "it lacks fix_hmac", "sb-unsigned": "it lacks fix_hmac",
		"sb-zero": "dm-integrity's superblock is gone", "mark-luks": "LUKS header", "mark-gone": "the disk is empty, and is not to be formatted",
	} {
		expect(t, second, what, want)
	}
	if got := said(second, "again"); len(got) != 1 || !strings.HasSuffix(got[0], " of 2") { // the root, lost+found
		t.Errorf("formatted again: %q", got)
	}
}

// volumeHost changes the first disk.
type volumeHost struct {
	t     *testing.T
	disks []*hostDisk

	crashed []byte // as the first guest left it
	before  []byte
	after   []byte
	at      int // in the middle of the file's blocks
}

// dataStart is behind the superblock and the journal of a volume with integrity.
const dataStart = marginSize + (8+62*264)*512

func (h *volumeHost) step(name string) {
	d := h.disks[0]
	switch now := d.snapshot(); name {
	case "journal-entries": // sectors 0 to 7 of a section
		h.crashed = now
		h.journal(d.b, 0)
	case "journal-data":
		d.restore(h.crashed)
		h.journal(d.b, 8)
	case "journal-restore":
		d.restore(h.crashed)
	case "before":
		h.before = now
	case "after":
		h.after = now
		h.at = dataStart + middle(h.before[dataStart:], now[dataStart:])
		h.at &^= blockSize - 1
	case "flip":
		d.b[h.at+100] ^= 1
	case "swap":
		d.restore(h.after)
		copy(d.b[h.at:], h.after[h.at+blockSize:][:blockSize])
		copy(d.b[h.at+blockSize:], h.after[h.at:][:blockSize])
	case "restore":
		d.restore(h.after)
	case "replay-data":
		if bytes.Equal(now[h.at:][:blockSize], h.after[h.at:][:blockSize]) {
			h.t.Error("the file was not written in place: nothing is replayed")
		}
		copy(d.b[h.at:], h.after[h.at:][:blockSize])
	case "replay-all":
		d.restore(h.after)
	default:
		d.restore(h.after)
		h.superblock(name, d.b[marginSize:][:blockSize], d.b)
	}
}

// journal changes a bit in a sector of each section.
func (h *volumeHost) journal(disk []byte, sector int) {
	for i := range 62 {
		disk[marginSize+(8+i*264+sector)*512+100] ^= 1
	}
}

// superblock changes what says how the disk is used.
func (h *volumeHost) superblock(name string, sb, disk []byte) {
	switch name {
	case "sb-interleave":
		sb[9]--
	case "sb-journal":
		sb[12]--
	case "sb-sectors":
		sb[17]--
	case "sb-flags":
		sb[24] &^= fixedHMAC
	case "sb-salt":
		sb[40] ^= 1
	case "sb-mac":
		sb[480] ^= 1
	case "sb-unsigned":
		copy(sb, superblock(1, haveJournalMAC, 0))
		sb[12] = 62 // sections, so that only the MAC is missing
	case "sb-bitmap":
		sb[24] |= dirtyBitmap
	case "sb-recalculate":
		sb[24] |= recalculating
	case "sb-zero":
		clear(sb)
	case "mark-luks":
		copy(disk, "LUKS\xba\xbe\x00\x02")
	case "mark-gone":
		clear(disk[:blockSize])
	}
}

// checkPlain decrypts the second disk with another XTS, and has fsck look at it.
func (h *volumeHost) checkPlain() {
	h.t.Helper()
	b := h.disks[1].snapshot()
	c := volumeXTS(h.t)
	for off := 0; off+blockSize <= len(b); off += blockSize {
		c.Decrypt(b[off:][:blockSize], b[off:][:blockSize], uint64(off/512))
	}
	path := filepath.Join(h.t.TempDir(), "plain")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
	// As at a boot: 1 is for the journal that was replayed, 4 for what only people mend.
	out, err := exec.Command(testenv.Tool("e2fsck"), "-f", "-p", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) || !strings.Contains(string(out), "recovering journal") {
		h.t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
