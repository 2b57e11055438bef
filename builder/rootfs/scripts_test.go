package rootfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/tree"
)

func commands(t *testing.T, arg, script string) []string {
	t.Helper()
	cs, err := readScript("postinst", arg, []byte(script))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range cs {
		if c.words[0] != "[" && c.words[0] != "test" && c.words[0] != "dpkg" {
			out = append(out, strings.Join(c.words, " "))
		}
	}
	return out
}

func TestReadScript(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"plain", "a 'b c' \"d\"; x=1; y=$(z)", "a b c d"},
		{"root", `mkdir "$DPKG_ROOT/x" "$OTHER/x"`, `mkdir /x "$OTHER/x"`},
		{"if", `if [ "$1" = configure ]; then a; else b; fi`, "a"},
		{"if not", `if [ "$1" != "configure" ]; then a; fi; b`, "b"},
		{"elif", `if [ "$1" = triggered ]; then a; elif [ "$1" = configure ]; then b; else c; fi`, "b"},
		{"unknown", `if [ -f /x ]; then a; else b; fi`, "a|b"},
		{"first installation", `if [ -z "$2" ]; then a; fi; if [ -n "$2" ]; then b; fi; if [ "$2" = "" ]; then c; fi`, "a|c"},
		{"and", `[ "$1" = configure ] && a; [ "$1" = remove ] && b; [ "$1" = configure ] && [ -f /x ] && c`, "a|c"},
		{"or", `[ "$1" = configure ] || a; [ "$1" = remove ] || b`, "b"},
		{"and in if", `if [ "$1" = configure ] && [ -n "$2" ]; then a; fi; if [ "$1" = configure ] || [ -f /x ]; then b; else c; fi`, "b"},
		{"not", `if ! [ "$1" = configure ]; then a; fi; if ! [ -n "$2" ]; then b; fi`, "b"},
		{"versions", `if dpkg --compare-versions "$2" lt-nl 1; then a; fi; if dpkg --compare-versions "$2" lt 1; then b; fi; if dpkg --compare-versions "$2" ge 1; then c; fi`, "b"},
		{"case", `case "$1" in remove) a;; configure|triggered) b;; *) c;; esac; case $1 in x) d;; *) e;; esac`, "b|e"},
		{"case of something", `case "$x" in a) a;; b) b;; esac`, "a|b"},
		{"function", `f() { a "$1"; if [ "$1" = configure ]; then b; fi; if [ "$1" = x ]; then c; fi; }; f y`, `a "$1"|b|c`},
		{"function not called", `f() { a; }; b`, "b"},
		{"recursion", `f() { a; f; }; f`, "a"},
		{"loops", `for x in 1 2; do a; done; while b; do c; done`, "a|b|c"},
		{"pipe and subshell", `a | (b; c) && { d; }`, "a|b|c|d"},
		{"true", `if true; then a; else b; fi; false && c; test "$1" = configure && d`, "true|a|false|d"},
	} {
		if got := strings.Join(commands(t, "configure", tt.script), "|"); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestScriptNotes(t *testing.T) {
	script := func(lines ...string) Package {
		return deb("p", f("usr/bin/mawk", ""), f("usr/bin/gawk", ""), f("etc/there", ""), tree.Dir("srv/there", 0o755)).
			says("postinst", "#!/bin/sh\nset -e\n"+strings.Join(lines, "\n")+"\n")
	}
	for _, tt := range []struct{ line, want string }{
		{"chown root:adm /etc/there", "p: postinst would run: chown root:adm /etc/there"},
		{"mkdir -p /srv/there", ""},
		{"mkdir -p /srv/gone", "would run: mkdir -p /srv/gone"},
		{"ln -s x /etc/there", ""},
		{"cp $x $y", "would run: cp $x $y"},
		{"sed -n p /etc/there", ""},
		{"sed -i s/a/b/ /etc/there", "would run: sed -i"},
		{"ldconfig; systemctl daemon-reload; db_get x; echo y", ""},
		{"py3compile -p x; pypy3compile -p x; /usr/bin/python3.13 -E -S /usr/lib/python3.13/py_compile.py $files", ""},
		{"systemd-tmpfiles --create x.conf", ""},
		{"/usr/bin/python3.13 -E -S other.py", "would run: /usr/bin/python3.13"},
		{"adduser --system --quiet root", ""},
		{"adduser --system nobody-knows", "would run: adduser --system nobody-knows"},
		{"addgroup nogroup", ""},
		{"dpkg-statoverride --list /x", ""},
		{"dpkg-statoverride --update --add root root 4755 /x", "would run: dpkg-statoverride"},
		{"update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5", `root.alternatives can have "/usr/bin/awk" = "/usr/bin/mawk"`},
		{"update-alternatives --install /usr/bin/awk awk /usr/bin/gawk 10 --slave a b c\nupdate-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5", `"/usr/bin/awk" = "/usr/bin/gawk"`},
		{"update-alternatives --install /usr/bin/gawk awk /usr/bin/mawk 5", ""},
		{"update-alternatives --install /usr/bin/awk awk /usr/bin/nawk 5", ""},
		{"update-alternatives --remove awk /usr/bin/mawk", ""},
		{"/usr/bin/own-tool --x", "would run: /usr/bin/own-tool --x"},
		{"if", "postinst was not understood"},
	} {
		got := mustBuild(t, []Package{script(tt.line)}, nil, Params{})
		if tt.want == "" && len(got.Notes) > 0 || tt.want != "" && (len(got.Notes) != 1 || !noted(got, tt.want)) {
			t.Errorf("%s: %v, want %q", tt.line, got.Notes, tt.want)
		}
	}
	perl := deb("p").says("postinst", "#!/usr/bin/perl\n")
	if got := mustBuild(t, []Package{perl}, nil, Params{}); !noted(got, "p: postinst is no shell script") {
		t.Errorf("%v", got.Notes)
	}
	// What is done here is not said.
	base := deb(basePackage).says("postinst", "#!/bin/sh\nchown root /etc\n")
	if got := mustBuild(t, []Package{base, deb("q").says("preinst", "#!/bin/sh\nmkdir /x\n")}, nil, Params{}); len(got.Notes) != 1 || !noted(got, "q: preinst would run: mkdir /x") {
		t.Errorf("%v", got.Notes)
	}
	// A declared alternative is not suggested.
	p := Params{Alternatives: map[string]string{"/usr/bin/awk": "/usr/bin/gawk"}}
	if got := mustBuild(t, []Package{script("update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5")}, nil, p); len(got.Notes) > 0 {
		t.Errorf("%v", got.Notes)
	}
}

// The work that a script can make a reader do is bounded.
func TestScriptBounds(t *testing.T) {
	var s strings.Builder
	for _, c := range "abcdefghijklmnopqrst" {
		s.WriteString(string(c) + "() { " + strings.Repeat(string(c+1)+"; ", 10) + "}\n")
	}
	s.WriteString("u() { x; }\na\n")
	cs, err := readScript("postinst", "configure", []byte(s.String()))
	if err != nil || len(cs) > maxCommands {
		t.Errorf("%d commands, %v", len(cs), err)
	}
}

func FuzzScript(f *testing.F) {
	f.Add("#!/bin/sh\nif [ \"$1\" = configure ]; then a; fi\ncase $1 in x) b;; esac\nf() { f; }; f\n[ ]\n[")
	f.Add("if [& then; fi")
	f.Add("dpkg-divert --package x --add --divert /a /b\nupdate-alternatives --install /a b /c 1\nfor i; do [ -n \"$2\" ] && x; done")
	f.Fuzz(func(t *testing.T, script string) {
		if len(script) > 1<<16 {
			return
		}
		x, err1 := readScript("postinst", "configure", []byte(script))
		y, err2 := readScript("postinst", "configure", []byte(script))
		if (err1 == nil) != (err2 == nil) || !slices.EqualFunc(x, y, func(a, b command) bool { return slices.Equal(a.words, b.words) }) {
			t.Error("two readings differ")
		}
		for _, c := range x {
			if len(c.words) == 0 {
				t.Error("a command without words")
			}
			c.alternative()
			c.diversion()
		}
	})
}
