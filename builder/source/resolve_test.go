package source

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/internal/cas"
)

// exit is the exit code that a command gives an error.
func exit(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(*ResolveError)):
		return 2
	case errors.As(err, new(*NetworkError)):
		return 5
	case errors.As(err, new(*VerifyError)):
		return 7
	case errors.As(err, new(*LockError)):
		return 9
	}
	return 6
}

func wantError(t *testing.T, err error, code int, parts ...string) {
	t.Helper()
	if exit(err) != code {
		t.Fatalf("error %v has exit code %d, want %d", err, exit(err), code)
	}
	for _, p := range parts {
		if err != nil && !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestResolve(t *testing.T) {
	a := newArchive(t)
	a.until = today.AddDate(0, 0, 7)
	a.add("linux-image-cloud", "6.12.7-1", "Source: linux", "Depends: linux-image-6.12.7 (= 6.12.7-1)")
	a.add("linux-image-6.12.7", "6.12.7-1", "Source: linux (6.12.7)", "Depends: kmod, linux-base")
	a.add("app", "1", "Depends: libapp (>= 1), mail | mawk")
	a.add("libapp", "1.2")
	a.add("kmod", "3")
	a.publish()
	c := newClient(t)
	req := a.request(append(root("app"), Want{Role: "kernel", Package: "linux-image-cloud"})...)
	a.addVirtual()
	l := a.resolve(c.Client, req, nil)
	if got, want := versions(l), "app=1 libapp=1.2 linux-image-6.12.7=6.12.7-1 linux-image-cloud=6.12.7-1 postfix=3"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := names(l.Role("kernel")), "linux-image-6.12.7 linux-image-cloud"; got != want {
		t.Errorf("kernel: got %q, want %q", got, want)
	}
	if got, want := names(l.Role("root")), "app libapp postfix"; got != want {
		t.Errorf("root: got %q, want %q", got, want)
	}
	r := l.Sources[0].Releases[0]
	if len(r.Fingerprints) != 1 || r.InRelease != cas.Sum(a.files["dists/trixie/InRelease"]) || !r.ValidUntil.Equal(a.until) || !r.Date.Equal(a.date) {
		t.Errorf("evidence is %+v", r)
	}
	refs, err := c.FetchAll(context.Background(), req.Sources, l.Packages)
	if err != nil {
		t.Fatal(err)
	}
	u, err := UnpackDeb(context.Background(), c.Store, refs[1], 1<<20)
	if err != nil || len(u.Members) != 1 || u.Members[0].Path != "usr/share/doc/libapp" {
		t.Errorf("libapp unpacks to %+v, %v", u, err)
	}
}

// addVirtual publishes a package that provides "mail".
func (a *archive) addVirtual() {
	a.add("postfix", "3", "Provides: mail, mta (= 3)", "Priority: optional")
	a.add("exim", "4", "Provides: mail", "Priority: extra")
	a.publish()
}

func names(ps []Package) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.Name)
	}
	return strings.Join(s, " ")
}

