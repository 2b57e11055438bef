package e2e

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// edit rewrites a file.
func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	if err := os.WriteFile(path, change(read(t, path)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// changeGPT flips a bit of the disk's GUID in both copies of the table, which the
// agent wants to agree, and mends the headers' checksums: UEFI 2.10, table 5.5.
func changeGPT(t *testing.T, path string) {
	edit(t, path, func(b []byte) []byte {
		for _, h := range [][]byte{b[512:][:92], b[len(b)-512:][:92]} {
			h[56] ^= 1
			copy(h[16:20], "\x00\x00\x00\x00")
			binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
		}
		return b
	})
}

// changeKernel flips a bit of the kernel inside the UKI on the ESP: of the name
// in its version string, so that it still boots.
func changeKernel(t *testing.T, path string) {
	edit(t, path, func(b []byte) []byte {
		i := bytes.Index(b, []byte("debian-kernel@"))
		if i < 0 {
			t.Fatal("the kernel's version string does not name who built it")
		}
		b[i] ^= 0x20
		return b
	})
}

// changeUname flips a bit of the UKI's section .uname, which nothing but the
// stub's measurement reads.
func changeUname(t *testing.T, path string) {
	edit(t, path, func(b []byte) []byte {
		start := bytes.Index(b, read(t, filepath.Join(filepath.Dir(path), "image.efi"))[:4096])
		f, err := pe.Parse(bytes.NewReader(b[start:]), int64(len(b)-start))
		if err != nil {
			t.Fatal(err)
		}
		s, ok := f.Section(".uname")
		if !ok {
			t.Fatal("no section .uname")
		}
		b[start+int(s.Offset)] ^= 1
		return b
	})
}

// addVariable puts a boot option into the variables, as a host could.
func addVariable(t *testing.T, path string) {
	edit(t, path, func(b []byte) []byte {
		v, err := ovmf.ParseVars(b)
		if err != nil {
			t.Fatal(err)
		}
		guid, err := ovmf.ParseGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f") // image security database
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Set(ovmf.Variable{Name: "dbx", GUID: guid, Attributes: 0x27, Data: make([]byte, 76)}); err != nil {
			t.Fatal(err)
		}
		out, err := v.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return out
	})
}

// changeFirmware replaces the firmware by another release's.
func changeFirmware(t *testing.T, path string) {
	dir := t.TempDir()
	must(t, dir, "build", "vtpm", "--set", "firmware.suite=bookworm")
	write(t, path, read(t, filepath.Join(dir, "out/vtpm/firmware.fd")))
}
