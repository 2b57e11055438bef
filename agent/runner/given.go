package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// given is what a container gets beside its image, while it is made.
type given struct {
	userns  *os.File
	volumes map[string]string
	secrets map[string][]byte
}

// mountVolume shows a file system to the container, whose users own its files by the
// numbers that they have inside: so another container, or another run, finds them as
// they were left.
func (c *Container) mountVolume(name string) (string, error) {
	source, ok := c.given.volumes[name]
	if !ok {
		return "", fmt.Errorf("volume %.100q: the guest has none of this name", name)
	}
	target, err := c.place(unix.S_IFDIR)
	if err == nil {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Userns_fd: uint64(c.given.userns.Fd())}
		err = cloneMount(unix.AT_FDCWD, source, target, attr)
	}
	if err != nil {
		return "", fmt.Errorf("volume %s: %w", name, err)
	}
	return target, nil
}

// mountSecret makes the file of a secret, which the container's user alone reads. It
// is in the memory of Runner.Dir and on no disk, and goes with the container.
func (c *Container) mountSecret(at string, u *user) (string, error) {
	content, ok := c.given.secrets[at]
	if !ok {
		return "", errors.New("nobody gave the secret")
	}
	target, err := c.place(unix.S_IFREG)
	if err != nil {
		return "", err
	}
	file := filepath.Join(c.path(secretsDir), filepath.Base(target))
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chown(c.base()+int(u.uid), c.base()+int(u.gid)), f.Chmod(0o400), f.Close())
	if err != nil {
		return "", err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	return target, cloneMount(unix.AT_FDCWD, file, target, attr)
}
