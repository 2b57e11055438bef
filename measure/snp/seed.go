package snp

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// Seed stands for a firmware, with its SVSM if it has one: the running digest
// after its pages, which others call OVMF hash, and what the metadata says. Who
// checks a guest needs no firmware then.
type Seed struct {
	Files    []SeedFile        // the firmware and, behind it, the SVSM if there is one
	Reset    *uint32           // where all but the first processor begin, with an SVSM all of them; nil: there can be only one
	Hashes   *ovmf.Area        // table of kernel hashes
	Sections []ovmf.SEVSection // in file order; those of the SVSM if there is one
}

// SeedFile is a file whose pages were measured.
type SeedFile struct {
	Name   string // "firmware" or "svsm"
	GPA    uint64
	Size   int      // bytes, whole pages
	Digest [48]byte // running, after it
}

const (
	fileFirmware = "firmware"
	fileSVSM     = "svsm"
)

// NewSeed takes the metadata of a firmware and, instead of hashing its pages, a
// digest that was computed elsewhere. The firmware may be another than that of
// the digest as long as its metadata is the same.
func NewSeed(firmware []byte, digest [48]byte) (*Seed, error) {
	m, err := readSEV(fileFirmware, firmware)
	if err != nil {
		return nil, err
	}
	s := &Seed{Files: []SeedFile{{fileFirmware, m.Base(), m.Size, digest}}}
	s.take(m)
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

// Digest is the running digest after the files, the OVMF hash.
func (s *Seed) Digest() [48]byte { return s.Files[len(s.Files)-1].Digest }

func (s *Seed) svsm() bool { return len(s.Files) > 1 }

// measureFiles hashes the pages of the firmware and of the SVSM, if any.
func measureFiles(p *Params) (*Seed, error) {
	m, err := readSEV(fileFirmware, p.Firmware)
	if err != nil {
		return nil, err
	}
	s := &Seed{}
	s.take(m)
	s.Files = []SeedFile{{Name: fileFirmware, GPA: m.Base(), Size: m.Size}}
	if p.SVSM != nil {
		if err := s.placeSVSM(p, m); err != nil {
			return nil, err
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	var c chain
	for i, file := range [][]byte{p.Firmware, p.SVSM}[:len(s.Files)] {
		c.addPages(s.Files[i].GPA, file)
		s.Files[i].Digest = c.digest
	}
	return s, nil
}

func readSEV(what string, file []byte) (*ovmf.Metadata, error) {
	if len(file)%pageSize != 0 || len(file) == 0 {
		return nil, fmt.Errorf("snp: %s: %d bytes: want whole pages of %d", what, len(file), pageSize)
	}
	m, err := ovmf.ReadMetadata(file)
	if err != nil {
		return nil, fmt.Errorf("snp: %s: %w", what, err)
	}
	return m, nil
}

// take keeps the metadata.
func (s *Seed) take(m *ovmf.Metadata) {
	s.Reset, s.Hashes, s.Sections = m.Reset, m.Hashes, m.SEV
}

// placeSVSM puts the SVSM below the variables, which are below the firmware m,
// and takes its metadata instead: QEMU as Coconut's SVSM project has it,
// target/i386/sev.c.
func (s *Seed) placeSVSM(p *Params, m *ovmf.Metadata) error {
	svsm, err := readSEV("SVSM", p.SVSM)
	switch {
	case err != nil:
		return err
	case svsm.SVSM == nil:
		return errors.New("snp: SVSM: no SVSM info in the table at its end")
	case *svsm.SVSM >= uint32(len(p.SVSM)):
		return fmt.Errorf("snp: SVSM: it starts at byte %#x: it has %#x", *svsm.SVSM, len(p.SVSM))
	case p.VarsSize < 0 || p.VarsSize%pageSize != 0 || p.VarsSize > maxVars:
		return fmt.Errorf("snp: variables: %d bytes: want whole pages of %d, at most %d", p.VarsSize, pageSize, maxVars)
	}
	gpa := m.Base() - uint64(p.VarsSize) - uint64(len(p.SVSM))
	eip := uint32(gpa) + *svsm.SVSM
	s.take(svsm)
	s.Reset, s.Hashes = &eip, nil
	s.Files = append(s.Files, SeedFile{Name: fileSVSM, GPA: gpa, Size: len(p.SVSM)})
	return nil
}

// maxVars bounds the variable store, in bytes; a flash has at most 16 MiB.
const maxVars = 16 << 20

// check holds a seed, which may be from elsewhere, against itself.
func (s *Seed) check() error {
	if err := s.checkFiles(); err != nil {
		return err
	}
	switch {
	case s.Sections == nil:
		return fmt.Errorf("snp: %s: no SEV metadata: it is not built for SEV-SNP", s.Files[len(s.Files)-1].Name)
	case s.svsm() && s.Reset == nil:
		return errors.New("snp: SVSM: no address where processors begin")
	case s.svsm() && s.Hashes != nil:
		return errors.New("snp: SVSM: a table of kernel hashes: want none")
	}
	if err := checkSections(s.Sections); err != nil {
		return err
	}
	return s.checkApart()
}

func (s *Seed) checkFiles() error {
	names := []string{fileFirmware, fileSVSM}
	if n := len(s.Files); n == 0 || n > len(names) {
		return fmt.Errorf("snp: seed: %d files: want the firmware and perhaps an SVSM", n)
	}
	end := uint64(fourGiB)
	for i, f := range s.Files {
		switch size := uint64(f.Size); {
		case f.Name != names[i]:
			return fmt.Errorf("snp: seed: file %d is %q: want %q", i, f.Name, names[i])
		case f.Size <= 0 || f.Size%pageSize != 0 || f.GPA%pageSize != 0:
			return fmt.Errorf("snp: %s: %#x bytes at %#x: want whole pages", f.Name, f.Size, f.GPA)
		case size > end || f.GPA > end-size || i == 0 && f.GPA != end-size:
			return fmt.Errorf("snp: %s: %#x bytes at %#x: want them to end at %#x or, if not the firmware, below", f.Name, f.Size, f.GPA, end)
		}
		end = f.GPA
	}
	return nil
}

// checkApart wants no section in the pages of a file: a page is handed over once.
func (s *Seed) checkApart() error {
	for i, x := range s.Sections {
		for _, f := range s.Files {
			if x.Size > 0 && uint64(x.GPA) < f.GPA+uint64(f.Size) && f.GPA < uint64(x.GPA)+uint64(x.Size) {
				return sectionError(i, x, "%#x bytes: they overlap the %s at %#x", x.Size, f.Name, f.GPA)
			}
		}
	}
	return nil
}

func (s *Seed) clone() *Seed {
	c := *s
	if s.Reset != nil {
		reset := *s.Reset
		c.Reset = &reset
	}
	if s.Hashes != nil {
		area := *s.Hashes
		c.Hashes = &area
	}
	c.Files = append([]SeedFile{}, s.Files...)
	if s.Sections != nil {
		c.Sections = append([]ovmf.SEVSection{}, s.Sections...)
	}
	return &c
}

// seedJSON is a Seed as JSON. Digests are hexadecimal; addresses and sizes too,
// with 0x.
type seedJSON struct {
	Schema   int           `json:"schema"`
	Files    []fileJSON    `json:"files"`
	Reset    *hexNumber    `json:"reset_eip,omitempty"`
	Hashes   *areaJSON     `json:"hash_table,omitempty"`
	Sections []sectionJSON `json:"sections"`
}

type fileJSON struct {
	Name   string    `json:"name"`
	GPA    hexNumber `json:"gpa"`
	Size   hexNumber `json:"size"`
	Digest string    `json:"digest"` // running, after the file
}

type areaJSON struct {
	GPA  hexNumber `json:"gpa"`
	Size hexNumber `json:"size"`
}

type sectionJSON struct {
	Type hexNumber `json:"type"`
	GPA  hexNumber `json:"gpa"`
	Size hexNumber `json:"size"`
}

const seedSchema = 1

// MarshalJSON writes what ParseSeed reads.
func (s *Seed) MarshalJSON() ([]byte, error) {
	j := seedJSON{Schema: seedSchema, Files: []fileJSON{}, Reset: (*hexNumber)(s.Reset), Sections: []sectionJSON{}}
	for _, f := range s.Files {
		j.Files = append(j.Files, fileJSON{f.Name, hexNumber(f.GPA), hexNumber(f.Size), hex.EncodeToString(f.Digest[:])})
	}
	if s.Hashes != nil {
		j.Hashes = &areaJSON{hexNumber(s.Hashes.Base), hexNumber(s.Hashes.Size)}
	}
	for _, x := range s.Sections {
		j.Sections = append(j.Sections, sectionJSON{hexNumber(x.Type), hexNumber(x.GPA), hexNumber(x.Size)})
	}
	return json.Marshal(j)
}

// UnmarshalJSON is ParseSeed.
func (s *Seed) UnmarshalJSON(b []byte) error {
	p, err := ParseSeed(b)
	if err != nil {
		return err
	}
	*s = *p
	return nil
}

// ParseSeed reads the JSON form. It is strict: what it does not know is an error.
func ParseSeed(b []byte) (*Seed, error) {
	const maxJSON = 1 << 20
	if len(b) > maxJSON {
		return nil, fmt.Errorf("snp: seed: %d bytes: want at most %d", len(b), maxJSON)
	}
	var j seedJSON
	if err := strictjson.Unmarshal(b, &j); err != nil {
		return nil, fmt.Errorf("snp: seed: %w", err)
	}
	if j.Schema != seedSchema {
		return nil, fmt.Errorf("snp: seed: schema %d: want %d", j.Schema, seedSchema)
	}
	s := &Seed{Reset: (*uint32)(j.Reset)}
	for i, f := range j.Files {
		digest, err := hex.DecodeString(f.Digest)
		if err != nil || len(digest) != 48 {
			return nil, fmt.Errorf("snp: seed: files[%d].digest: %q: want %d hexadecimal digits", i, f.Digest, 2*48)
		}
		s.Files = append(s.Files, SeedFile{f.Name, uint64(f.GPA), int(f.Size), [48]byte(digest)})
	}
	if j.Hashes != nil {
		s.Hashes = &ovmf.Area{Base: uint32(j.Hashes.GPA), Size: uint32(j.Hashes.Size)}
	}
	if j.Sections != nil {
		s.Sections = []ovmf.SEVSection{}
	}
	for _, x := range j.Sections {
		s.Sections = append(s.Sections, ovmf.SEVSection{Type: ovmf.SEVType(x.Type), GPA: uint32(x.GPA), Size: uint32(x.Size)})
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

// hexNumber is a 32-bit number that JSON has as "0x80b004".
type hexNumber uint32

func (n hexNumber) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint32(n)), nil }

func (n *hexNumber) UnmarshalText(b []byte) error {
	x, err := strconv.ParseUint(string(b), 0, 32)
	if err != nil || fmt.Sprintf("%#x", x) != string(b) {
		return fmt.Errorf("%q: want a hexadecimal number of at most 32 bits, as 0x80b004", b)
	}
	*n = hexNumber(x)
	return nil
}
