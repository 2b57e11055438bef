package refvalue

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/measure"
)

// Types of in-toto documents.
const (
	StatementType  = "https://in-toto.io/Statement/v1"
	PredicateType  = "https://github.com/plinth-os/plinth/measurements/v1" // the predicate is measurements.json
	ProvenanceType = "https://slsa.dev/provenance/v1"
	BuildType      = "https://github.com/plinth-os/plinth/image/v1"
)

// A Resource is an artefact: an in-toto ResourceDescriptor with a SHA-256.
type Resource struct {
	Name   string
	SHA256 string // hex
	URI    string // where it is from; may be empty
}

// A Build is what SLSA asks of one: what was to be built, of what, and by whom.
type Build struct {
	Profile      string          // the profile's name
	Parameters   json.RawMessage // the resolved profile, an object: with the inputs, it decides every byte
	Builder      string          // URI that names who ran the build; "" is plinth's own, which claims nothing of the machine
	Version      string          // of plinth
	Dependencies []Resource      // the lock's packages and files
}

// LocalBuilder is the builder of an image that somebody built by hand.
const LocalBuilder = "https://github.com/plinth-os/plinth/builder/local"

type descriptor struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type statement struct {
	Type          string          `json:"_type"`
	Subject       []descriptor    `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Statement returns an in-toto statement that guests of these artefacts measure
// m: the predicate is measurements.json as it is.
func Statement(subjects []Resource, m *measure.Measurements) ([]byte, error) {
	if m == nil {
		return nil, errors.New("refvalue: statement: no measurements")
	}
	b, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	return marshalStatement(subjects, PredicateType, b)
}

type provenance struct {
	BuildDefinition struct {
		BuildType            string                     `json:"buildType"`
		ExternalParameters   map[string]json.RawMessage `json:"externalParameters"`
		ResolvedDependencies []descriptor               `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder builderID `json:"builder"`
	} `json:"runDetails"`
}

type builderID struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// Provenance returns an in-toto statement with SLSA provenance. It has no times:
// two equal builds have equal provenance.
func Provenance(subjects []Resource, b Build) ([]byte, error) {
	p := provenance{}
	name, err := json.Marshal(b.Profile)
	if err != nil {
		return nil, err
	}
	if d := bytes.TrimSpace(b.Parameters); b.Profile == "" || len(d) == 0 || d[0] != '{' {
		return nil, errors.New("refvalue: provenance: want a profile by name and content")
	}
	d := &p.BuildDefinition
	d.BuildType = BuildType
	d.ExternalParameters = map[string]json.RawMessage{"name": name, "profile": b.Parameters}
	if d.ResolvedDependencies, err = descriptors(b.Dependencies); err != nil {
		return nil, fmt.Errorf("refvalue: provenance: dependency: %w", err)
	}
	p.RunDetails.Builder.ID = LocalBuilder
	if b.Builder != "" {
		p.RunDetails.Builder.ID = b.Builder
	}
	if b.Version != "" {
		p.RunDetails.Builder.Version = map[string]string{"plinth": b.Version}
	}
	predicate, err := strictjson.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("refvalue: provenance: %w", err)
	}
	return marshalStatement(subjects, ProvenanceType, predicate)
}

func marshalStatement(subjects []Resource, kind string, predicate []byte) ([]byte, error) {
	list, err := descriptors(subjects)
	if err == nil && len(list) == 0 {
		err = errors.New("none")
	}
	for i := 1; err == nil && i < len(list); i++ {
		if list[i].Name == list[i-1].Name {
			err = fmt.Errorf("%s is there twice", list[i].Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("refvalue: statement: subject: %w", err)
	}
	b, err := strictjson.Marshal(statement{StatementType, list, kind, predicate})
	if err != nil {
		return nil, fmt.Errorf("refvalue: statement: %w", err)
	}
	return b, nil
}

// descriptors sorts resources by name, so that their order says nothing.
func descriptors(list []Resource) ([]descriptor, error) {
	out := []descriptor{}
	for _, r := range list {
		b, err := hex.DecodeString(r.SHA256)
		switch {
		case r.Name == "":
			return nil, errors.New("it has no name")
		case err != nil || len(b) != 32:
			return nil, fmt.Errorf("%s: SHA-256 %q: want 64 hex digits", r.Name, r.SHA256)
		}
		out = append(out, descriptor{r.Name, r.URI, map[string]string{"sha256": hex.EncodeToString(b)}})
	}
	slices.SortFunc(out, func(a, b descriptor) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.URI, b.URI), strings.Compare(a.Digest["sha256"], b.Digest["sha256"]))
	})
	return out, nil
}
