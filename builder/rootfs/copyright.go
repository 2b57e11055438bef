package rootfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A copyright is a machine-readable debian/copyright file, version 1.0 (DEP-5):
// which licences there are, and the text of each as far as it is in the file.
type copyright struct {
	names []string          // sorted, as the file has them: "GPL-2+ or Artistic"
	texts map[string]string // by name in lower case
}

// parseCopyright returns a value without names for a file in free form.
func parseCopyright(text []byte) *copyright {
	c := &copyright{texts: map[string]string{}}
	head := true
	names := map[string]bool{}
	for s, err := range stanzas(bytes.TrimPrefix(text, []byte("\ufeff"))) {
		if err != nil || head && !strings.Contains(s["format"], "copyright-format/1.0") {
			return &copyright{}
		}
		name, body, _ := strings.Cut(s["license"], "\n")
		name = strings.Join(strings.Fields(name), " ")
		if body = strings.TrimSpace(body); body != "" && c.texts[strings.ToLower(name)] == "" {
			c.texts[strings.ToLower(name)] = body
		}
		if name != "" && (s["files"] != "" || head) {
			names[name] = true
		}
		head = false
	}
	c.names = slices.Sorted(maps.Keys(names))
	return c
}

// expression returns the SPDX expression for all files together, and the licences
// in it that SPDX has no name for; "" when the file does not say.
func (c *copyright) expression(pkg string) (string, []Licence) {
	x := &licenceReader{c: c, pkg: pkg, found: map[string]Licence{}}
	var parts []string
	for _, name := range c.names {
		for _, part := range conjuncts(x.read(name)) {
			if part != "" && !slices.Contains(parts, part) {
				parts = append(parts, part)
			}
		}
	}
	if len(parts) == 1 {
		parts[0] = strings.TrimSuffix(strings.TrimPrefix(parts[0], "("), ")")
	}
	var refs []Licence
	for _, id := range slices.Sorted(maps.Keys(x.found)) {
		refs = append(refs, x.found[id])
	}
	return strings.Join(parts, " AND "), refs
}

// conjuncts splits an expression at the "AND" outside of parentheses. One that is
// a choice stays whole, in parentheses.
func conjuncts(s string) []string {
	var out []string
	depth, start := 0, 0
	for i := range s {
		switch {
		case s[i] == '(':
			depth++
		case s[i] == ')':
			depth--
		case depth == 0 && strings.HasPrefix(s[i:], " OR "):
			return []string{"(" + s + ")"}
		case depth == 0 && strings.HasPrefix(s[i:], " AND "):
			out = append(out, s[start:i])
			start = i + len(" AND ")
		}
	}
	return append(out, s[start:])
}

// A licenceReader turns the short names of DEP-5 into those of SPDX.
type licenceReader struct {
	c     *copyright
	pkg   string
	found map[string]Licence
}

// read parses "A or B and C", where "and" binds more than "or", and a comma in
// front of one of them less than both.
func (x *licenceReader) read(name string) string {
	var out string
	for i, part := range strings.Split(name, ",") {
		part = strings.TrimSpace(part)
		op := ""
		for _, o := range []string{"and", "or"} {
			if rest, ok := strings.CutPrefix(part, o+" "); ok && i > 0 {
				op, part = strings.ToUpper(o), rest
			}
		}
		if part == "" {
			continue
		}
		switch y := x.either(part); {
		case y == "":
		case out == "":
			out = y
		default:
			if op == "" {
				op = "AND"
			}
			out = inParens(out) + " " + op + " " + inParens(y)
		}
	}
	return out
}

func inParens(s string) string {
	if strings.Contains(s, " OR ") || strings.Contains(s, " AND ") {
		return "(" + s + ")"
	}
	return s
}

func (x *licenceReader) either(s string) string {
	var parts []string
	for _, alternative := range splitWord(s, "or") {
		var all []string
		for _, one := range splitWord(alternative, "and") {
			if one != "" {
				all = append(all, x.one(one))
			}
		}
		if len(all) > 0 {
			parts = append(parts, strings.Join(all, " AND "))
		}
	}
	if len(parts) > 1 {
		for i, p := range parts {
			if strings.Contains(p, " AND ") {
				parts[i] = "(" + p + ")"
			}
		}
	}
	return strings.Join(parts, " OR ")
}

// splitWord splits at a word, which joins nothing where it stands at an end.
func splitWord(s, word string) []string {
	var out, last []string
	for _, w := range strings.Fields(s) {
		if !strings.EqualFold(w, word) {
			last = append(last, w)
		} else if len(last) > 0 {
			out = append(out, strings.Join(last, " "))
			last = nil
		}
	}
	if len(last) > 0 || len(out) == 0 {
		out = append(out, strings.Join(last, " "))
	}
	return out
}

