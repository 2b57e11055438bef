// Command guest is the /init of TestBootNetwork: it brings up the network of a
// machine, links a container to it and says what each of them reaches.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/network"
	"github.com/plinth-os/plinth/internal/rdseed"
	"github.com/plinth-os/plinth/workload"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "container" {
		say(container(os.Args[2]))
		return
	}
	say(guest())
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func say(err error) {
	if err != nil {
		fmt.Println("guest: error:", err)
	}
}

func guest() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := errors.Join(os.MkdirAll(m[1], 0o755), unix.Mount(m[0], m[1], m[0], 0, "")); err != nil {
			return fmt.Errorf("%s: %w", m[1], err)
		}
	}
	from, err := rdseed.Fill(new([rdseed.Size]byte))
	fmt.Println("guest: seed:", from, err)
	if err := loadModules(); err != nil {
		return err
	}
	// As in a guest that is locked: the kernel gets no other modules.
	if err := os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0); err != nil {
		return err
	}
	u, err := network.Up(context.Background(), &config.Network{DHCP: true}, log)
	if err != nil {
		return err
	}
	fmt.Printf("guest: up: %v %q MTU %d\n", u.Addresses, u.ResolvConf(), u.MTU)
	outside := "10.0.2.2:" + argument("plinth.port")
	fmt.Println("guest: guest to the outside:", ask(outside))
	return containers(u, outside)
}

func containers(u *network.Uplink, outside string) error {
	c, err := network.NewContainers(u, log)
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", "container", outside)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	begin, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	a, err := c.Attach("web", child.Process.Pid, &workload.Process{Ports: []workload.Port{{Guest: 8080, Container: 80}}})
	if err != nil {
		return err
	}
	fmt.Println("guest: container is", a)
	if _, err := io.WriteString(begin, "go\n"); err != nil {
		return err
	}
	if err := child.Wait(); err != nil {
		return err
	}
	err = errors.Join(c.Detach("web"), u.Close())
	fmt.Println("guest: end:", err)
	return err
}

// container says what it reaches, and serves one connection. It begins when it has
// a network.
func container(outside string) error {
	if _, err := os.Stdin.Read(make([]byte, 8)); err != nil {
		return err
	}
	fmt.Println("guest: container to the outside:", ask(outside))
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	fmt.Println("guest: serves")
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(conn, "the container's page")
	return errors.Join(err, conn.Close())
}

func ask(address string) string {
	c, err := net.DialTimeout("tcp", address, 20*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return fmt.Sprint(string(b), " ", err)
}

func loadModules() error {
	files, err := filepath.Glob("/m/*.ko")
	if err != nil {
		return err
	}
	for _, name := range files { // their names have their order
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", name, err)
		}
		f.Close()
	}
	return nil
}

func argument(name string) string {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for _, w := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			return v
		}
	}
	return ""
}

func log(format string, args ...any) { fmt.Printf("guest: log: "+format+"\n", args...) }
