// Package ovmftest makes firmware images with the same parts as OVMF's, for
// tests: small enough to spoil, to fuzz and to build an image with. It shares
// only GUIDs' spelling with the parser that they test.
package ovmftest

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"

	"github.com/ulikunitz/xz/lzma"

	"github.com/plinth-os/plinth/internal/gpt"
)

// GUID is in the order of the file.
type GUID = gpt.GUID

// Base is the guest physical address at which Code has PEIFV.
const Base = 0x820000

// Types of files and sections: PI 1.8, volume 3, sections 2.1.4 and 2.1.5.
const (
	fileRaw     = 0x01
	fileSEC     = 0x03
	filePEICore = 0x04
	filePEIM    = 0x06
	fileDriver  = 0x07
	fileVolume  = 0x0b
	filePad     = 0xf0

	sectionGUIDed = 0x02
	sectionPE     = 0x10
	sectionUI     = 0x15
	sectionVolume = 0x17
	sectionRaw    = 0x19
)

// The volumes of an OVMF image, as OvmfPkgX64.fdf names them.
var (
	PEIFV         = guid("6938079b-b503-4e3d-9d24-b28337a25806")
	DXEFV         = guid("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
	FVMAINCompact = guid("48db5e17-707c-472d-91cd-1613e7ef51b0")
	SECFV         = guid("763bed0d-de9f-48f5-81f1-3e90e1b1a015")
)

var (
	ffs2         = guid("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
	lzmaPacked   = guid("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
	nvVolume     = guid("fff12b8d-7696-4c8b-a985-2747075b4f50")
	authVars     = guid("aaf32c78-947b-439a-a180-2e144ec37792")
	workingBlock = guid("9e58292b-7c68-497d-a0ce-6500fd9f1b95")
)

var le = binary.LittleEndian

// Volume makes a firmware volume of at least size bytes: PI 1.8, volume 3,
// section 3.2.1.
func Volume(name GUID, size int, files ...[]byte) []byte {
	const header, ext = 0x48, 0x18
	b := make([]byte, header)
	copy(b[0x10:], ffs2[:])
	copy(b[0x28:], "_FVH")
	le.PutUint32(b[0x2c:], 0x4feff)
	le.PutUint16(b[0x30:], header)
	le.PutUint16(b[0x34:], header+24) // in the padding file that follows
	b[0x37] = 2
	pad := make([]byte, ext)
	copy(pad, name[:])
	le.PutUint32(pad[16:], 20)
	b = append(b, File(GUID{}, filePad, pad)...)
	for _, f := range files {
		b = append(fill(b, 8, 0xff), f...)
	}
	b = fill(b, 0x1000, 0xff)
	b = append(b, bytes.Repeat([]byte{0xff}, max(0, size-len(b)))...)
	le.PutUint64(b[0x20:], uint64(len(b)))
	le.PutUint32(b[0x38:], uint32(len(b)/0x1000))
	le.PutUint32(b[0x3c:], 0x1000)
	le.PutUint16(b[0x32:], -sum16(b[:header]))
	return b
}

// fill appends c up to a multiple of align.
func fill(b []byte, align int, c byte) []byte {
	for len(b)%align != 0 {
		b = append(b, c)
	}
	return b
}

// File makes a file of a volume: section 3.2.3.
func File(name GUID, kind byte, body []byte) []byte {
	const header, fixedChecksum = 24, 0xaa
	b := append(make([]byte, header), body...)
	copy(b, name[:])
	b[0x12] = kind
	le.PutUint32(b[0x14:], uint32(len(b)))
	b[0x17] = 0
	b[0x10] = -sum8(b[:header])
	b[0x11], b[0x17] = fixedChecksum, 0xf8
	return b
}

// Sections joins sections.
func Sections(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(fill(b, 4, 0), p...)
	}
	return b
}

// Section makes a section: section 3.2.4.
func Section(kind byte, body []byte) []byte {
	b := append(make([]byte, 4), body...)
	le.PutUint32(b, uint32(len(b)))
	if len(b) >= 0xffffff {
		b = append(make([]byte, 8), body...)
		le.PutUint32(b, 0xffffff)
		le.PutUint32(b[4:], uint32(len(b)))
	}
	b[3] = kind
	return b
}

// LZMA makes a section of data, compressed.
func LZMA(data []byte) []byte {
	var packed bytes.Buffer
	w, err := lzma.WriterConfig{SizeInHeader: true, Size: int64(len(data)), DictCap: 1 << 16}.NewWriter(&packed)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a writer into memory
	}
	body := append(append([]byte{}, lzmaPacked[:]...), 24, 0, 1, 0)
	return Section(sectionGUIDed, append(body, packed.Bytes()...))
}

// PE makes an image of 64-bit code that holds content.
func PE(content ...[]byte) []byte {
	b := make([]byte, 0x40+24+0x70)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x40+24:], 0x20b)
	return append(b, bytes.Join(content, nil)...)
}

