package rootfs

import (
	"fmt"
	"path"
	"strings"
)

// mergedUsr are the directories at the top whose content lies in /usr; Debian,
// "UsrMerge". The first four are always made, the others when /usr has them.
var mergedUsr = []string{"bin", "lib", "lib64", "sbin", "lib32", "libx32"}

const alwaysMerged = 4

// links are symbolic links by path.
type links map[string]string

// newLinks are those that every tree has.
func newLinks() links {
	l := links{"var/run": "/run", "var/lock": "/run/lock"}
	for _, d := range mergedUsr {
		l[d] = "usr/" + d
	}
	return l
}

// maxLinks is how many links a path may go through, as Linux's MAXSYMLINKS.
const maxLinks = 40

// place returns where a name lies when the links that its parents go through
// are followed. They stay inside the tree.
func (l links) place(name string) (string, error) { return l.walk(name, false) }

// resolve follows the last link too.
func (l links) resolve(name string) (string, error) { return l.walk(name, true) }

func (l links) walk(name string, last bool) (string, error) {
	at, rest := ".", split(name)
	for hops := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		if rest[0] == ".." {
			next = path.Dir(at)
		}
		rest = rest[1:]
		target, ok := l[next]
		if !ok || len(rest) == 0 && !last {
			at = next
			continue
		}
		if hops++; hops > maxLinks {
			return "", fmt.Errorf("%s: more than %d links", name, maxLinks)
		}
		if path.IsAbs(target) {
			at = "."
		} else {
			at = path.Dir(next)
		}
		rest = append(split(target), rest...)
	}
	return at, nil
}

// split returns the names that a path consists of.
func split(name string) []string {
	var out []string
	for part := range strings.SplitSeq(name, "/") {
		if part != "" && part != "." {
			out = append(out, part)
		}
	}
	return out
}

// A pattern is a glob over whole paths.
type pattern struct {
	text  string
	parts []string
	used  bool
}

func newPattern(text string) (*pattern, error) {
	p := &pattern{text: text, parts: split(text)}
	if !strings.HasPrefix(text, "/") || len(p.parts) == 0 {
		return nil, fmt.Errorf("rootfs: exclude %q: want a pattern that begins with a slash", text)
	}
	for _, part := range p.parts {
		if _, err := path.Match(part, ""); err != nil || part == ".." {
			return nil, fmt.Errorf("rootfs: exclude %q: %q is no pattern", text, part)
		}
	}
	for _, d := range mergedUsr {
		if p.parts[0] == d {
			p.parts = append([]string{"usr"}, p.parts...)
			break
		}
	}
	return p, nil
}

// match reports whether the pattern names the path or a directory above it.
func (p *pattern) match(name string) bool {
	if !matchParts(p.parts, split(name)) {
		return false
	}
	p.used = true
	return true
}

func matchParts(pattern, names []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			if len(pattern) == 1 {
				return len(names) > 0
			}
			for i := range names {
				if matchParts(pattern[1:], names[i:]) {
					return true
				}
			}
			return false
		}
		if len(names) == 0 {
			return false
		}
		if ok, err := path.Match(pattern[0], names[0]); err != nil || !ok {
			return false
		}
		pattern, names = pattern[1:], names[1:]
	}
	return true
}
