package source

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"pault.ag/go/debian/version"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/strictjson"
)

const lockSchema = 1

// A Lock names every input of an image. It is written as JSON, deterministic
// and made to be reviewed as a diff.
type Lock struct {
	Schema   int            `json:"schema"`
	Profile  string         `json:"profile"`
	Arch     string         `json:"arch"`
	Wants    []Want         `json:"wants"`    // sorted
	Sources  []LockedSource `json:"sources"`  // in the profile's order
	Packages []Package      `json:"packages"` // sorted by name
	Files    []File         `json:"files"`    // sorted by path
}

// A LockedSource is a source with the evidence for what was taken from it.
type LockedSource struct {
	Name       string   `json:"name"`
	Suite      string   `json:"suite,omitempty"` // empty for a directory of .deb files
	Components []string `json:"components,omitempty"`
	OnRequest  bool     `json:"on_request,omitempty"`
	// Releases are those that a package refers to and the newest seen, by date.
	Releases []Release `json:"releases,omitempty"`
}

// A Release is the evidence of one signed InRelease file.
type Release struct {
	InRelease    cas.Digest `json:"in_release"`
	Date         time.Time  `json:"date"`
	ValidUntil   time.Time  `json:"valid_until,omitzero"`
	Fingerprints []string   `json:"fingerprints"` // of the primary keys whose signatures are good
	Indexes      []File     `json:"indexes"`      // Packages files, unpacked
}

// A Package is one locked .deb file.
type Package struct {
	Name      string     `json:"name"`
	Version   string     `json:"version"`
	Arch      string     `json:"arch"`
	Source    string     `json:"source"`
	Suite     string     `json:"suite,omitempty"`
	Filename  string     `json:"filename"` // relative to the archive's base or to the directory
	Size      int64      `json:"size"`     // bytes
	SHA256    cas.Digest `json:"sha256"`
	InRelease cas.Digest `json:"in_release,omitzero"` // digest of the InRelease file that vouches for it
	Why       []string   `json:"why"`                 // roles that want it, then "dependency of NAME"
}

// A File is a path with the digest of its content.
type File struct {
	Path   string     `json:"path"`
	Size   int64      `json:"size"` // bytes
	SHA256 cas.Digest `json:"sha256"`
}

// Ref returns the store's name of the .deb file.
func (p *Package) Ref() cas.Ref { return cas.Ref{Digest: p.SHA256, Size: p.Size} }

