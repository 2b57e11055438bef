package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// configFiles returns the files of a kind that packages and profile have in
// etc, usr/local/lib and usr/lib, sorted by name; one hides those of the same name
// in later directories, and a link to /dev/null hides them for good. This is how
// sysusers.d(5), tmpfiles.d(5) and their like are read.
func (b *build) configFiles(dir string) []string {
	files := map[string]string{}
	for _, top := range []string{"usr/lib", "usr/local/lib", "etc"} {
		for _, name := range b.list(top + "/" + dir) {
			if strings.HasSuffix(name, ".conf") {
				files[name] = top + "/" + dir + "/" + name
			}
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if n := b.get(files[name]); n != nil && n.inode != nil {
			out = append(out, files[name])
		}
	}
	return out
}

// tmpfiles makes the directories and links that tmpfiles.d(5) of packages and
// profile asks for. What is in the tree stays as it is. What lies in a file system
// that comes into being at boot is left to the programs, and lines of other types,
// that clean up or set attributes, are passed over.
func (b *build) tmpfiles() error {
	a, err := b.readAccounts()
	if err != nil {
		return err
	}
	for _, name := range b.configFiles("tmpfiles.d") {
		text, err := b.read(name)
		if err != nil {
			return err
		}
		number := 0
		for line := range strings.Lines(string(text)) {
			number++
			e, err := a.tmpfile(line)
			if err != nil {
				b.note(b.get(name).pkgName(), "/%s:%d is not followed: %v", name, number, err)
				continue
			}
			if e == nil {
				continue
			}
			if e.Path, err = b.links.place(e.Path); err != nil {
				return fmt.Errorf("rootfs: /%s:%d: %w", name, number, err)
			}
			if hidden(e.Path) {
				continue
			}
			if err := b.admits(e.Path); err != nil {
				b.note(b.get(name).pkgName(), "/%s:%d is not followed: %v", name, number, err)
				continue
			}
			b.make(*e)
		}
	}
	return nil
}

// tmpfile parses a line of tmpfiles.d(5): type, path, mode, user, group, age,
// argument. It returns nil for one that makes neither directory nor link, or is
// for credentials that somebody passes to systemd.
func (a *accounts) tmpfile(line string) (*tree.Entry, error) {
	f, err := fields(line)
	if err != nil || len(f) == 0 || f[0] == "" || strings.Contains(f[0], "^") || !strings.Contains("dDvqQL", f[0][:1]) {
		return nil, err // a comment is of another type, too
	}
	f = append(f, "-", "-", "-", "-", "-", "-")
	if !path.IsAbs(f[1]) {
		return nil, fmt.Errorf("path %q: want one from the root", f[1])
	}
	if strings.Contains(f[1]+f[6], "%") {
		return nil, fmt.Errorf("specifier in %q: none is known here", strings.TrimSuffix(f[1]+" "+f[6], " -"))
	}
	name := path.Clean(f[1])[1:]
	if name == "" {
		return nil, errors.New("the root itself")
	}
	if !fs.ValidPath(name) || strings.ContainsRune(name+f[6], 0) {
		return nil, fmt.Errorf("path %q", f[1])
	}
	if f[0][0] == 'L' {
		if f[6] == "-" || f[6] == "" {
			f[6] = "/usr/share/factory/" + name
		}
		e := tree.Symlink(name, f[6])
		return &e, nil
	}
	e := tree.Dir(name, 0o755)
	if err := a.attributes(&e, f[2], f[3], f[4]); err != nil {
		return nil, err
	}
	return &e, nil
}

// attributes sets mode and owner. A colon says that they are for what is made
// now, as all of it is, a tilde that the mode depends on the one there was.
func (a *accounts) attributes(e *tree.Entry, mode, owner, group string) error {
	if mode = strings.TrimLeft(mode, ":~"); mode != "-" && mode != "" {
		m, err := strconv.ParseUint(mode, 8, 12)
		if err != nil {
			return fmt.Errorf("mode %q: want octal digits", mode)
		}
		e.Mode = tree.TypeDir | uint32(m)
	}
	if owner = strings.TrimPrefix(owner, ":"); owner != "-" && owner != "" {
		if u := a.user[owner]; u != nil {
			e.UID = u.uid
		} else if n, err := number(owner); err == nil {
			e.UID = n
		} else {
			return fmt.Errorf("user %q: there is none", owner)
		}
	}
	if group = strings.TrimPrefix(group, ":"); group != "-" && group != "" {
		if g := a.group[group]; g != nil {
			e.GID = g.gid
		} else if n, err := number(group); err == nil {
			e.GID = n
		} else {
			return fmt.Errorf("group %q: there is none", group)
		}
	}
	return nil
}
