// Package builder turns a profile into an image. The pipeline is one fixed
// table, in steps.go, read from top to bottom: a step takes blobs of the store
// and makes blobs of the store. A step runs only when the store has no result
// under its key, and its key covers everything that decides its output.
package builder

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// A Spec is all that decides the bytes of an image.
type Spec struct {
	Profile *profiles.Profile
	Lock    *source.Lock
	Guest   Guest
	Records []byte // platform records, as the file beside the lock holds them; may be empty
}

// A Guest is the pair of programs that plinth brings into every image.
type Guest struct {
	Agent cas.Ref `json:"agent"`
	Shell cas.Ref `json:"shell,omitzero"` // for profiles with agent.shell only
}

// A step is one row of the pipeline.
type step struct {
	name    string
	does    string // for people: what plan and progress print
	version int    // goes up when equal inputs give other bytes than before
	needs   []string
	when    func(*Spec) bool // nil: always
	inputs  func(*Spec) any  // what decides the output besides the needed steps
	run     func(context.Context, *work) error
}

// A Plan is the pipeline for one Spec, with keys. Making it reads nothing.
type Plan struct {
	Spec  *Spec
	Steps []Planned
}

// A Planned step has its key.
type Planned struct {
	Name string
	Does string
	Key  cas.Digest
	step *step
}

// NewPlan computes the keys: SHA-256 over the step's name, version, inputs and
// the keys of the steps that it needs.
func NewPlan(s *Spec) (*Plan, error) {
	p := &Plan{Spec: s}
	keys := map[string]cas.Digest{}
	for i := range pipeline {
		st := &pipeline[i]
		if st.when != nil && !st.when(s) {
			continue
		}
		key, err := stepKey(st, s, keys)
		if err != nil {
			return nil, fmt.Errorf("builder: step %s: %w", st.name, err)
		}
		keys[st.name] = key
		p.Steps = append(p.Steps, Planned{st.name, st.does, key, st})
	}
	return p, nil
}

func stepKey(st *step, s *Spec, keys map[string]cas.Digest) (cas.Digest, error) {
	doc := struct {
		Step    string
		Version int
		Inputs  any
		Needs   []cas.Digest
	}{st.name, st.version, st.inputs(s), nil}
	for _, n := range st.needs {
		if k, ok := keys[n]; ok {
			doc.Needs = append(doc.Needs, k)
		} else if !pipelineHas(n, st.name) {
			return cas.Digest{}, fmt.Errorf("needs %s, which does not come before it", n)
		}
	}
	b, err := json.Marshal(doc) // maps are sorted: equal inputs, equal bytes
	if err != nil {
		return cas.Digest{}, err
	}
	return cas.Sum(b), nil
}

// pipelineHas tells whether a step comes before another, though the plan may do
// without it.
func pipelineHas(name, before string) bool {
	for i := range pipeline {
		switch pipeline[i].name {
		case before:
			return false
		case name:
			return true
		}
	}
	return false
}

// Cached reports, for each step, whether the store has its result.
func (p *Plan) Cached(st *cas.Store) []bool {
	out := make([]bool, len(p.Steps))
	for i, s := range p.Steps {
		_, out[i] = loadOutputs(st, s.Key)
	}
	return out
}

// Outputs are the blobs that a step made, by name.
type Outputs map[string]cas.Ref

// loadOutputs returns a step's result if the store has it and all its blobs.
func loadOutputs(st *cas.Store, key cas.Digest) (Outputs, bool) {
	b, err := st.LoadResult(key)
	if err != nil {
		return nil, false
	}
	var o Outputs
	if json.Unmarshal(b, &o) != nil {
		return nil, false
	}
	for _, r := range o {
		if !st.Holds(r) {
			return nil, false
		}
	}
	return o, true
}
