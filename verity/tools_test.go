package verity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// TestAsVeritysetup compares tree, superblock and root hash with cryptsetup's, at
// the edges of the tree and for every parameter.
func TestAsVeritysetup(t *testing.T) {
	testenv.Need(t, "veritysetup")
	salt := bytes.Repeat([]byte("salty"), 60)
	base := Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, Salt: salt[:32], Format: 1}
	var rows []Params
	for _, n := range []uint64{1, 2, 127, 128, 129, 16384, 16385} {
		p := base
		p.DataBlocks = n
		rows = append(rows, p)
	}
	for _, alg := range []Algorithm{SHA256, SHA512} {
		if testing.Short() {
			break
		}
		for _, format := range []int{0, 1} {
			for _, size := range []int{0, 1, 31, 64, 255, 256} {
				for _, n := range []uint64{1, 2, 17, 300} {
					rows = append(rows, Params{alg, 4096, 4096, n, salt[:size], format})
				}
			}
		}
		for _, d := range []int{512, 1024, 2048, 4096} {
			for _, h := range []int{512, 1024, 2048, 4096} {
				for _, n := range []uint64{1, 8, 9, 700} {
					rows = append(rows, Params{alg, d, h, n, salt[:32], 1})
				}
			}
		}
	}
	if !testing.Short() {
		p := base
		p.DataBlocks, p.DataBlockSize = 1_000_000, 512
		rows = append(rows, p)
	}
	for _, p := range rows {
		t.Run(fmt.Sprintf("%s-%d-%d-blocks%d-salt%d-format%d", p.Algorithm, p.DataBlockSize, p.HashBlockSize, p.DataBlocks, len(p.Salt), p.Format), func(t *testing.T) {
			compare(t, p)
		})
	}
}

func compare(t *testing.T, p Params) {
	dir := t.TempDir()
	data := dataFile(t, dir, p)
	uuid := "01234567-89ab-cdef-0123-456789abcdef"
	out := run(t, append(flags(p), "--uuid", uuid, "format", data.Name(), filepath.Join(dir, "theirs"))...)
	theirs := readFile(t, filepath.Join(dir, "theirs"))
	want := regexp.MustCompile(`Root hash:\s+([0-9a-f]+)`).FindSubmatch(out)[1]

	tree := &memory{}
	root, err := Format(tree, data, p)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(root) != string(want) {
		t.Fatalf("root hash is %x, veritysetup's %s", root, want)
	}
	id, _ := hex.DecodeString("0123456789abcdef0123456789abcdef")
	sb, err := (&Superblock{UUID: [16]byte(id), Params: p}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	ours := append(append(sb, make([]byte, p.HashBlockSize-len(sb))...), tree.b...)
	if !bytes.Equal(ours, theirs) {
		t.Fatalf("superblock and tree differ from veritysetup's at %#x of %#x and %#x bytes", firstDifference(ours, theirs), len(ours), len(theirs))
	}
	if int64(len(tree.b)) != p.TreeSize() {
		t.Errorf("the tree has %d bytes, TreeSize says %d", len(tree.b), p.TreeSize())
	}
	run(t, "verify", data.Name(), filepath.Join(dir, "theirs"), string(want))
	if err := Verify(data, bytes.NewReader(tree.b), p, root); err != nil {
		t.Errorf("Verify: %v", err)
	}
	parsed, err := ParseSuperblock(theirs)
	if err != nil || !bytes.Equal(parsed.Salt, p.Salt) || parsed.DataBlocks != p.DataBlocks || parsed.Format != p.Format || parsed.Algorithm != p.Algorithm {
		t.Errorf("their superblock reads as %+v, %v", parsed, err)
	}
}

func flags(p Params) []string {
	salt := hex.EncodeToString(p.Salt)
	if salt == "" {
		salt = "-"
	}
	return []string{"--hash", string(p.Algorithm), "--data-block-size", fmt.Sprint(p.DataBlockSize), "--hash-block-size", fmt.Sprint(p.HashBlockSize),
		"--data-blocks", fmt.Sprint(p.DataBlocks), "--salt", salt, "--format", fmt.Sprint(p.Format)}
}

func run(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(testenv.Tool("veritysetup"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("veritysetup %q: %v\n%s", args, err, out)
	}
	return out
}

// dataFile is data that differs in every block.
func dataFile(t *testing.T, dir string, p Params) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), p.DataSize()); err != nil {
		t.Fatal(err)
	}
	return f
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// memory is a file in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if need := int(off) + len(b); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], b), nil
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
