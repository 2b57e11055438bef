package refvalue

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// phasesPCR is the register of the image and its boot phases.
const phasesPCR = 11

// initrdPhases are those that a guest passes before it asks a broker.
var initrdPhases = []string{"enter-initrd", "leave-initrd"}

// readPhases returns the phase paths that the image's PCR 11 is read at, and makes i
// have the values there.
func readPhases(i *Image, r register) ([]string, error) {
	last, found := "", false
	for _, v := range i.Measurements.Values {
		if r.is(&v) {
			found = true
			if passed(v.Phase) > passed(last) {
				last = v.Phase
			}
		}
	}
	if !found {
		return nil, r.unfit()
	}
	points := pathsTo(last)
	want := i.Phase
	switch {
	case want == "" && i.Asks:
		return i.at(r, points, slices.Compact([]string{asks(points), last})...)
	case want == "":
		return i.at(r, points, last)
	case want == NoPhase:
		want = ""
	}
	return i.at(r, points, want)
}

// pathsTo are the paths that a guest comes to before the last one, and that.
func pathsTo(last string) []string {
	out := []string{""}
	if last == "" {
		return out
	}
	phases := strings.Split(last, ":")
	for n := range phases {
		out = append(out, strings.Join(phases[:n+1], ":"))
	}
	return out
}

// asks is the path at which the agent asks for secrets.
func asks(points []string) (at string) {
	for _, p := range points[1:] {
		if slices.ContainsFunc(strings.Split(p, ":"), func(phase string) bool { return !slices.Contains(initrdPhases, phase) }) {
			break
		}
		at = p
	}
	return at
}

// at makes the image have values of the register at each path. A document has those
// before the first phase and after the last.
func (i *Image) at(r register, points []string, paths ...string) ([]string, error) {
	m := *i.Measurements
	m.Values = slices.Clone(m.Values)
	for _, p := range paths {
		has := func(v measure.Value) bool { return r.is(&v) && v.Phase == p }
		if slices.ContainsFunc(m.Values, has) {
			continue
		}
		n := slices.Index(points, p)
		if n < 0 {
			return nil, fmt.Errorf("PCR %d at phase %q: %w: they have it at %q", phasesPCR, p, ErrUnfit, points)
		}
		for _, v := range i.Measurements.Values {
			if !r.is(&v) || v.Phase != points[len(points)-1] {
				continue
			}
			w, err := i.between(&v, p, n, len(points)-1)
			if err != nil {
				return nil, err
			}
			m.Values = append(m.Values, *w)
		}
	}
	i.Measurements = &m
	return paths, nil
}

// between is the register after n of the phases that last has passed, all of them:
// what it was before, extended by the first n of last's own events.
func (i *Image) between(last *measure.Value, path string, n, all int) (*measure.Value, error) {
	k := slices.IndexFunc(i.Measurements.Values, func(v measure.Value) bool {
		return v.Platform == last.Platform && v.Register == last.Register && v.Bank == last.Bank && v.Phase == "" && sameShape(v.Shape, last.Shape)
	})
	if k < 0 || len(last.Events) < all {
		return nil, fmt.Errorf("PCR %d at phase %q: %w", phasesPCR, path, ErrUnfit)
	}
	out, events := i.Measurements.Values[k], last.Events[len(last.Events)-all:]
	out.Phase, out.Events, out.OneOf = path, slices.Concat(out.Events, events[:n]), slices.Clone(out.OneOf)
	end := out.Value
	for at, e := range events {
		var err error
		if end, err = extend(out.Bank, end, e.Digest); err != nil {
			return nil, fmt.Errorf("PCR %d at phase %q: event %s: %w", phasesPCR, path, e.Name, err)
		}
		if at >= n {
			continue
		}
		for x := range out.OneOf {
			if out.OneOf[x], err = extend(out.Bank, out.OneOf[x], e.Digest); err != nil {
				return nil, err
			}
		}
		out.Value = end
	}
	if end != last.Value {
		return nil, fmt.Errorf("PCR %d at phase %q: the document contradicts itself: its phases lead to %s, not %s", phasesPCR, path, end, last.Value)
	}
	return &out, nil
}

func sameShape(a, b *measure.Shape) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// extend folds a digest into a value; of one that is not known, "", nothing is.
func extend(bank, value, digest string) (string, error) {
	alg, err := eventlog.ParseAlg(bank)
	if err != nil || value == "" {
		return "", err
	}
	v, err := hex.DecodeString(value)
	if err != nil {
		return "", err
	}
	d, err := hex.DecodeString(digest)
	if err != nil || len(d) != alg.Size() {
		return "", fmt.Errorf("digest %q: want %d bytes in hex", digest, alg.Size())
	}
	return hex.EncodeToString(eventlog.Extend(alg, v, d)), nil
}
