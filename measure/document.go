package measure

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// Provenance says where a value or an event comes from.
type Provenance string

// The provenances.
const (
	Predicted Provenance = "predicted" // computed from the files
	OneOf     Provenance = "one-of"    // one of a finite list
	Recorded  Provenance = "recorded"  // with events of a platform record
	Volatile  Provenance = "volatile"  // not to be relied upon, for the reason given
)

// Measurements is measurements.json: what will be measured, by register.
type Measurements struct {
	Schema   int      `json:"schema"`
	Profile  string   `json:"profile"`
	Machine  Shape    `json:"machine"`  // the first of Machines
	Machines []Shape  `json:"machines"` // for which the values hold
	Versions Versions `json:"versions"`
	Notes    []string `json:"notes"`
	Values   []Value  `json:"values"`

	Inputs []Input   `json:"inputs,omitempty"` // what the values were computed from
	SNP    *SNPFacts `json:"snp,omitempty"`    // what a report of the guest shows besides its digest
	TDX    *TDXFacts `json:"tdx,omitempty"`    // what a quote shows besides its registers
}

// Shape is a machine's shape.
type Shape struct {
	Type      string `json:"type"`
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
}

func (m *Machine) shape() Shape { return Shape{m.Type, m.VCPUs, m.MemoryMiB} }

// Versions are those of what measures; "" is what is not there or not known.
type Versions struct {
	Edk2   string `json:"edk2"`
	Stub   string `json:"stub"`
	Kernel string `json:"kernel"`
	VMM    string `json:"vmm"`
}

// Value is what one register will hold at one time.
type Value struct {
	Platform   string     `json:"platform"` // of registersOf
	Register   string     `json:"register"` // "pcr4", "launch_digest", "mrtd"
	Bank       string     `json:"bank"`     // "sha256"
	Phase      string     `json:"phase"`    // "" before userspace extends anything, else the phases, joined by ":"
	Shape      *Shape     `json:"shape,omitempty"`
	CPU        string     `json:"cpu,omitempty"` // vCPU model that a launch digest is for
	Provenance Provenance `json:"provenance"`
	Value      string     `json:"value"`  // hex; "" when it is one of several, or not known
	OneOf      []string   `json:"one_of"` // hex; the first is what Events lead to
	Reason     string     `json:"reason"`
	Events     []EventRef `json:"events"`
}

// EventRef is one event behind a value.
type EventRef struct {
	Name       string     `json:"name"`
	Type       string     `json:"type"`
	Digest     string     `json:"digest"` // hex; "" when it is not known
	Source     string     `json:"source"`
	Provenance Provenance `json:"provenance,omitempty"` // Recorded or Volatile; else Predicted
	Unlogged   bool       `json:"unlogged,omitempty"`   // not in the firmware's event log
}

// image returns the versions of all but the VMM, which only a platform record may
// tell, and that for one shape and not for another.
func (v Versions) image() Versions {
	v.VMM = ""
	return v
}

const documentSchema = 1

// NewMeasurements joins the predictions of one image in several machine shapes.
// A value that is not the same in all of them is there once for each, with the
// shape.
func NewMeasurements(profile string, predictions ...*Prediction) (*Measurements, error) {
	if len(predictions) == 0 {
		return nil, errors.New("measure: no prediction")
	}
	first := predictions[0]
	m := &Measurements{
		Schema: documentSchema, Profile: profile, Machine: first.Machine.shape(), Versions: first.Versions,
		Notes: []string{}, Values: []Value{},
	}
	for _, p := range predictions {
		if p.Versions.VMM != m.Versions.VMM && p.Versions.VMM != "" && m.Versions.VMM != "" {
			m.Notes = append(m.Notes, fmt.Sprintf("%s for %d vCPUs, not %s", p.Versions.VMM, p.Machine.VCPUs, m.Versions.VMM))
		}
		m.Versions.VMM = cmp.Or(m.Versions.VMM, p.Versions.VMM)
		if p.Versions.image() != first.Versions.image() || !slices.Equal(p.Banks, first.Banks) || len(p.Values) != len(first.Values) {
			return nil, errors.New("measure: predictions are not of the same image")
		}
		if slices.Contains(m.Machines, p.Machine.shape()) {
			return nil, fmt.Errorf("measure: two predictions for %+v", p.Machine.shape())
		}
		m.Machines = append(m.Machines, p.Machine.shape())
		for _, n := range p.Notes {
			if !slices.Contains(m.Notes, n) {
				m.Notes = append(m.Notes, n)
			}
		}
	}
	for i := range first.Values {
		m.Values = append(m.Values, joined(predictions, i)...)
	}
	return m, nil
}

// joined returns the i-th value of all predictions.
func joined(predictions []*Prediction, i int) []Value {
	var out []Value
	same := true
	for _, p := range predictions {
		v, shape := p.Values[i], p.Machine.shape()
		same = same && reflect.DeepEqual(v, predictions[0].Values[i])
		v.Shape = &shape
		out = append(out, v)
	}
	if same {
		return []Value{predictions[0].Values[i]}
	}
	return out
}

