package gunzip

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// sets are contents by name: what compresses in each of the ways that there are.
func sets(t testing.TB) map[string][]byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	noise, numbers, periods := make([]byte, 300_000), []byte{}, []byte{}
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for i := range 100_000 {
		numbers = fmt.Appendf(numbers, "%d %x\n", i, i*i)
	}
	for p := range 40 {
		for range 30 {
			periods = append(periods, bytes.Repeat(noise[p:2*p+1], 1+rng.IntN(40))...)
		}
	}
	return map[string][]byte{
		"nothing": {}, "a byte": {7}, "zeros": make([]byte, 1<<20), "noise": noise, "numbers": numbers,
		"periods": periods, "program": program[:min(len(program), 1<<20)],
		"far":   append(append(noise[:32768:32768], noise[:1000]...), noise[100_000:]...),
		"mixed": append(append(noise[:70_000:70_000], numbers[:400_000]...), program[:200_000]...),
	}
}

func packed(t testing.TB, level int, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 { // with flushes, which are empty stored blocks
		n := min(len(b), 150_001)
		if _, err := w.Write(b[:n]); err != nil {
			t.Fatal(err)
		}
		if b = b[n:]; level != 9 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestReader(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r },
		"bytes": iotest.OneByteReader,
		"halfs": iotest.HalfReader,
		"end":   iotest.DataErrReader,
	}
	for name, want := range sets(t) {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 6, 9} {
			stream := packed(t, level, want)
			for reader, wrap := range readers {
				got, err := io.ReadAll(NewReader(wrap(bytes.NewReader(stream))))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, level %d, %s: %d bytes, %v: want %d bytes", name, level, reader, len(got), err, len(want))
				}
			}
			if err := iotest.TestReader(NewReader(bytes.NewReader(stream)), want); err != nil && len(want) < 1000 {
				t.Errorf("%s, level %d: %v", name, level, err)
			}
		}
	}
}

// same compares with compress/gzip: the verdict, whether it is the sum's, and the bytes
// that both have. It returns our error.
func same(t *testing.T, what string, stream []byte) error {
	t.Helper()
	var want []byte
	r, wantErr := gzip.NewReader(bytes.NewReader(stream))
	if wantErr == nil {
		want, wantErr = io.ReadAll(r)
	}
	got, err := io.ReadAll(NewReader(bytes.NewReader(stream)))
	if err != nil && strings.Contains(err.Error(), "gzip header: flags") {
		return err // RFC 1952, section 2.3.1.2, wants that; compress/gzip does not look
	}
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%s: %v, compress/gzip: %v", what, err, wantErr)
	}
	// A test cannot give the sum of data that is bad.
	if sum := err != nil && strings.Contains(err.Error(), ": checksum is"); sum != errors.Is(wantErr, gzip.ErrChecksum) {
		t.Errorf("%s: %v, compress/gzip: %v", what, err, wantErr)
	}
	if n := min(len(got), len(want)); err == nil && len(got) != len(want) || !bytes.Equal(got[:n], want[:n]) {
		t.Errorf("%s: %d bytes, compress/gzip has %d others", what, len(got), len(want))
	}
	return err
}

// full is a small stream with all that a header can have, of two members, each block type.
func full() []byte {
	h := []byte{0x1f, 0x8b, 8, flagHCRC | flagExtra | flagName | flagComment, 1, 2, 3, 4, 0, 3}
	h = append(h, 5, 0)
	h = append(h, "extraname\x00comment\x00"...)
	h = binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h)))
	var w bits
	w.put(0, 1) // stored
	w.put(0, 2)
	w.align()
	w.b = append(w.b, 3, 0, 0xfc, 0xff, 'a', 'b', 'c')
	w.put(0, 1) // fixed
	w.put(1, 2)
	fixed().match(&w, 10, 2)
	fixed().symbol(&w, 256)
	rng := rand.New(rand.NewPCG(3, 4))
	c := codes{lit: randomLengths(rng, 286), dist: randomLengths(rng, 30)}
	w.put(1, 1)
	c.header(&w)
	for range 20 {
		c.symbol(&w, rng.IntN(256))
	}
	c.match(&w, 200, 17)
	c.symbol(&w, 256)
	return append(finish(h, w.bytes()), stream([]byte{3, 0})...)
}

func TestTruncated(t *testing.T) {
	b := full()
	if err := same(t, "whole", b); err != nil {
		t.Fatal(err)
	}
	first := len(b) - len(stream([]byte{3, 0}))
	for n := range b {
		err := same(t, fmt.Sprintf("%d bytes", n), b[:n])
		if n != first && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: %v: want %v", n, len(b), err, io.ErrUnexpectedEOF)
		}
	}
}

