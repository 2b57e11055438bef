// Package ovmf reads and writes what the firmware files of a virtual machine
// hold: the firmware volumes of the code flash, which firmware measures once it
// has unpacked them, and the variables of the NVRAM flash.
//
// Documents: UEFI Platform Initialization (PI) 1.8, volume 3 (firmware volumes,
// file system, sections); UEFI 2.10, sections 8.2 and 32 (variables, signature
// lists).
package ovmf

import (
	"errors"
	"fmt"
	"slices"
)

// Firmware is what a code flash holds.
type Firmware struct {
	// Version is the firmware's version string, PcdFirmwareVersionString.
	// EV_S_CRTM_VERSION measures it in UTF-16 with its terminating zero; some
	// builds have none, and measure the zero alone. The TDX build does not measure
	// the one it has.
	Version    string
	Volumes    []Volume // the unpacked ones, in file order: PEIFV, DXEFV
	Modules    []Module // the drivers in them
	SecureBoot bool     // it can verify images against db
	SMM        bool     // it keeps variables behind system management mode

	// ChecksHashes: its loader starts a kernel that the VMM passes only if the SEV
	// hash table names it. A build that has room for the table need not do so.
	ChecksHashes bool
}

// Volume is a firmware volume as it lies in memory after unpacking.
type Volume struct {
	Name string // "PEIFV", "DXEFV"
	GUID GUID   // the volume's name
	Base uint64 // guest physical address, as the event log has it; 0 when not known
	Data []byte // as in the file; see InMemory
}

// Module is a file of a volume: a driver, an application or data.
type Module struct {
	Name   string // of its user interface section, else its GUID
	GUID   GUID
	Volume string
}

// Volume returns a volume by name.
func (f *Firmware) Volume(name string) (Volume, bool) {
	for _, v := range f.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return Volume{}, false
}

// Has tells whether the firmware holds a module of that name, as in "Tcg2Dxe".
func (f *Firmware) Has(module string) bool {
	return slices.ContainsFunc(f.Modules, func(m Module) bool { return m.Name == module })
}

// The names of the volumes: OvmfPkgX64.fdf, IntelTdxX64.fdf.
var (
	compactGUID = mustGUID("48db5e17-707c-472d-91cd-1613e7ef51b0") // FVMAIN_COMPACT, which holds the others
	secGUID     = mustGUID("763bed0d-de9f-48f5-81f1-3e90e1b1a015") // SECFV
	volumeNames = map[GUID]string{
		mustGUID("6938079b-b503-4e3d-9d24-b28337a25806"): "PEIFV",
		mustGUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1"): "DXEFV",
		mustGUID("ae047c6d-bce9-426c-ae03-a68e3b8a0488"): "NCCFV",
	}
)

// maxFlash bounds a flash file, in bytes. It has to end below 4 GiB together
// with the chipset's registers.
const maxFlash = 16 << 20

// ErrNotOVMF is wrapped by Parse for a file without OVMF's volumes.
var ErrNotOVMF = errors.New("not an OVMF image")

// Parse reads a code flash, or a whole flash of variables and code. It unpacks
// the volumes, which takes a quarter of a second.
func Parse(code []byte) (*Firmware, error) {
	if len(code) > maxFlash {
		return nil, fmt.Errorf("ovmf: %d bytes: want at most %d", len(code), maxFlash)
	}
	var im image
	for off := 0; off < len(code); {
		if !isVolume(code[off:]) {
			off += flashBlock
			continue
		}
		v, err := parseVolume(code[off:], fmt.Sprintf("offset %#x", off))
		if err != nil {
			return nil, err
		}
		if err := im.add(v); err != nil {
			return nil, err
		}
		off += len(v.data)
	}
	return im.firmware()
}

// flashBlock is the granularity of the flash's layout, in bytes.
const flashBlock = 4096

// image gathers the parts of a flash.
type image struct {
	sec     *modFile // SecMain, which unpacks the volumes
	volumes []*volume
	files   []modFile
}

// modFile is a module with its executable.
type modFile struct {
	Module
	kind uint8
	pe   section // of kind zero when the file has none
}

// add takes in a volume of the flash. Those of variables are not for here.
func (im *image) add(v *volume) error {
	switch v.name {
	case compactGUID:
		return im.addCompact(v)
	case secGUID:
		files, err := modules(v, "SECFV")
		for i := range files {
			if files[i].kind == fileSEC {
				im.sec = &files[i]
			}
		}
		return err
	}
	return nil
}

// addCompact unpacks the volumes in FVMAIN_COMPACT: a file with one compressed
// section with one section a volume.
func (im *image) addCompact(v *volume) error {
	if len(im.volumes) > 0 {
		return fmt.Errorf("ovmf: %s: a second FVMAIN_COMPACT", v.at)
	}
	packed, err := v.compressed()
	if err != nil {
		return err
	}
	b, err := packed.unpack()
	if err != nil {
		return err
	}
	if err := im.addVolumes(b, packed.at); err != nil {
		return err
	}
	if len(im.volumes) == 0 {
		return fmt.Errorf("ovmf: %s: no volume in it", packed.at)
	}
	return nil
}

// compressed returns the first GUID-defined section of a file of volumes.
func (v *volume) compressed() (section, error) {
	for f, err := range v.all() {
		if err != nil {
			return section{}, err
		}
		if f.kind != fileVolume {
			continue
		}
		for s, err := range f.sections() {
			if err != nil || s.kind == sectionGUIDed {
				return s, err
			}
		}
	}
	return section{}, fmt.Errorf("ovmf: %s: no compressed volumes: %w", v.at, ErrNotOVMF)
}

func (im *image) addVolumes(b []byte, at string) error {
	for s, err := range sections(b, 0, at+": unpacked") {
		if err != nil {
			return err
		}
		if s.kind != sectionVolume {
			continue
		}
		v, err := parseVolume(s.body, s.at)
		if err != nil {
			return err
		}
		files, err := modules(v, volumeName(v))
		if err != nil {
			return err
		}
		im.volumes, im.files = append(im.volumes, v), append(im.files, files...)
	}
	return nil
}

func volumeName(v *volume) string {
	if n, ok := volumeNames[v.name]; ok {
		return n
	}
	return v.name.String()
}

// modules lists the files of a volume.
func modules(v *volume, volume string) ([]modFile, error) {
	var out []modFile
	for f, err := range v.all() {
		if err != nil {
			return nil, err
		}
		m := modFile{Module: Module{f.name.String(), f.name, volume}, kind: f.kind}
		if f.kind == fileRaw {
			out = append(out, m)
			continue
		}
		for s, err := range f.sections() {
			if err != nil {
				return nil, err
			}
			switch s.kind {
			case sectionUI:
				m.Name = firstString(s.body)
			case sectionPE, sectionTE:
				m.pe = s
			}
		}
		out = append(out, m)
	}
	return out, nil
}

func (im *image) firmware() (*Firmware, error) {
	if len(im.volumes) == 0 {
		return nil, fmt.Errorf("ovmf: no volume FVMAIN_COMPACT: %w", ErrNotOVMF)
	}
	f := &Firmware{Version: im.version()}
	for _, m := range im.files {
		f.Modules = append(f.Modules, m.Module)
	}
	for _, v := range im.volumes {
		f.Volumes = append(f.Volumes, Volume{Name: volumeName(v), GUID: v.name, Data: v.data})
	}
	im.bases(f.Volumes)
	f.SecureBoot = f.Has("SecureBootConfigDxe")
	f.SMM = f.Has("PiSmmCore")
	f.ChecksHashes = im.checksHashes()
	return f, nil
}
