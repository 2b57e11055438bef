package source

import (
	"fmt"
	"net/url"
	"strings"
)

// A MirrorChoice is where mirrors may be named, the strongest first: the first
// that names one for a source decides, and its order is kept.
type MirrorChoice struct {
	Flags []string   // --mirror: URL, SUITE=URL or NAME=URL
	Env   string     // PLINTH_MIRROR: the same, separated by white space
	Host  []AptEntry // the host's apt configuration; see HostApt
}

// MirrorsFor returns the base URLs for s. s.Mirrors, from the profile, stand
// between Env and Host. It returns none when nobody names one, and fails on a
// value that is no URL.
func MirrorsFor(s Source, m MirrorChoice) ([]string, error) {
	for _, named := range [][]string{m.Flags, strings.Fields(m.Env), s.Mirrors} {
		var mirrors []string
		for _, v := range named {
			of, rawURL := splitMirror(v)
			if err := checkMirror(rawURL); err != nil {
				return nil, err
			}
			switch {
			case of == "" && s.security() && !strings.Contains(rawURL, "security"):
				// Debian keeps security suites in an archive of their own, by
				// custom beside the other.
				mirrors = append(mirrors, rawURL, strings.TrimRight(rawURL, "/")+"-security")
			case of == "" || of == s.Name || of == s.Suite:
				mirrors = append(mirrors, rawURL)
			}
		}
		if len(mirrors) > 0 {
			return mirrors, nil
		}
	}
	return hostMirrors(s, m.Host), nil
}

// splitMirror takes NAME=URL apart. A "=" within the URL is the URL's.
func splitMirror(v string) (of, rawURL string) {
	if before, after, ok := strings.Cut(v, "="); ok && !strings.Contains(before, "://") {
		return before, after
	}
	return "", v
}

func checkMirror(rawURL string) error {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("source: mirror %q: want http://HOST/PATH, https://HOST/PATH, or one of them behind SUITE= or NAME=", redacted(rawURL))
	}
	return nil
}

// security reports whether the suite is in the security archive.
func (s Source) security() bool { return strings.HasSuffix(s.Suite, "-security") }
