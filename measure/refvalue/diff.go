package refvalue

import (
	"fmt"
	"slices"
)

// A Change is what differs between two sets, under one name.
type Change struct {
	Name    string `json:"name"`    // "" is the set itself
	What    string `json:"what"`    // Added, Removed, Changed, Shape or Expiry
	Added   []any  `json:"added"`   // values that only the newer has
	Removed []any  `json:"removed"` // values that only the older has
	Note    string `json:"note,omitempty"`
}

// Kinds of Change.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
	Shape   = "shape"  // a list became a scalar, or the other way round
	Expiry  = "expiry" // of the set
)

// Diff returns what is different in now, by name. Where a value comes from is not
// compared, nor is what only one of the two forms can say.
func Diff(old, now *Set) []Change {
	out := []Change{}
	if !old.Expires.IsZero() && !now.Expires.IsZero() && !old.Expires.Equal(now.Expires) {
		out = append(out, Change{What: Expiry, Added: []any{}, Removed: []any{},
			Note: fmt.Sprintf("%s, was %s", now.Expires.UTC().Format(rvpsTime), old.Expires.UTC().Format(rvpsTime))})
	}
	for _, name := range bothNames(old, now) {
		a, had := old.Value(name)
		b, has := now.Value(name)
		c := Change{Name: name, What: Changed, Added: without(b.Any, a.Any), Removed: without(a.Any, b.Any)}
		switch {
		case !had:
			c.What = Added
		case !has:
			c.What = Removed
		case a.Scalar != b.Scalar:
			c.What, c.Note = Shape, "a list, was a scalar"
			if b.Scalar {
				c.Note = "a scalar, was a list"
			}
		case len(c.Added) == 0 && len(c.Removed) == 0:
			continue
		}
		out = append(out, c)
	}
	return out
}

func bothNames(a, b *Set) (out []string) {
	for _, v := range slices.Concat(a.Values, b.Values) {
		out = append(out, v.Name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// without returns those of a that are not in b.
func without(a, b []any) []any {
	out := []any{}
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}
