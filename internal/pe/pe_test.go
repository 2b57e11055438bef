package pe_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/pe/petest"
	"github.com/plinth-os/plinth/internal/testenv"
)

func parse(b []byte) (*pe.File, error) { return pe.Parse(bytes.NewReader(b), int64(len(b))) }

func mustParse(t testing.TB, b []byte) *pe.File {
	t.Helper()
	f, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func digest(t testing.TB, f *pe.File) string {
	t.Helper()
	h := sha256.New()
	if err := f.WriteAuthenticode(h); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestParse(t *testing.T) {
	image := petest.Stub("257.13")
	image.Sections = append(image.Sections, petest.Section{Name: ".longest", Data: []byte("x"), VirtualSize: 3})
	for _, pe32 := range []bool{false, true} {
		image.PE32 = pe32
		f := mustParse(t, image.Bytes())
		if f.Machine != pe.MachineAMD64 || f.Subsystem != pe.SubsystemEFIApplication || f.PE32Plus == pe32 {
			t.Errorf("PE32 %v: machine %#x, subsystem %d, PE32+ %v", pe32, f.Machine, f.Subsystem, f.PE32Plus)
		}
		if f.NumberOfSections != 4 || len(f.Sections) != 4 {
			t.Errorf("%d sections, %d in the table: want 4", f.NumberOfSections, len(f.Sections))
		}
		s, ok := f.Section(".longest")
		if !ok {
			t.Fatal("no section .longest")
		}
		data, err := io.ReadAll(f.Data(s))
		if err != nil || !bytes.Equal(data, []byte("x\x00\x00")) {
			t.Errorf("data %q, %v: want VirtualSize bytes of the padded raw data", data, err)
		}
	}
}

func TestMeasured(t *testing.T) {
	for _, row := range []struct {
		name    string
		data    string
		virtual uint32
		want    string
	}{
		{"exact", "HALLO\n", 6, "HALLO\n"},
		{"cut", "HALLO\n", 2, "HA"},
		{"zero-extended", "HALLO\n", 515, "HALLO\n" + strings.Repeat("\x00", 509)},
		{"no raw data", "", 5, "\x00\x00\x00\x00\x00"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := mustParse(t, petest.Image{Sections: []petest.Section{
				{Name: ".s", Data: []byte(row.data), VirtualSize: row.virtual},
			}}.Bytes())
			s, _ := f.Section(".s")
			got, err := io.ReadAll(f.Measured(s))
			if err != nil || string(got) != row.want {
				t.Errorf("got %q, %v: want %q", got, err, row.want)
			}
		})
	}
}

// TestRefused changes one field of a good image at a time. Offsets are those
// of petest: PE header at 0x80, optional header at 0x98, section table at 0x188.
func TestRefused(t *testing.T) {
	put16 := func(off int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint16(b[off:], v); return b }
	}
	put32 := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[off:], v); return b }
	}
	const optional, table = 0x98, 0x188
	for _, row := range []struct {
		name   string
		change func([]byte) []byte
		want   string
		notPE  bool
	}{
		{"empty", func([]byte) []byte { return nil }, "0 bytes", true},
		{"no MZ", put16(0, 0), "magic 0000", true},
		{"e_lfanew beyond the file", put32(0x3c, 0xffffffff), "COFF header", true},
		{"signature", put32(0x80, 0), "signature 00000000", true},
		{"optional header too small", put16(0x94, 100), "100 bytes: want at least 112", false},
		{"optional header beyond the file", put16(0x94, 0xffff), "optional header: 65535 bytes at 0x98: file has", false},
		{"optional header empty", put16(0x94, 0), "optional header: 0 bytes", false},
		{"magic", put16(optional, 0x107), "magic 0x107", false},
		{"17 directories", put32(optional+108, 17), "17 data directories", false},
		{"directories and size differ", put32(optional+108, 15), "15 data directories", false},
		{"many sections", put16(0x86, 0xffff), "section table ends", false},
		{"headers end in the table", put32(optional+60, table+10), "section table ends", false},
		{"headers beyond the file", put32(optional+60, 0x2000), "file has", false},
		{"headers beyond the image", put32(optional+56, 1024), "SizeOfHeaders 0x400: SizeOfImage is 0x400", false},
		{"certificates beyond the file", put32(optional+148, 9000), "certificate table", false},
		{"raw data beyond the file", put32(table+20, 0xfffffe00), "raw data ends at", false},
		{"raw data in the headers", put32(table+20, 512), "inside the headers", false},
		{"address in the headers", put32(table+12, 512), "inside the headers", false},
		{"address beyond the image", put32(table+12, 0xfffff000), "SizeOfImage", false},
		{"size beyond the image", put32(table+8, 0xfffff000), "SizeOfImage", false},
		{"raw data shared", func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[table+16:], uint32(len(b)-1024))
			return b
		}, "headers and raw data", false},
		{"memory shared", func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[table+8:], 0x3000)
			binary.LittleEndian.PutUint32(b[table+48:], 0x2000)
			return b
		}, "in memory", false},
		{"zeros without end", func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[optional+56:], 0xfffff000)
			binary.LittleEndian.PutUint32(b[table+8:], 0xf0000000)
			return b
		}, "in memory", false},
		{"truncated table", func(b []byte) []byte { return b[:table+20] }, "file has", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := parse(row.change(petest.Stub("257.13").Bytes()))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("error %v: want %q", err, row.want)
			}
			if errors.Is(err, pe.ErrNotPE) != row.notPE {
				t.Errorf("error %v: is ErrNotPE %v", err, !row.notPE)
			}
		})
	}
	if _, err := pe.Parse(bytes.NewReader(nil), 1<<32); err == nil || !strings.Contains(err.Error(), "4 GiB") {
		t.Errorf("4 GiB: error %v", err)
	}
}

