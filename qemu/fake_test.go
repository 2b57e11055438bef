package qemu

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeVariable makes this test binary behave like QEMU or swtpm. For QEMU it
// holds a behaviour, or two for KVM and TCG: "silent/ok".
const fakeVariable = "PLINTH_TEST_FAKE"

func TestMain(m *testing.M) {
	behaviour, set := os.LookupEnv(fakeVariable)
	switch {
	case !set || len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "-test."):
		os.Exit(m.Run())
	case len(os.Args) > 1 && os.Args[1] == "socket":
		fakeSWTPM(behaviour)
	default:
		fakeQEMU(behaviour)
	}
}

// A fake is the far side of the sockets of Args.
type fake struct {
	behaviour            string
	qmp, console, report net.Conn
}

type request struct {
	Execute string
	ID      uint64
}

func fakeQEMU(behaviour string) {
	if kvm, tcg, two := strings.Cut(behaviour, "/"); two {
		behaviour = tcg
		if slices.Contains(os.Args, "kvm") {
			behaviour = kvm
		}
	}
	if slices.Contains(os.Args, "-version") {
		if behaviour == "no sandbox" && slices.Contains(os.Args, "-sandbox") {
			os.Exit(1)
		}
		fmt.Println("QEMU emulator version 9.8.7 (fake)")
		os.Exit(0)
	}
	f := &fake{behaviour: behaviour, qmp: inherited("qmp"), console: inherited("console"), report: inherited("report")}
	f.run()
}

func inherited(id string) net.Conn {
	pattern := regexp.MustCompile("^socket,id=" + id + ",fd=([0-9]+)$")
	for _, arg := range os.Args {
		if match := pattern.FindStringSubmatch(arg); match != nil {
			fd, _ := strconv.Atoi(match[1])
			conn, err := net.FileConn(os.NewFile(uintptr(fd), id))
			if err != nil {
				die("%s: %v", id, err)
			}
			return conn
		}
	}
	return nil
}

func die(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

func (f *fake) run() {
	switch f.behaviour {
	case "exit":
		die("fake: cannot open the disk")
	case "hang":
		time.Sleep(time.Hour)
	case "endless greeting":
		for {
			io.WriteString(f.qmp, strings.Repeat(" ", 4096))
		}
	case "garbage greeting":
		f.send(`HTTP/1.1 400 Bad Request`)
	}
	f.send(`{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}`)
	lines := bufio.NewScanner(f.qmp)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			die("%v", err)
		}
		f.answer(r)
	}
	switch f.behaviour {
	case "outlives", "garbage", "unasked": // its end must not come before what is wrong with it
		time.Sleep(time.Hour)
	}
	os.Exit(0)
}

func (f *fake) send(format string, args ...any) {
	fmt.Fprintf(f.qmp, format+"\n", args...)
}

func (f *fake) answer(r request) {
	result := "{}"
	switch {
	case f.behaviour == "deaf", f.behaviour == "stubborn" && r.Execute == "quit":
		return
	case f.behaviour == "refuses cont" && r.Execute == "cont":
		f.send(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, r.ID)
		return
	case f.behaviour == "dies at cont" && r.Execute == "cont":
		die("fake: assertion failed")
	case r.Execute == "query-status":
		result = `{"status": "running"}`
		if strings.Contains(f.behaviour, "internal error") {
			result = `{"status": "internal-error"}`
		}
	}
	f.send(`{"return": %s, "id": %d}`, result, r.ID)
	switch r.Execute {
	case "cont":
		go f.guest()
	case "system_powerdown":
		f.shutdown("guest-shutdown")
	case "quit":
		f.shutdown("host-qmp-quit")
	}
}