// ParseMeasurements reads measurements.json.
func ParseMeasurements(b []byte) (*Measurements, error) {
	var m Measurements
	if err := decodeStrict(b, &m); err != nil {
		return nil, fmt.Errorf("measure: measurements: %w", err)
	}
	if m.Schema != documentSchema {
		return nil, fmt.Errorf("measure: measurements: schema %d: want %d", m.Schema, documentSchema)
	}
	if len(m.Machines) == 0 || m.Machines[0] != m.Machine {
		return nil, fmt.Errorf("measure: measurements: machine %+v is not the first of machines", m.Machine)
	}
	if err := m.checkFacts(); err != nil {
		return nil, fmt.Errorf("measure: measurements: %w", err)
	}
	seen := map[string]bool{}
	for i := range m.Values {
		v := &m.Values[i]
		if err := v.check(m.Machines); err != nil {
			return nil, fmt.Errorf("measure: measurements: value %d: %w", i, err)
		}
		for _, key := range v.keys(m.Machines) {
			if seen[key] {
				return nil, fmt.Errorf("measure: measurements: value %d: %s is there twice", i, key)
			}
			seen[key] = true
		}
	}
	return &m, nil
}

// Marshal writes measurements.json. Equal values give equal bytes.
func (m *Measurements) Marshal() ([]byte, error) { return strictjson.Marshal(m) }

// The platforms of values.
const (
	PlatformTPM   = "tpm"
	PlatformSNP   = "snp"
	PlatformSEVES = "seves"
	PlatformSEV   = "sev"
	PlatformTDX   = "tdx"
)

// Registers whose events are ranges of pages, each with the digest so far.
const (
	launchDigest = "launch_digest" // the one of AMD's platforms
	mrtd         = "mrtd"
)

// registersOf says what registers a platform has, and in which banks; nil are
// those of a TPM.
var registersOf = map[string]struct {
	pattern *regexp.Regexp
	says    string
	banks   []string
}{
	PlatformTPM:   {regexp.MustCompile(`^pcr([0-9]|1[0-9]|2[0-3])$`), "pcr0 to pcr23", nil},
	PlatformSNP:   {regexp.MustCompile(`^` + launchDigest + `$`), launchDigest, []string{"sha384"}},
	PlatformSEVES: {regexp.MustCompile(`^` + launchDigest + `$`), launchDigest, []string{"sha256"}},
	PlatformSEV:   {regexp.MustCompile(`^` + launchDigest + `$`), launchDigest, []string{"sha256"}},
	PlatformTDX:   {regexp.MustCompile(`^(mrtd|rtmr[0-3])$`), "mrtd or rtmr0 to rtmr3", []string{"sha384"}},
}

func (v *Value) check(machines []Shape) error {
	alg, err := eventlog.ParseAlg(v.Bank)
	if err != nil {
		return err
	}
	if err := v.checkRegister(); err != nil {
		return err
	}
	if v.Shape != nil && !slices.Contains(machines, *v.Shape) {
		return fmt.Errorf("shape %+v: not one of machines", *v.Shape)
	}
	values := []string{v.Value}
	switch v.Provenance {
	case Predicted, Recorded:
		if v.OneOf != nil {
			return fmt.Errorf("provenance %s with one_of", v.Provenance)
		}
	case OneOf:
		if v.Value != "" || len(v.OneOf) < 2 {
			return fmt.Errorf("provenance %s: want no value and several in one_of", v.Provenance)
		}
		values = v.OneOf
	case Volatile:
		if v.Value != "" || v.OneOf != nil || v.Reason == "" {
			return fmt.Errorf("provenance %s: want a reason and no value", v.Provenance)
		}
		values = nil
	default:
		return fmt.Errorf("provenance %q", v.Provenance)
	}
	for _, e := range v.Events {
		if e.Digest != "" {
			values = append(values, e.Digest)
		}
	}
	for _, h := range values {
		if b, err := hex.DecodeString(h); err != nil || len(b) != alg.Size() || h != strings.ToLower(h) {
			return fmt.Errorf("%s: %q: want %d bytes in lower-case hex", v.Bank, h, alg.Size())
		}
	}
	return nil
}

// checkRegister holds register and bank to what the platform has.
func (v *Value) checkRegister() error {
	p, ok := registersOf[v.Platform]
	switch {
	case !ok:
		return fmt.Errorf("platform %q: want one of %q", v.Platform, slices.Sorted(maps.Keys(registersOf)))
	case !p.pattern.MatchString(v.Register):
		return fmt.Errorf("platform %q, register %q: want %s", v.Platform, v.Register, p.says)
	case p.banks != nil && !slices.Contains(p.banks, v.Bank):
		return fmt.Errorf("platform %q, bank %q: want %s", v.Platform, v.Bank, strings.Join(p.banks, " or "))
	case v.CPU != "" && v.Register != launchDigest:
		return fmt.Errorf("cpu %q: only a launch digest has one", v.CPU)
	}
	return nil
}

// keys names the value in each shape that it is for.
func (v *Value) keys(machines []Shape) (out []string) {
	for _, s := range machines {
		if v.Shape == nil || *v.Shape == s {
			out = append(out, fmt.Sprintf("%s %s %s %q %q in %d vCPUs, %d MiB", v.Platform, v.Register, v.Bank, v.Phase, v.CPU, s.VCPUs, s.MemoryMiB))
		}
	}
	return out
}

// values returns the possible values.
func (v *Value) values() []string {
	switch v.Provenance {
	case OneOf:
		return v.OneOf
	case Volatile:
		return nil
	}
	return []string{v.Value}
}

// logged returns the events that are expected in the firmware's log, in the form
// of package eventlog.
func (v *Value) logged(register int, alg eventlog.Alg) (out []eventlog.Event) {
	for _, e := range v.Events {
		if e.Unlogged {
			continue
		}
		t, _ := eventlog.ParseType(e.Type)
		x := eventlog.Event{Register: register, Type: t, Name: e.Name, Source: e.Source}
		if d, err := hex.DecodeString(e.Digest); err == nil && len(d) > 0 {
			x.Digests = []eventlog.Digest{{Alg: alg, Value: d}}
		}
		out = append(out, x)
	}
	return out
}
