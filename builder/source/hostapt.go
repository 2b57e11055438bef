package source

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// An AptEntry is an archive that the host's apt is set up to use.
type AptEntry struct {
	URI    string
	Suites []string
	// Debian says that the entry is the host's own distribution and that this
	// is Debian, so that other suites of Debian are likely to be there.
	Debian bool
}

// HostApt reads sources.list(5), in both of its forms, and os-release(5) below
// root, which is "/" on a real host. Files that do not exist are no error.
func HostApt(root string) ([]AptEntry, error) {
	dir := filepath.Join(root, "etc/apt")
	names := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return nil, fmt.Errorf("source: %w", err)
		}
		names = append(names, more...)
	}
	codename, err := debianCodename(filepath.Join(root, "etc/os-release"))
	if err != nil {
		return nil, err
	}
	var entries []AptEntry
	for _, name := range names {
		b, err := readIfExists(name)
		if err != nil {
			return nil, err
		}
		parse := parseSourcesList
		if filepath.Ext(name) == ".sources" {
			parse = parseSources
		}
		entries = append(entries, parse(b)...)
	}
	for i := range entries {
		entries[i].Debian = slices.ContainsFunc(entries[i].Suites, func(s string) bool { return debianSuite(s, codename) })
	}
	return entries, nil
}

func readIfExists(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return b, nil
}

// debianCodename returns VERSION_CODENAME of a Debian system, "" of another.
func debianCodename(osRelease string) (string, error) {
	b, err := readIfExists(osRelease)
	values := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[k] = strings.Trim(v, `"'`)
		}
	}
	if values["ID"] != "debian" {
		return "", err
	}
	return values["VERSION_CODENAME"], err
}

// debianSuite reports whether a suite of a Debian host is Debian's: it is the
// host's own, or goes by one of the names that move from release to release.
func debianSuite(suite, codename string) bool {
	if codename == "" {
		return false
	}
	base, _, _ := strings.Cut(suite, "-")
	return slices.Contains([]string{codename, "oldstable", "stable", "testing", "unstable", "sid"}, base)
}

// parseSourcesList parses the one-line form: deb [options] uri suite component...
// What it does not understand it leaves out: apt reports such lines itself.
func parseSourcesList(b []byte) []AptEntry {
	var entries []AptEntry
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		if before, options, ok := strings.Cut(line, "["); ok {
			_, after, _ := strings.Cut(options, "]")
			line = before + after
		}
		words := strings.Fields(line)
		if len(words) >= 4 && words[0] == "deb" { // three words are a flat archive
			entries = appendEntry(entries, words[1], words[2:3])
		}
	}
	return entries
}

// parseSources parses the deb822 form.
func parseSources(b []byte) []AptEntry {
	var entries []AptEntry
	for p := range paragraphs(b) {
		s, err := parseStanza(p)
		disabled := slices.Contains([]string{"no", "false", "0", "off", "without", "disable"}, strings.ToLower(s.get("Enabled")))
		if err != nil || disabled || !slices.Contains(s.words("Types"), "deb") {
			continue
		}
		for _, uri := range s.words("URIs") {
			entries = appendEntry(entries, uri, s.words("Suites"))
		}
	}
	return entries
}

// appendEntry leaves out what is no web address: CD-ROMs, files, mirror lists.
func appendEntry(entries []AptEntry, uri string, suites []string) []AptEntry {
	if checkMirror(uri) != nil || bytes.ContainsAny([]byte(uri), "$") {
		return entries
	}
	return append(entries, AptEntry{URI: uri, Suites: suites})
}

// hostMirrors picks the entries that have the suite itself, then those of the
// host's Debian that are of the same kind, security or not.
func hostMirrors(s Source, host []AptEntry) []string {
	var exact, same []string
	for _, e := range host {
		switch {
		case slices.Contains(e.Suites, s.Suite):
			exact = append(exact, e.URI)
		case e.Debian && slices.ContainsFunc(e.Suites, func(suite string) bool {
			return strings.HasSuffix(suite, "-security") == s.security()
		}):
			same = append(same, e.URI)
		}
	}
	var mirrors []string
	for _, uri := range append(exact, same...) {
		if !slices.Contains(mirrors, uri) {
			mirrors = append(mirrors, uri)
		}
	}
	return mirrors
}
