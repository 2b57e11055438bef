package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// A flashView is firmware code, its variables, or both, or an SVSM.
type flashView struct {
	Version      string            `json:"version,omitempty"`
	SecureBoot   bool              `json:"secure_boot_capable,omitempty"`
	SMM          bool              `json:"smm,omitempty"`
	ChecksHashes bool              `json:"checks_kernel_hashes,omitempty"`
	Flash        []flashVolumeView `json:"flash,omitempty"`
	Volumes      []volumeView      `json:"volumes,omitempty"`
	Metadata     *metadataView     `json:"metadata,omitempty"`
	Uses         []useView         `json:"uses,omitempty"`
	Keys         string            `json:"secure_boot_keys,omitempty"` // "enrolled" or "set-up mode"; "" without variables
	Variables    []variableView    `json:"variables,omitempty"`
	Problems     []string          `json:"problems,omitempty"`

	isCode bool
}

type flashVolumeView struct {
	Name   string `json:"name"`
	Offset int    `json:"offset"`
	Size   int    `json:"size"`
}

type volumeView struct {
	Name   string `json:"name"`
	Base   uint64 `json:"base"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
}

type variableView struct {
	Name       string `json:"name"`
	GUID       string `json:"guid"`
	Attributes uint32 `json:"attributes"`
	Size       int    `json:"size"`
	SHA256     string `json:"sha256"`
}

// A metadataView is the table at a firmware's end and what it points at.
// Addresses are of guest memory, offsets of the file or, for TDX, of the whole
// flash that it is the end of.
type metadataView struct {
	Size      int              `json:"size"`
	Whole     int              `json:"whole_size"`
	Base      uint64           `json:"base"`
	Table     []entryView      `json:"table"`
	Reset     *uint32          `json:"reset_eip,omitempty"`
	Hashes    *areaView        `json:"kernel_hashes,omitempty"`
	Secret    *areaView        `json:"launch_secret,omitempty"`
	SVSMStart *uint32          `json:"svsm_launch_offset,omitempty"`
	SEV       []sectionView    `json:"sev,omitempty"`
	TDX       []tdxSectionView `json:"tdx,omitempty"`
	IGVM      []sectionView    `json:"igvm,omitempty"`
}

type entryView struct {
	GUID   string `json:"guid"`
	Name   string `json:"name,omitempty"`
	Offset int    `json:"offset"`
	Data   string `json:"data"`
}

type areaView struct {
	Base uint32 `json:"base"`
	Size uint32 `json:"size"`
}

type sectionView struct {
	Type uint32 `json:"type"`
	Name string `json:"name"`
	GPA  uint64 `json:"gpa"`
	Size uint64 `json:"size"`
}

type tdxSectionView struct {
	sectionView
	Offset     uint32 `json:"content_offset"`
	Data       uint32 `json:"content_size"`
	Attributes uint32 `json:"attributes"`
}

type useView struct {
	Platform string `json:"platform"`
	Path     string `json:"path"`
	OK       bool   `json:"ok"`
	Why      string `json:"why"`
}

// endsWithTable tells whether a file is a firmware or SVSM by its end.
func endsWithTable(r io.ReaderAt, size int64) bool {
	tail := make([]byte, min(size, 64))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return false
	}
	return ovmf.HasTable(tail)
}

func inspectFlash(r io.ReaderAt, size int64) (viewer, error) {
	b, err := readAll(r, size, 64<<20)
	if err != nil {
		return nil, err
	}
	v := &flashView{}
	code := v.addCode(b)
	v.addMetadata(b, code)
	v.addVariables(b)
	if !v.isCode && v.Metadata == nil && v.Keys == "" && v.Flash == nil {
		return nil, v.problem()
	}
	return v, nil
}

// addCode reads the volumes; nil without OVMF's.
func (v *flashView) addCode(b []byte) *ovmf.Firmware {
	list, err := ovmf.FlashVolumes(b)
	for _, x := range list {
		v.Flash = append(v.Flash, flashVolumeView(x))
	}
	if err != nil {
		v.fault(err)
		return nil
	}
	f, err := ovmf.Parse(b)
	if errors.Is(err, ovmf.ErrNotOVMF) {
		return nil
	}
	if err != nil {
		v.fault(err)
		return nil
	}
	v.isCode, v.Version, v.SecureBoot, v.SMM, v.ChecksHashes = true, f.Version, f.SecureBoot, f.SMM, f.ChecksHashes
	for _, vol := range f.Volumes {
		v.Volumes = append(v.Volumes, volumeView{vol.Name, vol.Base, len(vol.Data), hexDigest(vol.Data)})
	}
	return f
}

func (v *flashView) addMetadata(b []byte, code *ovmf.Firmware) {
	m, err := ovmf.ReadMetadata(b)
	if err != nil {
		v.fault(err)
		return
	}
	uses := m.Uses()
	if code != nil {
		uses = code.Uses(m)
	}
	if m.Table != nil {
		v.Metadata = viewMetadata(m)
	} else if code == nil {
		return // variables alone serve nothing
	}
	for _, u := range uses {
		v.Uses = append(v.Uses, useView(u))
	}
}

func (v *flashView) addVariables(b []byte) {
	store, err := ovmf.ParseVars(b)
	if errors.Is(err, ovmf.ErrNoStore) {
		return
	}
	if err != nil {
		v.fault(err)
		return
	}
	v.Keys = "set-up mode"
	if _, _, ok := store.Get("PK", ovmf.GlobalVariable); ok {
		v.Keys = "enrolled"
	}
	for _, x := range store.List() {
		v.Variables = append(v.Variables, variableView{x.Name, x.GUID.String(), x.Attributes, len(x.Data), hexDigest(x.Data)})
	}
}

// fault notes what is wrong, once: several readers stumble over the same byte.
func (v *flashView) fault(err error) {
	for _, p := range v.Problems {
		if p == err.Error() {
			return
		}
	}
	v.Problems = append(v.Problems, err.Error())
}

// problem is what inspect fails with after it has printed the rest.
func (v *flashView) problem() error {
	if len(v.Problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(v.Problems, "; "))
}

func viewMetadata(m *ovmf.Metadata) *metadataView {
	v := &metadataView{
		Size: m.Size, Whole: m.Whole, Base: m.Base(), Table: []entryView{}, Reset: m.Reset, SVSMStart: m.SVSM,
		Hashes: (*areaView)(m.Hashes), Secret: (*areaView)(m.Secret),
	}
	for _, e := range m.Table {
		v.Table = append(v.Table, entryView{e.GUID.String(), e.Name, e.Offset, fmt.Sprintf("%x", e.Data)})
	}
	for _, s := range m.SEV {
		v.SEV = append(v.SEV, sectionView{uint32(s.Type), s.Type.String(), uint64(s.GPA), uint64(s.Size)})
	}
	for _, s := range m.TDX {
		v.TDX = append(v.TDX, tdxSectionView{sectionView{uint32(s.Type), s.Type.String(), s.GPA, s.MemSize}, s.Offset, s.Size, s.Attributes})
	}
	for _, s := range m.IGVM {
		v.IGVM = append(v.IGVM, sectionView{uint32(s.Type), s.Type.String(), uint64(s.Start), uint64(s.Size)})
	}
	return v
}

func (v *flashView) text(w io.Writer) error {
	if v.isCode {
		fmt.Fprintf(w, "firmware %q  Secure Boot %s  SMM %s  compares kernel hashes %s\n", v.Version, yes(v.SecureBoot), yes(v.SMM), yes(v.ChecksHashes))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range v.Flash {
		fmt.Fprintf(t, "flash %s\toffset %#x\t%#x bytes\n", x.Name, x.Offset, x.Size)
	}
	for _, x := range v.Volumes {
		fmt.Fprintf(t, "%s\t%#x\t%d\t%s\n", x.Name, x.Base, x.Size, x.SHA256)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := v.Metadata.text(w); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, u := range v.Uses {
		fmt.Fprintf(t, "use %s\t%s\t%s\t%s\n", u.Platform, u.Path, yes(u.OK), u.Why)
	}
	if v.Keys != "" {
		fmt.Fprintf(t, "Secure Boot keys: %s\n", v.Keys)
	}
	for _, x := range v.Variables {
		fmt.Fprintf(t, "variable %s\t%s\t%d bytes\t%s\n", x.Name, x.GUID, x.Size, short(x.SHA256))
	}
	return t.Flush()
}

func (m *metadataView) text(w io.Writer) error {
	if m == nil {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "table of %d entries, file of %#x bytes at %#x\n", len(m.Table), m.Size, m.Base)
	if m.Whole != m.Size {
		fmt.Fprintf(t, "the end of a flash of %#x bytes\n", m.Whole)
	}
	for _, e := range m.Table {
		name := e.Name
		if name == "" {
			name = "unknown"
		}
		fmt.Fprintf(t, "entry %s\toffset %#x\t%s\t%s\n", name, e.Offset, e.GUID, e.Data)
	}
	if m.Reset != nil {
		fmt.Fprintf(t, "SEV-ES: processors but the first begin at %#x\n", *m.Reset)
	}
	m.Hashes.text(t, "SEV kernel hashes")
	m.Secret.text(t, "SEV launch secret")
	if m.SVSMStart != nil {
		fmt.Fprintf(t, "SVSM: begins %#x bytes into the file\n", *m.SVSMStart)
	}
	for i, s := range m.SEV {
		fmt.Fprintf(t, "SEV %d\t%s\t%#x\t%#x bytes\n", i, s.Name, s.GPA, s.Size)
	}
	for i, s := range m.TDX {
		content := "no content"
		if s.Data > 0 {
			content = fmt.Sprintf("content at %#x, %#x bytes", s.Offset, s.Data)
		}
		fmt.Fprintf(t, "TDX %d\t%s\t%#x\t%#x bytes\t%s\t%s\n", i, s.Name, s.GPA, s.Size, content, s.measured())
	}
	for i, s := range m.IGVM {
		fmt.Fprintf(t, "IGVM %d\t%s\t%#x\t%#x bytes\n", i, s.Name, s.GPA, s.Size)
	}
	return t.Flush()
}

func (s tdxSectionView) measured() string {
	switch {
	case s.Attributes&ovmf.TDXAug != 0:
		return "not in MRTD"
	case s.Attributes&ovmf.TDXExtend != 0:
		return "MRTD covers the content"
	}
	return "MRTD covers that it is there"
}

func (a *areaView) text(w io.Writer, name string) {
	if a != nil {
		fmt.Fprintf(w, "%s at %#x, %#x bytes\n", name, a.Base, a.Size)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
