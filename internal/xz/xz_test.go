package xz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	ulikunitz "github.com/ulikunitz/xz"
)

// sample is n bytes that use every kind of LZMA symbol: text, repeats near and
// far, and noise.
func sample(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < n {
		switch k := rng.IntN(40) + 1; rng.IntN(4) {
		case 0:
			for range k * 8 {
				b = append(b, byte(rng.Uint32()))
			}
		case 1:
			b = append(b, bytes.Repeat([]byte{byte(k)}, k*9)...)
		case 2:
			b = append(b, "depends: libc6 (>= 2.36), module "...)
		default:
			if len(b) > k {
				i := rng.IntN(len(b) - k)
				b = append(b, b[i:i+k]...)
			}
		}
	}
	return b[:n]
}

// pack writes an .xz file with the other implementation.
func pack(t testing.TB, data []byte, c ulikunitz.WriterConfig) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := c.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnpack(t *testing.T) {
	big := sample(300_000)
	for _, c := range []struct {
		name string
		data []byte
		conf ulikunitz.WriterConfig
	}{
		{"empty", nil, ulikunitz.WriterConfig{}},
		{"one byte", []byte("x"), ulikunitz.WriterConfig{}},
		{"one block", big, ulikunitz.WriterConfig{}},
		{"many blocks", big, ulikunitz.WriterConfig{BlockSize: 70_000}},
		{"CRC32", big[:5000], ulikunitz.WriterConfig{CheckSum: ulikunitz.CRC32}},
		{"SHA-256", big[:5000], ulikunitz.WriterConfig{CheckSum: ulikunitz.SHA256}},
		{"no check", big[:5000], ulikunitz.WriterConfig{NoCheckSum: true}},
		{"small dictionary", big, ulikunitz.WriterConfig{DictCap: 4096}},
	} {
		t.Run(c.name, func(t *testing.T) {
			packed := pack(t, c.data, c.conf)
			got, err := Unpack(packed, int64(len(c.data)))
			if err != nil || !bytes.Equal(got, c.data) {
				t.Fatalf("got %d bytes, %v; want %d bytes", len(got), err, len(c.data))
			}
			twice, err := Unpack(append(packed, packed...), int64(2*len(c.data)))
			if err != nil || !bytes.Equal(twice, append(c.data, c.data...)) {
				t.Errorf("two streams: got %d bytes, %v", len(twice), err)
			}
		})
	}
}

