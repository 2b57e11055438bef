package rootfs

import (
	"strings"
	"testing"
)

const dep5 = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"

func TestCopyright(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"one", dep5 + "\nFiles: *\nLicense: GPL-2+\n text\n", "GPL-2.0-or-later"},
		{"format in plain http", strings.Replace(dep5, "https", "http", 1) + "\nFiles: *\nLicense: Expat\n", "MIT"},
		{"several", dep5 + "\nFiles: *\nLicense: GPL-2\n\nFiles: a\nLicense: Expat\n\nFiles: b\nLicense: GPL-2\n", "MIT AND GPL-2.0-only"},
		{"a choice", dep5 + "\nFiles: *\nLicense: Artistic or GPL-1+\n", "Artistic-1.0 OR GPL-1.0-or-later"},
		{"a choice among others", dep5 + "\nFiles: *\nLicense: Artistic or GPL-1+\n\nFiles: b\nLicense: ISC\n", "(Artistic-1.0 OR GPL-1.0-or-later) AND ISC"},
		{"and before or", dep5 + "\nFiles: *\nLicense: Zlib and ISC or Expat\n", "(Zlib AND ISC) OR MIT"},
		{"comma", dep5 + "\nFiles: *\nLicense: GPL-2+ or Artistic-2.0, and BSD-3-clause\n", "(GPL-2.0-or-later OR Artistic-2.0) AND BSD-3-Clause"},
		{"comma or", dep5 + "\nFiles: *\nLicense: GPL-2+ and ISC, or BSD-3-clause\n", "(GPL-2.0-or-later AND ISC) OR BSD-3-Clause"},
		{"words at the ends", dep5 + "\nFiles: *\nLicense: , and or GPL-2 or, or\n", "GPL-2.0-only"},
		{"exception", dep5 + "\nFiles: *\nLicense: GPL-2+ with Libtool exception\n", "GPL-2.0-or-later WITH Libtool-exception"},
		{"families", dep5 + "\nFiles: *\nLicense: LGPL-2.1\n\nFiles: b\nLicense: LGPL-3+\n\nFiles: c\nLicense: GFDL-NIV-1.3+\n\nFiles: d\nLicense: GFDL-1.2\n\nFiles: e\nLicense: AGPL-3\n\nFiles: f\nLicense: GPL-3.0-only\n\nFiles: g\nLicense: GPL-2-or-later\n",
			"AGPL-3.0-only AND GFDL-1.2-only AND GFDL-1.3-no-invariants-or-later AND GPL-2.0-or-later AND GPL-3.0-only AND LGPL-2.1-only AND LGPL-3.0-or-later"},
		{"case", dep5 + "\nFILES: *\nLICENSE: apache-2.0\n", "Apache-2.0"},
		{"a paragraph of its own is no use of it", dep5 + "\nFiles: *\nLicense: Expat\n\nLicense: GPL-2\n text\n", "MIT"},
		{"in the first paragraph", dep5 + "License: Expat\n", "MIT"},
		{"free form", "This package was debianized by X.\n\nLicense: GPL\n", ""},
		{"another format", "Format: http://dep.debian.net/deps/dep5/\n\nFiles: *\nLicense: Expat\n", ""},
		{"broken", dep5 + "\nFiles: *\nLicense: Expat\nand more\n", ""},
		{"empty", "", ""},
		{"no licence", dep5 + "\nFiles: *\nCopyright: me\n", ""},
	} {
		if got, refs := parseCopyright([]byte(tt.text)).expression("p"); got != tt.want || len(refs) > 0 {
			t.Errorf("%s: %q %v, want %q", tt.name, got, refs, tt.want)
		}
	}
}

func TestLicenceReferences(t *testing.T) {
	text := dep5 + "\nFiles: *\nLicense: public-domain\n Do as you like.\n .\n Really.\n\nFiles: a\nLicense: GPL-2+ with Odd+Strange exception\n\nFiles: b\nLicense: Odd\n\nLicense: Odd\n Odd text.\n"
	got, refs := parseCopyright([]byte(text)).expression("p")
	if len(refs) != 3 {
		t.Fatalf("%q, %d references", got, len(refs))
	}
	for i, want := range []Licence{
		{"LicenseRef-GPL-2p-with-OddpStrange-exception-", "GPL-2+ with Odd+Strange exception", "The copyright file of the package p names this licence \"GPL-2+ with Odd+Strange exception\" without its text."},
		{"LicenseRef-Odd-", "Odd", "Odd text."},
		{"LicenseRef-public-domain-", "public-domain", "Do as you like.\n.\nReally."},
	} {
		r := refs[i]
		if !strings.HasPrefix(r.ID, want.ID) || r.Name != want.Name || r.Text != want.Text || !strings.Contains(got, r.ID) {
			t.Errorf("%+v in %q, want %+v", r, got, want)
		}
	}
	// Another text is another licence.
	_, other := parseCopyright([]byte(strings.Replace(text, "Odd text", "Odder text", 1))).expression("p")
	if other[1].ID == refs[1].ID || other[2].ID != refs[2].ID {
		t.Errorf("%s and %s", other[1].ID, refs[1].ID)
	}
}

// Every name in the table is one of itself, so that an expression can be read
// again.
func TestSPDXNames(t *testing.T) {
	for name, id := range spdxNames {
		if spdxName(strings.ToLower(id)) != id || name != strings.ToLower(name) {
			t.Errorf("%s: %s", name, id)
		}
	}
}

func FuzzCopyright(f *testing.F) {
	f.Add(dep5 + "\nFiles: *\nLicense: GPL-2+ and MIT, or Odd\n text\n .\n more\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		got, refs := parseCopyright([]byte(text)).expression("p")
		if strings.Count(got, "(") != strings.Count(got, ")") {
			t.Errorf("parentheses in %q", got)
		}
		for _, r := range refs {
			if r.Text == "" || strings.Trim(r.ID, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") != "" || !strings.Contains(got, r.ID) {
				t.Errorf("%+v in %q", r, got)
			}
		}
		for _, w := range strings.FieldsFunc(got, func(r rune) bool { return strings.ContainsRune("() ", r) }) {
			if w != "AND" && w != "OR" && w != "WITH" && !strings.HasPrefix(w, "LicenseRef-") && spdxName(strings.ToLower(w)) == "" && !isException(w) {
				t.Errorf("%q in %q is no name", w, got)
			}
		}
	})
}

func isException(s string) bool {
	for _, e := range spdxExceptions {
		if e == s {
			return true
		}
	}
	return false
}
