package builder

import (
	"encoding/json"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
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
}

// An Artefact is one file of the output directory.
type Artefact struct {
	Name string `json:"name"`
	cas.Ref
}

// artefacts maps outputs of steps to the names that users see.
var artefacts = []struct{ name, step, output string }{
	{"image.raw", "disk", "image.raw"},
	{"image.efi", "uki", "image.efi"},
	{"initrd", "initrd", "initrd"},
	{"vmlinuz", "kernel", "vmlinuz"},
	{"cmdline", "uki", "cmdline"},
	{"firmware.fd", "firmware", "code"},
	{"firmware.vars.fd", "firmware", "vars"},
	{"measurements.json", "measure", "measurements.json"},
	{"eventlog.json", "measure", "eventlog.json"},
}

// manifestSchema is the number of the manifest's format.
const manifestSchema = 1

// NewManifest describes the result of a run.
func NewManifest(s *Spec, results map[string]Outputs) *Manifest {
	m := &Manifest{
		Schema:   manifestSchema,
		Name:     s.Profile.Name,
		Platform: s.Profile.Platform,
		Arch:     s.Profile.Arch,
		Epoch:    s.Profile.Epoch,
		Cmdline:  s.cmdline(),
		Machine:  shape(s.Profile.Machine),
		Guest:    s.Guest,
		Profile:  s.Profile.Canonical(),
		Lock:     s.Lock,
		Records:  s.Records,
	}
	for _, a := range artefacts {
		m.Artefacts = append(m.Artefacts, Artefact{a.name, results[a.step][a.output]})
	}
	return m
}

func shape(m profiles.Machine) Machine {
	return Machine{Type: m.Type, CPU: m.CPU, VCPUs: m.VCPUs, Memory: m.Memory}
}