// TestReadError checks that a file that ends early is an error, not a digest.
func TestReadError(t *testing.T) {
	b := petest.Stub("257.13").Bytes()
	if _, err := pe.Parse(bytes.NewReader(b[:400]), int64(len(b))); !errors.Is(err, io.EOF) {
		t.Errorf("headers are missing: error %v", err)
	}
	f, err := pe.Parse(bytes.NewReader(b[:2000]), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAuthenticode(io.Discard); err == nil {
		t.Error("digest over a truncated file")
	}
}

func TestAuthenticodeRanges(t *testing.T) {
	for _, row := range []struct {
		name  string
		image petest.Image
		skip  []int // offsets of the 4 and 8 bytes left out
	}{
		{"PE32+", petest.Stub("257"), []int{0xd8, 0x128}},
		{"PE32", petest.Image{PE32: true, Sections: petest.Stub("257").Sections}, []int{0xd8, 0x118}},
		{"no directories", petest.Image{Directories: -1, Sections: petest.Stub("257").Sections}, []int{0xd8}},
		{"trailing data", petest.Image{Tail: []byte("odd"), Sections: petest.Stub("257").Sections}, []int{0xd8, 0x128}},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := row.image.Bytes()
			want := append([]byte{}, b[:row.skip[0]]...)
			if rest := b[row.skip[0]+4:]; len(row.skip) == 2 {
				cert := row.skip[1] - row.skip[0] - 4
				want = append(append(want, rest[:cert]...), rest[cert+8:]...)
			} else {
				want = append(want, rest...)
			}
			var got bytes.Buffer
			if err := mustParse(t, b).WriteAuthenticode(&got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d bytes differ from the file without its two fields, %d bytes", got.Len(), len(want))
			}
		})
	}
}

// TestAuthenticodeOrder swaps two sections in the table: the digest covers
// them by file offset, so only the table's own bytes differ.
func TestAuthenticodeOrder(t *testing.T) {
	b := petest.Stub("257").Bytes()
	swapped := bytes.Clone(b)
	copy(swapped[0x188:], b[0x188+40:][:40])
	copy(swapped[0x188+40:], b[0x188:][:40])
	var x, y bytes.Buffer
	if err := mustParse(t, b).WriteAuthenticode(&x); err != nil {
		t.Fatal(err)
	}
	if err := mustParse(t, swapped).WriteAuthenticode(&y); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x.Bytes()[1024:], y.Bytes()[1024:]) {
		t.Error("sections are not sorted by file offset")
	}
}

func TestCertificates(t *testing.T) {
	entry := func(kind uint16, payload string, length int) []byte {
		b := make([]byte, 8)
		binary.LittleEndian.PutUint32(b, uint32(length))
		binary.LittleEndian.PutUint16(b[4:], 0x0200)
		binary.LittleEndian.PutUint16(b[6:], kind)
		return append(b, payload...)
	}
	for _, row := range []struct {
		name  string
		table []byte
		want  []string
		err   string
	}{
		{"one", entry(2, "abcdefgh", 16), []string{"abcdefgh"}, ""},
		{"two, padded", append(append(entry(2, "abc", 11), make([]byte, 5)...), entry(2, "x", 9)...), []string{"abc", "x"}, ""},
		{"another type", append(entry(1, "abcdefgh", 16), entry(2, "ijklmnop", 16)...), []string{"ijklmnop"}, ""},
		{"length 0", entry(2, "abcdefgh", 0), nil, "entry of 0 bytes"},
		{"length 7", entry(2, "abcdefgh", 7), nil, "entry of 7 bytes"},
		{"too long", entry(2, "abcdefgh", 17), nil, "entry of 17 bytes"},
		{"rest", append(entry(2, "abcdefgh", 16), 1, 2, 3), nil, "3 bytes after"},
	} {
		t.Run(row.name, func(t *testing.T) {
			image := petest.Stub("257")
			image.Tail = row.table
			b := image.Bytes()
			binary.LittleEndian.PutUint32(b[0x128:], uint32(len(b)-len(row.table)))
			binary.LittleEndian.PutUint32(b[0x12c:], uint32(len(row.table)))
			f := mustParse(t, b)
			certs, err := f.Certificates()
			if row.err != "" {
				if err == nil || !strings.Contains(err.Error(), row.err) {
					t.Fatalf("error %v: want %q", err, row.err)
				}
				return
			}
			var got []string
			for _, c := range certs {
				got = append(got, string(c))
			}
			if err != nil || strings.Join(got, "|") != strings.Join(row.want, "|") {
				t.Errorf("got %q, %v: want %q", got, err, row.want)
			}
			image.Tail = nil
			if a, b := digest(t, f), digest(t, mustParse(t, image.Bytes())); a != b {
				t.Errorf("digest with certificates %s, without %s", a, b)
			}
		})
	}
	image := petest.Stub("257")
	image.Tail = make([]byte, 1<<20+8)
	b := image.Bytes()
	binary.LittleEndian.PutUint32(b[0x128:], uint32(len(b)-len(image.Tail)))
	binary.LittleEndian.PutUint32(b[0x12c:], uint32(len(image.Tail)))
	if _, err := mustParse(t, b).Certificates(); err == nil || !strings.Contains(err.Error(), "want at most 1048576") {
		t.Errorf("large table: error %v", err)
	}
	// A table that claims bytes of the sections: firmware refuses the image.
	binary.LittleEndian.PutUint32(b[0x128:], 1024)
	binary.LittleEndian.PutUint32(b[0x12c:], uint32(len(b)-1024))
	if err := mustParse(t, b).WriteAuthenticode(io.Discard); err == nil || !strings.Contains(err.Error(), "follow the sections") {
		t.Errorf("table over the sections: error %v", err)
	}
	certs, err := mustParse(t, petest.Stub("257").Bytes()).Certificates()
	if certs != nil || err != nil {
		t.Errorf("unsigned image: %q, %v", certs, err)
	}
}