// The window slides many times, in lengths that no chunk divides.
func TestSlidingWindow(t *testing.T) {
	data := bytes.Repeat(sample(423_456), 8)
	packed := pack(t, data, ulikunitz.WriterConfig{DictCap: 1 << 16})
	out := make(buffer, len(data))
	if _, err := Decode(context.Background(), out, bytes.NewReader(packed), int64(len(packed)), Limits{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out, data) {
		t.Error("content differs")
	}
}

// TestTool compares with the program that most .xz files come from.
func TestTool(t *testing.T) {
	testenv.Need(t, "xz")
	data := sample(300_000)
	for _, args := range []string{"-0", "-6", "-9e", "-6 --block-size=70000", "-T2 --block-size=120000",
		"--check=crc32 --lzma2=dict=1MiB", "--check=sha256", "--check=none", "--lzma2=lc=0,lp=4,pb=0", "--lzma2=lc=2,lp=2,pb=4,mode=fast"} {
		cmd := exec.Command("xz", append(strings.Fields(args), "-c")...)
		cmd.Stdin = bytes.NewReader(data)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Unpack(packed, 1<<24); err != nil || !bytes.Equal(got, data) {
			t.Errorf("xz %s: got %d bytes, %v", args, len(got), err)
		}
	}
	cmd := exec.Command("xz", "--x86", "--lzma2", "-c")
	cmd.Stdin = bytes.NewReader(data)
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(packed, 1<<24); !errors.Is(err, ErrUnsupported) {
		t.Errorf("x86 filter: got %v, want ErrUnsupported", err)
	}
}

func TestRefusals(t *testing.T) {
	data := sample(10_000)
	packed := pack(t, data, ulikunitz.WriterConfig{BlockSize: 9_000})
	var limit *LimitError
	if _, err := Unpack(packed, int64(len(data)-1)); !errors.As(err, &limit) {
		t.Errorf("limit: got %v", err)
	}
	_, err := Decode(context.Background(), make(buffer, len(data)), bytes.NewReader(packed), int64(len(packed)), Limits{Dict: 4096})
	if err == nil || !strings.Contains(err.Error(), "dictionary of") {
		t.Errorf("dictionary: got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Decode(ctx, make(buffer, len(data)), bytes.NewReader(packed), int64(len(packed)), Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
	for n := 0; n < len(packed); n += 7 {
		if _, err := Unpack(packed[:n], 1<<20); err == nil {
			t.Fatalf("cut to %d bytes: no error", n)
		}
	}
	for i := range packed {
		if i > 64 && i < len(packed)-64 && i%7 != 0 { // every byte of the headers and the index
			continue
		}
		bad := bytes.Clone(packed)
		bad[i] ^= 0x10
		if _, err := Unpack(bad, 1<<20); err == nil {
			t.Fatalf("bit flipped at offset %#x: no error", i)
		}
	}
}

// Headers that lie, with checksums that are right.
func TestLies(t *testing.T) {
	data := sample(50_000)
	data = append(data, data[:100]...) // a match from far back
	small := pack(t, data, ulikunitz.WriterConfig{DictCap: 1 << 16})
	header := small[12:][:(int(small[12])+1)*4]
	i := bytes.Index(header, []byte{filterLZMA2, 1}) + 2
	header[i] = 0 // a dictionary of 4 KiB
	binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	if _, err := Unpack(small, 1<<20); !errors.Is(err, errCorrupt) {
		t.Errorf("match beyond the dictionary: %v", err)
	}

	for n := range 4 { // lengths whose padding differs
		b := pack(t, []byte("hello"[:1+n]), ulikunitz.WriterConfig{NoCheckSum: true})
		index := b[len(b)-streamFooterSize-8 : len(b)-streamFooterSize]
		if index[0] != 0 || index[1] != 1 || (index[2]+4)&^3 != (index[2]+3)&^3 {
			continue // one more byte would move the next block
		}
		index[2]++ // size of the block
		binary.LittleEndian.PutUint32(index[4:], crc32.ChecksumIEEE(index[:4]))
		if _, err := Unpack(b, 1<<20); err == nil || !strings.Contains(err.Error(), "size differs from the index") {
			t.Errorf("block of another size: %v", err)
		}
		return
	}
	t.Error("no length to try")
}

func FuzzUnpack(f *testing.F) {
	for _, n := range []int{0, 1, 3000} {
		f.Add(pack(f, sample(n), ulikunitz.WriterConfig{BlockSize: 1000}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		got, err := Unpack(b, limit)
		if err != nil {
			return
		}
		r, err := ulikunitz.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("accepted what ulikunitz/xz refuses: %v", err)
		}
		want, err := io.ReadAll(io.LimitReader(r, limit+1))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, ulikunitz/xz %d bytes, %v", len(got), len(want), err)
		}
	})
}

// FuzzIndex gives parseIndex bodies whose CRC32 is right, which FuzzUnpack never finds.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{0, 1, 0x20, 0x90, 0x4e, 0, 0, 0})
	f.Add([]byte{0, 2, 5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		blocks, packed, err := parseIndex(binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)), 4, 1<<30)
		if err != nil {
			return
		}
		var sum int64
		for _, bl := range blocks {
			if bl.offset != sum || bl.unpadded < 5 || bl.size < 0 || bl.size > 1<<30 {
				t.Fatalf("block %+v after %d bytes", bl, sum)
			}
			sum += (bl.unpadded + 3) &^ 3
		}
		if sum != packed {
			t.Fatalf("packed %d, blocks sum up to %d", packed, sum)
		}
	})
}

// FuzzLZMA2 feeds chunks without the checksums around them.
func FuzzLZMA2(f *testing.F) {
	packed := pack(f, sample(200), ulikunitz.WriterConfig{})
	f.Add(packed[24:], uint16(200))
	f.Add([]byte{1, 0, 2, 'a', 'b', 'c', 0}, uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		var d lzma2
		var n int
		d.begin(make([]byte, windowSize(int64(size), 4096)), 4096, func(p []byte) error { n += len(p); return nil })
		if err := d.decode(bytes.NewReader(b), int64(size), func() error { return nil }); err == nil && n != int(size) {
			t.Fatalf("decoded %d bytes, want %d", n, size)
		}
	})
}

// BenchmarkDecode unpacks XZ_BENCH, for example the data.tar.xz of a kernel package.
func BenchmarkDecode(b *testing.B) {
	path := os.Getenv("XZ_BENCH")
	if path == "" {
		b.Skip("XZ_BENCH names no file")
	}
	in, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		b.Fatal(err)
	}
	out, err := os.Create(filepath.Join(b.TempDir(), "out"))
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	for name, jobs := range map[string]int{"1 job": 1, "2 jobs": 2} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n, err := Decode(context.Background(), out, in, fi.Size(), Limits{Jobs: jobs})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