// The archive's own faults, and what a mirror could do to its index.
func TestReleaseFaults(t *testing.T) {
	inRelease := "dists/trixie/InRelease"
	for _, c := range []struct {
		name string
		do   func(a *archive, s *Source)
		code int
		say  string
	}{
		{"good", func(*archive, *Source) {}, 0, ""},
		{"other key", func(a *archive, _ *Source) { a.key = newKey("stranger"); a.publish() }, 7, "no good signature by a pinned key"},
		{"own key", func(a *archive, s *Source) {
			a.key = newKey("stranger")
			a.publish()
			s.Keys = &Keyring{openpgp.EntityList{a.key}}
		}, 0, ""},
		{"not its own key", func(a *archive, s *Source) { s.Keys = &Keyring{openpgp.EntityList{newKey("stranger")}} }, 7, "no good signature"},
		{"changed text", func(a *archive, _ *Source) {
			a.files[inRelease] = bytes.Replace(a.files[inRelease], []byte("Origin: Test"), []byte("Origin: Tost"), 1)
		}, 7, "invalid signature"},
		{"text before", func(a *archive, _ *Source) { a.files[inRelease] = append([]byte("Suite: x\n"), a.files[inRelease]...) }, 7, "not a clear-signed message"},
		{"text behind", func(a *archive, _ *Source) { a.files[inRelease] = append(a.files[inRelease], "Suite: x\n"...) }, 7, "malformed"},
		{"no signature", func(a *archive, _ *Source) { a.files[inRelease] = []byte("Suite: trixie\n") }, 7, "not a clear-signed message"},
		{"signed in the future", func(a *archive, _ *Source) { a.date = today.AddDate(0, 0, 1); a.publish() }, 7, "no good signature"},
		{"other suite", func(a *archive, _ *Source) {
			a.suite = "sid"
			a.files[inRelease] = a.publish().files["dists/sid/InRelease"]
		}, 7, `is for suite "stable", codename "sid"`},
		{"asked by suite", func(a *archive, s *Source) {
			s.Suite = "stable"
			for path, b := range a.files {
				a.files[strings.Replace(path, "/trixie/", "/stable/", 1)] = b
			}
		}, 0, ""},
		{"expired", func(a *archive, _ *Source) { a.until = today.Add(-time.Second); a.publish() }, 7, "was valid until 2026-11-20T11:59:59Z, now is 2026-11-20T12:00:00Z"},
		{"expired, ignored", func(a *archive, s *Source) {
			a.until = today.Add(-time.Second)
			a.publish()
			s.IgnoreValidUntil = true
		}, 0, ""},
		{"bad date", func(a *archive, _ *Source) { a.extra = "Valid-Until: yesterday\n"; a.publish() }, 7, "Valid-Until"},
		{"field twice", func(a *archive, _ *Source) { a.extra = "Codename: trixie\n"; a.publish() }, 7, "occurs twice"},
		{"component missing", func(_ *archive, s *Source) { s.Components = []string{"contrib"} }, 2, `no component "contrib"`},
		{"index changed", func(a *archive, _ *Source) {
			for path, b := range a.files {
				if strings.Contains(path, "Packages") || strings.Contains(path, "by-hash") {
					b = bytes.Clone(b)
					b[len(b)/2] ^= 1
					a.files[path] = b
				}
			}
		}, 7, "sha256 is"},
		{"index that is another when unpacked", func(a *archive, _ *Source) { a.unpacksToOther = true; a.publish() }, 7, "unpacks"},
		{"index gone", func(a *archive, _ *Source) {
			for path := range a.files {
				if strings.Contains(path, "main/") {
					delete(a.files, path)
				}
			}
		}, 5, "404"},
		{"only gzip, no by-hash", func(a *archive, _ *Source) {
			for path := range a.files {
				if strings.Contains(path, "by-hash") || strings.HasSuffix(path, ".xz") {
					delete(a.files, path)
				}
			}
		}, 0, ""},
		{"no InRelease", func(a *archive, _ *Source) { delete(a.files, inRelease) }, 5, "404"},
		{"no mirror", func(_ *archive, s *Source) { s.Mirrors = nil }, 5, "no mirror is known"},
		{"a web page", func(a *archive, _ *Source) { a.files[inRelease] = []byte("<!DOCTYPE html><title>Log in</title>") }, 5, "web page"},
		{"endless", func(a *archive, _ *Source) { a.files[inRelease] = make([]byte, maxInRelease+1) }, 5, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArchive(t)
			a.add("app", "1")
			a.publish()
			req := a.request(root("app")...)
			c.do(a, &req.Sources[0])
			_, err := newClient(t).Resolve(context.Background(), req, nil)
			wantError(t, err, c.code, c.say)
		})
	}
}

// A mirror with an old or broken state does not hide one with a good state.
func TestNextMirrorIsAsked(t *testing.T) {
	good := newArchive(t)
	good.add("app", "2")
	good.publish()
	stale := newArchive(t)
	stale.until = today.Add(-time.Hour)
	stale.add("app", "1")
	stale.publish()
	req := good.request(root("app")...)
	req.Sources[0].Mirrors = []string{stale.url(), good.url()}
	if l := good.resolve(newClient(t).Client, req, nil); versions(l) != "app=2" {
		t.Errorf("got %s", versions(l))
	}
}

func TestRollBack(t *testing.T) {
	a := newArchive(t)
	a.add("app", "2")
	a.publish()
	c := newClient(t)
	l := a.resolve(c.Client, a.request(root("app")...), nil)
	a.date = a.date.Add(-time.Hour)
	a.publish()
	req := a.request(root("app")...)
	req.UpdateAll = true
	_, err := c.Resolve(context.Background(), req, l)
	wantError(t, err, 7, "went back in time")
}

func TestUpdate(t *testing.T) {
	a := newArchive(t)
	a.add("app", "1", "Depends: libapp, libc")
	a.add("libapp", "1")
	a.add("libc", "1")
	a.add("other", "1", "Depends: libc (= 1)")
	a.publish()
	c := newClient(t)
	req := a.request(root("app", "other")...)
	first := a.resolve(c.Client, req, nil)

	// Nothing to do: the same lock, and nobody is asked.
	before := len(a.requests)
	a.fault = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
	again := a.resolve(c.Client, req, first)
	if diff := cmp.Diff(first, again); diff != "" || len(a.requests) > before {
		t.Errorf("%d requests, lock changed:\n%s", len(a.requests)-before, diff)
	}
	a.fault = nil

	// The archive moves on: new versions of everything, the old ones are gone.
	for _, n := range []string{"app", "libapp", "libc", "other"} {
		a.drop(n)
	}
	a.add("app", "2", "Depends: libapp, libc, libnew")
	a.add("libapp", "2")
	a.add("libc", "2")
	a.add("libnew", "2")
	a.add("other", "2", "Depends: libc (= 2)")
	a.date = a.date.Add(time.Hour)
	a.publish()
	for _, s := range []struct {
		name   string
		update []string
		all    bool
		wants  []Want
		want   string
	}{
		{"another package", nil, false, root("app", "other", "libnew"), "app=1 libapp=1 libc=1 libnew=2 other=1"},
		{"one leaf", []string{"libapp"}, false, req.Wants, "app=1 libapp=2 libc=1 other=1"},
		{"one with dependencies", []string{"app"}, false, req.Wants, "app=2 libapp=1 libc=1 libnew=2 other=1"},
		{"all", nil, true, req.Wants, "app=2 libapp=2 libc=2 libnew=2 other=2"},
		{"less is wanted", nil, false, root("other"), "libc=1 other=1"},
	} {
		t.Run(s.name, func(t *testing.T) {
			r := req
			r.Update, r.UpdateAll, r.Wants = s.update, s.all, s.wants
			l := a.resolve(c.Client, r, first)
			if got := versions(l); got != s.want {
				t.Errorf("got  %s\nwant %s", got, s.want)
			}
			for _, p := range l.Packages {
				if !slices.ContainsFunc(l.Sources[0].Releases, func(r Release) bool { return r.InRelease == p.InRelease }) {
					t.Errorf("%s: no evidence for %s", p.Name, p.InRelease)
				}
			}
		})
	}
	req.Update = []string{"nothing"}
	_, err := c.Resolve(context.Background(), req, first)
	wantError(t, err, 2, `the lock has no package "nothing"`)
}

