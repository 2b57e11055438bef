package rootfs

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/tree"
)

func f(name, content string) tree.Entry { return tree.File(name, 0o644, tree.Bytes([]byte(content))) }

func with(e tree.Entry, change func(*tree.Entry)) tree.Entry {
	change(&e)
	return e
}

func deb(name string, entries ...tree.Entry) Package {
	return Package{Name: name, Version: "1", Arch: "amd64", Entries: entries}
}

func (p Package) says(member, text string) Package {
	c := map[string][]byte{}
	for k, v := range p.Control {
		c[k] = v
	}
	c[member] = []byte(text)
	p.Control = c
	return p
}

func (p Package) field(line string) Package {
	return p.says("control", "Package: "+p.Name+"\nVersion: "+p.Version+"\n"+line+"\n")
}

func mustBuild(t *testing.T, pkgs []Package, files []tree.Entry, p Params) *Tree {
	t.Helper()
	got, err := Build(pkgs, files, p)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func has(entries []tree.Entry, name string) bool {
	return slices.ContainsFunc(entries, func(e tree.Entry) bool { return e.Path == name })
}

func content(t *testing.T, tr *Tree, name string) string {
	t.Helper()
	return string(contentOf(t, entry(t, tr.Entries, name)))
}

func noted(tr *Tree, want string) bool {
	return slices.ContainsFunc(tr.Notes, func(n Note) bool { return strings.Contains(n.Package+": "+n.Text, want) })
}

func TestLayout(t *testing.T) {
	got := mustBuild(t, nil, []tree.Entry{f(Agent, "agent")}, Params{})
	for _, want := range []tree.Entry{
		tree.Dir(".", 0o755), tree.Dir("proc", 0o555), tree.Dir("sys", 0o555), tree.Dir("dev", 0o755), tree.Dir("run", 0o755),
		tree.Dir("tmp", 0o1777), tree.Dir("var/tmp", 0o1777), tree.Dir("root", 0o700), tree.Dir("usr/bin", 0o755),
		tree.Symlink("bin", "usr/bin"), tree.Symlink("sbin", "usr/sbin"), tree.Symlink("lib", "usr/lib"), tree.Symlink("lib64", "usr/lib64"),
		tree.Symlink("var/run", "/run"), tree.Symlink("var/lock", "/run/lock"), tree.Symlink("init", "/usr/lib/plinth/agent"),
	} {
		if e := entry(t, got.Entries, want.Path); e.Mode != want.Mode || e.Target != want.Target || e.UID != 0 {
			t.Errorf("%s: %#o %q, want %#o %q", want.Path, e.Mode, e.Target, want.Mode, want.Target)
		}
	}
	if c := content(t, got, "etc/hosts"); !strings.HasPrefix(c, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts: %q", c)
	}
	if e := entry(t, got.Entries, "etc/machine-id"); e.Type() != tree.TypeFile || e.Content.Size != 0 {
		t.Errorf("machine-id: %+v", e)
	}
	for _, name := range []string{"etc/resolv.conf", linkerCacheFile, certsBundle, "lib32", "libx32"} {
		if has(got.Entries, name) {
			t.Errorf("%s is there", name)
		}
	}
	if has(mustBuild(t, nil, nil, Params{}).Entries, "init") {
		t.Error("/init without an agent")
	}
}

// The profile has a say over what is always made.
func TestLayoutOfProfile(t *testing.T) {
	pkg := deb("net", f("etc/resolv.conf", "host's"), f("etc/machine-id", "0123"))
	got := mustBuild(t, []Package{pkg}, nil, Params{})
	if has(got.Entries, "etc/resolv.conf") || content(t, got, "etc/machine-id") != "" {
		t.Error("a package decides on resolv.conf or machine-id")
	}
	files := []tree.Entry{tree.Symlink("etc/resolv.conf", "/run/resolv.conf"), f("etc/hosts", "own"), f("etc/machine-id", "uninitialized\n"), f("init", "own"), f(Agent, "agent"), tree.Dir("tmp", 0o700)}
	got = mustBuild(t, []Package{pkg}, files, Params{})
	if entry(t, got.Entries, "etc/resolv.conf").Target != "/run/resolv.conf" || content(t, got, "etc/machine-id") != "uninitialized\n" || content(t, got, "etc/hosts") != "own" ||
		content(t, got, "init") != "own" || entry(t, got.Entries, "tmp").Mode != tree.TypeDir|0o700 {
		t.Error("the profile does not decide")
	}
}

func TestMergedUsr(t *testing.T) {
	a := deb("a", tree.Dir("bin", 0o755), f("bin/sh", "a"), f("lib64/ld.so", "b"), f("lib/x/y", "c"), f("usr/lib32/z", "d"))
	base := deb(basePackage, tree.Symlink("bin", "usr/bin"), tree.Symlink("lib", "/usr/lib"), tree.Symlink("lib64", "usr/lib64"), f("usr/bin/ls", "e"))
	got := mustBuild(t, []Package{a, base}, []tree.Entry{f("sbin/mine", "f")}, Params{})
	for name, want := range map[string]string{"usr/bin/sh": "a", "usr/lib64/ld.so": "b", "usr/lib/x/y": "c", "usr/bin/ls": "e", "usr/sbin/mine": "f"} {
		if c := content(t, got, name); c != want {
			t.Errorf("%s: %q, want %q", name, c, want)
		}
	}
	if entry(t, got.Entries, "bin").Target != "usr/bin" || entry(t, got.Entries, "lib32").Target != "usr/lib32" {
		t.Error("links at the top are not as they should be")
	}
}

// A package may have files below what is a link in another, as dpkg allows.
func TestThroughLinks(t *testing.T) {
	a := deb("a", tree.Symlink("usr/share/doc/a", "common"), tree.Symlink("usr/share/doc/up", "../../../../../../etc"))
	b := deb("b", tree.Dir("usr/share/doc/common", 0o755), f("usr/share/doc/a/README", "1"), tree.Dir("usr/share/doc/a", 0o755), f("usr/share/doc/up/x", "2"))
	for _, pkgs := range [][]Package{{a, b}, {b, a}} {
		got := mustBuild(t, pkgs, []tree.Entry{f("var/run/x", "3")}, Params{})
		if content(t, got, "usr/share/doc/common/README") != "1" || content(t, got, "etc/x") != "2" {
			t.Error("not where the link leads")
		}
		if content(t, got, "run/x") != "3" || !noted(got, ": /run/x is hidden") {
			t.Errorf("a file in /run: %v", got.Notes)
		}
	}
}

func TestOrderDoesNotCount(t *testing.T) {
	pkgs := []Package{
		deb("b", tree.Dir("etc/x", 0o700), f("etc/x/b", "b"), f("etc/same", "s")),
		deb("a", tree.Dir("etc/x", 0o700), f("etc/x/a", "a"), f("etc/same", "s")),
		deb(basePackage, tree.Dir("etc/x", 0o755)),
		deb("c", tree.Dir("etc/x", 0o711)),
	}
	files := []tree.Entry{f("etc/y", "1"), f("etc/z", "2")}
	p := Params{Users: []User{{Name: "w"}, {Name: "v"}}}
	want := mustBuild(t, pkgs, files, p)
	for range 5 {
		pkgs = append(pkgs[1:], pkgs[0])
		slices.Reverse(files)
		for i := range pkgs {
			e := slices.Clone(pkgs[i].Entries)
			slices.Reverse(e)
			pkgs[i].Entries = e
		}
		sameTree(t, want, mustBuild(t, pkgs, files, p))
	}
	if e := entry(t, want.Entries, "etc/x"); e.Mode != tree.TypeDir|0o755 {
		t.Errorf("etc/x has mode %#o, not that of %s", e.Mode, basePackage)
	}
	i := slices.IndexFunc(want.Inventory.Files, func(f File) bool { return f.Path == "etc/same" })
	if want.Inventory.Files[i].Package != "a" {
		t.Error("a file that two packages have is not the first one's")
	}
}

func TestConflicts(t *testing.T) {
	dir := func(name string, perm uint32) Package { return deb(name, tree.Dir("srv/x", perm)) }
	for _, tt := range []struct {
		name string
		pkgs []Package
		want string
	}{
		{"content", []Package{deb("a", f("etc/x", "1")), deb("b", f("etc/x", "2"))}, "/etc/x: packages a and b have different files"},
		{"mode", []Package{deb("a", f("etc/x", "1")), deb("b", with(f("etc/x", "1"), func(e *tree.Entry) { e.Mode = tree.TypeFile | 0o600 }))}, "packages a and b"},
		{"owner", []Package{deb("a", f("etc/x", "1")), deb("b", with(f("etc/x", "1"), func(e *tree.Entry) { e.UID = 1 }))}, "packages a and b"},
		{"target", []Package{deb("a", tree.Symlink("etc/x", "1")), deb("b", tree.Symlink("etc/x", "2"))}, "packages a and b"},
		{"attribute", []Package{deb("a", f("etc/x", "1")), deb("b", with(f("etc/x", "1"), func(e *tree.Entry) { e.Xattrs = map[string][]byte{"user.a": nil} }))}, "packages a and b"},
		{"over the merged /usr", []Package{deb("a", f("bin/x", "1")), deb("b", f("usr/bin/x", "2"))}, "/usr/bin/x: packages a and b"},
		{"file and directory", []Package{deb("a", f("etc/x", "1")), deb("b", tree.Dir("etc/x", 0o755))}, "packages a and b"},
		{"directories", []Package{dir("a", 0o755), dir("b", 0o700)}, "/srv/x: package a has it with mode 0755 and owner 0:0, b with 0700"},
		{"both replace", []Package{deb("a", f("etc/x", "1")).field("Replaces: b"), deb("b", f("etc/x", "2")).field("Replaces: a")}, "packages a and b"},
		{"replaces another version", []Package{deb("a", f("etc/x", "1")).field("Replaces: b (<< 1)"), deb("b", f("etc/x", "2"))}, "packages a and b"},
		{"twice", []Package{deb("a"), deb("a")}, "package a: twice"},
		{"control of another", []Package{deb("a").says("control", "Package: b\n")}, `its own name is "b"`},
		{"link elsewhere", []Package{deb("a", tree.Symlink("bin", "opt/bin"))}, "want a directory or a link to usr/bin"},
		{"file for a directory", []Package{deb("a", f("lib", "1"))}, "want a directory or a link to usr/lib"},
		{"loop", []Package{deb("a", tree.Symlink("etc/a", "b"), tree.Symlink("etc/b", "a")), deb("b", f("etc/a/x", ""))}, "more than 40 links"},
		{"below a file", []Package{deb("a", f("etc/a", "")), deb("b", f("etc/a/x", ""))}, "etc/a is no directory"},
		{"bad path", []Package{deb("a", f("../x", ""))}, `path "../x"`},
		{"named twice", []Package{deb("a", f("x", ""), f("x", ""))}, "x: named twice"},
		{"hard link to nothing", []Package{deb("a", tree.Entry{Path: "x", Link: "y"})}, "hard link to y"},
		{"hard link to a directory", []Package{deb("a", tree.Entry{Path: "x", Link: "y"}, tree.Dir("y", 0o755))}, "hard link to y"},
	} {
		_, err := Build(tt.pkgs, nil, Params{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		slices.Reverse(tt.pkgs)
		if _, again := Build(tt.pkgs, nil, Params{}); again == nil || err != nil && again.Error() != err.Error() {
			t.Errorf("%s: in the other order %v, want %v", tt.name, again, err)
		}
	}
	// The profile settles all of it.
	got := mustBuild(t, []Package{dir("a", 0o755), dir("b", 0o700), deb("c", f("etc/x", "1")), deb("d", f("etc/x", "2"))},
		[]tree.Entry{tree.Dir("srv/x", 0o711), f("etc/x", "3")}, Params{})
	if entry(t, got.Entries, "srv/x").Mode != tree.TypeDir|0o711 || content(t, got, "etc/x") != "3" {
		t.Error("the profile does not win")
	}
	_, err := Build(nil, []tree.Entry{f("bin/x", "1"), f("usr/bin/x", "2")}, Params{})
	if err == nil || !strings.Contains(err.Error(), "the profile has two files") {
		t.Errorf("two files of the profile: %v", err)
	}
}

func TestReplaces(t *testing.T) {
	for _, field := range []string{"Replaces: other, b", "Replaces: b (<< 2), c", "Replaces:\n b (= 1)"} {
		got := mustBuild(t, []Package{deb("a", f("etc/x", "a's")).field(field), deb("b", f("etc/x", "b's"))}, nil, Params{})
		if c := content(t, got, "etc/x"); c != "a's" {
			t.Errorf("%s: %q", field, c)
		}
		got = mustBuild(t, []Package{deb("a", f("etc/x", "a's")), deb("b", f("etc/x", "b's")).field(strings.ReplaceAll(field, "b", "a"))}, nil, Params{})
		if c := content(t, got, "etc/x"); c != "b's" {
			t.Errorf("%s, the other way: %q", field, c)
		}
	}
}

func TestDiversion(t *testing.T) {
	script := "#!/bin/sh\nset -e\nif [ \"$1\" = install ]; then\n\tdpkg-divert --package a --add --rename --divert /bin/sh.distrib /bin/sh\nfi\n" +
		"dpkg-divert --package a --remove --divert /etc/x.b /etc/x\n"
	a := deb("a", f("usr/bin/sh", "a's")).says("preinst", script)
	got := mustBuild(t, []Package{a, deb("b", f("bin/sh", "b's"), f("etc/x", ""))}, nil, Params{})
	if content(t, got, "usr/bin/sh") != "a's" || content(t, got, "usr/bin/sh.distrib") != "b's" || !has(got.Entries, "etc/x") {
		t.Error("not diverted as the script asks")
	}
	both := deb("c").says("preinst", script)
	if _, err := Build([]Package{a, both}, nil, Params{}); err == nil || !strings.Contains(err.Error(), "packages a and c both divert it") {
		t.Errorf("two diversions: %v", err)
	}
}

func TestHardLinks(t *testing.T) {
	entries := []tree.Entry{f("usr/bin/b", "x"), {Path: "usr/bin/a", Link: "usr/bin/b"}, {Path: "bin/c", Link: "usr/bin/b"}}
	got := mustBuild(t, []Package{deb("p", entries...)}, nil, Params{})
	for name, want := range map[string]string{"usr/bin/a": "", "usr/bin/b": "usr/bin/a", "usr/bin/c": "usr/bin/a"} {
		if e := entry(t, got.Entries, name); e.Link != want {
			t.Errorf("%s is a link to %q, want %q", name, e.Link, want)
		}
	}
	// The names that are left stay one file when another goes.
	for _, tt := range []struct {
		files []tree.Entry
		p     Params
	}{{[]tree.Entry{f("usr/bin/a", "own")}, Params{}}, {nil, Params{Exclude: []string{"/usr/bin/a"}}}} {
		got = mustBuild(t, []Package{deb("p", entries...)}, tt.files, tt.p)
		if b, c := entry(t, got.Entries, "usr/bin/b"), entry(t, got.Entries, "usr/bin/c"); b.Link != "" || c.Link != "usr/bin/b" || string(contentOf(t, b)) != "x" {
			t.Errorf("%+v, %+v", b, c)
		}
	}
}

func TestExclude(t *testing.T) {
	pkg := deb("p", f("usr/share/man/man1/x.1", ""), f("usr/share/doc/p/copyright", ""), f("usr/share/doc/p/NEWS", ""), f("usr/share/doc/p/sub/NEWS", ""),
		f("lib/firmware/a/b.bin", ""), f("etc/p/conf", ""), f("etc/p.conf", ""))
	for _, tt := range []struct {
		patterns []string
		gone     []string
	}{
		{[]string{"/usr/share/man"}, []string{"usr/share/man/man1/x.1", "usr/share/man"}},
		{[]string{"/usr/share/man/**"}, []string{"usr/share/man/man1/x.1"}},
		{[]string{"/usr/share/doc/*/NEWS"}, []string{"usr/share/doc/p/NEWS"}},
		{[]string{"/**/NEWS"}, []string{"usr/share/doc/p/NEWS", "usr/share/doc/p/sub/NEWS"}},
		{[]string{"/lib/firmware/**"}, []string{"usr/lib/firmware/a/b.bin"}},
		{[]string{"/usr/lib/firmware/*/*.bin"}, []string{"usr/lib/firmware/a/b.bin"}},
		{[]string{"/etc/p"}, []string{"etc/p/conf"}},
		{[]string{"/etc/[a-z]*"}, []string{"etc/p/conf", "etc/p.conf"}},
		{[]string{"/etc/p/conf/x", "/et", "/usr/share/doc/NEWS"}, nil},
	} {
		got := mustBuild(t, []Package{pkg}, []tree.Entry{f("usr/share/man/mine", "")}, Params{Exclude: tt.patterns})
		for _, e := range pkg.Entries {
			name := strings.Replace(e.Path, "lib/firmware", "usr/lib/firmware", 1)
			if want := !slices.Contains(tt.gone, name); has(got.Entries, name) != want {
				t.Errorf("%q: %s: there is %t", tt.patterns, name, !want)
			}
		}
		if !has(got.Entries, "usr/share/man/mine") {
			t.Errorf("%q: a file of the profile is gone", tt.patterns)
		}
		if tt.gone == nil && !noted(got, `exclude "/et": no package has such a file`) {
			t.Errorf("%q: nothing said: %v", tt.patterns, got.Notes)
		}
	}
	for pattern, want := range map[string]string{"usr": "begins with a slash", "/": "begins with a slash", "/a[": "is no pattern", "/a/../b": "is no pattern"} {
		if _, err := Build(nil, nil, Params{Exclude: []string{pattern}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

func TestDigests(t *testing.T) {
	pkg := deb("p", f("etc/x", "abc"), tree.Entry{Path: "etc/y", Link: "etc/x"})
	got := mustBuild(t, []Package{pkg}, nil, Params{})
	want256, want1 := sha256.Sum256([]byte("abc")), sha1.Sum([]byte("abc"))
	if e := entry(t, got.Entries, "etc/x"); e.Content.Digest != want256 {
		t.Errorf("digest is %x", e.Content.Digest)
	}
	for _, e := range got.Entries {
		if e.Type() == tree.TypeFile && e.Link == "" && e.Content.Digest != sha256.Sum256(contentOf(t, e)) {
			t.Errorf("%s: digest is %x", e.Path, e.Content.Digest)
		}
	}
	for _, f := range got.Inventory.Files {
		if (f.Path == "etc/x" || f.Path == "etc/y") && (f.SHA1 != hex.EncodeToString(want1[:]) || f.SHA256 != hex.EncodeToString(want256[:]) || f.Size != 3 || f.Package != "p") {
			t.Errorf("%+v", f)
		}
	}
	wrong := f("etc/x", "abc")
	wrong.Content.Digest[0] = 1
	if _, err := Build([]Package{deb("p", wrong)}, nil, Params{}); err == nil || !strings.Contains(err.Error(), "package p: etc/x: sha256 is") {
		t.Errorf("a wrong digest: %v", err)
	}
	boom := errors.New("boom")
	broken := tree.File("etc/x", 0o644, tree.Blob{Size: 1, Open: func() (io.ReadCloser, error) { return nil, boom }})
	if _, err := Build([]Package{deb("p", broken)}, nil, Params{}); !errors.Is(err, boom) {
		t.Errorf("a broken file: %v", err)
	}
}

func TestAlternatives(t *testing.T) {
	pkg := deb("mawk", f("usr/bin/mawk", ""), f("usr/bin/x", ""), tree.Dir("usr/lib/jvm", 0o755), tree.Symlink("usr/bin/same", "/usr/bin/mawk"))
	got := mustBuild(t, []Package{pkg}, nil, Params{Alternatives: map[string]string{"/bin/awk": "/usr/bin/mawk", "/etc/alternatives/nawk": "/bin/mawk",
		"/usr/bin/java": "/usr/lib/jvm", "/usr/bin/same": "/usr/bin/mawk"}})
	for name, want := range map[string]string{"usr/bin/awk": "/usr/bin/mawk", "etc/alternatives/nawk": "/bin/mawk", "usr/bin/java": "/usr/lib/jvm", "usr/bin/same": "/usr/bin/mawk"} {
		if e := entry(t, got.Entries, name); e.Target != want {
			t.Errorf("%s: %q", name, e.Target)
		}
	}
	for link, tt := range map[string]struct{ target, want string }{
		"/usr/bin/awk": {"/usr/bin/gawk", "no /usr/bin/gawk in the tree"},
		"/usr/bin/x":   {"/usr/bin/mawk", "package mawk has a file there"},
		"usr/bin/awk":  {"/usr/bin/mawk", "want two absolute paths"},
		"/usr/bin/a/.": {"/usr/bin/mawk", "want two absolute paths"},
		"/usr/bin/y":   {"mawk", "want two absolute paths"},
		"/":            {"/usr/bin/mawk", "want two absolute paths"},
	} {
		if _, err := Build([]Package{pkg}, nil, Params{Alternatives: map[string]string{link: tt.target}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", link, err, tt.want)
		}
	}
}

// What the scripts of some packages copy and make.
func TestDefaults(t *testing.T) {
	base := deb(basePackage, f("usr/share/base-files/profile", "p"), f("usr/share/base-files/motd", "m"), f("etc/dpkg/origins/debian", ""))
	libc := deb("libc-bin", f("usr/share/libc-bin/nsswitch.conf", "n"))
	nginx := deb("nginx-common", f("usr/share/nginx/html/index.html", "i"), f("etc/nginx/sites-available/default", "site"))
	got := mustBuild(t, []Package{base, libc, nginx}, []tree.Entry{f("etc/motd", "own")}, Params{})
	for name, want := range map[string]string{"etc/profile": "p", "etc/motd": "own", "etc/nsswitch.conf": "n", "var/www/html/index.nginx-debian.html": "i"} {
		if c := content(t, got, name); c != want {
			t.Errorf("%s: %q, want %q", name, c, want)
		}
	}
	if entry(t, got.Entries, "etc/dpkg/origins/default").Target != "debian" || entry(t, got.Entries, "etc/nginx/sites-enabled/default").Target != "/etc/nginx/sites-available/default" || !has(got.Entries, "usr/local/share/man") {
		t.Error("links or directories are missing")
	}
	if got = mustBuild(t, []Package{deb("x")}, nil, Params{}); has(got.Entries, "usr/local") || has(got.Entries, "etc/profile") {
		t.Error("made without the package that would make it")
	}
}

// Every file that a build reads is read from its source, and equal trees come of
// sources that are read in pieces.
func TestSlowReaders(t *testing.T) {
	slow := func(name, text string) tree.Entry {
		return tree.File(name, 0o644, tree.Blob{Size: int64(len(text)), Open: func() (io.ReadCloser, error) {
			return io.NopCloser(oneByte{bytes.NewReader([]byte(text))}), nil
		}})
	}
	sameTree(t, mustBuild(t, []Package{deb("p", f("etc/x", "abc"), f("etc/ld.so.conf", "/opt\n"))}, nil, Params{}),
		mustBuild(t, []Package{deb("p", slow("etc/x", "abc"), slow("etc/ld.so.conf", "/opt\n"))}, nil, Params{}))
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }
