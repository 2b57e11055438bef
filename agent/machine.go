package agent

import (
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/plinth-os/plinth/agent/config"
	"golang.org/x/sys/unix"
)

// A machine does what only PID 1 of a guest may do.
type machine interface {
	mount(m mount, target string) error
	loadModule(f *os.File, params string) error
	openTPM(device string) (transport.TPM, error)
	stop(how string) error // returns only with an error
}

// linux is the machine that the agent runs on.
type linux struct{}

func (linux) mount(m mount, target string) error {
	return unix.Mount(m.fstype, target, m.fstype, m.flags, m.data)
}

func (linux) loadModule(f *os.File, params string) error {
	return unix.FinitModule(int(f.Fd()), params, 0)
}

func (linux) openTPM(device string) (transport.TPM, error) { return linuxtpm.Open(device) }

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