// A package that is updated must still fit one that is kept.
func TestUpdateFits(t *testing.T) {
	a := newArchive(t)
	a.add("app", "1", "Depends: libapp (= 1)")
	a.add("libapp", "1")
	a.publish()
	c := newClient(t)
	req := a.request(root("app")...)
	first := a.resolve(c.Client, req, nil)
	a.add("libapp", "2")
	a.publish()
	req.Update = []string{"libapp"}
	if l := a.resolve(c.Client, req, first); versions(l) != "app=1 libapp=1" {
		t.Errorf("got %s: app needs libapp 1", versions(l))
	}

	other := newArchive(t)
	other.suite = "sid"
	other.add("libapp", "3")
	req = a.request(append(root("app"), Want{Role: "lib", Package: "libapp", Suite: "sid"})...)
	req.Sources = append(req.Sources, other.publish().source())
	_, err := c.Resolve(context.Background(), req, first)
	wantError(t, err, 2, "app 1: depends on libapp (= 1), of which 3 is chosen")
}

func TestSeveralSources(t *testing.T) {
	stable, security, backports := newArchive(t), newArchive(t), newArchive(t)
	security.suite, backports.suite = "trixie-security", "trixie-backports"
	stable.add("openssl", "3.0-1")
	stable.add("kernel", "6.12-1")
	security.add("openssl", "3.0-1+deb13u1")
	backports.extra = "NotAutomatic: yes\n"
	backports.add("openssl", "3.9-1")
	backports.add("kernel", "7.0-1", "Depends: tools (= 7.0)")
	backports.add("tools", "7.0")
	var sources []Source
	for _, a := range []*archive{stable, security, backports} {
		sources = append(sources, a.publish().source())
	}
	for _, c := range []struct {
		name  string
		wants []Want
		code  int
		want  string
	}{
		{"highest version", root("openssl", "kernel"), 0, "kernel=6.12-1 openssl=3.0-1+deb13u1"},
		{"named suite", []Want{{Role: "root", Package: "kernel", Suite: "trixie-backports", Closure: true}}, 0, "kernel=7.0-1 tools=7.0"},
		{"lower version from a named suite", []Want{{Role: "root", Package: "openssl", Suite: "trixie"}}, 0, "openssl=3.0-1"},
		{"only on request", root("tools"), 0, "tools=7.0"},
		{"not in that suite", []Want{{Role: "root", Package: "tools", Suite: "trixie"}}, 2, `package "tools" is not in trixie, but in test trixie-backports`},
		{"two versions", append(root("kernel"), Want{Role: "stub", Package: "kernel", Suite: "trixie-backports"}), 2, "one image has one version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := newClient(t).Resolve(context.Background(), Request{Arch: "amd64", Sources: sources, Wants: c.wants, Now: today}, nil)
			wantError(t, err, c.code, c.want)
			if err == nil && versions(l) != c.want {
				t.Errorf("got %s, want %s", versions(l), c.want)
			}
		})
	}
}

// What leaves the archive while the lock keeps it goes on to provide what it did,
// and what comes along with a package is of that package's suite.
func TestKeptProvider(t *testing.T) {
	a := newArchive(t)
	a.add("app", "1", "Depends: mail")
	a.addVirtual()
	c := newClient(t)
	first := a.resolve(c.Client, a.request(root("app")...), nil)
	a.drop("postfix")
	a.add("postfix", "4", "Provides: mail", "Priority: optional")
	a.add("other", "1", "Depends: mail")
	a.publish()
	if l := a.resolve(c.Client, a.request(root("app", "other")...), first); versions(l) != "app=1 other=1 postfix=3" {
		t.Errorf("got %s", versions(l))
	}
}

func TestCompanionsAreOfOneSuite(t *testing.T) {
	stable, sid := newArchive(t), newArchive(t)
	sid.suite = "sid"
	stable.add("ovmf-generic", "1", "Source: edk2")
	sid.add("ovmf", "2", "Source: edk2", "Depends: ovmf-generic")
	sid.add("ovmf-generic", "2", "Source: edk2")
	req := stable.publish().request(Want{Role: "firmware", Package: "ovmf", Suite: "sid"})
	src := sid.publish().source()
	src.OnRequest = true
	req.Sources = append(req.Sources, src)
	if l := stable.resolve(newClient(t).Client, req, nil); versions(l) != "ovmf=2 ovmf-generic=2" {
		t.Errorf("got %s", versions(l))
	}
}

