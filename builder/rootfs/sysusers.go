package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// sysusers reads what packages and profile ask for.
func (b *build) sysusers() ([]request, error) {
	var out []request
	for _, name := range b.configFiles("sysusers.d") {
		text, err := b.read(name)
		if err != nil {
			return nil, err
		}
		number := 0
		for line := range strings.Lines(string(text)) {
			number++
			where := fmt.Sprintf("/%s:%d", name, number)
			rs, err := b.sysusersLine(line)
			if err != nil {
				return nil, fmt.Errorf("rootfs: %s: %w", where, err)
			}
			for _, r := range rs {
				r.who = where
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// sysusersLine parses a line of sysusers.d(5): type, name, number, comment, home
// directory, shell.
func (b *build) sysusersLine(line string) ([]request, error) {
	f, err := fields(line)
	if err != nil || len(f) == 0 || strings.HasPrefix(f[0], "#") {
		return nil, err
	}
	if len(f) < 2 || len(f) > 6 {
		return nil, fmt.Errorf("%d fields, want 2 to 6", len(f))
	}
	for i, s := range f {
		if s == "-" {
			s = ""
		}
		if f[i] = strings.ReplaceAll(s, "%%", "\x00"); strings.Contains(f[i], "%") {
			return nil, fmt.Errorf("specifier in %q: none is known here", s)
		}
		f[i] = strings.ReplaceAll(f[i], "\x00", "%")
	}
	f = append(f, make([]string, 6-len(f))...)
	switch f[0] {
	case "u", "u!":
		return b.sysusersUser(f)
	case "g":
		r := request{kind: 'g', name: f[1]}
		if f[2] != "" {
			r.id, err = b.sysusersNumber(f[2], false)
		}
		return []request{r}, err
	case "m":
		if f[2] == "" {
			return nil, errors.New("no group")
		}
		return []request{{kind: 'm', name: f[1], group: f[2]}}, nil
	case "r":
		return nil, nil // a range to take numbers from; they are taken from one place here
	}
	return nil, fmt.Errorf("type %q: want u, g, m or r", f[0])
}

func (b *build) sysusersUser(f []string) (rs []request, err error) {
	shell := nologin
	if f[1] == "root" {
		shell = "/bin/sh"
	}
	r := request{kind: 'u', name: f[1], comment: f[3], home: cmp.Or(f[4], "/"), shel: cmp.Or(f[5], shell)}
	uid, primary, both := strings.Cut(f[2], ":")
	if uid != "" && uid != "-" {
		if r.id, err = b.sysusersNumber(uid, true); err != nil {
			return nil, err
		}
	}
	if both {
		if r.gid, err = b.sysusersNumber(primary, false); err != nil {
			r.gid, r.group, err = nil, primary, checkName(primary)
		}
	}
	return []request{r}, err
}

// sysusersNumber parses a number, or takes that of a file's owner.
func (b *build) sysusersNumber(s string, owner bool) (*uint32, error) {
	if name, ok := strings.CutPrefix(s, "/"); ok {
		n := b.get(name)
		if n == nil {
			return nil, fmt.Errorf("number of %s: no such file", s)
		}
		if owner {
			return &n.UID, nil
		}
		return &n.GID, nil
	}
	id, err := number(s)
	return &id, err
}

// fields splits a line at white space; quotes and backslashes hold it together.
func fields(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	in, quote := false, rune(0)
	escaped := false
	for _, c := range strings.TrimRight(line, "\r\n") {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, in = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if in {
				out = append(out, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("quote without an end")
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

// add meets the requests. Those of the profile hold; those of packages give way
// to what is there already, as systemd-sysusers has it.
func (a *accounts) add(declared, asked []request) error {
	var open []request // with no number yet
	for _, rs := range [][]request{declared, asked} {
		for _, kind := range []byte{'g', 'u'} {
			for _, r := range rs {
				if r.kind != kind {
					continue
				}
				later, err := a.fixed(r)
				if err != nil {
					return fmt.Errorf("rootfs: %s: %w", r.who, err)
				}
				if later {
					open = append(open, r)
				}
			}
		}
	}
	// Implied by memberships.
	for _, rs := range [][]request{declared, asked} {
		for _, r := range rs {
			if r.kind == 'm' {
				open = append(open, request{who: r.who, kind: 'g', name: r.group})
				open = append(open, request{who: r.who, kind: 'u', name: r.name, home: "/", shel: nologin})
			}
		}
	}
	slices.SortStableFunc(open, func(x, y request) int {
		return cmp.Or(strings.Compare(x.name, y.name), cmp.Compare(x.kind, y.kind))
	})
	for _, r := range open {
		if err := a.free(r, open); err != nil {
			return fmt.Errorf("rootfs: %s: %w", r.who, err)
		}
	}
	for _, rs := range [][]request{declared, asked} {
		for _, r := range rs {
			if r.kind == 'm' {
				a.join(r.name, r.group)
			}
		}
	}
	return nil
}

func (a *accounts) join(user, name string) {
	if g := a.group[name]; !slices.Contains(g.members, user) {
		g.members = append(g.members, user)
	}
}

// fixed meets a request for a number, and reports whether there is none.
func (a *accounts) fixed(r request) (later bool, err error) {
	if r.kind == 'g' {
		if g := a.group[r.name]; g != nil {
			return false, r.same(g.gid)
		}
		if r.id == nil || !r.strict && a.gids[*r.id] != "" {
			return true, nil
		}
		if who := a.gids[*r.id]; who != "" {
			return false, fmt.Errorf("number %d is that of group %s", *r.id, who)
		}
		return false, a.addGroup(&group{name: r.name, gid: *r.id})
	}
	if u := a.user[r.name]; u != nil {
		return false, r.same(u.uid)
	}
	if r.id == nil || !r.strict && a.uids[*r.id] != "" {
		return true, nil
	}
	if who := a.uids[*r.id]; who != "" {
		return false, fmt.Errorf("number %d is that of user %s", *r.id, who)
	}
	gid, ok, err := a.primary(r, *r.id)
	if err != nil || !ok { // its group has no number yet; its own is taken
		a.uids[*r.id] = r.name
		return true, err
	}
	return false, a.addUser(&user{r.name, *r.id, gid, r.comment, r.home, r.shel})
}

// same refuses a declared number that is not the one there is.
func (r request) same(id uint32) error {
	if r.strict && r.id != nil && *r.id != id {
		return fmt.Errorf("its number is %d already, want %d", id, *r.id)
	}
	return nil
}

// primary returns the number of a user's primary group, which it makes if it has
// the user's name and number.
func (a *accounts) primary(r request, uid uint32) (gid uint32, ok bool, err error) {
	switch {
	case r.gid != nil:
		if a.gids[*r.gid] == "" {
			return 0, false, fmt.Errorf("group %d does not exist", *r.gid)
		}
		return *r.gid, true, nil
	case r.group != "" && a.group[r.group] != nil:
		return a.group[r.group].gid, true, nil
	case r.group != "":
		return 0, false, nil
	case a.group[r.name] != nil:
		return a.group[r.name].gid, true, nil
	case a.gids[uid] != "":
		return 0, false, nil
	}
	return uid, true, a.addGroup(&group{name: r.name, gid: uid})
}

// free meets a request with a number that nobody has. open are all such requests.
func (a *accounts) free(r request, open []request) error {
	if r.kind == 'g' {
		if a.group[r.name] != nil {
			return nil
		}
		id, err := a.next()
		if err != nil {
			return err
		}
		return a.addGroup(&group{name: r.name, gid: id})
	}
	if a.user[r.name] != nil {
		return nil
	}
	if r.group != "" && a.group[r.group] == nil {
		if !slices.ContainsFunc(open, func(o request) bool { return o.kind == 'g' && o.name == r.group }) {
			return fmt.Errorf("group %s does not exist", r.group)
		}
		if err := a.free(request{kind: 'g', name: r.group}, nil); err != nil {
			return err
		}
	}
	uid, err := a.uidFor(r)
	if err != nil {
		return err
	}
	gid, ok, err := a.primary(r, uid)
	if err != nil {
		return err
	}
	if !ok { // the number is free for the user alone
		if err := a.free(request{kind: 'g', name: r.name}, nil); err != nil {
			return err
		}
		gid = a.group[r.name].gid
	}
	return a.addUser(&user{r.name, uid, gid, r.comment, r.home, r.shel})
}

// uidFor takes the number asked for, that of the group by the same name, or the
// next one.
func (a *accounts) uidFor(r request) (uint32, error) {
	if r.id != nil && (a.uids[*r.id] == "" || a.uids[*r.id] == r.name) {
		return *r.id, nil
	}
	if g := a.group[r.name]; g != nil && a.uids[g.gid] == "" && r.group == "" && r.gid == nil {
		return g.gid, nil
	}
	return a.next()
}

// next returns the highest number up to 999 that no user and no group has.
func (a *accounts) next() (uint32, error) {
	for id := uint32(firstFit); id > 0; id-- {
		if a.uids[id] == "" && a.gids[id] == "" {
			return id, nil
		}
	}
	return 0, fmt.Errorf("no number up to %d is free", firstFit)
}
