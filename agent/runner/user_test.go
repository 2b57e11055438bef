package runner

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The rules are those of docker (moby/sys/user, GetExecUser); its tests have most
// of these rows.
func TestResolveUser(t *testing.T) {
	const (
		passwd = "# comment:x:1:1::/:\nroot:x:0:0:root:/root:/bin/sh\nadm:x:42:43:adm:/var/adm:/bin/false\n" +
			"adm:x:1:1:again:/:\nbroken:x:1\nminus:x:-1:1::/:\nodd:x:07:7::/:\nrel:x:5:5::relative:\n\n111:x:222:333::/var/n:/bin/false\nbig:x:65536:1::/:\nbiggroup:x:6:99999::/:\r\n"
		group = "root:x:0:root\nadm:x:43:\nthis:x:1234:root,adm\nthat:x:4321:adm,other\nsame:x:43:adm\nagain:x:1234:adm\nhuge:x:70000:rel\n"
	)
	for _, tt := range []struct{ name, want string }{
		{"", "0:0 [1234] /root"},
		{"root", "0:0 [1234] /root"},
		{"0", "0:0 [1234] /root"},
		{"adm", "42:43 [1234 4321] /var/adm"},
		{"42", "42:43 [1234 4321] /var/adm"},
		{"adm:root", "42:0 [] /var/adm"},
		{"adm:9", "42:9 [] /var/adm"},
		{"adm:that", "42:4321 [] /var/adm"},
		{"7", "7:0 [] /"}, // nobody has 7: "07" is no number
		{"777:888", "777:888 [] /"},
		{"65535:65535", "65535:65535 [] /"},
		{"111", "111:0 [] /"}, // a number, whatever names there are
		{"rel", `group "huge": ID "70000": want at most 65535`},
		{"rel:rel", `the image's /etc/group has no "rel"`},
		{"minus", "has none of this name"},
		{"broken", "has none of this name"},
		{"odd", "has none of this name"},
		{"# comment", "has none of this name"},
		{"Root", "has none of this name"},
		{"big", `ID "65536": want at most 65535`},
		{"biggroup", `ID "99999": want at most 65535`},
		{"65536", `ID "65536": want at most 65535`},
		{"4294967296", `ID "4294967296"`},
		{"99999999999", "has none of this name"},
		{"-1", "has none of this name"},
		{"0:70000", `ID "70000"`},
		{"root:", "0:0 [] /root"},
	} {
		u, err := resolveUser(tt.name, passwd, group)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprintf("%d:%d %v %s", u.uid, u.gid, u.groups, u.home)
		}
		if !strings.HasSuffix(got, tt.want) && !strings.Contains(got, tt.want) {
			t.Errorf("%q: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Root needs no files, and no other name does without.
func TestResolveWithoutFiles(t *testing.T) {
	for _, name := range []string{"", "root", "0", "0:0"} {
		if u, err := resolveUser(name, "", ""); err != nil || u.uid != 0 || u.gid != 0 || u.home != "/" {
			t.Errorf("%q: %+v, %v", name, u, err)
		}
	}
	for _, name := range []string{"web", "0:web"} {
		if u, err := resolveUser(name, "", ""); err == nil {
			t.Errorf("%q: %+v", name, u)
		}
	}
}

// What root is called in the image is root, and stays so: user 0 is never taken for
// another one and another never for 0.
func TestResolveStrange(t *testing.T) {
	u, err := resolveUser("", "toor:x:0:5::/r:\n", "wheel:x:10:toor\n")
	if err != nil || u.uid != 0 || u.gid != 5 || !slices.Equal(u.groups, []uint32{10}) {
		t.Errorf("%+v, %v", u, err)
	}
	u, err = resolveUser("root", "root:x:1000:1000::/home:\n", "")
	if err != nil || u.uid != 1000 {
		t.Errorf("%+v, %v", u, err)
	}
	for _, h := range []string{"relative", "", "/a\tb", "/" + strings.Repeat("x", 5000)} {
		if got := home(h); got != "/" {
			t.Errorf("home %.20q: got %.20q", h, got)
		}
	}
	many := ""
	for i := range maxGroups + 1 {
		many += fmt.Sprintf("g%d:x:%d:web\n", i, i+10)
	}
	if _, err := resolveUser("web", "web:x:1:1::/:\n", many); err == nil || !strings.Contains(err.Error(), "more than 1024 groups") {
		t.Errorf("got %v", err)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("web", passwd, group)
	f.Add("web:logs", passwd, group)
	f.Add("70000", passwd, "x:x:0:")
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		u, err := resolveUser(name, passwd, group)
		if err != nil {
			return
		}
		if u.uid >= rangeSize || u.gid >= rangeSize || len(u.groups) > maxGroups || !strings.HasPrefix(u.home, "/") || strings.ContainsAny(u.home, "\x00\n") {
			t.Errorf("%+v", u)
		}
		for _, g := range u.groups {
			if g >= rangeSize {
				t.Errorf("%+v", u)
			}
		}
	})
}