// ParseLock parses a lock file. It accepts what Marshal writes, in any layout,
// and nothing else: an unknown or repeated key or another order is an error.
func ParseLock(b []byte) (*Lock, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var l Lock
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("source: lock: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("source: lock: more than one document")
	}
	if l.Schema != lockSchema {
		return nil, fmt.Errorf("source: lock: schema %d: want %d", l.Schema, lockSchema)
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("source: lock: %w", err)
	}
	canonical, err := l.Marshal()
	if err != nil {
		return nil, err
	}
	var got, want bytes.Buffer
	if err := errors.Join(json.Compact(&got, b), json.Compact(&want, canonical)); err != nil {
		return nil, fmt.Errorf("source: lock: %w", err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		return nil, errors.New("source: lock: a key is repeated, missing or out of order")
	}
	return &l, nil
}

// check refuses entries that a later step would have to doubt.
func (l *Lock) check() error {
	for i, p := range l.Packages {
		_, err := version.Parse(p.Version)
		switch {
		case err != nil:
			return fmt.Errorf("package %q: version %q: %w", p.Name, p.Version, err)
		case !fs.ValidPath(p.Filename):
			return fmt.Errorf("package %q: file name %q", p.Name, p.Filename)
		case p.Size < 0 || p.Name == "":
			return fmt.Errorf("package %q: size %d", p.Name, p.Size)
		case i > 0 && l.Packages[i-1].Name == p.Name:
			return fmt.Errorf("package %q occurs twice", p.Name)
		}
	}
	return nil
}

// Marshal returns the file form; equal locks give equal bytes.
func (l *Lock) Marshal() ([]byte, error) {
	c := *l
	c.Wants, c.Packages, c.Files = slices.Clone(l.Wants), slices.Clone(l.Packages), slices.Clone(l.Files)
	c.sort()
	b, err := strictjson.Marshal(&c)
	if err != nil {
		return nil, fmt.Errorf("source: lock: %w", err)
	}
	return b, nil
}

func (l *Lock) sort() {
	slices.SortFunc(l.Wants, Want.compare)
	slices.SortFunc(l.Packages, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(l.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
}

// Role returns the packages that a role wants and those that came along with them.
func (l *Lock) Role(role string) []Package {
	in := map[string]bool{}
	for grown := true; grown; { // a dependency may sort before what needs it
		grown = false
		for _, p := range l.Packages {
			if !in[p.Name] && slices.ContainsFunc(p.Why, func(why string) bool {
				parent, ok := strings.CutPrefix(why, dependencyOf)
				return why == role || ok && in[parent]
			}) {
				in[p.Name], grown = true, true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(l.Packages), func(p Package) bool { return !in[p.Name] })
}

// lockedSources returns what a lock says about sources, without evidence.
func lockedSources(sources []Source) []LockedSource {
	locked := []LockedSource{}
	for _, s := range sources {
		ls := LockedSource{Name: s.Name, Suite: s.Suite, OnRequest: s.OnRequest}
		if s.Dir == "" {
			ls.Components = s.components()
		}
		locked = append(locked, ls)
	}
	return locked
}

func (s LockedSource) same(o LockedSource) bool {
	return s.Name == o.Name && s.Suite == o.Suite && s.OnRequest == o.OnRequest && slices.Equal(s.Components, o.Components)
}

func (s LockedSource) String() string {
	return fmt.Sprintf("source %s %s %v", s.Name, s.Suite, s.Components)
}

func (w Want) String() string {
	s := w.Role + " " + w.Package
	if w.Source+w.Suite != "" {
		s += " from " + w.Source + " " + w.Suite
	}
	if w.Closure {
		s += " with dependencies"
	}
	return s
}

func (f File) String() string { return fmt.Sprintf("file %s, sha256 %s", f.Path, f.SHA256) }

// Check compares the lock with what a profile asks for. The error is a *LockError
// that lists every difference.
func (l *Lock) Check(req Request) error {
	var diffs []string
	if l.Arch != req.Arch {
		diffs = append(diffs, "- architecture "+l.Arch, "+ architecture "+req.Arch)
	}
	diffs = append(diffs, diff(l.Sources, lockedSources(req.Sources), LockedSource.same)...)
	diffs = append(diffs, diff(l.Wants, req.sortedWants(), func(a, b Want) bool { return a == b })...)
	diffs = append(diffs, diff(l.Files, req.Files, func(a, b File) bool { return a == b })...)
	if len(diffs) > 0 {
		return &LockError{Problem: "does not fit the profile", Diffs: diffs}
	}
	return nil
}

// diff lists what only the lock (-) and what only the profile (+) has.
func diff[T fmt.Stringer](lock, profile []T, same func(a, b T) bool) []string {
	var lines []string
	for _, v := range lock {
		if !slices.ContainsFunc(profile, func(o T) bool { return same(v, o) }) {
			lines = append(lines, "- "+v.String())
		}
	}
	for _, v := range profile {
		if !slices.ContainsFunc(lock, func(o T) bool { return same(v, o) }) {
			lines = append(lines, "+ "+v.String())
		}
	}
	return lines
}

// releases returns the evidence that the lock, perhaps nil, has for a source.
func (l *Lock) releases(s Source) []Release {
	if l == nil {
		return nil
	}
	for _, ls := range l.Sources {
		if ls.Name == s.Name && ls.Suite == s.Suite {
			return slices.Clone(ls.Releases)
		}
	}
	return nil
}

// newestRelease returns the date below which a source has gone back in time.
func (l *Lock) newestRelease(s Source) time.Time {
	var newest time.Time
	for _, r := range l.releases(s) {
		if r.Date.After(newest) {
			newest = r.Date
		}
	}
	return newest
}

// usedReleases keeps the releases that a package refers to and the newest.
func (l *Lock) usedReleases(rs []Release) []Release {
	slices.SortStableFunc(rs, func(a, b Release) int { return a.Date.Compare(b.Date) })
	rs = slices.CompactFunc(rs, func(a, b Release) bool { return a.InRelease == b.InRelease })
	var used []Release
	for i, r := range rs {
		if i == len(rs)-1 || slices.ContainsFunc(l.Packages, func(p Package) bool { return p.InRelease == r.InRelease }) {
			used = append(used, r)
		}
	}
	return used
}
