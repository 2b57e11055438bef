package uki

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/plinth-os/plinth/internal/pe"
)

// Info is what an EFI image tells about itself.
type Info struct {
	Kind         string       `json:"kind"` // "uki", "stub", "kernel" or "efi", any other EFI image
	Size         int64        `json:"size"` // bytes
	Machine      string       `json:"machine"`
	NXCompat     bool         `json:"nx_compat"`
	Authenticode Authenticode `json:"authenticode"`

	// Stub is nil in an image without a stub of systemd. StubKnown says that
	// MeasuredOrder was compared with the source of this version.
	Stub          *Version `json:"stub,omitempty"`
	StubKnown     bool     `json:"stub_known"`
	MeasuredOrder []string `json:"measured_order,omitempty"` // the sections that are here and that the stub measures

	Uname     string `json:"uname,omitempty"`
	Cmdline   string `json:"cmdline,omitempty"`
	OSRelease string `json:"osrel,omitempty"`

	Sections []SectionInfo `json:"sections"` // in the order of the table
	Signers  []SignerInfo  `json:"signers,omitempty"`
}

// Authenticode holds the image's Authenticode digests in hex: what firmware
// measures into PCR 4 and compares with db and dbx.
type Authenticode struct {
	SHA1   string `json:"sha1"`
	SHA256 string `json:"sha256"`
	SHA384 string `json:"sha384"`
}

// SectionInfo is one section. Digest and Size are of the bytes in memory,
// which are what a stub measures.
type SectionInfo struct {
	Name    string `json:"name"`
	Offset  uint32 `json:"offset"`   // in the file
	RawSize uint32 `json:"raw_size"` // in the file, with padding
	Address uint32 `json:"address"`  // RVA
	Size    uint32 `json:"size"`
	SHA256  string `json:"sha256"`
}

// SignerInfo names one signature. Inspect does not verify it.
type SignerInfo struct {
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"` // of the certificate
}

// maxText is the size in bytes up to which a section is shown as text.
const maxText = 16 << 10

// Inspect reads the image of size bytes in r: a unified kernel image, a stub,
// a kernel with an EFI stub, or any other EFI image. It reads the file twice.
func Inspect(r io.ReaderAt, size int64) (*Info, error) {
	f, err := pe.Parse(r, size)
	if err != nil {
		return nil, fmt.Errorf("uki: inspect: %w", err)
	}
	info := &Info{Size: size, Machine: machineName(f.Machine)}
	info.NXCompat = f.DLLCharacteristics&pe.DLLCharacteristicsNXCompat != 0
	if info.Authenticode, err = authenticode(f); err != nil {
		return nil, err
	}
	if err := info.readSections(f); err != nil {
		return nil, err
	}
	if err := info.readStub(f); err != nil {
		return nil, err
	}
	info.Kind = kind(f, info.Stub != nil)
	info.Signers, err = signers(f)
	return info, err
}

func machineName(m uint16) string {
	switch m {
	case pe.MachineAMD64:
		return "amd64"
	case 0xaa64:
		return "arm64"
	case 0x014c:
		return "386"
	}
	return fmt.Sprintf("%#04x", m)
}

func authenticode(f *pe.File) (Authenticode, error) {
	h1, h256, h384 := sha1.New(), sha256.New(), sha512.New384()
	err := f.WriteAuthenticode(io.MultiWriter(h1, h256, h384))
	return Authenticode{
		SHA1:   hex.EncodeToString(h1.Sum(nil)),
		SHA256: hex.EncodeToString(h256.Sum(nil)),
		SHA384: hex.EncodeToString(h384.Sum(nil)),
	}, err
}

func (info *Info) readSections(f *pe.File) error {
	for _, s := range f.Sections {
		h := sha256.New()
		if _, err := io.Copy(h, f.Measured(s)); err != nil {
			return fmt.Errorf("uki: section %s: %w", s.Name, err)
		}
		info.Sections = append(info.Sections, SectionInfo{
			Name:    s.Name,
			Offset:  s.Offset,
			RawSize: s.RawSize,
			Address: s.VirtualAddress,
			Size:    s.VirtualSize,
			SHA256:  hex.EncodeToString(h.Sum(nil)),
		})
	}
	return nil
}

// readStub fills in what only an image with a stub has.
func (info *Info) readStub(f *pe.File) error {
	v, err := StubVersion(f)
	if errors.Is(err, ErrUnknownStub) {
		return nil
	}
	if err != nil {
		return err
	}
	info.Stub, info.StubKnown = &v, v.Known()
	for _, name := range MeasuredOrder(v) {
		if s, ok := f.Section(name); ok && s.VirtualSize > 0 {
			info.MeasuredOrder = append(info.MeasuredOrder, name)
		}
	}
	for name, text := range map[string]*string{".uname": &info.Uname, ".cmdline": &info.Cmdline, ".osrel": &info.OSRelease} {
		if *text, err = sectionText(f, name); err != nil {
			return err
		}
	}
	return nil
}

// sectionText returns a section that is short and valid UTF-8, without NULs
// and line ends at its end; else "".
func sectionText(f *pe.File, name string) (string, error) {
	s, ok := f.Section(name)
	if !ok || s.VirtualSize > maxText {
		return "", nil
	}
	b, err := io.ReadAll(f.Data(s))
	if err != nil || !utf8.Valid(b) {
		return "", err
	}
	return strings.TrimRight(string(b), "\x00\n"), nil
}

func kind(f *pe.File, stub bool) string {
	_, linux := f.Section(linuxSection)
	// Linux calls the parts of a bzImage so since 2.6; see the x86 boot
	// protocol and arch/x86/boot/header.S.
	_, setup := f.Section(".setup")
	switch {
	case stub && linux:
		return "uki"
	case stub:
		return "stub"
	case setup:
		return "kernel"
	}
	return "efi"
}

func signers(f *pe.File) ([]SignerInfo, error) {
	blobs, err := f.Certificates()
	if err != nil {
		return nil, err
	}
	var out []SignerInfo
	for i, blob := range blobs {
		sig, err := parseSignature(blob)
		if err != nil {
			return nil, fmt.Errorf("uki: signature %d: %w", i, err)
		}
		cert := sig.cert()
		if cert == nil {
			return nil, fmt.Errorf("uki: signature %d: carries no certificate of its signer", i)
		}
		sum := sha256.Sum256(cert.Raw)
		out = append(out, SignerInfo{Subject: cert.Subject.String(), SHA256: hex.EncodeToString(sum[:])})
	}
	return out, nil
}