func TestFlipped(t *testing.T) {
	for i := range full() {
		for bit := range 8 {
			b := full()
			b[i] ^= 1 << bit
			same(t, fmt.Sprintf("bit %d of byte %d", bit, i), b)
		}
	}
	// Beyond the reach of slow, where fast reads them.
	b := packed(t, 6, sets(t)["program"][:20_000])
	for i := 0; i < len(b); i += 1 + len(b)/2000 {
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		same(t, fmt.Sprintf("bit %d of byte %d", i%8, i), c)
	}
}

func TestRefusals(t *testing.T) {
	head := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	good := finish(head, []byte{3, 0})
	with := func(flags byte, b ...byte) []byte {
		h := append(bytes.Clone(head), b...)
		h[3] = flags
		return finish(h, []byte{3, 0})
	}
	change := func(i int, b byte) []byte {
		c := bytes.Clone(good)
		c[i] ^= b
		return c
	}
	long := bytes.Repeat([]byte{'x'}, 1000)
	for _, row := range []struct {
		name string
		b    []byte
		want string // "": none
	}{
		{"good", good, ""},
		{"nothing", nil, "byte 0: unexpected EOF"},
		{"magic", change(1, 1), "byte 10: gzip header: magic is 1f 8a"},
		{"method", change(2, 1), "method is 9"},
		{"reserved flag", with(0x20), "flags are 0x20"},
		{"text", with(1), ""},
		{"extra", with(flagExtra, append([]byte{0xff, 0xff}, make([]byte, 0xffff)...)...), ""},
		{"name", with(flagName, append(long[:511:511], 0)...), ""},
		{"long name", with(flagName, append(long[:512:512], 0)...), "byte 522: gzip header: a name or comment of more than 512 bytes"},
		{"endless comment", with(flagComment, long...), "more than 512"},
		{"header's sum", with(flagHCRC, 1, 2), "gzip header: its checksum is 0201"},
		{"sum", change(12, 1), "byte 20: checksum is 00000000, want 00000001"},
		{"size", change(19, 1), "size is 0, want 16777216"},
		{"zeros behind", append(bytes.Clone(good), make([]byte, 64)...), "gzip header: magic is 00 00"},
		{"a zero behind", append(bytes.Clone(good), 0), "unexpected EOF"},
		{"members", append(bytes.Clone(good), good...), ""},
		{"type 3", finish(head, []byte{7}), "type 3"},
		{"stored", finish(head, []byte{1, 2, 0, 0xfd, 0xfe, 1, 2}), "stored block: size is 0x0002, its complement 0xfefd"},
		{"286 codes", finish(head, []byte{5 | 29<<3&0xff, 31, 0}), "codes of literals"},
	} {
		err := same(t, row.name, row.b)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v: want %q", row.name, err, row.want)
		}
	}
}

// TestBrokenReader: what came before the error is given, and the error is there to see.
func TestBrokenReader(t *testing.T) {
	want := sets(t)["numbers"]
	b, broken := packed(t, 6, want), errors.New("broken")
	for _, n := range []int{0, 5, 12, 1000, len(b) / 2, len(b) - 4, len(b)} {
		got, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken))))
		if !errors.Is(err, broken) || !bytes.HasPrefix(want, got) {
			t.Errorf("broken after %d bytes: %d bytes, %v", n, len(got), err)
		}
		if n >= 1000 && len(got) < n {
			t.Errorf("broken after %d bytes: %d bytes", n, len(got))
		}
	}
	if _, err := io.ReadAll(NewReader(idle{})); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that gives nothing: %v", err)
	}
	z := NewReader(bytes.NewReader(b[:100]))
	_, first := io.ReadAll(z)
	if _, second := z.Read(make([]byte, 1)); second == nil || second != first {
		t.Errorf("%v, then %v", first, second)
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func FuzzReader(f *testing.F) {
	f.Add(full())
	for _, set := range []string{"nothing", "periods", "numbers", "far"} {
		b := sets(f)[set]
		f.Add(packed(f, 6, b[:min(len(b), 60_000)]))
		f.Add(packed(f, gzip.HuffmanOnly, b[:min(len(b), 500)]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same(t, "as it is", b)
		same(t, "as a block", stream(b))
	})
}

func BenchmarkReader(b *testing.B) {
	want := sets(b)["program"]
	stream := packed(b, 6, want)
	buf := make([]byte, 128<<10)
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		"own":           func(r io.Reader) (io.Reader, error) { return NewReader(r), nil },
		"compress-gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(want)))
			for b.Loop() {
				r, err := open(bytes.NewReader(stream))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
