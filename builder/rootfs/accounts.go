package rootfs

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// Where accounts are read from and written to. The masters are what Debian's
// base-passwd has for a new system.
const (
	passwdFile   = "etc/passwd"
	groupFile    = "etc/group"
	shadowFile   = "etc/shadow"
	gshadowFile  = "etc/gshadow"
	passwdMaster = "usr/share/base-passwd/passwd.master"
	groupMaster  = "usr/share/base-passwd/group.master"
)

// minimal are the accounts of a tree without base-passwd.
const (
	minimalPasswd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:" + nologin + "\n"
	minimalGroup  = "root:x:0:\nnogroup:x:65534:\n"
)

const (
	nologin  = "/usr/sbin/nologin"
	locked   = "!*" // no password matches, and none is to be set by accident
	firstFit = 999  // numbers are given downwards from here, as to Debian's system accounts
	day      = 24 * 60 * 60
)

// accounts writes passwd, group, shadow and gshadow: what the tree or base-passwd
// has, then what the profile declares, then what sysusers.d of the packages asks
// for. Accounts without a number get theirs in the order of their names.
func (b *build) accounts() error {
	a, err := b.readAccounts()
	if err != nil {
		return err
	}
	declared, err := declaredAccounts(b.params)
	if err != nil {
		return err
	}
	asked, err := b.sysusers()
	if err != nil {
		return err
	}
	if err := a.add(declared, asked); err != nil {
		return err
	}
	return b.writeAccounts(a)
}

// accounts are the users and groups of a system.
type accounts struct {
	users  []*user
	groups []*group
	user   map[string]*user
	group  map[string]*group
	uids   map[uint32]string // name by number
	gids   map[uint32]string
}

type user struct {
	name                 string
	uid, gid             uint32
	comment, home, shell string
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// readAccounts reads what the tree starts with.
func (b *build) readAccounts() (*accounts, error) {
	a := &accounts{user: map[string]*user{}, group: map[string]*group{}, uids: map[uint32]string{}, gids: map[uint32]string{}}
	name, text, err := b.firstOf(minimalPasswd, passwdFile, passwdMaster)
	if err == nil {
		err = a.parse(name, text, 7, a.parseUser)
	}
	if err != nil {
		return nil, err
	}
	name, text, err = b.firstOf(minimalGroup, groupFile, groupMaster)
	if err == nil {
		err = a.parse(name, text, 4, a.parseGroup)
	}
	return a, err
}

// firstOf returns the first of the files that the tree has, else fallback.
func (b *build) firstOf(fallback string, names ...string) (name, text string, err error) {
	for _, name := range names {
		content, err := b.read(name)
		if err != nil || content != nil {
			return name, string(content), err
		}
	}
	return "minimal", fallback, nil
}

func (a *accounts) parse(name, text string, fields int, line func([]string) error) error {
	number := 0
	for l := range strings.Lines(text) {
		number++
		l = strings.TrimRight(l, "\r\n")
		if l == "" {
			continue
		}
		f := strings.Split(l, ":")
		err := error(nil)
		if len(f) != fields {
			err = fmt.Errorf("%d fields, want %d", len(f), fields)
		} else {
			err = line(f)
		}
		if err != nil {
			return fmt.Errorf("rootfs: /%s:%d: %w", name, number, err)
		}
	}
	return nil
}

// parseUser takes a line of passwd(5). Its password does not count: that is in
// shadow.
func (a *accounts) parseUser(f []string) error {
	uid, err := number(f[2])
	if err != nil {
		return err
	}
	gid, err := number(f[3])
	if err != nil {
		return err
	}
	return a.addUser(&user{f[0], uid, gid, f[4], f[5], f[6]})
}

func (a *accounts) parseGroup(f []string) error {
	gid, err := number(f[2])
	if err != nil {
		return err
	}
	g := &group{name: f[0], gid: gid}
	if f[3] != "" {
		g.members = strings.Split(f[3], ",")
	}
	return a.addGroup(g)
}

// number parses a user or group number. The last one means "none" in system calls.
func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("number %q: want 0 to %d", s, uint32(1<<32-2))
	}
	return uint32(n), nil
}

func (a *accounts) addUser(u *user) error {
	if err := checkName(u.name); err != nil {
		return err
	}
	for _, s := range []string{u.comment, u.home, u.shell} {
		if strings.ContainsAny(s, ":\n\x00") {
			return fmt.Errorf("user %s: %q has a colon or a line break", u.name, s)
		}
	}
	if a.user[u.name] != nil {
		return fmt.Errorf("user %s: named twice", u.name)
	}
	a.users = append(a.users, u)
	a.user[u.name] = u
	if a.uids[u.uid] == "" { // a second name for a number is legal in a file
		a.uids[u.uid] = u.name
	}
	return nil
}

