package ovmf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// exitCode is what QEMU exits with when the application in the guest has run: it
// writes 0x2a to the debug port, QEMU makes 2x+1 of it.
const exitCode = 0x2a<<1 | 1

// application is an EFI application that ends the machine.
func application() []byte {
	code := []byte{
		0x66, 0xba, 0xf4, 0x00, // mov dx, 0xf4
		0xb0, 0x2a, // mov al, 0x2a
		0xee,       // out dx, al
		0xeb, 0xfe, // jmp $
	}
	b := make([]byte, 0x400)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	coff := b[0x44:]
	le.PutUint16(coff[0:], 0x8664)
	le.PutUint16(coff[2:], 1) // section
	le.PutUint16(coff[16:], 0xf0)
	le.PutUint16(coff[18:], 0x22) // executable, large addresses
	opt := coff[20:]
	le.PutUint16(opt[0:], 0x20b)
	le.PutUint32(opt[4:], 0x200)   // code
	le.PutUint32(opt[16:], 0x1000) // entry point
	le.PutUint32(opt[20:], 0x1000) // base of code
	le.PutUint32(opt[32:], 0x1000) // section alignment
	le.PutUint32(opt[36:], 0x200)  // file alignment
	le.PutUint32(opt[56:], 0x2000) // image
	le.PutUint32(opt[60:], 0x200)  // headers
	le.PutUint16(opt[68:], 10)     // EFI application
	le.PutUint32(opt[108:], 16)    // data directories
	sec := opt[0xf0:]
	copy(sec, ".text")
	le.PutUint32(sec[8:], 0x200)
	le.PutUint32(sec[12:], 0x1000)
	le.PutUint32(sec[16:], 0x200)
	le.PutUint32(sec[20:], 0x200)
	le.PutUint32(sec[36:], 0x60000020)
	copy(b[0x200:], code)
	return b
}

// With enrolled keys real firmware starts an image that the key in db signed and
// no other. Both boots of a release must come out right: firmware that starts
// everything, or nothing, fails one of them.
func TestSecureBootWithEnrolledKeys(t *testing.T) {
	testenv.Need(t, "qemu-system-x86_64", "openssl", "osslsigncode")
	dir := t.TempDir()
	var keys Keys
	releases := 0
	for path := range firmware(t) {
		vars := filepath.Join(filepath.Dir(path), "OVMF_VARS_4M.fd")
		blank, err := os.ReadFile(vars)
		if filepath.Base(path) != "OVMF_CODE_4M.secboot.fd" || err != nil {
			continue
		}
		if releases++; releases == 1 {
			keys = makeKeys(t, dir)
		}
		t.Run(filepath.Dir(path), func(t *testing.T) {
			enrolled, err := Enroll(blank, keys)
			if err != nil {
				t.Fatal(err)
			}
			unsigned, signed := filepath.Join(dir, "unsigned.efi"), filepath.Join(dir, fmt.Sprintf("signed%d.efi", releases))
			if err := os.WriteFile(unsigned, application(), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "osslsigncode", "sign", "-certs", filepath.Join(dir, "db.pem"), "-key", filepath.Join(dir, "db.key"), "-h", "sha256", "-in", unsigned, "-out", signed)
			if code, console := boot(t, path, enrolled, signed); code != exitCode {
				t.Errorf("signed: exit code %d, want %d; console:\n%s", code, exitCode, console)
			}
			if code, console := boot(t, path, enrolled, unsigned); code == exitCode || !strings.Contains(console, "Access Denied") {
				t.Errorf("unsigned: exit code %d; console:\n%s", code, console)
			}
			if code, console := boot(t, path, blank, unsigned); code != exitCode {
				t.Errorf("unsigned without keys: exit code %d, want %d; console:\n%s", code, exitCode, console)
			}
		})
	}
	if releases == 0 {
		testenv.Missing(t, "ovmf", "no OVMF_CODE_4M.secboot.fd")
	}
}

// boot runs image from a disk until it ends the machine or firmware refuses it.
func boot(t *testing.T, code string, vars []byte, image string) (exit int, console string) {
	t.Helper()
	dir := t.TempDir()
	esp := filepath.Join(dir, "esp", "EFI", "BOOT")
	efi, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(esp, 0o700),
		os.WriteFile(filepath.Join(esp, "BOOTX64.EFI"), efi, 0o600),
		os.WriteFile(filepath.Join(dir, "vars.fd"), vars, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := &watcher{until: "Access Denied", found: cancel}
	cmd := exec.CommandContext(ctx, testenv.Tool("qemu-system-x86_64"),
		"-machine", "q35,smm=on", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-net", "none", "-display", "none", "-no-reboot",
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+code,
		"-drive", "if=pflash,format=raw,unit=1,file="+filepath.Join(dir, "vars.fd"),
		"-drive", "if=none,id=d,format=raw,readonly=on,file=fat:"+filepath.Join(dir, "esp"), "-device", "virtio-blk-pci,drive=d",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-serial", "stdio")
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.console.String()
}

// watcher collects a console and calls found once it says until.
type watcher struct {
	console bytes.Buffer // not embedded: its ReadFrom would go around Write
	until   string
	found   func()
}

func (w *watcher) Write(p []byte) (int, error) {
	n, err := w.console.Write(p)
	if strings.Contains(w.console.String(), w.until) {
		w.found()
	}
	return n, err
}
