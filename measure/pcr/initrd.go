package pcr

import (
	"bytes"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/pe"
)

// initrdParts is what a stub joins into the initrd that it hands to the
// kernel, in its order, each with the first version that does. A file name
// means that the stub wraps the section in an archive of its own.
//
// Source: src/boot/efi/stub.c (252 to 255) and src/boot/stub.c, enum INITRD_*.
// Credentials and extensions from the ESP, addons and 262's boot secret come
// from outside the image and are not here; all but the last show in PCR 12 or 13.
var initrdParts = []struct {
	section string
	since   int
	file    string
}{
	{".ucode", 256, ""},
	{".initrd", 252, ""},
	{".pcrsig", 252, "tpm2-pcr-signature.json"},
	{".pcrpkey", 252, "tpm2-pcr-public-key.pem"},
	{".osrel", 257, "os-release"},
	{".profile", 257, "profile"},
}

// maxExtra is the size in bytes up to which a section is wrapped here.
const maxExtra = 1 << 20

// Initrd returns the initrd of f as the stub of that major version hands it to
// the kernel, whose EFI stub measures it into PCR 9: the one part there is, as
// it is, or several, each padded with zeros to a multiple of 4. It is empty
// when f has no part; the kernel then measures nothing.
func Initrd(stub int, f *pe.File) (io.Reader, error) {
	sections, err := selected(f)
	if err != nil {
		return nil, err
	}
	var parts, padding []io.Reader
	for _, p := range initrdParts {
		s, ok := sections[p.section]
		if !ok || stub < p.since {
			continue
		}
		part, size := f.Measured(s), int64(s.VirtualSize)
		if p.file != "" {
			if size > maxExtra {
				return nil, fmt.Errorf("pcr: section %s: %d bytes: want at most %d", p.section, size, maxExtra)
			}
			content, err := io.ReadAll(part)
			if err != nil {
				return nil, fmt.Errorf("pcr: section %s: %w", p.section, err)
			}
			archive := extraArchive(p.file, content)
			part, size = bytes.NewReader(archive), int64(len(archive))
		}
		parts = append(parts, part)
		padding = append(padding, bytes.NewReader(make([]byte, -size&3)))
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	var all []io.Reader
	for i := range parts {
		all = append(all, parts[i], padding[i])
	}
	return io.MultiReader(all...), nil
}

// extraArchive returns the cpio archive that a stub makes of one section: the
// directory .extra and in it a file, in the "newc" format. It differs from
// what package newc writes in the bytes that are free in the format, all of
// which are measured: hex digits are lower case but for the trailer's, a
// directory has one link, and the trailer has one too (src/boot/cpio.c).
func extraArchive(name string, content []byte) []byte {
	const dir = ".extra"
	b := appendEntry(nil, 1, 0o040555, dir, nil)
	b = appendEntry(b, 2, 0o100444, dir+"/"+name, content)
	return append(b, "070701"+
		"00000000"+"00000000"+"00000000"+"00000000"+"00000001"+"00000000"+"00000000"+
		"00000000"+"00000000"+"00000000"+"00000000"+"0000000B"+"00000000"+
		"TRAILER!!!\x00\x00\x00\x00"...)
}

func appendEntry(b []byte, inode, mode uint32, name string, content []byte) []byte {
	b = append(b, "070701"...)
	for _, field := range []uint32{
		inode, mode,
		0, 0, // uid, gid
		1,                    // links
		0,                    // mtime
		uint32(len(content)), // at most maxExtra
		0, 0, 0, 0,           // device and, for nodes, the device they stand for
		uint32(len(name) + 1),
		0, // checksum, not used by this format
	} {
		b = fmt.Appendf(b, "%08x", field)
	}
	b = pad4(append(append(b, name...), 0))
	return pad4(append(b, content...))
}

func pad4(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