// Link sets the base of every image in a volume as if it ran where it lies once
// the volume is at base.
func Link(volume []byte, base int) []byte {
	for at := 0; ; at++ {
		i := bytes.Index(volume[at:], []byte("PE\x00\x00"))
		if i < 0 {
			return volume
		}
		at += i
		le.PutUint64(volume[at+24+24:], uint64(base+at-0x40))
	}
}

// Module makes a file with an executable and a name.
func Module(kind byte, name string, pe []byte) []byte {
	var id GUID
	copy(id[:], name)
	return File(id, kind, Sections(Section(sectionPE, pe), Section(sectionUI, Text(name))))
}

// Text is s in UTF-16LE, with a zero.
func Text(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, c)
	}
	return append(b, 0, 0)
}

// Volumes are PEIFV, linked at Base, and DXEFV of an image that says version, if
// not "".
func Volumes(version string) (pei, dxe []byte) {
	var text []byte
	if version != "" {
		text = Text(version)
	}
	pei = Link(Volume(PEIFV, 0x1000,
		Module(filePEICore, "PeiCore", PE([]byte("core"))),
		Module(filePEIM, "Tcg2Pei", PE([]byte("code@\x00"), text))), Base)
	dxe = Volume(DXEFV, 0x2000,
		File(GUID{1}, fileRaw, []byte("data")),
		Module(fileDriver, "SmbiosPlatformDxe", PE(Text("unknown"), text, Text("02/02/2022"))),
		Module(fileDriver, "SecureBootConfigDxe", PE()))
	return pei, dxe
}

// Code is a code flash of these volumes.
func Code(pei, dxe []byte) []byte {
	packed := LZMA(Sections(Section(sectionRaw, make([]byte, 0x78)), Section(sectionVolume, pei), Section(sectionVolume, dxe)))
	load := func(opcode byte, c int) []byte { return le.AppendUint32([]byte{opcode}, uint32(c)) }
	sec := PE(load(0xb9, Base), load(0x68, Base+len(pei)))
	return append(Volume(FVMAINCompact, 0x4000, File(GUID{2}, fileVolume, packed)), Volume(SECFV, 0x1000, Module(fileSEC, "SecMain", sec))...)
}

// BlankVars is an NVRAM flash without variables, as OvmfPkg's VarStore.fdf.inc
// lays it out: 256 KiB for variables, one block of event log, one of pending
// writes, as much again as spare.
func BlankVars(size int) []byte {
	const header, storeHeader = 0x48, 28
	b := bytes.Repeat([]byte{0xff}, size)
	half := size / 2
	head := make([]byte, header+storeHeader)
	copy(head[0x10:], nvVolume[:])
	le.PutUint64(head[0x20:], uint64(size))
	copy(head[0x28:], "_FVH")
	le.PutUint32(head[0x2c:], 0x4feff)
	le.PutUint16(head[0x30:], header)
	head[0x37] = 2
	le.PutUint32(head[0x38:], uint32(size/0x1000))
	le.PutUint32(head[0x3c:], 0x1000)
	le.PutUint16(head[0x32:], -sum16(head[:header]))
	copy(head[header:], authVars[:])
	le.PutUint32(head[0x58:], uint32(half-0x2000-header))
	head[0x5c], head[0x5d] = 0x5a, 0xfe
	copy(b, head)
	work := b[half-0x1000:]
	copy(work, workingBlock[:])
	le.PutUint32(work[16:], 0x642caf2c) // CRC of the header
	work[20] = 0xfe
	le.PutUint64(work[24:], 0xfe0)
	return b
}

func guid(s string) GUID {
	g, err := gpt.ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

func sum16(b []byte) (s uint16) {
	for i := 0; i+1 < len(b); i += 2 {
		s += le.Uint16(b[i:])
	}
	return s
}

func sum8(b []byte) (s uint8) {
	for _, c := range b {
		s += c
	}
	return s
}
