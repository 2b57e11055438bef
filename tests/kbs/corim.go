package kbs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// parseCoRIM is rvps/src/extractors/corim/mod.rs: reference triples of every CoMID
// in an unsigned CoRIM, named by what identifies them.
func parseCoRIM(b []byte) (map[string]any, error) {
	item, rest, err := decode(b, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("corim: %d bytes behind it", len(rest))
	}
	for { // 500 and 502 are taken off, 501 is the unsigned CoRIM
		t, ok := item.(tagged)
		if !ok || t.tag != 500 && t.tag != 502 && t.tag != 501 {
			break
		}
		item = t.item
	}
	corim, ok := item.(map[any]any)
	tags, isList := corim[int64(1)].([]any)
	if !ok || !isList || corim[int64(0)] == nil {
		return nil, errors.New("corim: no map with an ID and tags: signed ones are not read")
	}
	values := map[string]any{}
	for _, x := range tags {
		t, ok := x.(tagged)
		content, isBytes := t.item.([]byte)
		if !ok || !isBytes || t.tag != 506 {
			continue // a tag of another kind
		}
		if err := parseCoMID(content, values); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func parseCoMID(b []byte, values map[string]any) error {
	item, rest, err := decode(b, 0)
	if err != nil || len(rest) > 0 {
		return fmt.Errorf("comid: %d bytes behind it: %v", len(rest), err)
	}
	comid, _ := item.(map[any]any)
	triples, ok := comid[int64(4)].(map[any]any)
	if identity, _ := comid[int64(1)].(map[any]any); !ok || identity[int64(0)] == nil {
		return errors.New("comid: want a tag identity and triples")
	}
	references, _ := triples[int64(0)].([]any)
	for _, r := range references {
		if err := parseTriple(r, values); err != nil {
			return fmt.Errorf("comid: %w", err)
		}
	}
	return nil
}

func parseTriple(item any, values map[string]any) error {
	triple, _ := item.([]any)
	if len(triple) != 2 {
		return fmt.Errorf("reference triple of %d: want 2", len(triple))
	}
	environment, _ := triple[0].(map[any]any)
	class, _ := environment[int64(0)].(map[any]any)
	var base []string
	for _, key := range []int64{1, 2} { // vendor, model
		if text, ok := class[key].(string); ok {
			base = append(base, text)
		}
	}
	claims, _ := triple[1].([]any)
	for _, c := range claims {
		claim, _ := c.(map[any]any)
		if err := parseClaim(base, claim, values); err != nil {
			return err
		}
	}
	return nil
}

func parseClaim(base []string, claim map[any]any, values map[string]any) error {
	path := append([]string{}, base...)
	switch key := claim[int64(0)].(type) {
	case string:
		path = append(path, key)
	case int64:
		path = append(path, fmt.Sprintf("claim%d", key))
	case tagged: // 37: UUID
		u, _ := key.item.([]byte)
		if key.tag == 37 && len(u) == 16 {
			path = append(path, fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
		}
	}
	mval, ok := claim[int64(1)].(map[any]any)
	if !ok {
		return errors.New("a measurement without a value")
	}
	for _, key := range []int64{11, 8} { // name, serial number
		if text, ok := mval[key].(string); ok {
			path = append(path, text)
		}
	}
	if digests, ok := mval[int64(2)].([]any); ok {
		list := []any{}
		for _, d := range digests {
			pair, _ := d.([]any)
			if len(pair) != 2 {
				return fmt.Errorf("a digest of %d items: want 2", len(pair))
			}
			value, _ := pair[1].([]byte)
			list = append(list, hex.EncodeToString(value))
		}
		values[strings.Join(append(path, "digests"), "/")] = list
	}
	if raw, ok := mval[int64(4)].(tagged); ok && raw.tag == 560 {
		value, _ := raw.item.([]byte)
		values[strings.Join(append(path, "raw_bytes"), "/")] = hex.EncodeToString(value)
	}
	return nil
}
