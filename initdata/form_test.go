package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// TestDecodeVectors: devices and annotations that other programs made.
func TestDecodeVectors(t *testing.T) {
	for _, a := range Algorithms {
		name := "small-" + string(a)
		want := vector(t, "made", "initdata", name+".toml")
		for ext, form := range map[string]Form{".img": Device, ".annotation": Annotated, ".toml": Plain} {
			raw, f, err := Decode(vector(t, "made", "initdata", name+ext))
			if err != nil || f != form || !bytes.Equal(raw, want) {
				t.Errorf("%s%s: form %s, %d bytes, %v; want form %s, %d bytes", name, ext, f, len(raw), err, form, len(want))
			}
		}
	}
	raw, err := FromDevice(vector(t, "kata", "agent", "initdata.img"))
	if err != nil || string(raw) != "some content" {
		t.Errorf("Kata's own device: %q, %v", raw, err)
	}
	for name, want := range map[string]string{
		"bad-length.img": "initdata: device: offset 0x8: size ",
		"bad-gzip.img":   "initdata: gzip: ",
		"bomb-64MiB.img": "initdata: gzip: more than 4194304 bytes",
		"bad-magic.img":  ErrNoDevice.Error(),
	} {
		_, err := FromDevice(vector(t, "made", "initdata", name))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
		if errors.Is(err, ErrNoDevice) != (name == "bad-magic.img") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestEncode: both ways, the same bytes each time, and Go's own gzip agrees.
func TestEncode(t *testing.T) {
	for _, n := range []int{0, 1, 476, 477, 4096, MaxSize} {
		raw := bytes.Repeat([]byte("a'\n"), n/3+1)[:n]
		for _, f := range Forms {
			b, err := Encode(raw, f)
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := Encode(raw, f); !bytes.Equal(b, again) {
				t.Errorf("%s of %d bytes: other bytes the second time", f, n)
			}
			got, form, err := Decode(b)
			if err != nil || form != f || !bytes.Equal(got, raw) {
				t.Errorf("%s of %d bytes: form %s, %d bytes, %v", f, n, form, len(got), err)
			}
			packed := packedIn(t, f, b)
			if packed == nil {
				continue
			}
			if head := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255}; !bytes.HasPrefix(packed, head) { // no flags, no time
				t.Errorf("%s: gzip header % x, want % x", f, packed[:10], head)
			}
			z, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s of %d bytes: compress/gzip reads %d bytes, %v", f, n, len(got), err)
			}
		}
	}
}

// packedIn takes the gzip data out of a form by the layout as it is specified.
func packedIn(t *testing.T, f Form, b []byte) []byte {
	t.Helper()
	switch f {
	case Annotated:
		packed, err := base64.StdEncoding.DecodeString(string(b))
		if err != nil {
			t.Fatal(err)
		}
		return packed
	case Device:
		if len(b)%512 != 0 || string(b[:8]) != "initdata" {
			t.Fatalf("device of %d bytes, begins with %q", len(b), b[:8])
		}
		n := binary.LittleEndian.Uint64(b[8:])
		if len(bytes.Trim(b[16+n:], "\x00")) > 0 || len(b[16+n:]) >= 512 {
			t.Errorf("%d bytes behind the data", len(b[16+n:]))
		}
		return b[16:][:n]
	}
	return nil
}

