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
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/workload"
)

// bundleUppers is where the writable parts of bundles are, a tmpfs each.
const bundleUppers = "/run/plinth/bundles"

// serveImages offers the image-pull service of CoCo's confidential-data-hub, where
// the configuration says so.
func serveImages(_ context.Context, s *State) error {
	if !s.work.config.ImageService {
		return nil
	}
	l, err := imageservice.Listen(s.path(imageservice.Socket))
	if err != nil {
		return err
	}
	server := &imageservice.Server{Guest: &bundler{s: s, uppers: map[string]string{}}, Root: s.Root, Logf: s.logf}
	s.background(func() {
		if err := server.Serve(context.Background(), l); err != nil {
			s.logf("image service: %v", err)
		}
	})
	return nil
}

// A bundler is what the service asks of the agent.
type bundler struct {
	s *State

	mu     sync.Mutex
	number int
	uppers map[string]string // by where it is mounted
}

// Pull measures each image behind the separator of the workloads: it came later. A
// guest that cannot measure it has no service: workload.Config.Pinned.
func (b *bundler) Pull(ctx context.Context, image string) (*imagepull.Pulled, error) {
	im, err := b.s.pull(ctx, image)
	if err != nil {
		return nil, err
	}
	e, err := workload.PullImage(image, im.Digest)
	if err != nil {
		return nil, err
	}
	return im, b.s.measure(e)
}

// Mount lays memory over the image's tree.
func (b *bundler) Mount(im *imagepull.Pulled, dir string) (err error) {
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
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(upper, d), 0o755); err != nil {
			return errors.Join(err, b.s.machine.unmount(upper))
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, upper, upper)
	if err := b.s.machine.mount(mount{fstype: "overlay", flags: unix.MS_NODEV, data: data}, dir); err != nil {
		return errors.Join(err, b.s.machine.unmount(upper), os.Remove(upper))
	}
	b.uppers[dir] = upper
	return nil
}

// Unmount takes away what Mount made.
func (b *bundler) Unmount(dir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.s.machine.unmount(dir); err != nil {
		return err
	}
	upper := b.uppers[dir]
	delete(b.uppers, dir)
	return errors.Join(b.s.machine.unmount(upper), os.Remove(upper))
}

// User takes numbers, which mean the same in every image. Names, and the groups of a
// user, are in files of the image: a caller that wants them reads those itself.
func (b *bundler) User(_, user string) (*imageservice.User, error) {
	var u imageservice.User
	if user == "" {
		return &u, nil
	}
	uid, gid, _ := strings.Cut(user, ":")
	for _, id := range []struct {
		text string
		into *uint32
	}{{uid, &u.UID}, {cmp.Or(gid, "0"), &u.GID}} {
		n, err := strconv.ParseUint(id.text, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("user %.100q: want numbers, UID[:GID]", user)
		}
		*id.into = uint32(n)
	}
	return &u, nil
}
