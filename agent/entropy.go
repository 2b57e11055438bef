package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/plinth-os/plinth/internal/rdseed"
	"golang.org/x/sys/unix"
)

// randomWait is how long the kernel may take until it gives random numbers. It has
// been given enough by then: this is no wait for a source.
const randomWait = 10 * time.Second

// A pool is the kernel's, of random numbers.
type pool interface {
	credit(seed []byte, bits int) error // mixes in a seed of so much entropy, before it returns
	ready() (bool, error)
}

// seedRandom gives the kernel 256 bits from the processor before the first key is
// made. Whatever else it has mixed in was seen by the host: the virtio device's
// numbers, the TPM's, the times of interrupts. Where the processor gives none the
// boot ends: a guest with workloads or a network makes keys.
func seedRandom(ctx context.Context, _ *State) error {
	return seedFrom(ctx, kernelPool{}, rdseed.Fill)
}

func seedFrom(ctx context.Context, p pool, source func(*[rdseed.Size]byte) (string, error)) error {
	var seed [rdseed.Size]byte
	defer clear(seed[:])
	from, err := source(&seed)
	if err != nil {
		return err
	}
	if err := p.credit(seed[:], 8*len(seed)); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return waitRandom(ctx, p)
}

func waitRandom(ctx context.Context, p pool) error {
	ctx, cancel := context.WithTimeout(ctx, randomWait)
	defer cancel()
	for {
		ok, err := p.ready()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the kernel gives no random numbers: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// kernelPool is behind /dev/urandom. random(4).
type kernelPool struct{}

// credit also makes the kernel draw a fresh key from its pool, which it else does
// only from time to time. Linux, drivers/char/random.c, random_ioctl.
func (kernelPool) credit(seed []byte, bits int) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() // nothing was written by it
	info := poolInfo(seed, bits)
	defer clear(info)
	err = ioctl(f, unix.RNDADDENTROPY, unsafe.Pointer(&info[0]))
	if err == nil {
		err = ioctl(f, unix.RNDRESEEDCRNG, nil)
	}
	return err
}

// poolInfo is struct rand_pool_info: bits, bytes, the bytes. linux/random.h.
func poolInfo(seed []byte, bits int) []byte {
	b := make([]byte, 0, 8+len(seed)) // at once: growing would leave a copy of the seed
	b = binary.NativeEndian.AppendUint32(b, uint32(bits))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(seed)))
	return append(b, seed...)
}

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

func (kernelPool) ready() (bool, error) {
	var b [1]byte
	_, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return err == nil, err
}