// one returns the SPDX name of a licence, or a reference to its text.
func (x *licenceReader) one(name string) string {
	lower := strings.ToLower(name)
	if base, exception, ok := strings.Cut(lower, " with "); ok {
		if e := spdxExceptions[strings.TrimSuffix(exception, " exception")]; e != "" && spdxName(base) != "" {
			return spdxName(base) + " WITH " + e
		}
	} else if id := spdxName(lower); id != "" {
		return id
	}
	text := x.c.texts[lower]
	if text == "" {
		text = fmt.Sprintf("The copyright file of the package %s names this licence %q without its text.", x.pkg, name)
	}
	sum := sha256.Sum256([]byte(name + "\x00" + text))
	id := "LicenseRef-" + idString(name) + "-" + hex.EncodeToString(sum[:4])
	x.found[id] = Licence{ID: id, Name: name, Text: text}
	return id
}

// idString keeps what an SPDX identifier may have.
func idString(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		case r == '+':
			return 'p'
		}
		return '-'
	}, s)
}

// spdxName returns the SPDX identifier for a short name of DEP-5 in lower case.
func spdxName(name string) string {
	if id := spdxNames[name]; id != "" {
		return id
	}
	for _, family := range gnuFamilies {
		rest, ok := strings.CutPrefix(name, family.prefix)
		if !ok {
			continue
		}
		version, later := strings.CutSuffix(rest, "+")
		if v, ok := strings.CutSuffix(version, "-or-later"); ok {
			version, later = v, true
		}
		version = strings.TrimSuffix(version, "-only")
		if version == "1" || version == "2" || version == "3" {
			version += ".0"
		}
		if !slices.Contains(family.versions, version) {
			continue
		}
		if later {
			return family.id + version + family.suffix + "-or-later"
		}
		return family.id + version + family.suffix + "-only"
	}
	return ""
}

// gnuFamilies are licences with "or later" forms.
var gnuFamilies = []struct {
	prefix, id, suffix string
	versions           []string
}{
	{"gpl-", "GPL-", "", []string{"1.0", "2.0", "3.0"}},
	{"lgpl-", "LGPL-", "", []string{"2.0", "2.1", "3.0"}},
	{"agpl-", "AGPL-", "", []string{"1.0", "3.0"}},
	{"gfdl-niv-", "GFDL-", "-no-invariants", []string{"1.1", "1.2", "1.3"}},
	{"gfdl-", "GFDL-", "", []string{"1.1", "1.2", "1.3"}},
}

// spdxNames are the short names of DEP-5 section 7.1.1, those that Debian's
// copyright files use beside them, and SPDX identifiers, in lower case.
var spdxNames = spdxTable(map[string]string{
	"expat": "MIT", "apache-2": "Apache-2.0", "artistic": "Artistic-1.0", "artistic-1": "Artistic-1.0", "artistic-2": "Artistic-2.0",
	"boost": "BSL-1.0", "boost-1.0": "BSL-1.0", "psf-2": "PSF-2.0", "python-2": "Python-2.0", "cc0": "CC0-1.0", "mpl-2": "MPL-2.0",
	"bsd-2-clauses": "BSD-2-Clause", "bsd-3-clauses": "BSD-3-Clause", "w3c-software": "W3C",
	"unicode": "Unicode-DFS-2016", "ofl-1": "OFL-1.1", "cddl-1": "CDDL-1.0", "lppl-1.3": "LPPL-1.3a",
}, `0BSD AFL-2.0 AFL-2.1 AFL-3.0 Apache-1.0 Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-1.0-Perl Artistic-2.0 BSD-1-Clause BSD-2-Clause BSD-3-Clause
	BSD-4-Clause BSD-4-Clause-UC Beerware BSL-1.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-2.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDDL-1.0 CPL-1.0 curl
	EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 FSFAP FSFUL FSFULLR FTL HPND ICU IJG ISC JSON Libpng LPPL-1.0 LPPL-1.1 LPPL-1.2 LPPL-1.3a
	LPPL-1.3c MIT MIT-0 MPL-1.0 MPL-1.1 MPL-2.0 NCSA NTP OFL-1.0 OFL-1.1 OLDAP-2.8 OpenSSL PHP-3.01 PostgreSQL PSF-2.0 Python-2.0
	QPL-1.0 Ruby SISSL SMLNJ TCL Unicode-DFS-2015 Unicode-DFS-2016 Unlicense Vim W3C WTFPL X11 Xnet Zlib ZPL-2.1 bzip2-1.0.6`)

func spdxTable(m map[string]string, ids string) map[string]string {
	for _, id := range strings.Fields(ids) {
		m[strings.ToLower(id)] = id
	}
	return m
}

// spdxExceptions by what stands between "with" and "exception".
var spdxExceptions = map[string]string{
	"autoconf": "Autoconf-exception-generic", "autoconf-2.0": "Autoconf-exception-2.0", "autoconf-3.0": "Autoconf-exception-3.0",
	"bison": "Bison-exception-2.2", "bison-2.2": "Bison-exception-2.2", "classpath": "Classpath-exception-2.0",
	"classpath-2.0": "Classpath-exception-2.0", "font": "Font-exception-2.0", "gcc": "GCC-exception-3.1", "gcc-3.1": "GCC-exception-3.1",
	"libtool": "Libtool-exception", "llvm": "LLVM-exception",
	"linux-syscall-note": "Linux-syscall-note",
}
