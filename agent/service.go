package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/agent/runner"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/workload"
)

// bundleUppers is where the writable parts of bundles are, a tmpfs each.
const bundleUppers = "/run/plinth/bundles"

// A bundler is what the service asks of the agent.
type bundler struct {
	s *State

	mu     sync.Mutex
	number int
}

// Pull measures each image behind the separator of the workloads: it came later. A
// guest that cannot measure it has no service: workload.Config.Pinned. Of a user that
// is a name only the tree can tell whether it is there.
func (b *bundler) Pull(ctx context.Context, image string) (*imagepull.Pulled, error) {
	if err := b.s.settled(ctx); err != nil {
		return nil, err
	}
	prepared, err := b.s.prepare(ctx, image)
	if err != nil {
		return nil, err
	}
	defer func() { _ = prepared.Close() }() // it was only read
	e, err := workload.PullImage(image, prepared.Digest)
	if err != nil {
		return nil, err
	}
	if err := b.s.measure(e); err != nil {
		return nil, err
	}
	im, err := b.s.fetch(ctx, prepared)
	if err != nil {
		return nil, err
	}
	return im, b.checkUser(im)
}

// checkUser refuses an image whose user cannot be found. A name wants the tree, which
// is shown where nobody but the agent looks.
func (b *bundler) checkUser(im *imagepull.Pulled) error {
	user := im.Settings.Config.User
	if _, ok := numbers(user); ok {
		return nil
	}
	dir, err := b.s.showImage(im)
	if err == nil {
		_, err = b.User(dir, user)
	}
	return err
}

// Mount lays memory over the image's tree. The memory is the overlay's alone, and goes
// with it, whoever unmounts that.
func (b *bundler) Mount(im *imagepull.Pulled, dir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	lower, err := b.s.showImage(im)
	if err != nil {
		return err
	}
	b.number++
	upper := b.s.path(fmt.Sprintf("%s/%d", bundleUppers, b.number))
	if err := os.MkdirAll(upper, 0o700); err != nil {
		return err
	}
	size := fmt.Sprintf("mode=0700,size=%dm", workload.DefaultScratchMiB)
	if err := b.s.machine.mount(mount{fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: size}, upper); err != nil {
		return errors.Join(err, os.Remove(upper))
	}
	err = b.overlay(lower, upper, dir)
	undo := errors.Join(b.s.machine.unmount(upper), os.Remove(upper))
	if err == nil && undo != nil {
		undo = errors.Join(undo, b.s.machine.unmount(dir))
	}
	return errors.Join(err, undo)
}

// overlay makes its own mount of upper: Linux, fs/overlayfs/super.c, ovl_get_upper.
func (b *bundler) overlay(lower, upper, dir string) error {
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(upper, d), 0o755); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, upper, upper)
	return b.s.machine.mount(mount{fstype: "overlay", flags: unix.MS_NODEV, data: data}, dir)
}

// Unmount takes away what Mount made.
func (b *bundler) Unmount(dir string) error { return b.s.machine.unmount(dir) }

// User takes numbers as they are, which mean the same in every image. Names are in
// files of the image.
func (b *bundler) User(dir, user string) (*imageservice.User, error) {
	if u, ok := numbers(user); ok {
		return u, nil
	}
	uid, gid, groups, err := runner.FindUser(dir, user)
	if err != nil {
		return nil, err
	}
	return &imageservice.User{UID: uid, GID: gid, Groups: groups}, nil
}

// numbers reads "UID[:GID]". "" is root.
func numbers(user string) (*imageservice.User, bool) {
	uid, gid, _ := strings.Cut(user, ":")
	u, err1 := strconv.ParseUint(cmp.Or(uid, "0"), 10, 31)
	g, err2 := strconv.ParseUint(cmp.Or(gid, "0"), 10, 31)
	return &imageservice.User{UID: uint32(u), GID: uint32(g)}, err1 == nil && err2 == nil
}
