package rootfs

import (
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/tree"
)

func id(n uint32) *uint32 { return &n }

func sysusers(name, text string) Package {
	return deb("pkg-"+name, f("usr/lib/sysusers.d/"+name+".conf", text))
}

func basePasswd() Package {
	return deb("base-passwd",
		f(passwdMaster, "root:*:0:0:root:/root:/bin/bash\ndaemon:*:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n_apt:*:42:65534::/nonexistent:/usr/sbin/nologin\n"),
		f(groupMaster, "root:*:0:\ndaemon:*:1:\nadm:*:4:daemon\nshadow:*:42:\nnogroup:*:65534:\n"))
}

func TestMinimalAccounts(t *testing.T) {
	got := mustBuild(t, nil, nil, Params{Epoch: 1767225600})
	for name, want := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"etc/group":   "root:x:0:\nnogroup:x:65534:\n",
		"etc/shadow":  "root:!*:20454:0:99999:7:::\nnobody:!*:20454:0:99999:7:::\n", // 2026-01-01 in days
		"etc/gshadow": "root:!*::\nnogroup:!*::\n",
	} {
		if c := content(t, got, name); c != want {
			t.Errorf("%s:\n%swant\n%s", name, c, want)
		}
	}
	if e := entry(t, got.Entries, "etc/shadow"); e.Mode != tree.TypeFile|0o600 || e.GID != 0 {
		t.Errorf("shadow: %#o %d", e.Mode, e.GID)
	}
}

func TestAccounts(t *testing.T) {
	pkgs := []Package{basePasswd(),
		sysusers("b", "# comment\n\nu zeta - \"Zeta, the last\" /var/lib/zeta /bin/zsh\nu! alpha -:nogroup\ng clock -\nm daemon clock\nu daemon 77\n"),
		sysusers("a", "u fixed 300 - -\nu taken 42\ng grp 301\nu pair 302:grp\nu lone 303:4 '100%% sure'\nm newbie newgroup\nr - 500-900\nu owned /etc/owned\ng ownedg /etc/owned\n"),
		deb("o", with(f("etc/owned", ""), func(e *tree.Entry) { e.UID, e.GID = 610, 611 })),
	}
	p := Params{Groups: []Group{{Name: "wheel", GID: id(200)}, {Name: "auto"}},
		Users: []User{{Name: "app", Group: "wheel", Comment: "App", Home: "/srv", Shell: "/bin/sh", Groups: []string{"adm", "auto"}}, {Name: "zz", UID: id(201)}}}
	got := mustBuild(t, pkgs, nil, p)
	wantUsers := `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
zz:x:201:201::/:/usr/sbin/nologin
fixed:x:300:300::/:/usr/sbin/nologin
pair:x:302:301::/:/usr/sbin/nologin
lone:x:303:4:100% sure:/:/usr/sbin/nologin
owned:x:610:610::/:/usr/sbin/nologin
alpha:x:999:65534::/:/usr/sbin/nologin
app:x:998:200:App:/srv:/bin/sh
newbie:x:995:995::/:/usr/sbin/nologin
taken:x:993:993::/:/usr/sbin/nologin
zeta:x:992:992:Zeta, the last:/var/lib/zeta:/bin/zsh
`
	if c := content(t, got, "etc/passwd"); c != wantUsers {
		t.Errorf("passwd:\n%swant\n%s", c, wantUsers)
	}
	wantGroups := `root:x:0:
daemon:x:1:
adm:x:4:daemon,app
shadow:x:42:
nogroup:x:65534:
wheel:x:200:
zz:x:201:
grp:x:301:
ownedg:x:611:
fixed:x:300:
owned:x:610:
auto:x:997:app
clock:x:996:daemon
newbie:x:995:
newgroup:x:994:newbie
taken:x:993:
zeta:x:992:
`
	if c := content(t, got, "etc/group"); c != wantGroups {
		t.Errorf("group:\n%swant\n%s", c, wantGroups)
	}
	if e := entry(t, got.Entries, "etc/shadow"); e.Mode != tree.TypeFile|0o640 || e.GID != 42 {
		t.Errorf("shadow: %#o %d", e.Mode, e.GID)
	}
	for line := range strings.Lines(content(t, got, "etc/shadow")) {
		if !strings.Contains(line, ":!*:0:0:99999:7:::") {
			t.Errorf("not locked: %s", line)
		}
	}
	if c := content(t, got, "etc/gshadow"); !strings.Contains(c, "adm:!*::daemon,app\n") {
		t.Errorf("gshadow:\n%s", c)
	}
}

