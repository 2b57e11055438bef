package verity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestTwoBlocks is a tree that a person can follow: two digests, salted, in a
// block of their own, and its digest.
func TestTwoBlocks(t *testing.T) {
	data := append(bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)...)
	p := Params{Algorithm: SHA256, DataBlockSize: 512, HashBlockSize: 512, DataBlocks: 2, Salt: []byte("salt"), Format: 1}
	sum := func(b []byte) []byte {
		d := sha256.Sum256(append([]byte("salt"), b...))
		return d[:]
	}
	block := make([]byte, 512)
	copy(block, sum(data[:512]))
	copy(block[32:], sum(data[512:]))
	tree := &memory{}
	root, err := Format(tree, bytes.NewReader(data), p)
	if err != nil || !bytes.Equal(root, sum(block)) || !bytes.Equal(tree.b, block) {
		t.Errorf("root hash %x, %v\ntree %x", root, err, tree.b)
	}
}

// small has three levels: 700 data blocks, 44 + 3 + 1 hash blocks.
func small(t testing.TB) (data, tree, root []byte, p Params) {
	t.Helper()
	p = Params{Algorithm: SHA256, DataBlockSize: 512, HashBlockSize: 512, DataBlocks: 700, Salt: []byte("x"), Format: 1}
	data = make([]byte, p.DataSize())
	if _, err := rand.NewChaCha8([32]byte{2}).Read(data); err != nil {
		t.Fatal(err)
	}
	m := &memory{}
	root, err := Format(m, bytes.NewReader(data), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.b) != (44+3+1)*512 {
		t.Fatalf("tree of %d bytes", len(m.b))
	}
	return data, m.b, root, p
}

// TestVerifyNamesTheBlock flips one bit in each place.
func TestVerifyNamesTheBlock(t *testing.T) {
	data, tree, root, p := small(t)
	verify := func() error { return Verify(bytes.NewReader(data), bytes.NewReader(tree), p, root) }
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		b    []byte
		off  int
		want CorruptError
	}{
		{"first data block", data, 0, CorruptError{-1, 0}},
		{"last byte of the data", data, len(data) - 1, CorruptError{-1, 699}},
		{"data in the middle", data, 350*512 + 17, CorruptError{-1, 350}},
		{"top", tree, 5, CorruptError{2, 0}},
		{"unused end of the top", tree, 511, CorruptError{2, 0}},
		{"level 1", tree, 512 + 512 + 3, CorruptError{1, 1}},
		{"level 0", tree, 4*512 + 43*512 + 9, CorruptError{0, 43}},
		{"unused end of level 0", tree, len(tree) - 1, CorruptError{0, 43}},
	} {
		x.b[x.off] ^= 0x10
		var got *CorruptError
		if err := verify(); !errors.As(err, &got) || *got != x.want {
			t.Errorf("%s: %v, want %v", x.name, err, &x.want)
		}
		x.b[x.off] ^= 0x10
	}
	a, b := bytes.Clone(data[:512]), bytes.Clone(data[512:1024])
	copy(data, b)
	copy(data[512:], a)
	var got *CorruptError
	if err := verify(); !errors.As(err, &got) || *got != (CorruptError{-1, 0}) {
		t.Errorf("two blocks swapped: %v", err)
	}
	copy(data, a)
	copy(data[512:], b)
	root[0] ^= 1
	if err := verify(); !errors.As(err, &got) || got.Level != 2 {
		t.Errorf("another root hash: %v", err)
	}
}

// TestVerifyNamesTheFirst: with many bad blocks it is always the first of them.
func TestVerifyNamesTheFirst(t *testing.T) {
	data, tree, root, p := small(t)
	for i := 100; i < 700; i++ {
		data[i*512] ^= 1
	}
	for range 50 {
		var got *CorruptError
		if err := Verify(bytes.NewReader(data), bytes.NewReader(tree), p, root); !errors.As(err, &got) || got.Block != 100 {
			t.Fatalf("%v, want block 100", err)
		}
	}
}

func TestShortDataAndTree(t *testing.T) {
	data, tree, root, p := small(t)
	for name, err := range map[string]error{
		"data of Format": func() error { _, err := Format(&memory{}, bytes.NewReader(data[:len(data)-1]), p); return err }(),
		"data of Verify": Verify(bytes.NewReader(data[:len(data)-1]), bytes.NewReader(tree), p, root),
		"tree of Verify": Verify(bytes.NewReader(data), bytes.NewReader(tree[:len(tree)-1]), p, root),
		"root of Verify": Verify(bytes.NewReader(data), bytes.NewReader(tree), p, root[:31]),
	} {
		var corrupt *CorruptError
		if err == nil || errors.As(err, &corrupt) {
			t.Errorf("%s cut: error is %v", name, err)
		}
	}
}

