package initrd

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/plinth-os/plinth/internal/newc"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

const epoch = 1767225600

// initSize is the size of /init in bytes: several blocks of those compressors
// that work on several at a time; xz does not, and is slow.
func initSize(compression string) int {
	if compression == "xz" {
		return 200_000
	}
	return 5 << 19
}

// words are n bytes that compress about as well as programs do, always the same.
func text(n int) []byte {
	r := rand.New(rand.NewChaCha8([32]byte{1}))
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if at := len(b) - 1 - r.IntN(1<<16); at > 0 && r.IntN(2) == 0 {
			b = append(b, b[at:min(len(b), at+4+r.IntN(30))]...)
		} else {
			b = fmt.Appendf(b, "%d ", r.Uint32())
		}
	}
	return b[:n]
}

func sample(compression string) []tree.Entry {
	return []tree.Entry{
		tree.File("init", 0o755, tree.Bytes(text(initSize(compression)))),
		tree.File("usr/lib/zeros", 0o644, tree.Bytes(make([]byte, 1<<19+1))),
		tree.CharDev("dev/console", 0o600, 5, 1),
		tree.Symlink("bin", "usr/bin"),
	}
}

func early() []tree.Entry {
	return []tree.Entry{tree.File("kernel/firmware/acpi/dsdt.aml", 0o644, tree.Bytes([]byte("DSDT, odd")))}
}

func write(t testing.TB, early, main []tree.Entry, p Params) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, early, main, p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var compressions = []string{"none", "gzip", "zstd", "xz"}

// A change of these bytes changes PCR 9 of every image. They hold for
// klauspost/compress v1.20.3, klauspost/pgzip v1.3.0 and ulikunitz/xz v0.5.17;
// with another version of these they may change, and with nothing else.
func TestWriteGolden(t *testing.T) {
	for _, tt := range []struct {
		compression string
		level       int
		want        string
	}{
		{"none", 0, "7f9ff680568e97e44c420e39d387eb9beb5057c512db971ee4a30d53812d21ae"},
		{"gzip", 0, "49a85e0077857fef0b620d003413009dba48ef28e94af15ea57151f6f465d91e"},
		{"gzip", 9, "957bf699e0fdb4ebb3ae99797fcf0e3ae0fabaa2a714ab6cb5f5c8dd7abffea3"},
		{"zstd", 0, "166f54222699bf6f7905c6761f71de71032c7c034bd0ccfb92bc457cf250c2c9"},
		{"zstd", 1, "7321e2fac79e26be208b7b0a63f8bef4c8361a0f263e2e3cac08f36dda9cc97a"},
		{"zstd", 9, "59c07abc62a18163b1374798abf76aa0a343801e2fd026ad289d23250846fac2"},
		{"zstd", 19, "f649bf894662aa411574e9736cad0a041cd1667a7b3208bc347f702c9547bdcb"},
		{"xz", 0, "a6bf727656687731a5879d188278b8c63c6a3d93ba9b9a2a5a98db1b7fa0e2e1"},
	} {
		if testing.Short() && tt.level > 1 {
			continue
		}
		p := Params{Compression: tt.compression, Level: tt.level, Epoch: epoch}
		sum := sha256.Sum256(write(t, nil, sample(tt.compression), p))
		if got := hex.EncodeToString(sum[:]); got != tt.want {
			t.Errorf("%s %d: sha256 is %s, want %s", tt.compression, tt.level, got, tt.want)
		}
	}
}

// The number of processors and the order of entries do not matter.
func TestWriteIsDeterministic(t *testing.T) {
	for _, compression := range compressions {
		p := Params{Compression: compression, Epoch: epoch}
		want := sha256.Sum256(write(t, early(), sample(compression), p))
		for _, procs := range []int{1, 2, 8} {
			old := runtime.GOMAXPROCS(procs)
			entries := sample(compression)
			entries[0], entries[2] = entries[2], entries[0]
			got := sha256.Sum256(write(t, early(), entries, p))
			runtime.GOMAXPROCS(old)
			if got != want {
				t.Errorf("%s: GOMAXPROCS=%d makes other bytes", compression, procs)
			}
		}
	}
}

