package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/verity"
)

// Sectors of the disk that addDisk makes.
const (
	diskSectors = 2048
	dataFirst   = 64
	hashFirst   = 1024
)

// veritySample is the content of a root's two partitions.
func veritySample(t *testing.T, seed byte) (r *verity.Root, data, hash []byte) {
	t.Helper()
	r = &verity.Root{HashStart: 1, OnCorruption: verity.Panic, Params: verity.Params{
		Algorithm: verity.SHA256, DataBlockSize: 512, HashBlockSize: 512, DataBlocks: 40, Salt: []byte("s"), Format: 1,
	}}
	data = bytes.Repeat([]byte{seed}, 40*512)
	tree := bufferAt{make([]byte, r.TreeSize())}
	var err error
	if r.RootHash, err = verity.Format(tree, bytes.NewReader(data), r.Params); err != nil {
		t.Fatal(err)
	}
	return r, data, append(make([]byte, 512), tree.b...)
}

type bufferAt struct{ b []byte }

func (b bufferAt) WriteAt(p []byte, off int64) (int, error) { return copy(b.b[off:], p), nil }

// addDisk shows the guest a disk with a root's partitions.
func addDisk(t *testing.T, s *State, name string, r *verity.Root, data, hash []byte) {
	t.Helper()
	b := make([]byte, diskSectors*512)
	copy(b[dataFirst*512:], data)
	copy(b[hashFirst*512:], hash)
	dataID, hashID := r.PartitionIDs()
	entries := append(entry(dataID, dataFirst, hashFirst-1), entry(hashID, hashFirst, diskSectors-34)...)
	entries = append(entries, make([]byte, 128*128-len(entries))...)
	copy(b[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(b[446+12:], diskSectors-1)
	copy(b[510:], []byte{0x55, 0xaa})
	table(b, entries, 1, diskSectors-1, 2)
	table(b, entries, diskSectors-1, 1, diskSectors-33)
	write(t, s, "dev/"+name, string(b))
	write(t, s, "sys/class/block/"+name+"/size", fmt.Sprintf("%d\n", diskSectors))
	for i, first := range []int{dataFirst, hashFirst} {
		part := fmt.Sprintf("%s%d", name, i+1)
		dir := "sys/class/block/" + name + "/" + part + "/"
		write(t, s, dir+"partition", fmt.Sprintf("%d\n", i+1))
		write(t, s, dir+"start", fmt.Sprintf("%d\n", first))
		write(t, s, dir+"dev", fmt.Sprintf("254:%s%d\n", strings.TrimLeft(name, "vd"), i+1))
		write(t, s, "dev/"+part, string(b[first*512:]))
	}
}

// entry is a partition entry: UEFI 2.10, table 5.6.
func entry(id [16]byte, first, last uint64) []byte {
	kind, unique := gpt.FromUUID([16]byte{1}), gpt.FromUUID(id)
	b := append(kind[:], unique[:]...)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint64(b, last)
	return append(b, make([]byte, 128-len(b))...)
}

// table writes a header and its entries: UEFI 2.10, table 5.5.
func table(b, entries []byte, at, other, array uint64) {
	le := binary.LittleEndian
	h := append([]byte("EFI PART"), 0, 0, 1, 0, 92, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, x := range []uint64{at, other, 34, diskSectors - 34} {
		h = le.AppendUint64(h, x)
	}
	h = append(h, bytes.Repeat([]byte{7}, 16)...)
	h = le.AppendUint64(h, array)
	h = le.AppendUint32(h, 128)
	h = le.AppendUint32(h, 128)
	h = le.AppendUint32(h, crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	copy(b[at*512:], h)
	copy(b[array*512:], entries)
}

func verityGuest(t *testing.T, r *verity.Root, c config.Config) (*State, *fakeMachine) {
	c.Cmdline = "quiet plinth.verity=" + r.String()
	return newGuest(t, c)
}

// TestVerityRoot: the table is the command line's, and the report states it.
func TestVerityRoot(t *testing.T) {
	for _, overlay := range []bool{false, true} {
		r, data, hash := veritySample(t, 1)
		s, m := verityGuest(t, r, config.Config{Overlay: overlay})
		addDisk(t, s, "vda", r, data, hash)
		if err := setRoot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		want := dm.Target{Length: 40, Type: "verity", Params: fmt.Sprintf("1 254:a1 254:a2 512 512 40 1 sha256 %x 73 1 panic_on_corruption", r.RootHash)}
		if len(m.created) != 1 || m.created[0] != want {
			t.Errorf("created %+v\nwant %+v", m.created, want)
		}
		if m.entered != s.path("/sysroot") || s.Report.Root != "verity" || s.Report.RootTable != "0 40 verity "+want.Params || s.Report.RootDevice == "" ||
			(s.Report.RootLower != "") != overlay {
			t.Errorf("entered %s, report %+v", m.entered, s.Report)
		}
		if got := strings.Join(m.mounted, " "); overlay && got != "erofs tmpfs overlay" || !overlay && got != "erofs" {
			t.Errorf("mounted %s", got)
		}
	}
}

// TestInitrdRoot: without the argument nothing is looked for.
func TestInitrdRoot(t *testing.T) {
	s, m := newGuest(t, config.Config{Cmdline: "quiet"})
	if err := setRoot(t.Context(), s); err != nil || s.Report.Root != "initrd" || m.entered != "" {
		t.Errorf("%v, %+v", err, s.Report)
	}
}

// TestSecondDiskOfTheSameName: the first that bears the name is not trusted for it.
func TestSecondDiskOfTheSameName(t *testing.T) {
	r, data, hash := veritySample(t, 1)
	_, otherData, otherHash := veritySample(t, 2)
	s, m := verityGuest(t, r, config.Config{})
	addDisk(t, s, "vda", r, otherData, otherHash)
	addDisk(t, s, "vdb", r, data, hash)
	addDisk(t, s, "vdc", r, data, hash)
	if err := setRoot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if len(m.created) != 1 || !strings.Contains(m.created[0].Params, "254:b1 254:b2") {
		t.Errorf("created %+v: want vdb alone", m.created)
	}
	// A bit below the tree's top is wrong.
	for _, at := range []int{40*512 - 1, 0} {
		damaged := bytes.Clone(data)
		damaged[at] ^= 1
		s, m = verityGuest(t, r, config.Config{})
		addDisk(t, s, "vda", r, damaged, hash)
		addDisk(t, s, "vdb", r, data, hash)
		if err := setRoot(t.Context(), s); err != nil || len(m.created) != 1 || !strings.Contains(m.created[0].Params, "254:b1 254:b2") {
			t.Errorf("%v, created %+v: want vdb alone", err, m.created)
		}
	}
	// All is right there, but the kernel does not take it.
	s, m = verityGuest(t, r, config.Config{})
	addDisk(t, s, "vda", r, data, hash)
	addDisk(t, s, "vdb", r, data, hash)
	m.createErr = func(x dm.Target) error {
		if strings.Contains(x.Params, "254:a1") {
			return errors.New("bad block")
		}
		return nil
	}
	if err := setRoot(t.Context(), s); err != nil || len(m.created) != 2 {
		t.Errorf("%v, created %+v", err, m.created)
	}
}

// TestFailedMountIsTakenDown, so that the next disk can have the name.
func TestFailedMountIsTakenDown(t *testing.T) {
	r, data, hash := veritySample(t, 1)
	s, m := verityGuest(t, r, config.Config{})
	addDisk(t, s, "vda", r, data, hash)
	m.mountErr = map[string]error{"erofs": errors.New("bad superblock")}
	err := setRoot(soon(t), s)
	if err == nil || !strings.Contains(err.Error(), "bad superblock") || m.removed != 1 || m.entered != "" {
		t.Errorf("%v, removed %d, entered %q", err, m.removed, m.entered)
	}
}

// TestLateDisk: its driver may be slower than the agent.
func TestLateDisk(t *testing.T) {
	r, data, hash := veritySample(t, 1)
	s, _ := verityGuest(t, r, config.Config{})
	go func() {
		time.Sleep(100 * time.Millisecond)
		addDisk(t, s, "vda", r, data, hash)
	}()
	if err := setRoot(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// TestLateNode: sysfs shows a partition before /dev does, which is no reason to
// give its disk up.
func TestLateNode(t *testing.T) {
	for _, name := range []string{"dev/vda1", "dev/vda2"} {
		r, data, hash := veritySample(t, 1)
		s, _ := verityGuest(t, r, config.Config{})
		addDisk(t, s, "vda", r, data, hash)
		late := s.path(name)
		if err := os.Rename(late, late+".hidden"); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			time.Sleep(100 * time.Millisecond)
			ended <- os.Rename(late+".hidden", late)
		}()
		if err := errors.Join(setRoot(t.Context(), s), <-ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text := s.console.(*lockedBuffer).String(); strings.Contains(text, "root:") {
			t.Errorf("%s: the console says %q", name, text)
		}
	}
}

// TestNoRoot: what is not the root is not taken, and the boot ends.
func TestNoRoot(t *testing.T) {
	r, data, hash := veritySample(t, 1)
	other, otherData, otherHash := veritySample(t, 2)
	for name, add := range map[string]func(*State){
		"no disk":       func(*State) {},
		"another root":  func(s *State) { addDisk(t, s, "vda", other, otherData, otherHash) },
		"older content": func(s *State) { addDisk(t, s, "vda", r, otherData, otherHash) },
		"no tree":       func(s *State) { addDisk(t, s, "vda", r, data, make([]byte, len(hash))) },
		"broken table": func(s *State) {
			addDisk(t, s, "vda", r, data, hash)
			b, err := os.ReadFile(s.path("dev/vda"))
			if err != nil {
				t.Fatal(err)
			}
			b[600]++
			write(t, s, "dev/vda", string(b))
		},
	} {
		s, m := verityGuest(t, r, config.Config{})
		add(s)
		if err := setRoot(soon(t), s); err == nil || !strings.Contains(err.Error(), "no disk has the root") || m.entered != "" || len(m.created) > 0 {
			t.Errorf("%s: %v, created %+v", name, err, m.created)
		}
	}
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestRootArgumentIsChecked(t *testing.T) {
	r, _, _ := veritySample(t, 1)
	for _, cmdline := range []string{"plinth.verity=", "plinth.verity=x", "plinth.verity=" + r.String() + " plinth.verity=" + r.String()} {
		s, m := newGuest(t, config.Config{Cmdline: cmdline})
		if err := setRoot(soon(t), s); err == nil || m.entered != "" {
			t.Errorf("%q is taken", cmdline)
		}
	}
}
