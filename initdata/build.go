package initdata

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxKey is the size of a key that Build takes, in bytes.
const maxKey = 255

// Build writes the document with the given data, keys in order: equal arguments
// give equal bytes. It refuses what a guest could not use: configuration that is
// not TOML, and text that is not UTF-8.
func Build(a Algorithm, data map[string]string) ([]byte, error) {
	if !slices.Contains(Algorithms, a) {
		return nil, fmt.Errorf("initdata: algorithm %q: want sha256, sha384 or sha512", a)
	}
	if len(data) == 0 {
		return nil, errors.New("initdata: no data")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version = %q\nalgorithm = %q\n\n[data]\n", Version, a)
	for _, key := range slices.Sorted(maps.Keys(data)) {
		if err := check(key, data[key]); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\"%s\" = %s\n", escape(key, false), text(data[key]))
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("initdata: %d bytes: want at most %d", b.Len(), MaxSize)
	}
	return []byte(b.String()), nil
}

// check judges one part of the data.
func check(key, content string) error {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch {
	case key == "" || len(key) > maxKey || !utf8.ValidString(key) || strings.ContainsFunc(key, control):
		return fmt.Errorf("initdata: key %q: want 1 to %d bytes of text on one line", clip(key), maxKey)
	case !utf8.ValidString(content):
		return fmt.Errorf("initdata: data.%s: not UTF-8, and TOML is text", quoteKey(key))
	}
	if key != AgentConfig && key != HubConfig {
		return nil
	}
	if _, err := decode([]byte(content)); err != nil {
		return fmt.Errorf("initdata: data.%s: %w", quoteKey(key), err)
	}
	return nil
}

// text writes a string as TOML: as it is where TOML has a way to, else with
// escapes. A newline behind the opening quotes is not part of the string.
func text(s string) string {
	plain := func(r rune) bool { return r == '\n' || r == '\t' || r >= ' ' && r != 0x7f }
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 && !strings.Contains(s, "'''") && !strings.HasSuffix(s, "'") {
		return "'''\n" + s + "'''"
	}
	return "\"\"\"\n" + escape(s, true) + "\"\"\""
}

// escape writes what may stand between quotes, newlines as they are where the
// string has several lines. A carriage return is always escaped: parsers may
// take it and the newline behind it for one.
func escape(s string, lines bool) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n' && lines || r == '\t':
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
