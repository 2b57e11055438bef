package storage

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// minSize is the least that a pool holds, bytes.
const minSize = 1 << 20

// reserve is what images leave of the guest's memory to everything else, bytes.
const reserve = 64 << 20

// Memory makes a pool in memory of at most size bytes: a file that has no name, in
// the kernel's own tmpfs, and a loop device on it. The memory is taken as the pool
// fills up and given back as it is collected.
func Memory(size int64) (*Pool, error) {
	if size < minSize {
		return nil, fmt.Errorf("storage: memory of %d bytes: want at least %d", size, minSize)
	}
	b, err := memory(size &^ (blockSize - 1))
	if err != nil {
		return nil, fmt.Errorf("storage: memory: %w", err)
	}
	b.limit = func() (int64, error) { return memoryLimit("/proc/meminfo") }
	return newPool(linux{}, b), nil
}

func memory(size int64) (b base, err error) {
	fd, err := unix.MemfdCreate("plinth-images", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return b, err
	}
	f := os.NewFile(uintptr(fd), "images")
	if err = f.Truncate(size); err == nil {
		// The size is what the loop device and the extents go by.
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return b, errors.Join(err, f.Close())
	}
	loop, number, err := attachLoop(f)
	if err != nil {
		return b, errors.Join(err, f.Close())
	}
	return base{
		number: number,
		size:   size,
		data:   f,
		drop: func(off, n int64) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		},
		close: func() error { return errors.Join(loop.Close(), f.Close()) },
	}, nil
}

// attachLoop shows a file as a block device until the returned file is closed and
// nothing else uses the device.
func attachLoop(f *os.File) (loop *os.File, number string, err error) {
	c, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(c.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, "", fmt.Errorf("free loop device: %w", err)
		}
		loop, number, err = configureLoop(fmt.Sprintf("/dev/loop%d", n), f)
		if !errors.Is(err, unix.EBUSY) { // somebody was faster
			return loop, number, err
		}
	}
	return nil, "", errors.New("no free loop device")
}

func configureLoop(path string, f *os.File) (*os.File, string, error) {
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	c := unix.LoopConfig{Fd: uint32(f.Fd()), Size: blockSize}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	var st unix.Stat_t
	if err = unix.IoctlLoopConfigure(int(loop.Fd()), &c); err == nil {
		err = unix.Fstat(int(loop.Fd()), &st)
	}
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("%s: %w", path, err), loop.Close())
	}
	return loop, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// memoryLimit is how much of the memory that is left images may take, bytes.
func memoryLimit(path string) (int64, error) {
	n, err := memAvailable(path)
	return n - reserve, err
}

// memAvailable is how much memory the kernel can give away, bytes: proc(5), meminfo.
func memAvailable(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		value, ok := strings.CutPrefix(s.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 52)
		return kib << 10, err
	}
	return 0, fmt.Errorf("%s: no MemAvailable", path)
}