func TestSolve(t *testing.T) {
	a := newArchive(t)
	a.add("a", "1", "Depends: b (>= 2) | c, v")
	a.add("b", "1")
	a.add("c", "1", "Pre-Depends: d:any")
	a.add("d", "1", "Provides: v")
	a.add("e", "1", "Provides: v", "Priority: required")
	a.add("versioned", "1", "Depends: v (>= 1)")
	a.add("low", "1", "Depends: b (<< 1)")
	a.add("foreign", "1", "Depends: b:i386")
	a.add("quarrel", "1", "Depends: b, d", "Conflicts: v")
	a.add("loop", "1", "Depends: pool")
	a.add("pool", "1", "Depends: loop")
	a.add("many", "1", "Depends: b")
	a.add("many", "2~rc1", "Depends: c")
	a.publish()
	for _, c := range []struct {
		want string
		code int
		out  string
	}{
		{"a", 0, "a=1 c=1 d=1"}, // d is needed anyway and provides v, so e is not taken
		{"loop", 0, "loop=1 pool=1"},
		{"many", 0, "c=1 d=1 many=2~rc1"},
		{"versioned", 2, "versioned 1: depends on v (>= 1)"},
		{"low", 2, "low 1: depends on b (<< 1)"},
		{"foreign", 2, "foreign 1: depends on b"},
		{"quarrel", 2, "quarrel 1: conflicts with d 1"},
		{"v", 2, `package "v" is virtual; did you mean e, d?`},
		{"man", 2, `no source has a package "man"; did you mean many?`},
	} {
		l, err := newClient(t).Resolve(context.Background(), a.request(root(c.want)...), nil)
		wantError(t, err, c.code, c.out)
		if err == nil && versions(l) != c.out {
			t.Errorf("%s: got %s, want %s", c.want, versions(l), c.out)
		}
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	write := func(name, control string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), makeDeb(t, control, map[string]string{"./a": name}), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("app.deb", "Package: app\nVersion: 1\nArchitecture: all\nDepends: lib")
	write("lib.deb", "Package: lib\nVersion: 1\nArchitecture: amd64")
	write("arm.deb", "Package: lib\nVersion: 9\nArchitecture: arm64")
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := newClient(t)
	c.Offline = true
	req := Request{Arch: "amd64", Now: today, Sources: []Source{{Name: "local", Dir: dir}}, Wants: root("app")}
	l, err := c.Resolve(context.Background(), req, nil)
	if err != nil || versions(l) != "app=1 lib=1" {
		t.Fatalf("got %v, %v", l, err)
	}
	if _, err := c.FetchAll(context.Background(), req.Sources, l.Packages); err != nil {
		t.Fatal(err)
	}
	write("lib.deb", "Package: lib\nVersion: 1\nArchitecture: all")
	_, err = newClient(t).Fetch(context.Background(), req.Sources, l.Packages[1])
	wantError(t, err, 7, "lib.deb: s") // size or sha256
	if err := os.Remove(filepath.Join(dir, "lib.deb")); err != nil {
		t.Fatal(err)
	}
	_, err = newClient(t).Fetch(context.Background(), req.Sources, l.Packages[1])
	wantError(t, err, 9, "names lib 1, but there is no")
	write("twice.deb", "Package: x\nVersion: 1\nArchitecture: all\n\nPackage: y")
	_, err = c.Resolve(context.Background(), req, nil)
	if err == nil || !strings.Contains(err.Error(), "twice.deb: control file is not one paragraph") {
		t.Errorf("control file of two paragraphs: %v", err)
	}
}

func TestRequestIsChecked(t *testing.T) {
	a := newArchive(t)
	req := a.request()
	req.Sources = append(req.Sources, a.source())
	_, err := newClient(t).Resolve(context.Background(), req, nil)
	wantError(t, err, 2, "test trixie: is given twice")
	if _, err := newClient(t).Resolve(context.Background(), Request{Arch: "amd64"}, nil); err == nil {
		t.Error("a request without a time was accepted")
	}
}