func TestEncodeTool(t *testing.T) {
	testenv.Need(t, "gzip")
	raw := bytes.Repeat([]byte("default CreateContainerRequest := false\n"), 2000)
	b, err := Encode(raw, Device)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initdata.gz")
	if err := os.WriteFile(path, packedIn(t, Device, b), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(testenv.Tool("gzip"), "-cd", path).Output()
	if err != nil || !bytes.Equal(out, raw) {
		t.Errorf("gzip -d: %d bytes, %v; want %d", len(out), err, len(raw))
	}
}

// gzipped is b as Go's own writer packs it.
func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func onDevice(size uint64, packed []byte) []byte {
	return append(binary.LittleEndian.AppendUint64([]byte("initdata"), size), packed...)
}

// loose is packed in base64, with bits set that belong to no byte: a second text
// for the same data.
func loose(t *testing.T, packed []byte) []byte {
	t.Helper()
	b := []byte(base64.StdEncoding.EncodeToString(packed))
	last := bytes.TrimRight(b, "=")
	if len(last) == len(b) {
		t.Fatal("no bits are left over")
	}
	last[len(last)-1]++ // of an even digit
	if other, err := base64.StdEncoding.DecodeString(string(b)); err != nil || !bytes.Equal(other, packed) {
		t.Fatalf("%s: %v", b, err)
	}
	return b
}

func TestDecodeRefuses(t *testing.T) {
	packed := gzipped(t, []byte("document"))
	size := uint64(len(packed))
	two := append(bytes.Clone(packed), packed...)
	broken := bytes.Clone(packed)
	broken[len(broken)-5] ^= 1 // checksum
	noise := make([]byte, 300<<10)
	for i, x := 0, uint32(1); i < len(noise); i++ { // does not get smaller
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	for _, row := range []struct {
		name string
		b    []byte
		want string
	}{
		{"short device", []byte("initdata"), "device: it ends after 8 bytes: want 16"},
		{"device without data", onDevice(size, nil), "offset 0x8: size 32: 0 bytes are left"},
		{"device one short", onDevice(size+1, packed), "size 33: 32 bytes are left"},
		{"device too large", onDevice(maxPacked+1, packed), "want at most 4195328"},
		{"device of 128 GiB", onDevice(128<<30, packed), "size 137438953472: want at most"},
		{"device, size cuts", onDevice(size-1, packed), "gzip: unexpected EOF"},
		{"two members", two, "gzip: offset 0x20: 32 bytes behind the data"},
		{"two members on a device", onDevice(2*size, two), "32 bytes behind the data"},
		{"bytes behind gzip", append(bytes.Clone(packed), 0), "1 bytes behind the data"},
		{"checksum", broken, "gzip: gzip: invalid checksum"},
		{"no gzip", onDevice(4, []byte("text")), "gzip: "},
		{"bomb", gzipped(t, make([]byte, MaxSize+1)), "gzip: more than 4194304 bytes in 4"},
		{"annotation", []byte("H4sI!"), "annotation: illegal base64"},
		{"annotation of two", []byte(base64.StdEncoding.EncodeToString(two)), "32 bytes behind the data"},
		{"annotation, loose bits", loose(t, packed), "annotation: illegal base64"},
		{"large annotation", append([]byte("H4sI"), bytes.Repeat([]byte("A"), MaxFile)...), "annotation: 5594"},
	} {
		t.Run(row.name, func(t *testing.T) {
			raw, _, err := Decode(row.b)
			if err == nil || !strings.Contains(err.Error(), row.want) || raw != nil {
				t.Errorf("%d bytes, error %v, want %q", len(raw), err, row.want)
			}
		})
	}
	if _, err := Encode(noise, Annotated); err == nil || !strings.Contains(err.Error(), "Kubernetes takes at most 262096") {
		t.Errorf("an annotation of %d bytes: error %v", len(noise), err)
	}
	if _, err := Encode(noise, Device); err != nil {
		t.Error(err)
	}
	for _, f := range append([]Form{"zip", Compressed}, Forms...) {
		if _, err := Encode(make([]byte, MaxSize+1), f); err == nil {
			t.Errorf("%s of %d bytes: no error", f, MaxSize+1)
		}
	}
	if _, err := Encode(nil, "zip"); err == nil || !strings.Contains(err.Error(), `form "zip"`) {
		t.Errorf("form zip: %v", err)
	}
}

// TestDeviceBehind: a device has any size, and zeros or leavings behind the data.
func TestDeviceBehind(t *testing.T) {
	b, err := Encode([]byte("document"), Device)
	if err != nil {
		t.Fatal(err)
	}
	raw, _, err := Decode(append(b, bytes.Repeat([]byte("x"), 4096)...))
	if err != nil || string(raw) != "document" {
		t.Errorf("%q, %v", raw, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, form := range Forms {
		if b, err := Encode([]byte("version = \"0.1.0\"\n"), form); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, form, err := Decode(b)
		if err != nil || form == Compressed {
			return
		}
		if len(raw) > MaxSize && form != Plain {
			t.Fatalf("%d bytes", len(raw))
		}
		again, err := Encode(raw, form)
		if err != nil {
			return // too large for an annotation
		}
		if got, f, err := Decode(again); err != nil || f != form && form != Plain || form != Plain && !bytes.Equal(got, raw) {
			t.Errorf("form %s: %v", form, err)
		}
	})
}
