package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// Options say how to run a plan. They never change what comes out.
type Options struct {
	Store     *cas.Store
	Workplace *Workplace  // where packages come from when the store lacks them
	Jobs      int         // steps at once; 0 means no limit
	Progress  func(Event) // may be nil; called from many goroutines
}

// An Event is one line of progress.
type Event struct {
	Step    string        `json:"step"`
	State   string        `json:"state"` // start, progress, done, cached, failed, stopped
	Bytes   int64         `json:"bytes,omitempty"`
	Total   int64         `json:"total,omitempty"`
	Message string        `json:"message,omitempty"`
	Elapsed time.Duration `json:"elapsed_ns,omitempty"`
}

// Build plans and runs the whole pipeline for s and describes the image.
func Build(ctx context.Context, s *Spec, o Options) (*Manifest, error) {
	if err := checkValues(s.Profile); err != nil {
		return nil, err
	}
	p, err := NewPlan(s)
	if err != nil {
		return nil, err
	}
	results, err := Run(ctx, p, o)
	if err != nil {
		return nil, err
	}
	root, err := readRoot(o.Store, results)
	if err != nil {
		return nil, err
	}
	drivers, err := readBuiltIn(o.Store, results)
	if err != nil {
		return nil, err
	}
	return NewManifest(s, results, root, drivers), nil
}

// Run makes everything in the plan that the store does not hold yet and
// returns the outputs by step. Steps run side by side as soon as what they
// need is there. A second process that runs the same step waits for the first.
func Run(ctx context.Context, p *Plan, o Options) (map[string]Outputs, error) {
	g, ctx := errgroup.WithContext(ctx)
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	var slots chan struct{}
	if o.Jobs > 0 {
		slots = make(chan struct{}, o.Jobs)
	}
	results := map[string]*pending{}
	for i := range p.Steps {
		results[p.Steps[i].Name] = &pending{done: make(chan struct{})}
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		g.Go(func() error {
			if err := awaitNeeds(ctx, s.step, results); err != nil {
				return err
			}
			if slots != nil {
				select {
				case slots <- struct{}{}:
					defer func() { <-slots }()
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			out, err := runStep(ctx, p.Spec, s, results, o)
			if err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
			results[s.Name].out = out
			close(results[s.Name].done)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := map[string]Outputs{}
	for name, r := range results {
		all[name] = r.out
	}
	return all, nil
}

// pending is a step's outputs once done is closed.
type pending struct {
	done chan struct{}
	out  Outputs
}

func awaitNeeds(ctx context.Context, s *step, results map[string]*pending) error {
	for _, n := range s.needs {
		r, ok := results[n]
		if !ok {
			continue // the profile does without that step
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func runStep(ctx context.Context, spec *Spec, s *Planned, results map[string]*pending, o Options) (Outputs, error) {
	start := time.Now()
	if out, ok := loadOutputs(o.Store, s.Key); ok {
		o.Progress(Event{Step: s.Name, State: "cached", Bytes: total(out)})
		return out, nil
	}
	unlock, err := o.Store.Lock(ctx, "step "+s.Key.String())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if out, ok := loadOutputs(o.Store, s.Key); ok { // another process made it while we waited
		o.Progress(Event{Step: s.Name, State: "cached", Bytes: total(out)})
		return out, nil
	}
	o.Progress(Event{Step: s.Name, State: "start", Message: s.Does})
	w := &work{Spec: spec, Options: o, name: s.Name, results: results, out: Outputs{}}
	if err := s.step.run(ctx, w); err != nil {
		state := "failed"
		if ctx.Err() != nil { // because another step failed, or the user
			state = "stopped"
		}
		o.Progress(Event{Step: s.Name, State: state, Elapsed: time.Since(start)})
		return nil, err
	}
	b, err := json.Marshal(w.out)
	if err == nil {
		err = o.Store.SaveResult(s.Key, b)
	}
	if err != nil {
		return nil, err
	}
	o.Progress(Event{Step: s.Name, State: "done", Bytes: total(w.out), Elapsed: time.Since(start)})
	return w.out, nil
}

func total(o Outputs) (n int64) {
	for _, r := range o {
		n += r.Size
	}
	return n
}

// work is what a running step sees.
type work struct {
	*Spec
	Options
	name    string
	results map[string]*pending
	out     Outputs
	opened  []*os.File // by section
}

// ref returns an output of a step that this one needs.
func (w *work) ref(step, name string) (cas.Ref, error) {
	if s := w.results[step]; s != nil {
		if r, ok := s.out[name]; ok {
			return r, nil
		}
	}
	return cas.Ref{}, fmt.Errorf("step %s made no %s", step, name)
}

// open opens an output of a step that this one needs.
func (w *work) open(step, name string) (*os.File, int64, error) {
	r, err := w.ref(step, name)
	if err != nil {
		return nil, 0, err
	}
	f, err := w.Store.Open(r)
	return f, r.Size, err
}

// read returns an output of a step that this one needs, whole.
func (w *work) read(step, name string) ([]byte, error) {
	r, err := w.ref(step, name)
	if err != nil {
		return nil, err
	}
	return w.Store.ReadFile(r.Digest)
}

// put stores a small output.
func (w *work) put(name string, b []byte) error {
	r, err := w.Store.Put(b)
	w.out[name] = r
	return err
}

// putJSON stores a document as an output.
func (w *work) putJSON(name string, v any) error {
	b, err := strictjson.Marshal(v)
	if err != nil {
		return err
	}
	return w.put(name, b)
}

// write stores an output that fill streams.
func (w *work) write(ctx context.Context, name string, fill func(*cas.Writer) error) error {
	cw, err := w.Store.Create()
	if err != nil {
		return err
	}
	defer cw.Abort()
	if err := fill(cw); err != nil {
		return causedBy(err, cw.Err())
	}
	r, err := cw.Commit(ctx)
	w.out[name] = r
	return err
}

// causedBy makes err wrap its cause, which a library may have turned into text.
func causedBy(err, cause error) error {
	if cause == nil || errors.Is(err, cause) {
		return err
	}
	return &causedError{err, cause}
}

type causedError struct{ err, cause error }

func (e *causedError) Error() string   { return e.err.Error() }
func (e *causedError) Unwrap() []error { return []error{e.err, e.cause} }
