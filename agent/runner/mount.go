package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountImage puts the image where the container's user IDs own it, though its file
// system knows only those of the image. A device in it is no device.
func (c *Container) mountImage(source string, userns *os.File) error {
	attr := unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Userns_fd: uint64(userns.Fd()),
	}
	if err := cloneMount(unix.AT_FDCWD, source, c.path(imageDir), attr); err != nil {
		return fmt.Errorf("image %s: %w", source, err)
	}
	return nil
}

// cloneMount mounts what source shows at target, too, and that mount alone has the
// attributes.
func cloneMount(dirfd int, source, target string, attr unix.MountAttr) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if source == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dirfd, source, flags)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	attr.Propagation = unix.MS_PRIVATE
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// sealedScratchMiB is what a read-only root may need until it is sealed: places
// for mounts that the image lacks.
const sealedScratchMiB = 1

// mountRoot makes the container's root: the image, and over it memory of a bounded
// size, so that nothing is ever written to the image.
func (c *Container) mountRoot() error {
	size := c.effective.ScratchMiB
	if c.effective.ReadOnly {
		size = sealedScratchMiB
	}
	scratch := c.path(scratchDir)
	if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711,"+tmpfsSize(size)); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := likeImage(upper, c.path(imageDir)); err != nil {
		return err
	}
	// No name here has a comma or a colon: IDs have none.
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", c.path(imageDir), upper, work)
	if err := unix.Mount("overlay", c.path(rootDir), "overlay", rootFlags, data); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	return nil
}

// rootFlags: a device file of the image is none, and a program with the setuid bit
// gains nothing (nor would it, without new privileges).
const rootFlags = unix.MS_NOSUID | unix.MS_NODEV

// likeImage gives the upper directory, which is the root that the container sees,
// owner and mode of the image's.
func likeImage(upper, image string) error {
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// sealRoot makes the root's file system read-only as a whole. It belongs to the
// guest, so that no capability inside undoes that.
func (c *Container) sealRoot() error {
	if err := unix.Mount("", c.path(rootDir), "", unix.MS_REMOUNT|unix.MS_RDONLY|rootFlags, ""); err != nil {
		return fmt.Errorf("read-only root: %w", err)
	}
	return nil
}

// tmpfsSize bounds bytes, and files by one a page.
func tmpfsSize(mib int) string { return fmt.Sprintf("size=%dm,nr_inodes=%d", mib, mib*256) }

// inRoot opens a path as a process inside would find it, whatever symbolic links
// the image has.
func inRoot(root int, name string, flags uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(root, name, how)
		// EAGAIN: something was renamed meanwhile, openat2(2).
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// makeWorkDir makes the working directory where the image lacks it; it is root's.
func (c *Container) makeWorkDir(dir string) error {
	root, err := unix.Open(c.path(rootDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	at := root
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if name == "" {
			continue
		}
		next, err := c.enter(root, at, name)
		if at != root {
			_ = unix.Close(at)
		}
		if err != nil {
			return err
		}
		at = next
	}
	if at != root {
		_ = unix.Close(at)
	}
	return nil
}

// enter opens the directory name of at, and makes it if need be. A symbolic link is
// resolved from at's place in the container.
func (c *Container) enter(root, at int, name string) (int, error) {
	here, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at))
	if err != nil {
		return -1, err
	}
	inside, err := filepath.Rel(c.path(rootDir), here)
	if err != nil || !filepath.IsLocal(inside) {
		return -1, fmt.Errorf("%s: outside", here)
	}
	full := filepath.Join(inside, name)
	const flags = unix.O_PATH | unix.O_DIRECTORY
	fd, err := inRoot(root, full, flags)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(at, name, 0o755); err != nil { // EEXIST: a link to nowhere
		return -1, err
	}
	if fd, err = inRoot(root, full, flags); err != nil {
		return -1, err
	}
	proc := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := errors.Join(os.Chmod(proc, 0o755), os.Chown(proc, c.base(), c.base())); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// mountSource shows a file or directory of the measured root to the container and
// returns where crun finds it. The mount is read-only, and its files are nobody's in
// there: what only root may read stays closed, and not even CAP_SYS_ADMIN, which
// undoes the first, writes to more than everybody may.
func (c *Container) mountSource(name string) (string, error) {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	// Not across mounts: what is mounted somewhere was not measured.
	fd, err := inRoot(root, name, unix.O_PATH)
	if err != nil {
		return "", fmt.Errorf("source %s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	target, err := c.place(st.Mode & unix.S_IFMT)
	if err == nil {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
		err = cloneMount(fd, "", target, attr)
	}
	if err != nil {
		return "", fmt.Errorf("source %s: %w", name, err)
	}
	return target, nil
}

// place makes what something is mounted on for the container.
func (c *Container) place(kind uint32) (string, error) {
	c.sources++
	target := filepath.Join(c.path(sourcesDir), fmt.Sprint(c.sources))
	switch kind {
	case unix.S_IFDIR:
		return target, os.Mkdir(target, 0o711)
	case unix.S_IFREG:
		return target, writeFile(target, nil, 0o600)
	}
	return "", errors.New("want a file or a directory")
}

// unmount takes all mounts of the container away, the last first. The process is
// gone, and its mounts with it.
func (c *Container) unmount(context.Context) error {
	targets := []string{}
	for n := c.sources; n > 0; n-- {
		targets = append(targets, filepath.Join(c.path(sourcesDir), fmt.Sprint(n)))
	}
	targets = append(targets, c.path(rootDir), c.path(scratchDir), c.path(imageDir))
	var errs []error
	for _, t := range targets {
		err := unix.Unmount(t, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		// EINVAL: nothing is mounted there.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", t, err))
		}
	}
	return errors.Join(errs...)
}

// noPivot tells whether the guest's root is the initrd's, from which pivot_root(2)
// cannot go.
func noPivot() bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	return initrdRoot(string(b))
}

// initrdRoot looks at the last mount on "/", the one that is seen. proc(5),
// /proc/pid/mountinfo: the fifth field is the mount point, the first behind " - "
// the type.
func initrdRoot(mountinfo string) bool {
	found := false
	for line := range strings.Lines(mountinfo) {
		front, back, _ := strings.Cut(line, " - ")
		f, t := strings.Fields(front), strings.Fields(back)
		if len(f) > 4 && f[4] == "/" && len(t) > 0 {
			found = t[0] == "rootfs"
		}
	}
	return found
}
