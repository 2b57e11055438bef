package builder

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/profiles"
)

// A Manifest says what an image is and from what it was made. It is a pure
// function of the inputs: no time, no host, no path.
type Manifest struct {
	Schema    int             `json:"schema"`
	Name      string          `json:"name"`
	Platform  string          `json:"platform"`
	Arch      string          `json:"arch"`
	Epoch     int64           `json:"epoch"` // seconds since 1970
	Cmdline   string          `json:"cmdline"`
	Machine   Machine         `json:"machine"`
	BuiltIn   []string        `json:"built_in,omitempty"` // drivers of hypervisors and clouds that are part of the kernel, sorted
	Root      *Root           `json:"root,omitempty"`     // nil: the initrd is the root
	Artefacts []Artefact      `json:"artefacts"`
	Guest     Guest           `json:"guest"`
	Profile   json.RawMessage `json:"profile"` // resolved
	Lock      *source.Lock    `json:"lock"`
	Records   json.RawMessage `json:"platform_records,omitempty"`
}

// A Machine is the shape of the virtual machine that the image is for.
type Machine struct {
	Type   string `json:"type"`
	CPU    string `json:"cpu"`
	VCPUs  []int  `json:"vcpus"`
	Memory int    `json:"memory_mib"`
	Path   string `json:"path,omitempty"` // how it is started; empty: from the disk
}

// BootPath is how the guest is started: see profiles.Machine.
func (m Machine) BootPath() string { return cmp.Or(m.Path, profiles.PathDisk) }

// An Artefact is one file of the output directory.
type Artefact struct {
	Name string `json:"name"`
	cas.Ref
}

// Names of the artefacts that commands ask for.
const (
	DiskName         = "image.raw"
	UKIName          = "image.efi"
	InitrdName       = "initrd"
	KernelName       = "vmlinuz"
	CmdlineName      = "cmdline"
	RootHashName     = "roothash"
	FirmwareName     = "firmware.fd"
	VarsName         = "firmware.vars.fd"
	GenericName      = "firmware.generic.fd"
	GenericVarsName  = "firmware.generic.vars.fd"
	MeasurementsName = "measurements.json"
	EventLogName     = "eventlog.json"
	SPDXName         = "sbom.spdx.json"
	CycloneDXName    = "sbom.cdx.json"
	InitdataName     = "initdata.toml"
	WorkloadsName    = "workloads.json"
	PolicyName       = "policy.json" // what a broker will give as the policy
)

// artefacts maps outputs of steps to the names that users see. What is optional
// not every platform has.
var artefacts = []struct {
	name, step, output string
	optional           bool
}{
	{DiskName, "disk", "image.raw", false},
	{"image.qcow2", "forms", "image.qcow2", true},
	{"image.vhd", "forms", "image.vhd", true},
	{"image.vmdk", "forms", "image.vmdk", true},
	{"image.tar.gz", "forms", "image.tar.gz", true},
	{UKIName, "uki", "image.efi", false},
	{InitrdName, "initrd", "initrd", false},
	{KernelName, "kernel", "vmlinuz", false},
	{CmdlineName, "uki", "cmdline", false},
	{RootHashName, "verity", "roothash", true},
	{FirmwareName, "firmware", "code", false},
	{VarsName, "firmware", "vars", true},
	{GenericName, "firmware", "generic.code", true},
	{GenericVarsName, "firmware", "generic.vars", true},
	{MeasurementsName, "measure", "measurements.json", false},
	{EventLogName, "measure", "eventlog.json", true},
	{InitdataName, "measure", "initdata.toml", true},
	{WorkloadsName, "workloads", workloadsOutput, true},
	{PolicyName, "workloads", policyOutput, true},
	{SPDXName, "verity", "sbom.spdx.json", true},
	{CycloneDXName, "verity", "sbom.cdx.json", true},
	{SPDXName, "initrd", "sbom.spdx.json", true}, // where the initrd is the root
	{CycloneDXName, "initrd", "sbom.cdx.json", true},
}

// manifestSchema is the number of the manifest's format.
const manifestSchema = 1

// NewManifest describes the result of a run. root is nil where the initrd is the
// root; builtIn is what the initrd step says.
func NewManifest(s *Spec, results map[string]Outputs, root *Root, builtIn []string) *Manifest {
	m := &Manifest{
		Schema:   manifestSchema,
		Name:     s.Profile.Name,
		Platform: s.Profile.Platform,
		Arch:     s.Profile.Arch,
		Epoch:    s.Profile.Epoch,
		Cmdline:  s.cmdline(root),
		Machine:  shape(s.Profile.Machine),
		BuiltIn:  builtIn,
		Root:     root,
		Guest:    s.Guest,
		Profile:  s.Profile.Canonical(),
		Lock:     s.Lock,
		Records:  s.Records,
	}
	for _, a := range artefacts {
		if r, ok := results[a.step][a.output]; ok || !a.optional {
			m.Artefacts = append(m.Artefacts, Artefact{a.name, r})
		}
	}
	return m
}

// Has tells whether the image has an artefact of that name.
func (m *Manifest) Has(name string) bool {
	return slices.ContainsFunc(m.Artefacts, func(a Artefact) bool { return a.Name == name })
}

func shape(m profiles.Machine) Machine {
	return Machine{Type: m.Type, CPU: m.CPU, VCPUs: m.VCPUs, Memory: m.Memory, Path: m.Path}
}

// Artefact returns the artefact of that name, an empty one if there is none.
func (m *Manifest) Artefact(name string) Artefact {
	for _, a := range m.Artefacts {
		if a.Name == name {
			return a
		}
	}
	return Artefact{}
}

// Marshal writes the manifest; equal manifests give equal bytes.
func (m *Manifest) Marshal() ([]byte, error) { return strictjson.Marshal(m) }

// ParseManifest reads what Marshal wrote, in any layout. It refuses anything else,
// and a manifest that the commands could not work with.
func ParseManifest(b []byte) (*Manifest, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var m Manifest
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("manifest: more than one document")
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	canonical, err := m.Marshal()
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	var got, want bytes.Buffer
	if err := errors.Join(json.Compact(&got, b), json.Compact(&want, canonical)); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		return nil, errors.New("manifest: a key is repeated, missing or out of order")
	}
	return &m, nil
}

func (m *Manifest) check() error {
	switch {
	case m.Schema != manifestSchema:
		return fmt.Errorf("schema %d: want %d", m.Schema, manifestSchema)
	case m.Lock == nil:
		return errors.New("no lock")
	case len(m.Machine.VCPUs) == 0:
		return errors.New("machine: no number of vCPUs")
	}
	if m.Root != nil {
		if err := m.Root.check(m.Cmdline); err != nil {
			return err
		}
	}
	for _, a := range m.Artefacts {
		if a.Name != filepath.Base(a.Name) || a.Size < 0 {
			return fmt.Errorf("artefact %q, %d bytes", a.Name, a.Size)
		}
	}
	lock, err := m.Lock.Marshal()
	if err != nil {
		return err
	}
	_, err = source.ParseLock(lock)
	return err
}
