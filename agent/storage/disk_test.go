package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/internal/testenv"
)

// asLoaded is the table that Linux 6.12 shows for a device of this package.
const asLoaded = "254:0 0 32 D 7 block_size:4096 journal_sectors:792 interleave_sectors:32768 buffer_sectors:128 fix_hmac" +
	" internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key>"

func TestCheckIntegrity(t *testing.T) {
	check := func(params string) error { return diskLayout.check([]dm.Target{{Type: "integrity", Params: params}}) }
	if err := check(asLoaded); err != nil {
		t.Error(err)
	}
	for name, params := range map[string]string{
		"a superblock without a MAC":      strings.Replace(asLoaded, " fix_hmac", "", 1),
		"tags are made of what is there":  asLoaded + " recalculate",
		"blocks without tags are read":    asLoaded + " allow_discards",
		"old way of the same":             asLoaded + " legacy_recalculate",
		"fix_hmac twice":                  asLoaded + " fix_hmac",
		"no tags":                         strings.Replace(asLoaded, " internal_hash:hmac(sha256):<key>", "", 1),
		"no MAC of the superblock":        strings.Replace(asLoaded, " journal_mac:hmac(sha256):<key>", "", 1),
		"tags without a key":              strings.Replace(asLoaded, "internal_hash:hmac(sha256):<key>", "internal_hash:sha256", 1),
		"another key":                     strings.Replace(asLoaded, "internal_hash:hmac(sha256):<key>", "internal_hash:hmac(sha256):00", 1),
		"blocks of 512 bytes":             strings.Replace(asLoaded, " block_size:4096", "", 1),
		"a journal, which is replayed":    strings.Replace(asLoaded, " D ", " J ", 1),
		"tags elsewhere":                  asLoaded + " meta_device:254:1",
		"padding that was not asked for":  asLoaded + " fix_padding",
		"a journal that can be decrypted": asLoaded + " journal_crypt:ctr(aes):00",
		"nothing":                         "",
	} {
		if err := check(params); err == nil {
			t.Errorf("%s: %q is taken", name, params)
		}
	}
	for _, loaded := range [][]dm.Target{nil, {{Type: "linear", Params: asLoaded}}, {{Type: "integrity", Params: asLoaded}, {Type: "integrity", Params: asLoaded}}} {
		if err := diskLayout.check(loaded); err == nil {
			t.Errorf("%+v is taken", loaded)
		}
	}
}

// diskFile stands in for a disk; it begins with what somebody left there.
func diskFile(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte("integrt\x00"), size/8), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		testenv.Missing(t, "O_DIRECT", err.Error())
	}
	f.Close()
	return path
}

func diskKernel() *fakeKernel {
	k := newFakeKernel()
	k.answer = []dm.Target{{Type: "integrity", Params: "0 32008 -"}}
	k.loaded = []dm.Target{{Type: "integrity", Params: asLoaded}}
	k.disk = &memoryDevice{}
	return k
}

func TestDisk(t *testing.T) {
	path := diskFile(t, 16<<20)
	k := diskKernel()
	wiped := 0
	k.fail = func(what, name string) error {
		if name != integrityName || what == "remove" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Equal(b[:blockSize], make([]byte, blockSize)) {
			wiped++
		}
		// As the kernel writes one.
		return os.WriteFile(path, append(bytes.Repeat([]byte("integrt\x00"), 512), b[blockSize:]...), 0o600)
	}
	b, err := disk(t.Context(), k, path)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"try " + integrityName, "create " + integrityName, "create " + cryptName, "open " + cryptName}; !reflect.DeepEqual(k.log, want) {
		t.Errorf("%q, want %q", k.log, want)
	}
	if wiped != 2 {
		t.Errorf("%d of 2 times there was no superblock", wiped)
	}
	if b.size != 32008*512 || b.number != "254:2" {
		t.Errorf("%+v", b)
	}
	want := path + " 0 32 D 5 internal_hash:hmac(sha256):<key> journal_mac:hmac(sha256):<key> journal_sectors:1024 block_size:4096 fix_hmac"
	if got := k.devices[integrityName][0]; got.Params != want || got.Length != 32008 {
		t.Errorf("%+v\nwant %s", got, want)
	}
	if got := k.devices[cryptName][0]; got.Params != "aes-xts-plain64 <key> 0 254:1 0 1 sector_size:4096" || got.Length != 32008 {
		t.Errorf("%+v", got)
	}
	if err := b.close(); err != nil || len(k.devices) > 0 || !k.disk.closed {
		t.Errorf("%v, devices %v", err, k.devices)
	}
}

func TestDiskFails(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(*fakeKernel)
		want  string
	}{
		"superblock of somebody else": {func(k *fakeKernel) { k.loaded[0].Params = strings.Replace(asLoaded, " fix_hmac", "", 1) }, "is not the one that was to be written"},
		"status without a size":       {func(k *fakeKernel) { k.answer[0].Params = "0" }, "number of sectors"},
		"size is no number":           {func(k *fakeKernel) { k.answer[0].Params = "0 x -" }, "number of sectors"},
		"size is nothing":             {func(k *fakeKernel) { k.answer[0].Params = "0 7 -" }, "number of sectors"},
		"two lines":                   {func(k *fakeKernel) { k.answer = append(k.answer, k.answer...) }, "number of sectors"},
		"try":                         {func(k *fakeKernel) { k.fail = failing("try " + integrityName) }, "invalid argument"},
		"integrity":                   {func(k *fakeKernel) { k.fail = failing("create " + integrityName) }, "invalid argument"},
		"crypt":                       {func(k *fakeKernel) { k.fail = failing("create " + cryptName) }, "invalid argument"},
		"open":                        {func(k *fakeKernel) { k.fail = failing("open " + cryptName) }, "invalid argument"},
	} {
		k := diskKernel()
		x.spoil(k)
		if _, err := disk(t.Context(), k, diskFile(t, 16<<20)); err == nil || !strings.Contains(err.Error(), x.want) || len(k.devices) > 0 {
			t.Errorf("%s: %v, want %q; devices %v", name, err, x.want, k.devices)
		}
	}
	if _, err := disk(t.Context(), diskKernel(), diskFile(t, 16<<20-blockSize)); err == nil || !strings.Contains(err.Error(), "16773120 bytes, want at least") {
		t.Errorf("a small disk: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := disk(ctx, diskKernel(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no disk: %v", err)
	}
}

func failing(which string) func(what, name string) error {
	return func(what, name string) error {
		if what+" "+name == which {
			return unix.EINVAL
		}
		return nil
	}
}

// TestLateDisk: its driver may be slower than the agent.
func TestLateDisk(t *testing.T) {
	path := diskFile(t, 16<<20)
	if err := os.Rename(path, path+".hidden"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		ended <- os.Rename(path+".hidden", path)
	}()
	if _, err := disk(t.Context(), diskKernel(), path); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestKeys are all different, and gone when they were used.
func TestKeys(t *testing.T) {
	seen := map[[32]byte]bool{}
	for range 100 {
		k := newKeys()
		for _, b := range [][]byte{k.tag, k.superblock, k.cipher[:32], k.cipher[32:]} {
			seen[sha256.Sum256(b)] = true
		}
		k.clear()
		if !bytes.Equal(bytes.Join([][]byte{k.tag, k.superblock, k.cipher}, nil), make([]byte, 128)) {
			t.Error("a key is left")
		}
	}
	if len(seen) != 400 {
		t.Errorf("%d different keys of 400", len(seen))
	}
}