func (a *accounts) addGroup(g *group) error {
	if err := checkName(g.name); err != nil {
		return err
	}
	if a.group[g.name] != nil {
		return fmt.Errorf("group %s: named twice", g.name)
	}
	a.groups = append(a.groups, g)
	a.group[g.name] = g
	if a.gids[g.gid] == "" {
		a.gids[g.gid] = g.name
	}
	return nil
}

// checkName holds to the names that systemd and useradd accept, at most 31 bytes.
func checkName(s string) error {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return fmt.Errorf("name %q: want letters, digits, - and _, and no digit first", s)
		}
	}
	if s == "" || len(s) > 31 {
		return fmt.Errorf("name %q: want 1 to 31 bytes", s)
	}
	return nil
}

// writeAccounts writes the four files. The password file of the profile, if it
// has one, keeps its lines.
func (b *build) writeAccounts(a *accounts) error {
	var passwd, groups strings.Builder
	for _, u := range a.users {
		fmt.Fprintf(&passwd, "%s:x:%d:%d:%s:%s:%s\n", u.name, u.uid, u.gid, u.comment, u.home, u.shell)
	}
	for _, g := range a.groups {
		fmt.Fprintf(&groups, "%s:x:%d:%s\n", g.name, g.gid, strings.Join(g.members, ","))
	}
	shadow, err := b.lines(shadowFile)
	if err != nil {
		return err
	}
	gshadow, err := b.lines(gshadowFile)
	if err != nil {
		return err
	}
	for _, u := range a.users {
		shadow.add(u.name, fmt.Sprintf("%s:%d:0:99999:7:::", locked, b.params.Epoch/day))
	}
	for _, g := range a.groups {
		gshadow.add(g.name, locked+"::"+strings.Join(g.members, ","))
	}
	b.writeAccountFile(passwdFile, 0o644, 0, passwd.String())
	b.writeAccountFile(groupFile, 0o644, 0, groups.String())
	perm, gid := uint32(0o600), uint32(0)
	if g := a.group["shadow"]; g != nil {
		perm, gid = 0o640, g.gid
	}
	b.writeAccountFile(shadowFile, perm, gid, shadow.text.String())
	b.writeAccountFile(gshadowFile, perm, gid, gshadow.text.String())
	return nil
}

// writeAccountFile keeps mode and owner of what the profile has there.
func (b *build) writeAccountFile(name string, perm, gid uint32, text string) {
	e := tree.File(name, perm, tree.Bytes([]byte(text)))
	e.GID = gid
	old := b.at[name]
	if old != nil && old.profile {
		e.Mode, e.UID, e.GID, e.Xattrs = old.Mode, old.UID, old.GID, old.Xattrs
	}
	b.force(e)
	b.at[name].profile = old != nil && old.profile
}

// keyed is a file of lines that begin with a name.
type keyed struct {
	names map[string]bool
	text  strings.Builder
}

func (b *build) lines(name string) (*keyed, error) {
	k := &keyed{names: map[string]bool{}}
	content, err := b.read(name)
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			key, rest, _ := strings.Cut(line, ":")
			k.add(key, rest)
		}
	}
	return k, err
}

func (k *keyed) add(name, rest string) {
	if !k.names[name] {
		k.names[name] = true
		k.text.WriteString(name + ":" + rest + "\n")
	}
}

// A request asks for a user or a group; who says where it stands.
type request struct {
	who        string
	kind       byte // 'u', 'g', or 'm' for a membership
	name       string
	id         *uint32 // nil: any
	strict     bool    // another number will not do
	group      string  // of a user: primary group by name; of a membership: the group
	gid        *uint32 // of a user: primary group by number
	comment    string
	home, shel string
}

func declaredAccounts(p Params) ([]request, error) {
	var out []request
	for _, g := range p.Groups {
		out = append(out, request{who: "group " + g.Name, kind: 'g', name: g.Name, id: g.GID, strict: true})
	}
	for _, u := range p.Users {
		who := "user " + u.Name
		out = append(out, request{who: who, kind: 'u', name: u.Name, id: u.UID, strict: true, group: u.Group,
			comment: u.Comment, home: cmp.Or(u.Home, "/"), shel: cmp.Or(u.Shell, nologin)})
		for _, g := range u.Groups {
			out = append(out, request{who: who, kind: 'm', name: u.Name, group: g})
		}
	}
	for i, r := range out {
		if r.kind != 'm' && slices.ContainsFunc(out[:i], func(o request) bool { return o.kind == r.kind && o.name == r.name }) {
			return nil, fmt.Errorf("rootfs: %s: declared twice", r.who)
		}
	}
	return out, nil
}
