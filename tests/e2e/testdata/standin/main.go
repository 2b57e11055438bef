// Command standin takes the place of a program of Kata Containers or of a pod VM: it
// says how it was called, and makes the file or socket that the next one waits for.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const portName = "org.plinth.test"

// A call is what a program sees.
type call struct {
	Name string   // of the program's file
	Args []string // the name that it was called by included
	PID  int
	Env  string // OCICRYPT_KEYPROVIDER_CONFIG
	Net  string // network namespace
	Lo   bool   // the loopback device of it is up
	Addr string // that DHCP brought, for process-user-data at its second attempt
}

// sockets are those that a program opens.
var sockets = map[string]string{
	"attestation-agent":     "/run/confidential-containers/attestation-agent/attestation-agent.sock",
	"confidential-data-hub": "/run/confidential-containers/cdh.sock",
	"kata-agent":            "/run/kata-containers/agent.sock",
}

func main() {
	file, err := os.Executable()
	if err != nil { // nothing is mounted
		file = os.Args[0]
	}
	c := call{Name: filepath.Base(file), Args: os.Args, PID: os.Getpid(), Env: os.Getenv("OCICRYPT_KEYPROVIDER_CONFIG")}
	if c.PID == 1 {
		kataInit(c)
	}
	c.Net, _ = os.Readlink("/proc/self/ns/net")
	c.Lo = loopback()
	if _, err := os.Stat(tried); err == nil && c.Name == "process-user-data" {
		c.Addr = address()
	}
	err = say(c)
	switch {
	case err != nil:
	case c.Name == "process-user-data":
		err = userData()
	default:
		err = serve(sockets[c.Name])
	}
	fmt.Fprintln(os.Stderr, "standin:", err)
	if err != nil {
		os.Exit(1)
	}
}

// loopback tells whether the loopback device is up.
func loopback() bool {
	lo, err := net.InterfaceByName("lo")
	return err == nil && lo.Flags&net.FlagUp != 0
}

// address waits for an IPv4 address beside that of the loopback device.
func address() string {
	for range 300 {
		addrs, _ := net.InterfaceAddrs() // none yet, if it fails
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
				return ip.String()
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return "none"
}

// say writes a line to the port, which one program at a time can open.
func say(c call) error {
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return err
		}
		for _, name := range names {
			if b, _ := os.ReadFile(name); strings.TrimSpace(string(b)) != portName {
				continue
			}
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_WRONLY, 0)
			if err != nil && !errors.Is(err, unix.EBUSY) {
				return err
			}
			if err == nil {
				_, err = f.Write(append(line, '\n'))
				return errors.Join(err, f.Close())
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("no port " + portName)
}

// tried is made by the first attempt at the user data.
const tried = "/run/tried"

// userData fails the first time, as when the network is not there yet.
func userData() error {
	if _, err := os.Stat(tried); err != nil {
		return errors.Join(os.WriteFile(tried, nil, 0o644), errors.New("not yet"))
	}
	return os.WriteFile("/run/peerpod/aa.toml", nil, 0o644)
}

// serve goes on for ever, with a socket if the program has one.
func serve(socket string) error {
	if socket != "" {
		if _, err := net.Listen("unix", socket); err != nil {
			return err
		}
	}
	for {
		time.Sleep(time.Hour)
	}
}

// kataInit is kata-agent as the first program of a guest: it says so on the console
// that the kernel gave it, and that the root cannot be written to.
func kataInit(c call) {
	line, err := json.Marshal(c)
	fmt.Printf("standin: %s %v\n", line, err)
	fmt.Printf("standin: write: %v\n", os.WriteFile("/written", nil, 0o644))
	for {
		time.Sleep(time.Hour)
	}
}
