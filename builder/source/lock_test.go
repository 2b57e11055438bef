package source

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/internal/cas"
)

func sampleLock() *Lock {
	until := today.AddDate(0, 0, 7)
	in := cas.Sum([]byte("InRelease"))
	return &Lock{
		Schema: 1, Profile: "demo", Arch: "amd64",
		Wants:   []Want{{Role: "kernel", Package: "linux"}, {Role: "root", Package: "app", Suite: "trixie", Closure: true}},
		Sources: []LockedSource{{Name: "debian", Suite: "trixie", Components: []string{"main"}, Releases: []Release{{InRelease: in, Date: today, ValidUntil: until, Fingerprints: []string{"AB"}, Indexes: []File{{Path: "main/binary-amd64/Packages", Size: 7}}}}}, {Name: "local"}},
		Packages: []Package{
			{Name: "app", Version: "1:2~rc<1", Arch: "all", Source: "local", Filename: "app.deb", Size: 1, Why: []string{"root"}},
			{Name: "linux", Version: "6.12-1", Arch: "amd64", Source: "debian", Suite: "trixie", Filename: "pool/l.deb", Size: 2, InRelease: in, Why: []string{"kernel", "dependency of app"}},
		},
		Files: []File{{Path: "etc/motd", Size: 3, SHA256: cas.Sum([]byte("hi\n"))}},
	}
}

func marshal(t testing.TB, l *Lock) []byte {
	t.Helper()
	b, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLockRoundTrip(t *testing.T) {
	l := sampleLock()
	l.Packages[0].Version = "1:2~rc1"
	b := marshal(t, l)
	got, err := ParseLock(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l, got); diff != "" {
		t.Error(diff)
	}
	// Order and time zone of what is marshalled do not matter.
	slices.Reverse(l.Packages)
	slices.Reverse(l.Wants)
	if string(marshal(t, l)) != string(b) {
		t.Error("another order of the same gives other bytes")
	}
	loose := strings.ReplaceAll(string(b), "\n", "\r\n")
	if _, err := ParseLock([]byte(loose)); err != nil {
		t.Errorf("other white space: %v", err)
	}
}

func TestLockRefusals(t *testing.T) {
	l := sampleLock()
	l.Packages[0].Version = "1"
	good := string(marshal(t, l))
	for _, c := range []struct{ name, old, new, say string }{
		{"unknown key", `"profile"`, `"colour": 1, "profile"`, "colour"},
		{"wrong type", `"size": 1`, `"size": "1"`, "cannot unmarshal"},
		{"schema", `"schema": 1`, `"schema": 2`, "schema 2: want 1"},
		{"repeated key", `"profile": "demo"`, `"profile": "demo", "profile": "demo"`, "repeated"},
		{"key in capitals", `"profile"`, `"Profile"`, "repeated, missing or out of order"},
		{"key missing", `"profile": "demo",`, ``, "missing"},
		{"order", `"name": "app"`, `"name": "zapp"`, "order"},
		{"twice", `"name": "linux"`, `"name": "app"`, `package "app" occurs twice`},
		{"path", `"pool/l.deb"`, `"../l.deb"`, `file name "../l.deb"`},
		{"absolute path", `"pool/l.deb"`, `"/l.deb"`, "file name"},
		{"version", `"6.12-1"`, `"six"`, `version "six"`},
		{"size", `"size": 2`, `"size": -2`, "size -2"},
		{"digest", cas.Sum([]byte("hi\n")).String(), "12", `digest "12"`},
		{"empty", good, "", "EOF"},
		{"two documents", good, good + "{}", "more than one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := strings.Replace(good, c.old, c.new, 1)
			if bad == good {
				t.Fatal("the test changes nothing")
			}
			if _, err := ParseLock([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v, want %q", err, c.say)
			}
		})
	}
}

func TestLockCheck(t *testing.T) {
	l := sampleLock()
	request := func() Request {
		return Request{Arch: "amd64", Wants: slices.Clone(l.Wants), Files: slices.Clone(l.Files), Now: time.Time{},
			Sources: []Source{{Name: "debian", Suite: "trixie", Mirrors: []string{"anywhere"}}, {Name: "local", Dir: "/debs"}}}
	}
	for _, c := range []struct {
		name string
		do   func(r *Request)
		want []string
	}{
		{"equal", func(r *Request) { slices.Reverse(r.Wants) }, nil},
		{"more packages", func(r *Request) { r.Wants = append(r.Wants, Want{Role: "stub", Package: "s"}) }, []string{"+ stub s"}},
		{"less packages", func(r *Request) { r.Wants = r.Wants[:1] }, []string{"- root app from  trixie with dependencies"}},
		{"other suite", func(r *Request) { r.Sources[0].Suite = "sid" }, []string{"- source debian trixie [main]", "+ source debian sid [main]"}},
		{"other file", func(r *Request) { r.Files[0].SHA256[0]++ }, []string{"- file etc/motd, sha256 " + l.Files[0].SHA256.String(), "+ file etc/motd"}},
		{"architecture", func(r *Request) { r.Arch = "arm64" }, []string{"- architecture amd64", "+ architecture arm64"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request()
			c.do(&r)
			err := l.Check(r)
			var le *LockError
			if !errors.As(err, &le) {
				if err != nil || c.want != nil {
					t.Fatalf("got %v, want %q", err, c.want)
				}
				return
			}
			if len(le.Diffs) != len(c.want) {
				t.Fatalf("got %q, want %q", le.Diffs, c.want)
			}
			for i, d := range le.Diffs {
				if !strings.HasPrefix(d, c.want[i]) {
					t.Errorf("got %q, want %q", d, c.want[i])
				}
			}
		})
	}
}

func FuzzParseLock(f *testing.F) {
	l := sampleLock()
	l.Packages[0].Version = "1"
	f.Add(marshal(f, l))
	f.Add(marshal(f, &Lock{Schema: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLock(b)
		if err != nil {
			return
		}
		again, err := ParseLock(marshal(t, l))
		if err != nil {
			t.Fatalf("what was parsed does not parse: %v", err)
		}
		if diff := cmp.Diff(l, again); diff != "" {
			t.Fatal(diff)
		}
		l.Role("root")
	})
}
