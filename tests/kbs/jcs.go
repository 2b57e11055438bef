package kbs

import (
	"bytes"
	"crypto"
	"encoding/json"
	"fmt"
)

// digestJSON is the digest of the canonical form (RFC 8785) of an object with texts
// and objects in it, which is all that runtime data has.
func digestJSON(hash crypto.Hash, v map[string]any) ([]byte, error) {
	var out bytes.Buffer
	if err := canonical(&out, v); err != nil {
		return nil, fmt.Errorf("runtime data: %w", err)
	}
	h := hash.New()
	h.Write(out.Bytes())
	return h.Sum(nil), nil
}

// canonical leaves it to encoding/json to sort keys, which is the same order as that
// of RFC 8785 for ASCII.
func canonical(out *bytes.Buffer, v map[string]any) error {
	if err := checkTexts(v); err != nil {
		return err
	}
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	out.Truncate(out.Len() - 1) // the newline
	return nil
}

func checkTexts(v any) error {
	switch v := v.(type) {
	case string:
		return checkASCII(v)
	case map[string]any:
		for key, item := range v {
			if err := checkASCII(key); err != nil {
				return err
			}
			if err := checkTexts(item); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("a value of type %T: want texts and objects", v)
}

func checkASCII(s string) error {
	for _, c := range s {
		if c > '~' {
			return fmt.Errorf("character %q: want ASCII", c)
		}
	}
	return nil
}
