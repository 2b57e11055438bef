package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/plinth-os/plinth/agent/config"
)

// diskWait is how long the agent waits for a disk whose driver was just loaded.
const diskWait = 10 * time.Second

// A disk is a whole one that the kernel shows.
type disk struct {
	path   string // "/dev/vda"
	serial string // what the host says; "" of one that has none
}

// disks returns the whole disks: those that the kernel makes itself, such as loop and
// RAM disks, have no device behind them.
func (s *State) disks() (out []disk) {
	names, _ := filepath.Glob(s.path("/sys/class/block/*/device")) // the pattern is well-formed
	for _, device := range names {
		dir := filepath.Dir(device)
		serial, _ := os.ReadFile(filepath.Join(dir, "serial"))
		out = append(out, disk{s.path("/dev/" + filepath.Base(dir)), strings.TrimSpace(string(serial))})
	}
	return out
}

var errNoDisk = errors.New("no virtio disk with this serial number")

// disk waits for the disk with a serial number. Two of them are none: the host could
// show one now and the other later.
func (s *State) disk(ctx context.Context, serial string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, diskWait)
	defer cancel()
	for {
		found := ""
		for _, d := range s.disks() {
			switch {
			case d.serial != serial:
			case found != "":
				return "", fmt.Errorf("disk %s: %s and %s have this serial number", serial, found, d.path)
			default:
				found = d.path
			}
		}
		if _, err := os.Stat(found); found != "" && err == nil {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("disk %s: %w", serial, errNoDisk)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// An imageFile is a disk that holds an oci-archive.
type imageFile struct {
	*os.File
	size int64
}

func (f imageFile) Size() (int64, error) { return f.size, nil }

// openImage opens what an image's name leads to, to read it: a virtio disk, by its
// serial number, and nothing else.
func (s *State) openImage(ctx context.Context, name string) (*imageFile, error) {
	serial, ok := config.DiskSerial(name)
	if !ok {
		return nil, fmt.Errorf("%s: want %sSERIAL", name, config.DiskPath)
	}
	file, err := s.disk(ctx, serial)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // of a device Stat knows none
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &imageFile{f, size}, nil
}