// A profile's own files are what the accounts start from, with their mode.
func TestAccountsOfProfile(t *testing.T) {
	files := []tree.Entry{
		f("etc/passwd", "root:x:0:0::/:/sh\nme:secret:1000:1000::/home/me:/sh\n"), f("etc/group", "root:x:0:\nme:x:1000:\n"),
		with(f("etc/shadow", "me:$6$salt$hash:1:::::\n"), func(e *tree.Entry) { e.Mode = tree.TypeFile | 0o400 }),
	}
	got := mustBuild(t, []Package{basePasswd(), sysusers("a", "u svc -\n")}, files, Params{})
	if c := content(t, got, "etc/passwd"); c != "root:x:0:0::/:/sh\nme:x:1000:1000::/home/me:/sh\nsvc:x:999:999::/:/usr/sbin/nologin\n" {
		t.Errorf("passwd:\n%s", c)
	}
	if c := content(t, got, "etc/shadow"); c != "me:$6$salt$hash:1:::::\nroot:!*:0:0:99999:7:::\nsvc:!*:0:0:99999:7:::\n" {
		t.Errorf("shadow:\n%s", c)
	}
	if e := entry(t, got.Entries, "etc/shadow"); e.Mode != tree.TypeFile|0o400 {
		t.Errorf("shadow has mode %#o", e.Mode)
	}
}

// A user comes before its group by name.
func TestGroupLater(t *testing.T) {
	got := mustBuild(t, nil, nil, Params{Groups: []Group{{Name: "zz"}}, Users: []User{{Name: "aa", Group: "zz"}, {Name: "bb", UID: id(999), Group: "zz"}}})
	users, groups := content(t, got, "etc/passwd"), content(t, got, "etc/group")
	if !strings.HasSuffix(users, "\naa:x:997:998::/:/usr/sbin/nologin\nbb:x:999:998::/:/usr/sbin/nologin\n") || !strings.HasSuffix(groups, "\nzz:x:998:\n") {
		t.Errorf("%s%s", users, groups)
	}
}

func TestSysusersMasked(t *testing.T) {
	pkgs := []Package{sysusers("a", "u a -\n"), sysusers("b", "u b -\n"), sysusers("c", "u c -\n"), deb("other", f("usr/lib/sysusers.d/README", "u x -\n"))}
	files := []tree.Entry{f("etc/sysusers.d/a.conf", "u own -\n"), tree.Symlink("etc/sysusers.d/b.conf", "/dev/null")}
	c := content(t, mustBuild(t, pkgs, files, Params{}), "etc/passwd")
	for name, want := range map[string]bool{"\nown:": true, "\nc:": true, "\na:": false, "\nb:": false, "\nx:": false} {
		if strings.Contains(c, name) != want {
			t.Errorf("%q: want %t in\n%s", name, want, c)
		}
	}
}

