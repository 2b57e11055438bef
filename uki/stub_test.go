package uki

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/pe/petest"
)

func parse(t testing.TB, b []byte) *pe.File {
	t.Helper()
	f, err := pe.Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStubVersion(t *testing.T) {
	for _, row := range []struct {
		magic string
		want  Version
		known bool
		ok    bool
	}{
		{"#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####", Version{252, 39, "252.39-1~deb12u2"}, true, true},
		{"#### LoaderInfo: systemd-stub 257.13-1~deb13u1 ####\x00\x00", Version{257, 13, "257.13-1~deb13u1"}, true, true},
		{"#### LoaderInfo: systemd-stub 262 ####", Version{262, 0, "262"}, true, true},
		{"#### LoaderInfo: systemd-stub 258~rc2 ####", Version{258, 0, "258~rc2"}, true, true},
		{"#### LoaderInfo: systemd-stub 263.1 ####", Version{263, 1, "263.1"}, false, true},
		{"#### LoaderInfo: systemd-stub 251 ####", Version{251, 0, "251"}, false, true},
		{"#### LoaderInfo: systemd-boot 257 ####", Version{}, false, false},
		{"#### LoaderInfo: systemd-stub 257", Version{}, false, false},
		{"#### LoaderInfo: systemd-stub v257 ####", Version{}, false, false},
		{"#### LoaderInfo: systemd-stub -3 ####", Version{}, false, false},
		{"#### LoaderInfo: systemd-stub 99999999999999999999 ####", Version{}, false, false},
		{"", Version{}, false, false},
	} {
		f := parse(t, petest.Image{Sections: []petest.Section{{Name: ".sdmagic", Data: []byte(row.magic)}}}.Bytes())
		got, err := StubVersion(f)
		if !row.ok {
			if !errors.Is(err, ErrUnknownStub) {
				t.Errorf("%q: error %v: want ErrUnknownStub", row.magic, err)
			}
			continue
		}
		if err != nil || got != row.want || got.Known() != row.known {
			t.Errorf("%q: got %+v, known %v, %v: want %+v, known %v", row.magic, got, got.Known(), err, row.want, row.known)
		}
	}
	if _, err := StubVersion(parse(t, petest.Kernel().Bytes())); !errors.Is(err, ErrUnknownStub) || !strings.Contains(err.Error(), "no section .sdmagic") {
		t.Errorf("no .sdmagic: error %v: want ErrUnknownStub", err)
	}
}

// TestMeasuredOrder spells the lists out as they stand in systemd's sources;
// the table in stub.go is the same thing by section.
func TestMeasuredOrder(t *testing.T) {
	for major, want := range map[int]string{
		252: ".linux .osrel .cmdline .initrd .splash .dtb .pcrpkey",
		253: ".linux .osrel .cmdline .initrd .splash .dtb .pcrpkey",
		254: ".linux .osrel .cmdline .initrd .splash .dtb .uname .sbat .pcrpkey",
		255: ".linux .osrel .cmdline .initrd .splash .dtb .uname .sbat .pcrpkey",
		257: ".linux .osrel .cmdline .initrd .ucode .splash .dtb .uname .sbat .pcrpkey .profile .dtbauto .hwids",
		262: ".linux .osrel .cmdline .initrd .ucode .splash .dtb .uname .sbat .pcrpkey .profile .dtbauto .hwids .efifw",
		999: ".linux .osrel .cmdline .initrd .ucode .splash .dtb .uname .sbat .pcrpkey .profile .dtbauto .hwids .efifw",
	} {
		if got := strings.Join(MeasuredOrder(Version{Major: major}), " "); got != want {
			t.Errorf("%d: %s: want %s", major, got, want)
		}
	}
}

func TestMergeSBAT(t *testing.T) {
	const header = "sbat,1,SBAT Version,sbat,1,https://example.org/SBAT.md\n"
	for _, row := range []struct {
		name  string
		texts []string
		want  string
		err   string
	}{
		{"none", nil, "", ""},
		{"empty ones", []string{"", "\x00\x00"}, "", ""},
		{"one", []string{header + "a,1\n"}, header + "a,1\n", ""},
		{"padding", []string{header + "a,1\n\x00\x00\x00"}, header + "a,1\n", ""},
		{"no line end", []string{header + "a,1"}, header + "a,1\n", ""},
		{"CR LF", []string{strings.ReplaceAll(header+"a,1\n", "\n", "\r\n")}, header + "a,1\n", ""},
		{"two", []string{header + "a,1\n", "sbat,1,other\nb,1\n"}, header + "a,1\nb,1\n", ""},
		{"repeated lines", []string{header + "a,1\nb,1\na,1\n", header + "b,1\nc,1\n"}, header + "a,1\nb,1\nc,1\n", ""},
		{"two generations", []string{header + "a,1\n", header + "a,2\n"}, header + "a,1\na,2\n", ""},
		{"header alone", []string{header, header + "a,1\n"}, header + "a,1\n", ""},
		{"no header", []string{header, "a,1\n"}, "", "want \"sbat,\""},
		{"blank", []string{"\n\n"}, "", "want \"sbat,\""},
		{"NUL inside", []string{header + "a\x00b,1\n"}, "", "NUL"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := mergeSBAT(row.texts...)
			if row.err != "" {
				if err == nil || !strings.Contains(err.Error(), row.err) {
					t.Errorf("error %v: want %q", err, row.err)
				}
				return
			}
			if err != nil || got != row.want {
				t.Errorf("got %q, %v: want %q", got, err, row.want)
			}
		})
	}
}
