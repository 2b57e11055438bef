// Package strictjson decodes JSON where a byte that nobody understands is an
// error. encoding/json takes the last of two equal keys, matches keys in any
// case and mends broken UTF-8, so that two readers of one document may see two
// things; a document that is measured or compared must not be read like that.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Unmarshal decodes b into v, a pointer to a struct, map or slice. Beyond what
// encoding/json refuses it refuses keys that v does not know, in exactly its
// spelling, keys that appear twice, numeric keys with a sign or leading zeros,
// data behind the document and invalid UTF-8. Errors name the place as in
// "services[0].env". What is to become a json.RawMessage is taken as it is. v must
// not hold interfaces or embedded structs.
func Unmarshal(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New("invalid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := check(d, reflect.TypeOf(v), ""); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the document")
	}
	return json.Unmarshal(b, v)
}

// Marshal writes v for people and programs: indented, "<" and ">" as they are, maps
// by key, a line end behind it. Equal values give equal bytes.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// check reads one value that is to become a t. It looks at keys alone; whether
// values fit is for encoding/json to say.
func check(d *json.Decoder, t reflect.Type, path string) error {
	tok, err := d.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[json.RawMessage]() {
		return skip(d, tok)
	}
	switch tok {
	case json.Delim('{'):
		return checkObject(d, t, path)
	case json.Delim('['):
		return checkArray(d, t, path)
	}
	return nil
}

// skip reads the rest of a value that begins with tok.
func skip(d *json.Decoder, tok json.Token) (err error) {
	for depth := 0; ; {
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		if tok, err = d.Token(); err != nil {
			return err
		}
	}
}

func checkArray(d *json.Decoder, t reflect.Type, path string) error {
	if t.Kind() != reflect.Slice && t.Kind() != reflect.Array {
		return fmt.Errorf("%s: unexpected array", place(path))
	}
	for i := 0; d.More(); i++ {
		if err := check(d, t.Elem(), path+"["+strconv.Itoa(i)+"]"); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func checkObject(d *json.Decoder, t reflect.Type, path string) error {
	seen := map[string]bool{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := tok.(string) // the decoder lets nothing else stand here
		at := strings.TrimPrefix(path+"."+printable(key), ".")
		if seen[key] {
			return fmt.Errorf("%s: duplicate key", at)
		}
		seen[key] = true
		elem, ok := member(t, key)
		if !ok {
			return fmt.Errorf("%s: unknown key", at)
		}
		if err := check(d, elem, at); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// printable is a key for a terminal or log: one that is long, or holds what could move
// a cursor or forge a line, is quoted.
func printable(key string) string {
	if q := fmt.Sprintf("%.100q", key); q != `"`+key+`"` {
		return q
	}
	return key
}

// member returns the type of what key names in a t.
func member(t reflect.Type, key string) (reflect.Type, bool) {
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), canonical(t.Key().Kind(), key)
	case reflect.Struct:
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			if name == key && name != "" && name != "-" {
				return t.Field(i).Type, true
			}
		}
	}
	return nil, false
}

// canonical reports whether key is the only spelling of its value.
func canonical(k reflect.Kind, key string) bool {
	if k == reflect.String {
		return true
	}
	n, err := strconv.Atoi(key)
	return err == nil && strconv.Itoa(n) == key
}

func place(path string) string {
	if path == "" {
		return "document"
	}
	return path
}
