package source

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/cas"
)

// maxInRelease bounds an InRelease file; Debian's largest has 200 kB.
const maxInRelease = 4 << 20

// A release is a Release file, its signature checked: the root from which every
// digest of a suite follows.
type release struct {
	Release
	suite, codename string
	byHash          bool // indexes can be had by digest, which survives an update of the mirror
	onRequest       bool // NotAutomatic
	allApart        bool // packages for all architectures have an index of their own
	files           map[string]File
}

// readRelease verifies an InRelease file for s and parses it.
func readRelease(b []byte, s Source, keys *Keyring, now time.Time) (*release, error) {
	text, signers, err := keys.verify(b, now)
	if err != nil {
		return nil, &VerifyError{What: s.label() + ": InRelease", Problem: err.Error()}
	}
	r, err := parseRelease(text)
	if err != nil {
		return nil, &VerifyError{What: s.label() + ": InRelease", Problem: err.Error()}
	}
	r.InRelease, r.Fingerprints = cas.Sum(b), signers
	if s.Suite != r.suite && s.Suite != r.codename {
		return nil, &VerifyError{What: s.label() + ": InRelease",
			Problem: fmt.Sprintf("is for suite %q, codename %q", r.suite, r.codename)}
	}
	if !r.ValidUntil.IsZero() && now.After(r.ValidUntil) && !s.IgnoreValidUntil {
		return nil, &VerifyError{What: s.label() + ": InRelease", Stale: true,
			Problem: fmt.Sprintf("was valid until %s, now is %s", stamp(r.ValidUntil), stamp(now))}
	}
	return r, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// parseRelease parses the fields of a Release file that matter here.
func parseRelease(text []byte) (*release, error) {
	s, err := parseStanza(text)
	if err != nil {
		return nil, err
	}
	r := &release{
		suite: s.get("Suite"), codename: s.get("Codename"),
		byHash:    s.get("Acquire-By-Hash") == "yes",
		onRequest: s.get("NotAutomatic") == "yes",
		allApart: slices.Contains(s.words("Architectures"), "all") &&
			!slices.Contains(s.words("No-Support-for-Architecture-all"), "Packages"),
	}
	if r.Date, err = parseDate(s.get("Date")); err != nil {
		return nil, fmt.Errorf("field Date: %w", err)
	}
	if v := s.get("Valid-Until"); v != "" {
		if r.ValidUntil, err = parseDate(v); err != nil {
			return nil, fmt.Errorf("field Valid-Until: %w", err)
		}
	}
	r.files, err = parseDigests(s.get("SHA256"))
	return r, err
}

// parseDate parses the date form of Release files, RFC 5322 with the zone UTC.
func parseDate(s string) (time.Time, error) {
	t, err := time.Parse("Mon, 2 Jan 2006 15:04:05 MST", s)
	if err != nil {
		return t, err
	}
	if name, offset := t.Zone(); offset != 0 || name != "UTC" && name != "GMT" {
		return t, fmt.Errorf("%q is not in UTC", s)
	}
	return t.UTC(), nil
}

// parseDigests parses lines of digest, size and path, and keeps the Packages indexes.
func parseDigests(lines string) (map[string]File, error) {
	files := map[string]File{}
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 3 {
			return nil, errors.New("list of digests: want digest, size, path on each line")
		}
		if !strings.Contains(words[2], "/Packages") {
			continue
		}
		digest, err := cas.ParseDigest(words[0])
		size, err2 := strconv.ParseInt(words[1], 10, 64)
		if err := errors.Join(err, err2); err != nil || size < 0 || !fs.ValidPath(words[2]) {
			return nil, fmt.Errorf("list of digests: bad entry for %.100q", words[2])
		}
		files[words[2]] = File{Path: words[2], Size: size, SHA256: digest}
	}
	return files, nil
}

// indexPaths returns the unpacked Packages files of a source.
func (r *release) indexPaths(s Source, arch string) ([]string, error) {
	archs := []string{arch}
	if r.allApart {
		archs = append(archs, "all")
	}
	var paths []string
	for _, c := range s.components() {
		for _, a := range archs {
			path := c + "/binary-" + a + "/Packages"
			if _, ok := r.files[path]; !ok {
				return nil, &ResolveError{What: s.label(), Problem: fmt.Sprintf("has no component %q for architecture %q", c, a)}
			}
			paths = append(paths, path)
		}
	}
	return paths, nil
}
