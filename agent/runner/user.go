package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// A user as the container's process has it: IDs are those of the image.
type user struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

const (
	maxAccounts = 1 << 20 // bytes of /etc/passwd or /etc/group
	maxGroups   = 1024    // of one user; the kernel takes 65,536
)

// findUser resolves "USER[:GROUP]" by the files of the image, which are data of a
// stranger. As docker does it: without a group the user's own and all that list
// him; with one that alone; a number need not be in the files.
func findUser(dir, name string) (*user, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	passwd, err := readAccounts(root, "etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readAccounts(root, "etc/group")
	if err != nil {
		return nil, err
	}
	u, err := resolveUser(name, passwd, group)
	if err != nil {
		return nil, fmt.Errorf("user %.100q: %w", name, err)
	}
	return u, nil
}

// FindUser is findUser for others who show an image's tree, mounted as it is for a
// container: without devices.
func FindUser(dir, name string) (uid, gid uint32, groups []uint32, err error) {
	u, err := findUser(dir, name)
	if err != nil {
		return 0, 0, nil, err
	}
	return u.uid, u.gid, u.groups, nil
}

// readAccounts reads a file of the image, "" where there is none. The image is
// mounted without devices, and a FIFO does not block.
func readAccounts(root int, name string) (string, error) {
	fd, err := inRoot(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("/%s of the image: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxAccounts {
		return "", fmt.Errorf("/%s of the image: %s, %d bytes: want a file of at most %d", name, fi.Mode().Type(), fi.Size(), maxAccounts)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts))
	return string(b), err
}

func resolveUser(name, passwd, group string) (*user, error) {
	userName, groupName, grouped := strings.Cut(name, ":")
	u := &user{home: "/"}
	login := ""
	switch f := findAccount(passwd, userName, 7); {
	case f != nil:
		var err error
		if u.uid, u.gid, err = ids(f[2], f[3]); err != nil {
			return nil, err
		}
		login, u.home = f[0], home(f[5])
	case userName == "" || userName == "root":
		login = "root"
	case number(userName):
		var err error
		if u.uid, u.gid, err = ids(userName, "0"); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("the image's /etc/passwd has none of this name")
	}
	if grouped {
		return u, u.setGroup(groupName, group)
	}
	return u, u.addGroups(login, group)
}

func (u *user) setGroup(name, group string) error {
	id := name
	if f := findAccount(group, name, 4); f != nil {
		id = f[2]
	} else if !number(name) {
		return fmt.Errorf("the image's /etc/group has no %.100q", name)
	}
	var err error
	u.gid, _, err = ids(id, "0")
	return err
}

// addGroups adds those that list the user.
func (u *user) addGroups(login, group string) error {
	if login == "" {
		return nil
	}
	for line := range strings.Lines(group) {
		f := fields(line, 4)
		if f == nil || !slices.Contains(strings.Split(f[3], ","), login) {
			continue
		}
		id, _, err := ids(f[2], "0")
		if err != nil {
			return fmt.Errorf("group %.100q: %w", f[0], err)
		}
		if id != u.gid && !slices.Contains(u.groups, id) {
			u.groups = append(u.groups, id)
		}
		if len(u.groups) > maxGroups {
			return fmt.Errorf("in more than %d groups", maxGroups)
		}
	}
	return nil
}

// findAccount returns the first line for a name or, if it is a number, for an ID;
// nil without one. "" is root, whatever root's name is.
func findAccount(text, name string, n int) []string {
	if name == "" {
		name = "0"
	}
	column := 0
	if number(name) {
		column = 2
	}
	for line := range strings.Lines(text) {
		if f := fields(line, n); f != nil && f[column] == name {
			return f
		}
	}
	return nil
}

// fields splits a line, nil for what is none: passwd(5), group(5).
func fields(line string, n int) []string {
	f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
	if len(f) != n || f[0] == "" || !number(f[2]) || strings.HasPrefix(f[0], "#") {
		return nil
	}
	return f
}

// number has no sign and no leading zero, so that equal numbers are equal text.
func number(s string) bool {
	return s != "" && len(s) <= 10 && strings.Trim(s, "0123456789") == "" && (s == "0" || s[0] != '0')
}

// ids are below the size of a container's range: beyond it there is nobody.
func ids(uid, gid string) (uint32, uint32, error) {
	var out [2]uint32
	for i, s := range []string{uid, gid} {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n >= rangeSize {
			return 0, 0, fmt.Errorf("ID %.20q: want at most %d", s, rangeSize-1)
		}
		out[i] = uint32(n)
	}
	return out[0], out[1], nil
}

func home(s string) string {
	if !path.IsAbs(s) || strings.ContainsFunc(s, unicode.IsControl) || len(s) > unix.PathMax {
		return "/"
	}
	return s
}
