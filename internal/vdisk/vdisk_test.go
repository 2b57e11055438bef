package vdisk

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

const epoch = 1767225600

// sparse is a disk with a few bytes here and there.
func sparse(size int64, at ...int64) Disk {
	return Disk{holes{size, at}, size}
}

type holes struct {
	size int64
	at   []int64
}

func (h holes) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	for _, a := range h.at {
		if a >= off && a < off+int64(len(b)) {
			b[a-off] = byte(a>>8) | 1
		}
	}
	if off+int64(len(b)) > h.size {
		return int(h.size - off), io.EOF
	}
	return len(b), nil
}

// formats are the containers by qemu-img's names.
var formats = []struct {
	name  string
	write func(io.Writer, Disk) error
}{
	{"qcow2", Qcow2},
	{"vpc", func(w io.Writer, d Disk) error { return VHD(w, d, epoch, [16]byte{1}) }},
	{"vmdk", func(w io.Writer, d Disk) error { return VMDK(w, d, "disk.vmdk") }},
}

var disks = map[string]Disk{
	"empty":            sparse(1 << 20),
	"first and last":   sparse(3<<20, 0, 3<<20-1),
	"cluster borders":  sparse(64<<20, 65535, 65536, 131071, 20<<20, 32<<20-1, 32<<20),
	"several L2s":      sparse(1200<<20, 5, 512<<20-1, 512<<20, 1200<<20-1),
	"odd grain at end": sparse(1<<20+1<<20, 2<<20-512),
}

// TestQemuImg: qemu-img finds no fault and reads the same disk.
func TestQemuImg(t *testing.T) {
	testenv.Need(t, "qemu-img")
	for name, d := range disks {
		for _, f := range formats {
			if f.name == "vpc" && d.Size > 1<<30 {
				continue // 3 GiB of zeros, written
			}
			t.Run(f.name+"/"+name, func(t *testing.T) {
				dir := t.TempDir()
				raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
				toFile(t, image, func(w io.Writer) error { return f.write(w, d) })
				toFile(t, raw, d.copySparse)
				if f.name != "vpc" { // has no check
					qemuImg(t, "check", "-f", f.name, image)
				}
				qemuImg(t, "compare", "-f", "raw", "-F", f.name, raw, image)
				var info struct {
					Size int64 `json:"virtual-size"`
				}
				if err := json.Unmarshal(qemuImg(t, "info", "-f", f.name, "--output", "json", image), &info); err != nil || info.Size != d.Size {
					t.Errorf("size %d, %v, want %d", info.Size, err, d.Size)
				}
			})
		}
	}
}

// copySparse writes the disk as a file with holes.
func (d *Disk) copySparse(w io.Writer) error {
	f := w.(*os.File)
	if err := f.Truncate(d.Size); err != nil {
		return err
	}
	for _, a := range d.ReaderAt.(holes).at {
		if _, err := f.WriteAt([]byte{byte(a>>8) | 1}, a); err != nil {
			return err
		}
	}
	return nil
}

func toFile(t *testing.T, path string, write func(io.Writer) error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := write(f); err != nil {
		t.Fatal(err)
	}
}

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(testenv.Tool("qemu-img"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return out
}

// TestGCE reads the archive with tar.
func TestGCE(t *testing.T) {
	testenv.Need(t, "tar", "cmp")
	d := sparse(1<<30, 0, 12345678, 1<<30-1)
	dir := t.TempDir()
	archive, raw := filepath.Join(dir, "disk.tar.gz"), filepath.Join(dir, "raw")
	toFile(t, archive, func(w io.Writer) error { return GCE(w, d, epoch) })
	toFile(t, raw, d.copySparse)
	out, err := exec.Command("sh", "-c", `tar -tvzf "$1" --full-time --utc && tar -xzOf "$1" disk.raw | cmp - "$2"`, "sh", archive, raw).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "-rw-r--r-- 0/0      1073741824 2026-01-01 00:00:00 disk.raw") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSizes: what a container cannot hold is refused.
func TestSizes(t *testing.T) {
	for name, err := range map[string]error{
		"qcow2, odd":        Qcow2(io.Discard, sparse(1000)),
		"qcow2, nothing":    Qcow2(io.Discard, sparse(0)),
		"VMDK, odd":         VMDK(io.Discard, sparse(513), "x"),
		"VHD, not whole":    VHD(io.Discard, sparse(1<<20+512), epoch, [16]byte{}),
		"VHD, before 2000":  VHD(io.Discard, sparse(1<<20), 0, [16]byte{}),
		"GCE, less than 1G": GCE(io.Discard, sparse(1<<20), epoch),
	} {
		if err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after -= len(p); b.after < 0 {
		return 0, errors.New("disk full")
	}
	return len(p), nil
}

type cut struct{ Disk }

func (c cut) ReadAt(b []byte, off int64) (int, error) {
	if off > 1<<20 {
		return 0, io.ErrUnexpectedEOF
	}
	return c.Disk.ReadAt(b, off)
}

// TestFaults: a full disk and a source that ends early are reported, whenever
// they come.
func TestFaults(t *testing.T) {
	d := sparse(4<<20, 0, 1<<20, 4<<20-1)
	for _, f := range formats {
		var whole bytes.Buffer
		if err := f.write(&whole, d); err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		if err := f.write(&again, d); err != nil || !bytes.Equal(whole.Bytes(), again.Bytes()) {
			t.Errorf("%s: another image the second time, %v", f.name, err)
		}
		for after := 0; after < whole.Len(); after += max(whole.Len()/20, 512) {
			if err := f.write(&broken{after}, d); err == nil || !strings.Contains(err.Error(), "disk full") {
				t.Errorf("%s: %d of %d bytes: %v", f.name, after, whole.Len(), err)
			}
		}
		if err := f.write(io.Discard, Disk{cut{d}, d.Size}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: source ends early: %v", f.name, err)
		}
	}
}