func TestVectors(t *testing.T) {
	dir := filepath.Join(testenv.Vectors(t), "measure", "go-uefi")
	b, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Vectors []struct {
			File         string
			Authenticode string `json:"authenticode_sha256_by_us"`
			Signed       bool   `json:"digest_found_in_embedded_PKCS7"`
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil || len(doc.Vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(doc.Vectors), err)
	}
	for _, v := range doc.Vectors {
		b, err := os.ReadFile(filepath.Join(dir, v.File))
		if err != nil {
			t.Fatal(err)
		}
		f := mustParse(t, b)
		if got := digest(t, f); got != v.Authenticode {
			t.Errorf("%s: digest %s: want %s", v.File, got, v.Authenticode)
		}
		certs, err := f.Certificates()
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := hex.DecodeString(v.Authenticode)
		if v.Signed && (len(certs) != 1 || !bytes.Contains(certs[0], raw)) {
			t.Errorf("%s: the signature does not hold the digest", v.File)
		}
	}
}

var calculated = regexp.MustCompile(`Calculated message digest : ([0-9A-F]{64})`)

// TestOsslsigncode compares with the digest that osslsigncode computes of the
// images named in PLINTH_TEST_PE (a list of files, signed ones) and of the
// published signed vector.
func TestOsslsigncode(t *testing.T) {
	testenv.Need(t, "osslsigncode")
	files := filepath.SplitList(os.Getenv("PLINTH_TEST_PE"))
	files = append(files, filepath.Join(testenv.Vectors(t), "measure", "go-uefi", "test.pecoff.signed"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// The exit code is about the certificate chain.
		out, _ := exec.Command(testenv.Tool("osslsigncode"), "verify", "-in", file).CombinedOutput()
		m := calculated.FindSubmatch(out)
		if m == nil {
			t.Fatalf("%s: osslsigncode: %s", file, out)
		}
		if got, want := digest(t, mustParse(t, b)), strings.ToLower(string(m[1])); got != want {
			t.Errorf("%s: digest %s: osslsigncode says %s", file, got, want)
		}
	}
}

// FuzzParse checks that whatever parses can be read in full at bounded cost:
// the digest covers no more bytes than the file has, and each section gives
// VirtualSize bytes in all.
func FuzzParse(f *testing.F) {
	f.Add(petest.Stub("257.13").Bytes())
	f.Add(petest.Kernel().Bytes())
	f.Add(petest.Image{PE32: true, Tail: []byte("tail"), Sections: petest.Kernel().Sections}.Bytes())
	f.Add(petest.Image{Directories: -1, Symbols: make([]byte, 36)}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := parse(b)
		if err != nil {
			return
		}
		var n counter
		if err := file.WriteAuthenticode(&n); err == nil && int64(n) > int64(len(b)) {
			t.Errorf("digest over %d bytes of a file of %d", n, len(b))
		}
		if _, err := file.Certificates(); err == nil && int(file.CertTable.Size) > len(b) {
			t.Errorf("%d bytes of certificates in a file of %d", file.CertTable.Size, len(b))
		}
		for _, s := range file.Sections {
			if s.VirtualSize > 1<<20 {
				continue
			}
			var n counter
			if _, err := io.Copy(&n, file.Measured(s)); err != nil || int64(n) != int64(s.VirtualSize) {
				t.Errorf("section %q: %d bytes, %v: want %d", s.Name, n, err, s.VirtualSize)
			}
		}
	})
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