func TestAccountsRefuse(t *testing.T) {
	user := func(u ...User) Params { return Params{Users: u} }
	for _, tt := range []struct {
		name, conf string
		p          Params
		want       string
	}{
		{"type", "x name -", Params{}, "/usr/lib/sysusers.d/a.conf:1: type \"x\""},
		{"fields", "\nu", Params{}, "a.conf:2: 1 fields"},
		{"many fields", "u a - b c d e", Params{}, "7 fields"},
		{"specifier", "u a - %H", Params{}, "specifier"},
		{"quote", "u a - \"b", Params{}, "quote without an end"},
		{"number", "u a x", Params{}, `number "x"`},
		{"none", "u a 4294967295", Params{}, "number"},
		{"name", "u 0a -", Params{}, `name "0a"`},
		{"long name", "u " + strings.Repeat("a", 32) + " -", Params{}, "want 1 to 31 bytes"},
		{"file", "u a /no/such", Params{}, "no such file"},
		{"group", "u a 5:nope", Params{}, "group nope does not exist"},
		{"group number", "u a 5:77", Params{}, "group 77 does not exist"},
		{"membership", "m a", Params{}, "no group"},
		{"colon", "u a - b:c", Params{}, "colon"},
		{"declared twice", "", user(User{Name: "a"}, User{Name: "a"}), "user a: declared twice"},
		{"number of another", "", user(User{Name: "a", UID: id(0)}), "user a: number 0 is that of user root"},
		{"another number", "", user(User{Name: "root", UID: id(5)}), "its number is 0 already, want 5"},
		{"group of another", "", Params{Groups: []Group{{Name: "a", GID: id(0)}}}, "number 0 is that of group root"},
		{"no such group", "", user(User{Name: "a", Group: "nope"}), "group nope does not exist"},
		{"line break", "", user(User{Name: "a", Home: "/\nroot::0:0"}), "colon or a line break"},
		{"bad name", "", user(User{Name: "a b"}), `name "a b"`},
		{"no name", "", user(User{}), `name ""`},
	} {
		_, err := Build([]Package{sysusers("a", tt.conf)}, nil, tt.p)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	for _, tt := range []struct{ name, text, want string }{
		{"etc/passwd", "root:x:0:0\n", "/etc/passwd:1: 4 fields, want 7"},
		{"etc/passwd", "root:x:0:0:::\nroot:x:1:0:::\n", "/etc/passwd:2: user root: named twice"},
		{"etc/passwd", "root:x::0:::\n", `number ""`},
		{"etc/group", "root:x:0:\na:x:-1:\n", `/etc/group:2: number "-1"`},
		{"etc/group", "root:x:0:\nroot:x:0:\n", "group root: named twice"},
	} {
		if _, err := Build(nil, []tree.Entry{f(tt.name, tt.text)}, Params{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %q: %v", tt.name, tt.text, err)
		}
	}
}

// All numbers are given, then no more.
func TestAccountsRunOut(t *testing.T) {
	var conf strings.Builder
	for i := range firstFit {
		conf.WriteString("u u" + string(rune('a'+i%26)) + strings.Repeat("x", i/26%28) + string(rune('A'+i/26/28)) + " -\n")
	}
	got := content(t, mustBuild(t, []Package{sysusers("a", conf.String())}, nil, Params{}), "etc/passwd")
	if !strings.Contains(got, ":x:1:1:") {
		t.Error("number 1 is not used")
	}
	if _, err := Build([]Package{sysusers("a", conf.String()+"u one-more -\n")}, nil, Params{}); err == nil || !strings.Contains(err.Error(), "no number up to 999 is free") {
		t.Error(err)
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "u a 5:root \"x y\" /home\nm a b\n")
	f.Add("", "u a -:b\ng b 4\nr - 1-2\nu! c /etc/passwd")
	f.Fuzz(func(t *testing.T, passwd, conf string) {
		got, err := Build([]Package{sysusers("a", conf)}, []tree.Entry{{Path: "etc/passwd", Mode: tree.TypeFile | 0o644, Content: tree.Bytes([]byte(passwd))}}, Params{})
		if err != nil {
			return
		}
		// What was written reads back as it is.
		text := content(t, got, "etc/passwd")
		again, err := Build(nil, []tree.Entry{{Path: "etc/passwd", Mode: tree.TypeFile | 0o644, Content: tree.Bytes([]byte(text))},
			{Path: "etc/group", Mode: tree.TypeFile | 0o644, Content: tree.Bytes([]byte(content(t, got, "etc/group")))}}, Params{})
		if err != nil || content(t, again, "etc/passwd") != text {
			t.Errorf("%v: %q became something else", err, text)
		}
	})
}
