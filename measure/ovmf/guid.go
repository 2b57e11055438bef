package ovmf

import "github.com/plinth-os/plinth/internal/gpt"

// GUID is in the order of the file: the first three fields little-endian.
type GUID = gpt.GUID

// ParseGUID reads the text form, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
func ParseGUID(s string) (GUID, error) { return gpt.ParseGUID(s) }

// MustGUID is ParseGUID for constants: it panics on what is no GUID.
func MustGUID(s string) GUID { return gpt.MustGUID(s) }

var mustGUID = gpt.MustGUID
