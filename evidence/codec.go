package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// marshal writes v in one line, text as it is.
func marshal(what string, v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("evidence: %s: %w", what, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// parse decodes an object of at most max bytes into v. Unknown keys, and keys that
// appear twice, are errors.
func parse(what string, b []byte, max int, v any) error {
	if len(b) > max {
		return fmt.Errorf("evidence: %s: %d bytes, want at most %d", what, len(b), max)
	}
	if !isObject(b) {
		return fmt.Errorf("evidence: %s: want a JSON object", what)
	}
	if err := strictjson.Unmarshal(b, v); err != nil {
		return fmt.Errorf("evidence: %s: %w", what, err)
	}
	return nil
}

func isObject(b []byte) bool { return bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) }

// base64Text is bytes in standard base64, with padding.
type base64Text []byte

func (b base64Text) MarshalText() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(b)), nil
}

func (b *base64Text) UnmarshalText(s []byte) error { return decodeBase64(b, base64.StdEncoding, s) }

// urlText is bytes in the alphabet for addresses, with padding; it is read without as well.
type urlText []byte

func (u urlText) MarshalText() ([]byte, error) {
	return []byte(base64.URLEncoding.EncodeToString(u)), nil
}

func (u *urlText) UnmarshalText(s []byte) error {
	return decodeBase64((*base64Text)(u), base64.RawURLEncoding, bytes.TrimRight(s, "="))
}

func decodeBase64(to *base64Text, e *base64.Encoding, s []byte) error {
	if bytes.ContainsAny(s, "\r\n") {
		return errors.New("line break in base64")
	}
	out, err := e.Strict().DecodeString(string(s))
	if err != nil {
		return err
	}
	*to = out
	return nil
}

// hexText is bytes in lower-case hexadecimal.
type hexText []byte

func (h hexText) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexText) UnmarshalText(s []byte) error {
	if strings.ToLower(string(s)) != string(s) {
		return errors.New("want lower-case hexadecimal")
	}
	out, err := hex.DecodeString(string(s))
	*h = out
	return err
}

// numbers is bytes as an array of numbers, as serde writes them. One that is not empty
// when it is decoded into keeps its size.
type numbers []byte

func (n numbers) MarshalJSON() ([]byte, error) {
	out := make([]byte, 0, 2+4*len(n))
	out = append(out, '[')
	for i, x := range n {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(x), 10)
	}
	return append(out, ']'), nil
}

func (n *numbers) UnmarshalJSON(b []byte) error {
	var out []*uint8 // null is no number
	if err := json.Unmarshal(b, &out); err != nil {
		return err
	}
	if size := len(*n); size > 0 && len(out) != size {
		return fmt.Errorf("%d numbers, want %d", len(out), size)
	}
	*n = make([]byte, len(out))
	for i, x := range out {
		if x == nil {
			return fmt.Errorf("number %d: null", i)
		}
		(*n)[i] = *x
	}
	return nil
}
