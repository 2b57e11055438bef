package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/internal/dm"
	"golang.org/x/sys/unix"
)

// A machine does what only PID 1 of a guest may do.
type machine interface {
	mount(m mount, target string) error
	unmount(target string) error
	loadModule(f *os.File, params string) error
	createDevice(name string, table dm.Target) (path string, err error) // of the device-mapper
	removeDevice(name string) error
	table(name string) (dm.Target, error)
	enter(root string, carried []string) error // makes root "/", with some mounts of the old one; nothing else of that is left
	raise(link string) error                   // brings a network interface up
	openTPM(device string) (transport.TPM, error)
	tdReport(device string) ([]byte, error) // TDREPORT about nothing
	extendRTMR(file string, digest []byte) error
	report(root, provider string, data []byte) ([]byte, error) // of configfs-tsm
	stop(how string) error                                     // returns only with an error
}

// linux is the machine that the agent runs on.
type linux struct{}

func (linux) mount(m mount, target string) error {
	return unix.Mount(cmp.Or(m.source, m.fstype), target, m.fstype, m.flags, m.data)
}

func (linux) unmount(target string) error { return unix.Unmount(target, 0) }

// control is where devtmpfs shows the device-mapper.
const control = "/dev/mapper/control"

func (linux) createDevice(name string, table dm.Target) (string, error) {
	c, err := dm.Open(control)
	if err != nil {
		return "", err
	}
	defer c.Close()
	d, err := c.Create(name, "", []dm.Target{table})
	return d.Path(), err
}

func (linux) removeDevice(name string) error {
	c, err := dm.Open(control)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Remove(name)
}

func (linux) table(name string) (t dm.Target, err error) {
	c, err := dm.Open(control)
	if err != nil {
		return t, err
	}
	defer c.Close()
	table, err := c.Table(name)
	if err == nil && len(table) != 1 {
		err = fmt.Errorf("%s: %d targets, want one", name, len(table))
	}
	if err != nil {
		return t, err
	}
	return table[0], nil
}

// enter is what switch_root does, short of starting another init.
func (linux) enter(root string, carried []string) error {
	old, err := os.OpenRoot("/")
	if err != nil {
		return err
	}
	defer old.Close()
	for _, m := range carried {
		if err := unix.Mount(m, root+m, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("%s: move into the root: %w", m, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("%s: move to /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return empty(old)
}

// empty clears the initramfs, whose files would keep their memory until the
// machine ends. Nothing is mounted in it any more.
func empty(old *os.Root) error {
	dir, err := old.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return err
	}
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return nil // no initramfs: not ours to empty
	}
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, old.RemoveAll(name))
	}
	return err
}

// raise sets a flag and nothing else: loopback gets its addresses from the kernel
// when it comes up. Linux, net/ipv4/devinet.c, inetdev_event; netdevice(7).
func (linux) raise(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

func (linux) loadModule(f *os.File, params string) error {
	return unix.FinitModule(int(f.Fd()), params, 0)
}

func (linux) openTPM(device string) (transport.TPM, error) { return linuxtpm.Open(device) }

// tdxReportRequest is struct tdx_report_req, and tdxGetReport the ioctl that fills it
// in. Linux, include/uapi/linux/tdx-guest.h, TDX_CMD_GET_REPORT0.
type tdxReportRequest struct {
	data   [64]byte
	report [tdReportSize]byte
}

const tdxGetReport = 3<<30 | (64+tdReportSize)<<16 | 'T'<<8 | 1

func (linux) tdReport(device string) ([]byte, error) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r tdxReportRequest
	if err := ioctl(f, tdxGetReport, unsafe.Pointer(&r)); err != nil {
		return nil, fmt.Errorf("%s: %w", device, err)
	}
	return r.report[:], nil
}

// extendRTMR writes a digest, at once: what is read there is the register.
// Linux, Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest.
func (linux) extendRTMR(file string, digest []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(digest)
	return errors.Join(err, f.Close())
}

func (linux) report(root, provider string, data []byte) ([]byte, error) {
	report, _, err := attester.Report(root, provider, data)
	return report, err
}

func (linux) stop(how string) error {
	unix.Sync()
	switch how {
	case config.PowerOff:
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case config.Reboot:
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case config.Halt:
		return unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	}
	return fmt.Errorf("no way to %s", how)
}
