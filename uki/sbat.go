package uki

import (
	"fmt"
	"slices"
	"strings"
)

// mergeSBAT joins the lines of several SBAT texts in the order given: one
// header line, that of the first text, then every other line once. Trailing
// NULs, with which newer stubs pad theirs, are dropped. Empty texts are left
// out; without any text the result is empty.
//
// A component with two generations keeps both lines: a revocation then holds
// as soon as it concerns one of them.
//
// Format: SBAT.md of shim, "CSV with header"; the first line is the version of
// the format itself and begins with "sbat,".
func mergeSBAT(texts ...string) (string, error) {
	var lines []string
	for _, text := range texts {
		text = strings.TrimRight(text, "\x00")
		if text == "" {
			continue
		}
		own := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
		if len(own) == 0 || !strings.HasPrefix(own[0], "sbat,") {
			return "", fmt.Errorf("uki: .sbat: first line of %q: want \"sbat,\"", text)
		}
		if strings.ContainsRune(text, 0) {
			return "", fmt.Errorf("uki: .sbat: NUL inside %q", text)
		}
		if len(lines) > 0 {
			own = own[1:]
		}
		for _, line := range own {
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	if len(lines) == 0 {
		return "", nil
	}
	return strings.Join(lines, "\n") + "\n", nil
}
