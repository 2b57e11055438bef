package storage

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
)

func TestMemAvailable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meminfo")
	for text, want := range map[string]int64{
		"MemTotal:       24684232 kB\nMemFree:        20000000 kB\nMemAvailable:   23223092 kB\nBuffers: 1 kB\n": 23223092 << 10,
		"MemTotal: 1 kB\n":               -1,
		"MemAvailable: x kB\n":           -1,
		"MemAvailable: 9007199254740992": -1,
		"":                               -1,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := memAvailable(path)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	if err := os.WriteFile(path, []byte("MemAvailable: 102400 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := memoryLimit(path); n != 36<<20 || err != nil { // 100 MiB, of which 64 are for others
		t.Errorf("%d, %v", n, err)
	}
	if n, err := memAvailable("/proc/meminfo"); err != nil || n < 1<<20 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestMemoryIsNotTooSmall(t *testing.T) {
	if _, err := Memory(minSize - 1); err == nil {
		t.Error("no error")
	}
}

// TestMemory: what is written to the file is on the loop device at once, which ends
// where it should, and memory is taken and given back with the blocks.
func TestMemory(t *testing.T) {
	const size = 64 << 20
	b, err := memory(size)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		testenv.Missing(t, "loop", err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	loop, err := os.Open("/dev/block/" + b.number)
	if errors.Is(err, fs.ErrNotExist) {
		_, minor, _ := strings.Cut(b.number, ":")
		loop, err = os.Open("/dev/loop" + minor)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := loop.Seek(0, 2); n != size || err != nil {
		t.Errorf("the device has %d bytes, %v", n, err)
	}
	if n, err := unix.IoctlGetInt(int(loop.Fd()), unix.BLKSSZGET); n != blockSize || err != nil {
		t.Errorf("sectors of %d bytes, %v", n, err)
	}
	data := random(1, 8<<20)
	if _, err := b.data.WriteAt(data, 16<<20); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := loop.ReadAt(got, 16<<20); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the device has something else, %v", err)
	}
	if held := heldBytes(t, b); held < 8<<20 || held > 9<<20 {
		t.Errorf("%d bytes of memory for 8 MiB", held)
	}
	if err := b.drop(16<<20, 8<<20); err != nil {
		t.Fatal(err)
	}
	if held := heldBytes(t, b); held != 0 {
		t.Errorf("%d bytes of memory for nothing", held)
	}
	if _, err := b.data.WriteAt(data, size-4096); err == nil {
		t.Error("more than the size was written")
	}
	for _, n := range []int64{size - 1, size + 1} {
		if err := b.data.(*os.File).Truncate(n); err == nil {
			t.Errorf("the file now has %d bytes", n)
		}
	}
	if err := errors.Join(loop.Close(), b.close()); err != nil {
		t.Error(err)
	}
	_, minor, _ := strings.Cut(b.number, ":")
	if _, err := os.Stat("/sys/block/loop" + minor + "/loop/backing_file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the loop device stays: %v", err)
	}
}

func heldBytes(t *testing.T, b base) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(b.data.(*os.File).Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