func (f *fake) shutdown(reason string) {
	f.send(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "%s"}}`, reason)
	os.Exit(0)
}

// guest is what happens once the guest runs.
func (f *fake) guest() {
	const half = "\x00\x00\x00\x64{\"half\":"
	if !strings.HasPrefix(f.behaviour, "silent") {
		io.WriteString(f.console, "\x1b[2Jfirst line\r\n\x1b]0;title\x07last \x1b[31mline\x1b[0m\r\n")
	}
	switch f.behaviour {
	case "silent", "tpm: dies later":
	case "silent internal error", "internal error":
		f.send(`{"event": "STOP"}`)
	case "powers off":
		f.shutdown("guest-shutdown")
	case "resets":
		f.shutdown("guest-reset")
	case "lingers":
		f.send(`{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}`)
	case "panics":
		f.send(`{"event": "GUEST_PANICKED", "data": {"action": "pause"}}`)
	case "crashes":
		die("fake: crashed")
	case "garbage":
		f.send(`]`)
	case "unasked":
		for range 20 {
			f.send(`{"return": {}}`)
		}
	case "half a report":
		io.WriteString(f.report, half)
		f.shutdown("guest-shutdown")
	case "stalls":
		io.WriteString(f.report, half)
	case "endless report":
		f.report.Write([]byte{0xff, 0xff, 0xff, 0xff})
	case "slow report":
		for _, b := range []byte("\x00\x00\x00\x02{}") {
			f.report.Write([]byte{b})
			time.Sleep(20 * time.Millisecond)
		}
	case "reports and powers off":
		io.WriteString(f.report, "\x00\x00\x00\x02{}")
		f.shutdown("guest-shutdown")
	case "echo":
		io.Copy(f.console, f.console)
	default:
		io.WriteString(f.report, "\x00\x00\x00\x02{}more")
	}
}

// fakeSWTPM answers as swtpm does, as far as behaviour lets it.
func fakeSWTPM(behaviour string) {
	switch behaviour {
	case "tpm: exit":
		die("fake: no such state")
	case "tpm: hang":
		time.Sleep(time.Hour)
	}
	c, err := net.FileConn(os.NewFile(3, "control"))
	if err != nil {
		die("%v", err)
	}
	ctrl := c.(*net.UnixConn)
	for asked := 0; ; {
		buf, rights := make([]byte, 64), make([]byte, 64)
		n, oobn, _, _, err := ctrl.ReadMsgUnix(buf, rights)
		if err != nil || n < 4 {
			time.Sleep(time.Hour) // as swtpm does, it waits for another client
		}
		switch binary.BigEndian.Uint32(buf) {
		case ctrlGetCapability:
			ctrl.Write(make([]byte, 8))
			if asked++; asked == 2 && behaviour == "tpm: dies later" {
				time.Sleep(100 * time.Millisecond)
				die("fake: died later")
			}
		case ctrlSetDataFD:
			go fakeTPM(behaviour, received(rights[:oobn]))
			ctrl.Write(make([]byte, 4))
		default:
			result := make([]byte, 4)
			if behaviour == "tpm: refuses" {
				result[3] = 9
			}
			ctrl.Write(result)
		}
	}
}

func fakeTPM(behaviour string, data net.Conn) {
	buf := make([]byte, 4096)
	for {
		if _, err := data.Read(buf); err != nil {
			return
		}
		code := binary.BigEndian.Uint32(buf[6:])
		switch {
		case behaviour == "tpm: error" && code == 0x12b:
			data.Write(be(uint16(0x8001), uint32(10), uint32(0x123)))
		case code == 0x12b:
			data.Write(be(uint16(0x8002), uint32(15), uint32(0), uint32(1), behaviour != "tpm: no allocation"))
		case behaviour == "tpm: endless":
			data.Write(be(uint16(0x8001), uint32(0xffffffff), uint32(0)))
		case behaviour == "tpm: dies":
			die("fake: died")
		default:
			data.Write(be(uint16(0x8001), uint32(10), uint32(0)))
		}
	}
}

// received is the socket in a control message's rights.
func received(rights []byte) net.Conn {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		die("no rights: %v", err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		die("no descriptor: %v", err)
	}
	conn, err := net.FileConn(os.NewFile(uintptr(fds[0]), "data"))
	if err != nil {
		die("%v", err)
	}
	return conn
}
