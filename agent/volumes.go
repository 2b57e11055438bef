package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/storage"
)

// volumeMounts is where the file systems of encrypted disks are, for the agent to
// hand on.
const volumeMounts = "/run/plinth/volumes"

// A volume is an encrypted disk that is open: a *storage.Volume, whose Close also
// unmounts it.
type volume interface {
	Device() string
	Mount(target string, readOnly bool) error
	Close() error
}

func openVolume(ctx context.Context, o storage.VolumeOptions) (volume, error) {
	v, err := storage.OpenVolume(ctx, o)
	if err != nil {
		return nil, err // and no nil pointer beside it
	}
	return v, nil
}

// volumes are the open ones.
type volumes struct {
	mu    sync.Mutex
	open  []volume // the last opened last
	ended bool
}

// openVolumes opens the disks that the configuration names and mounts them, before
// anybody runs who could want one.
func openVolumes(ctx context.Context, s *State) error {
	if len(s.Config.Volumes) == 0 || s.work.failed {
		return nil
	}
	for _, v := range s.Config.Volumes {
		if err := s.openVolume(ctx, v); err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	return nil
}

func (s *State) openVolume(ctx context.Context, v config.Volume) error {
	device, err := s.disk(ctx, v.Disk)
	if err != nil {
		return err
	}
	o := storage.VolumeOptions{
		Device: device, Name: v.Name, Random: v.Key == "", Integrity: v.Integrity, Format: v.Format, Filesystem: config.FilesystemExt4,
	}
	if v.Key != "" {
		if o.Key, err = s.key(ctx, v.Key); err != nil {
			return err
		}
		defer clear(o.Key)
	}
	opened, err := s.work.site.volume(ctx, o)
	if err != nil {
		return err
	}
	at := s.path(volumeMounts + "/" + v.Name)
	err = os.MkdirAll(at, 0o700)
	if err == nil {
		err = opened.Mount(at, false)
	}
	if err != nil {
		return errors.Join(err, opened.Close())
	}
	return s.keepVolume(opened)
}

// keepVolume remembers a volume until the guest stops.
func (s *State) keepVolume(v volume) error {
	list := &s.work.volumes
	list.mu.Lock()
	defer list.mu.Unlock()
	if list.ended {
		return errors.Join(errStopping, v.Close())
	}
	list.open = append(list.open, v)
	return nil
}

// closeVolumes takes the encrypted disks away with their keys, as far as nobody uses
// them still. What was written is on the disks then.
func (s *State) closeVolumes(grace time.Duration) {
	done := make(chan struct{})
	s.background(func() {
		defer close(done)
		list := &s.work.volumes
		list.mu.Lock()
		defer list.mu.Unlock()
		list.ended = true
		for _, v := range slices.Backward(list.open) {
			if err := v.Close(); err != nil {
				s.logf("volumes: %v", err)
			}
		}
		list.open = nil
	})
	select {
	case <-done:
	case <-time.After(grace):
		s.logf("volumes: still in use")
	}
}

// volumeDirs are where the volumes of a container are, by their names.
func (s *State) volumeDirs() map[string]string {
	out := map[string]string{}
	for _, v := range s.Config.Volumes {
		out[v.Name] = s.path(volumeMounts + "/" + v.Name)
	}
	return out
}
