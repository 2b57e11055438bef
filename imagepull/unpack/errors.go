package unpack

import "fmt"

// An EntryError says which entry of the layer was refused.
type EntryError struct {
	Index int64  // from 1
	Name  string // as the layer has it; from Tree.Apply, cleaned
	Err   error
}

func (e *EntryError) Error() string {
	name := e.Name
	if len(name) > 256 {
		name = name[:256] + "..."
	}
	return fmt.Sprintf("entry %d: %q: %v", e.Index, name, e.Err)
}

func (e *EntryError) Unwrap() error { return e.Err }

// A LimitError says which of Limits an image exceeds.
type LimitError struct {
	What      string
	Got, Most int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("limit: %s: %d, want at most %d", e.What, e.Got, e.Most)
}
