package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

func noise(n int) []byte {
	b, r := make([]byte, n), rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func streamed(t *testing.T, p Params, data []byte, write func(io.Writer) error) (root, tree []byte, s *Stream) {
	t.Helper()
	p.DataBlocks = 99
	s, err := NewStream(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(s); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.WriteTree(&out); err != nil {
		t.Fatal(err)
	}
	return s.Root(), out.Bytes(), s
}

// TestStream compares with Format, which veritysetup's tests hold, at the edges of
// blocks, levels and pieces.
func TestStream(t *testing.T) {
	for _, p := range []Params{
		{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, Salt: []byte("salt"), Format: 1},
		{Algorithm: SHA512, DataBlockSize: 512, HashBlockSize: 4096, Format: 0},
		{Algorithm: SHA256, DataBlockSize: 1024, HashBlockSize: 512, Salt: bytes.Repeat([]byte{7}, 256), Format: 1},
	} {
		per := int(p.perBlock())
		whole := streamPiece / p.DataBlockSize
		for _, blocks := range []int{1, 2, per - 1, per, per + 1, per * per, per*per + 1, whole - 1, whole, whole + 1, 3*whole + 1} {
			if blocks*p.DataBlockSize > 80<<20 {
				continue
			}
			t.Run(fmt.Sprintf("%s %d/%d %d", p.Algorithm, p.DataBlockSize, p.HashBlockSize, blocks), func(t *testing.T) {
				p.DataBlocks = uint64(blocks)
				data := noise(blocks * p.DataBlockSize)
				var want memory
				root, err := Format(&want, bytes.NewReader(data), p)
				if err != nil {
					t.Fatal(err)
				}
				got, tree, s := streamed(t, p, data, func(w io.Writer) error {
					for rest := data; len(rest) > 0; { // in odd parts
						n := min(len(rest), 1+len(rest)/3)
						if k, err := w.Write(rest[:n]); k != n || err != nil {
							return fmt.Errorf("%d, %v", k, err)
						}
						rest = rest[n:]
					}
					return nil
				})
				if !bytes.Equal(got, root) || !bytes.Equal(tree, want.b) {
					t.Errorf("root %x, want %x; tree of %d bytes, want %d", got, root, len(tree), len(want.b))
				}
				if fmt.Sprint(s.Params()) != fmt.Sprint(p) || int64(len(tree)) != p.TreeSize() {
					t.Errorf("parameters %v, want %v", s.Params(), p)
				}
				data[len(data)/2] ^= 1
				if flipped, _, _ := streamed(t, p, data, func(w io.Writer) error { _, err := w.Write(data); return err }); bytes.Equal(flipped, root) {
					t.Error("a flipped bit does not move the root hash")
				}
			})
		}
	}
}

// twoZeroBlocks is (printf "$Z$Z" | xxd -r -p; head -c 4032 /dev/zero) | sha256sum,
// with Z the digest of 4096 zeros.
const twoZeroBlocks = "90b10db56173e2e7c847f6ff3ed85a3aebb140bc0064ec9a156ae5b2e71db988"

// TestStreamByHand has the root hash of two blocks of zeros, without salt, as
// sha256sum says it: of the digest of 4096 zeros twice, and 4032 zeros.
func TestStreamByHand(t *testing.T) {
	p := Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, Format: 1}
	root, tree, _ := streamed(t, p, nil, func(w io.Writer) error { _, err := w.Write(make([]byte, 8192)); return err })
	const zeros = "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7" // head -c 4096 /dev/zero | sha256sum
	if got := hex.EncodeToString(tree[:64]); got != zeros+zeros || len(tree) != 4096 {
		t.Errorf("tree begins with %s", got)
	}
	if got := hex.EncodeToString(root); got != twoZeroBlocks {
		t.Errorf("root %s", got)
	}
}

func TestStreamRefusals(t *testing.T) {
	p := Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, Format: 1}
	for _, row := range []struct {
		size int
		want string
	}{{0, "no data"}, {1, "1 bytes of data: want whole blocks of 4096"}, {4097, "want whole blocks"}} {
		s, err := NewStream(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(make([]byte, row.size)); err != nil {
			t.Fatal(err)
		}
		if err := s.WriteTree(io.Discard); err == nil {
			t.Error("a tree before the data is complete")
		}
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%d bytes: got %v, want %q", row.size, err, row.want)
		}
		if err := s.WriteTree(io.Discard); err == nil || s.Root() != nil {
			t.Errorf("%d bytes: a tree, %v, after an error", row.size, err)
		}
	}
	_, _, s := streamed(t, p, nil, func(w io.Writer) error { _, err := w.Write(make([]byte, 4096)); return err })
	if _, err := s.Write([]byte{1}); !errors.Is(err, errClosed) {
		t.Errorf("write after close: %v", err)
	}
	p.Salt = make([]byte, 257)
	if _, err := NewStream(p); err == nil {
		t.Error("salt of 257 bytes is taken")
	}
}

func BenchmarkStream(b *testing.B) {
	data := noise(64 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		s, err := NewStream(Params{Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, Format: 1, Salt: make([]byte, 32)})
		if err != nil {
			b.Fatal(err)
		}
		for rest := data; len(rest) > 0; rest = rest[1<<20:] {
			if _, err := s.Write(rest[:1<<20]); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