// failing is a disk that is full.
type failing struct{}

func (failing) WriteAt([]byte, int64) (int, error) { return 0, errors.New("disk full") }

func TestFormatReportsAFullDisk(t *testing.T) {
	data, _, _, p := small(t)
	before := runtime.NumGoroutine()
	if _, err := Format(failing{}, bytes.NewReader(data), p); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error is %v", err)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

func TestParamsAreChecked(t *testing.T) {
	good := Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 1, Format: 1}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Params){
		"algorithm md5":          func(p *Params) { p.Algorithm = "md5" },
		"data block size 256":    func(p *Params) { p.DataBlockSize = 256 },
		"data block size 3000":   func(p *Params) { p.DataBlockSize = 3000 },
		"hash block size 8192":   func(p *Params) { p.HashBlockSize = 8192 },
		"hash block size 0":      func(p *Params) { p.HashBlockSize = 0 },
		"salt of 257 bytes":      func(p *Params) { p.Salt = make([]byte, 257) },
		"format 2":               func(p *Params) { p.Format = 2 },
		"format -1":              func(p *Params) { p.Format = -1 },
		"no data":                func(p *Params) { p.DataBlocks = 0 },
		"more than offsets hold": func(p *Params) { p.DataBlocks = 1 << 52 },
	} {
		p := good
		change(&p)
		if err := p.Check(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := Format(&memory{}, bytes.NewReader(make([]byte, 4096)), p); err == nil {
			t.Errorf("%s: Format: no error", name)
		}
		if err := Verify(bytes.NewReader(nil), bytes.NewReader(nil), p, make([]byte, 32)); err == nil {
			t.Errorf("%s: Verify: no error", name)
		}
	}
}

func TestSuperblockIsChecked(t *testing.T) {
	s := Superblock{UUID: [16]byte{1}, Params: Params{Algorithm: SHA512, DataBlockSize: 512, HashBlockSize: 4096, DataBlocks: 9, Salt: []byte("pepper"), Format: 1}}
	good, err := s.Marshal()
	if err != nil || len(good) != SuperblockSize {
		t.Fatalf("%d bytes, %v", len(good), err)
	}
	if got, err := ParseSuperblock(good); err != nil || got.UUID != s.UUID || string(got.Salt) != "pepper" || got.Algorithm != SHA512 {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"cut":                 func(b []byte) []byte { return b[:511] },
		"signature":           func(b []byte) []byte { b[0] = 'V'; return b },
		"version 2":           func(b []byte) []byte { b[8] = 2; return b },
		"hash type 2":         func(b []byte) []byte { b[12] = 2; return b },
		"algorithm":           func(b []byte) []byte { b[32] = 'x'; return b },
		"data block size 0":   func(b []byte) []byte { b[65] = 0; return b },
		"data block size 4 G": func(b []byte) []byte { b[67] = 0xff; return b },
		"salt size 60000":     func(b []byte) []byte { b[80], b[81] = 0x60, 0xea; return b },
	} {
		if got, err := ParseSuperblock(change(bytes.Clone(good))); err == nil {
			t.Errorf("%s: parsed as %+v", name, got)
		}
	}
	if _, err := ParseSuperblock(make([]byte, 4096)); !errors.Is(err, ErrNoSuperblock) {
		t.Errorf("zeros: %v", err)
	}
}

func FuzzParseSuperblock(f *testing.F) {
	s := Superblock{Params: Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 1, Salt: make([]byte, 32), Format: 1}}
	b, err := s.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSuperblock(b)
		if err != nil {
			return
		}
		again, err := s.Marshal()
		if err != nil {
			t.Fatalf("parsed, and cannot be written: %v", err)
		}
		if back, err := ParseSuperblock(again); err != nil || hex.EncodeToString(back.Salt) != hex.EncodeToString(s.Salt) || back.DataBlocks != s.DataBlocks {
			t.Fatalf("%+v became %+v, %v", s, back, err)
		}
	})
}

func BenchmarkFormat(b *testing.B) {
	const size = 256 << 20
	path := filepath.Join(b.TempDir(), "data")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: size / 4096, Salt: make([]byte, 32), Format: 1}
	b.SetBytes(size)
	for b.Loop() {
		if _, err := Format(&memory{b: make([]byte, 0, p.TreeSize())}, f, p); err != nil {
			b.Fatal(err)
		}
	}
}