func decompress(t testing.TB, compression string, r io.Reader) io.Reader {
	t.Helper()
	var err error
	switch compression {
	case "gzip":
		var z *gzip.Reader
		if z, err = gzip.NewReader(r); err == nil {
			z.Multistream(false) // zeros follow
			return z
		}
	case "zstd":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r, zstd.WithDecoderMaxWindow(zstdWindow)); err == nil {
			t.Cleanup(d.Close)
			return d
		}
	case "xz":
		r, err = xz.ReaderConfig{SingleStream: true}.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWriteReadsBack(t *testing.T) {
	for _, compression := range compressions {
		for n := range 4 { // ends that need filling up, and not
			main := append(sample(compression), tree.File("n", 0o644, tree.Bytes(text(n))))
			if compression == "xz" && n > 0 {
				break // always a multiple of 4, and slow
			}
			b := write(t, early(), main, Params{Compression: compression, Epoch: epoch})
			if len(b)%4 != 0 {
				t.Errorf("%s: %d bytes", compression, len(b))
			}
			r := bytes.NewReader(b)
			first, err := newc.Read(r, newc.Limits{})
			if err != nil || len(first) != 5 || first[4].Path != "kernel/firmware/acpi/dsdt.aml" {
				t.Fatalf("%s: early archive: %v, %v", compression, first, err)
			}
			second, err := newc.Read(decompress(t, compression, r), newc.Limits{})
			if err != nil || len(second) != 9 || second[4].Path != "init" || second[4].Content.Size != int64(initSize(compression)) {
				t.Fatalf("%s: main archive: %d entries, %v", compression, len(second), err)
			}
		}
	}
}

// Second opinions: the tools unpack the same archive, and cpio lists it.
func TestToolsRead(t *testing.T) {
	for _, compression := range compressions[1:] {
		t.Run(compression, func(t *testing.T) {
			testenv.Need(t, compression)
			plain := write(t, nil, sample(compression), Params{Compression: "none", Epoch: epoch})
			var b bytes.Buffer
			c, err := compressor(&b, Params{Compression: compression}) // without the zeros at the end, which zstd takes ill
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(plain); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			for _, arg := range []string{"-t", "-dc"} {
				cmd := exec.Command(testenv.Tool(compression), arg)
				cmd.Stdin = bytes.NewReader(b.Bytes())
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil || arg == "-dc" && !bytes.Equal(out, plain) {
					t.Errorf("%s %s: %v, %d bytes, want %d\n%s", compression, arg, err, len(out), len(plain), &stderr)
				}
			}
		})
	}
	t.Run("cpio", func(t *testing.T) {
		testenv.Need(t, "cpio")
		cmd := exec.Command(testenv.Tool("cpio"), "-it", "--quiet")
		cmd.Stdin = bytes.NewReader(write(t, nil, sample("none"), Params{Compression: "none"}))
		out, err := cmd.CombinedOutput()
		if want := ".\nbin\ndev\ndev/console\ninit\nusr\nusr/lib\nusr/lib/zeros\n"; err != nil || string(out) != want {
			t.Errorf("%v, got %q, want %q", err, out, want)
		}
	})
}

// What the kernel's decoders insist on, byte by byte.
func TestHeaders(t *testing.T) {
	main := []tree.Entry{tree.File("init", 0o755, tree.Bytes(text(100_000)))}
	b := write(t, nil, main, Params{Compression: "xz"})
	if b[7] != 1 { // .xz file format, 2.1.1.2: CRC32
		t.Errorf("xz: stream flags are % x, want 00 01", b[6:8])
	}
	b = write(t, nil, main, Params{Compression: "gzip"})
	if want := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}; !bytes.Equal(b[:10], want) { // no name, no time, unknown system
		t.Errorf("gzip: header is % x, want % x", b[:10], want)
	}
	b = write(t, nil, main, Params{Compression: "zstd", Level: 19})
	var h zstd.Header
	if err := h.Decode(b); err != nil || h.WindowSize > zstdWindow || h.SingleSegment {
		t.Errorf("zstd: window is %d (%v), want at most %d", h.WindowSize, err, zstdWindow)
	}
}

type fullWriter struct{ room int }

func (w *fullWriter) Write(b []byte) (int, error) {
	if w.room -= len(b); w.room < 0 {
		return 0, errFull
	}
	return len(b), nil
}

var errFull = errors.New("disk full")

func TestWriteErrors(t *testing.T) {
	main := []tree.Entry{tree.File("init", 0o755, tree.Bytes(text(100_000)))}
	for _, compression := range compressions {
		size := len(write(t, early(), main, Params{Compression: compression}))
		for _, room := range []int{0, 100, 1000, size / 2, size - 1} {
			err := Write(&fullWriter{room}, early(), main, Params{Compression: compression})
			if !errors.Is(err, errFull) {
				t.Errorf("%s: room for %d of %d bytes: got %v", compression, room, size, err)
			}
		}
	}
	for _, tt := range []struct {
		p     Params
		early []tree.Entry
		want  string
	}{
		{Params{}, nil, `compression ""`},
		{Params{Compression: "lz4"}, nil, `compression "lz4": want none`},
		{Params{Compression: "none", Level: 1}, nil, "level is 1"},
		{Params{Compression: "xz", Level: 6}, nil, "level is 6"},
		{Params{Compression: "gzip", Level: 10}, nil, "want 1 to 9"},
		{Params{Compression: "gzip", Level: -1}, nil, "want 1 to 9"},
		{Params{Compression: "zstd", Level: 20}, nil, "want 1 to 19"},
		{Params{Compression: "zstd", Level: -1}, nil, "want 1 to 19"},
		{Params{Compression: "zstd", Epoch: -1}, nil, "time -1"},
		{Params{Compression: "zstd"}, []tree.Entry{{Path: "/"}}, "early archive"},
	} {
		err := Write(io.Discard, tt.early, nil, tt.p)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.p, err, tt.want)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	main := []tree.Entry{tree.File("init", 0o755, tree.Bytes(text(20<<20)))}
	for _, compression := range compressions[:3] {
		b.Run(compression, func(b *testing.B) {
			b.SetBytes(20 << 20)
			for b.Loop() {
				write(b, nil, main, Params{Compression: compression})
			}
		})
	}
}
