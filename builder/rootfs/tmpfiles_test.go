package rootfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

func TestTmpfiles(t *testing.T) {
	p := deb("p", f("usr/lib/sysusers.d/p.conf", "u web 77 -\ng logs 78\n"), f("etc/there", "own"), f("usr/lib/tmpfiles.d/p.conf", `# a comment
d /var/lib/web 0750 web logs 10d -
D! /var/spool/web 2775 - 5 -
q /var/cache/web :0700 :web :logs
d "/var/lib/a b"
L+ /etc/link - - - - ../usr/link
L /var/lib/default
d /run/web 0755 web web
d /var/run/web 0755 web web
d /tmp/web
d /etc/there 0700
f /etc/written - - - - text
r! /etc/there
z /etc/there 0600 web web
f^ /etc/credential - - - - name
d^ /etc/credential.d - - - - name
`))
	got := mustBuild(t, []Package{p}, nil, Params{})
	for _, want := range []tree.Entry{
		{Path: "var/lib/web", Mode: tree.TypeDir | 0o750, UID: 77, GID: 78},
		{Path: "var/spool/web", Mode: tree.TypeDir | 0o2775, GID: 5},
		{Path: "var/cache/web", Mode: tree.TypeDir | 0o700, UID: 77, GID: 78},
		tree.Dir("var/lib/a b", 0o755),
		tree.Symlink("etc/link", "../usr/link"),
		tree.Symlink("var/lib/default", "/usr/share/factory/var/lib/default"),
	} {
		if e := entry(t, got.Entries, want.Path); e.Mode != want.Mode || e.Target != want.Target || e.UID != want.UID || e.GID != want.GID {
			t.Errorf("%+v, want %+v", e, want)
		}
	}
	for _, name := range []string{"run/web", "tmp/web", "etc/written", "etc/credential", "etc/credential.d"} {
		if has(got.Entries, name) {
			t.Errorf("/%s is there", name)
		}
	}
	if e := entry(t, got.Entries, "etc/there"); content(t, got, "etc/there") != "own" || e.Mode != tree.TypeFile|0o644 || e.UID != 0 {
		t.Errorf("what was there is now %+v", e)
	}
	if len(got.Notes) > 0 {
		t.Errorf("%v", got.Notes)
	}
}

// A file of the profile hides that of a package.
func TestTmpfilesMasked(t *testing.T) {
	p := deb("p", f("usr/lib/tmpfiles.d/p.conf", "d /var/a\n"), f("usr/lib/tmpfiles.d/q.conf", "d /var/b\n"), f("usr/lib/tmpfiles.d/readme", "d /var/c\n"))
	files := []tree.Entry{f("etc/tmpfiles.d/p.conf", "d /var/d\n"), tree.Symlink("etc/tmpfiles.d/q.conf", "/dev/null")}
	got := mustBuild(t, []Package{p}, files, Params{})
	for name, want := range map[string]bool{"var/a": false, "var/b": false, "var/c": false, "var/d": true} {
		if has(got.Entries, name) != want {
			t.Errorf("/%s: %v, want %v", name, !want, want)
		}
	}
}

// What is not understood is said, and the next line is read.
func TestTmpfilesNotFollowed(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"d /var/x 0755 nobody-here", `p: /usr/lib/tmpfiles.d/p.conf:1 is not followed: user "nobody-here": there is none`},
		{"d /var/x 0755 - none-either", `group "none-either": there is none`},
		{"d /var/x 0788", `mode "0788": want octal digits`},
		{"d /var/x 17777", `mode "17777": want octal digits`},
		{"d /var/%m", `specifier in "/var/%m"`},
		{"L /var/x - - - - %h/y", `specifier in "/var/x %h/y"`},
		{"d var/x", `path "var/x": want one from the root`},
		{"d /", "the root itself"},
		{"d /var/x\x00", `path "/var/x\x00"`},
		{"d /usr/lib/tmpfiles.d/p.conf/x", "/usr/lib/tmpfiles.d/p.conf is no directory"},
		{"d /etc/plinth/x", "/etc/plinth/x belongs to the agent"},
		{"d", `path "-"`},
		{`d "/var/x`, "quote without an end"},
	} {
		got := mustBuild(t, []Package{deb("p", f("usr/lib/tmpfiles.d/p.conf", tt.line+"\nd /var/next\n"))}, nil, Params{})
		if len(got.Notes) != 1 || !noted(got, tt.want) || !has(got.Entries, "var/next") || has(got.Entries, "var/x") {
			t.Errorf("%s: %v, want %q", tt.line, got.Notes, tt.want)
		}
	}
}

// An empty word is no type, and an empty target is none given: systemd takes both.
func TestTmpfilesEmptyWords(t *testing.T) {
	got := mustBuild(t, []Package{deb("p", f("usr/lib/tmpfiles.d/p.conf", "\"\" /var/x\nL /var/link - - - - \"\"\nd /var/next\n"))}, nil, Params{})
	if has(got.Entries, "var/x") || !has(got.Entries, "var/next") || entry(t, got.Entries, "var/link").Target != "/usr/share/factory/var/link" {
		t.Errorf("%v", got.Notes)
	}
}

// compareTmpfiles has systemd-tmpfiles work in the unpacked tree: it finds nothing
// left to make.
func compareTmpfiles(t *testing.T, dir string) {
	testenv.Need(t, "systemd-tmpfiles")
	names := func() (out []string) {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			name, _ := filepath.Rel(dir, path) // it is below dir
			if d != nil && (d.IsDir() || d.Type() == os.ModeSymlink) && !hidden(name) {
				out = append(out, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	const control = "plinth-control"
	if err := os.WriteFile(filepath.Join(dir, "usr/lib/tmpfiles.d", control+".conf"), []byte("d /var/"+control+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := names()
	// Lines that it cannot follow, here or at all, are not what is compared.
	said, _ := exec.Command(testenv.Tool("systemd-tmpfiles"), "--root="+dir, "--create", "--boot").CombinedOutput()
	made, worked := 0, false
	for _, name := range names() {
		if name == "var/"+control {
			worked = true
		} else if !slices.Contains(before, name) {
			t.Errorf("systemd-tmpfiles makes /%s", name)
			made++
		}
	}
	if !worked {
		t.Errorf("systemd-tmpfiles does not make what it is asked for")
	}
	if made > 0 || !worked || len(before) < 100 || strings.Contains(string(said), "Unknown user") {
		t.Logf("%s", said)
	}
}
