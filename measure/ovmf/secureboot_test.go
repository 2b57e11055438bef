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
	"slices"
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
	const text = 0x600 // behind the setup header of kernelApplication
	b := make([]byte, text+0x200)
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
	le.PutUint32(opt[60:], text)   // headers
	le.PutUint16(opt[68:], 10)     // EFI application
	le.PutUint32(opt[108:], 16)    // data directories
	sec := opt[0xf0:]
	copy(sec, ".text")
	le.PutUint32(sec[8:], 0x200)
	le.PutUint32(sec[12:], 0x1000)
	le.PutUint32(sec[16:], 0x200)
	le.PutUint32(sec[20:], text)
	le.PutUint32(sec[36:], 0x60000020)
	copy(b[text:], code)
	return b
}

// kernelApplication is application with the setup header that QEMU wants of a
// kernel: Linux, Documentation/arch/x86/boot.rst.
func kernelApplication() []byte {
	b := application()
	b[0x1f1] = 1 // sector of setup behind the first
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1                        // loaded high
	le.PutUint32(b[0x22c:], 0x7fffffff) // highest address of an initrd
	le.PutUint32(b[0x238:], 0x7ff)      // longest command line
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

// The packaged TDX build enforces the keys in it, outside TDX as well, and in setup
// mode it does not; with keys of one's own it starts what they signed. It comes up
// from flash and from -bios, which is how a trust domain gets it.
func TestCombinedFirmwareBoots(t *testing.T) {
	testenv.Need(t, "qemu-system-x86_64", "openssl", "osslsigncode")
	firmwares := named(t, "OVMF.inteltdx.ms.fd")
	if len(firmwares) == 0 {
		testenv.Missing(t, "ovmf-inteltdx", "no OVMF.inteltdx.ms.fd in PLINTH_OVMF")
	}
	for _, b := range firmwares {
		dir := t.TempDir()
		keys := makeKeys(t, dir)
		setup, err := SetupMode(b)
		if err != nil {
			t.Fatal(err)
		}
		enrolled, err := Enroll(b, keys)
		if err != nil {
			t.Fatal(err)
		}
		unsigned, signed := filepath.Join(dir, "unsigned.efi"), filepath.Join(dir, "signed.efi")
		if err := os.WriteFile(unsigned, application(), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "osslsigncode", "sign", "-certs", filepath.Join(dir, "db.pem"), "-key", filepath.Join(dir, "db.key"), "-h", "sha256", "-in", unsigned, "-out", signed)
		for _, tt := range []struct {
			name     string
			firmware []byte
			image    string
			starts   bool
		}{
			{"as packaged", b, unsigned, false},
			{"setup mode", setup, unsigned, true},
			{"own keys", enrolled, unsigned, false},
			{"signed with own keys", enrolled, signed, true},
		} {
			for how, args := range map[string][]string{
				"flash": {"-drive", "if=pflash,format=raw,unit=0,file=FILE"},
				"bios":  {"-bios", "FILE"},
			} {
				t.Run(tt.name+" by "+how, func(t *testing.T) { combinedBoots(t, tt.firmware, tt.image, tt.starts, args) })
			}
		}
	}
}

func combinedBoots(t *testing.T, firmware []byte, image string, starts bool, args []string) {
	dir := t.TempDir()
	fd := filepath.Join(dir, "firmware.fd")
	if err := os.WriteFile(fd, firmware, 0o600); err != nil {
		t.Fatal(err)
	}
	efi, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	last := strings.Replace(args[len(args)-1], "FILE", fd, 1)
	code, console := machine(t, "Access Denied", append(disk(t, dir, efi), args[0], last)...)
	if started := code == exitCode; started != starts || !starts && !strings.Contains(console, "Access Denied") {
		t.Errorf("started %v, want %v; console:\n%s", started, starts, console)
	}
}

// A build whose loader compares what -kernel passes with the SEV hash table takes
// nothing where there is no table; one that does not starts it.
func TestHashesAreCompared(t *testing.T) {
	testenv.Need(t, "qemu-system-x86_64")
	firmwares := named(t, "OVMF.amdsev.fd", "OVMF.fd")
	if len(firmwares) == 0 {
		testenv.Missing(t, "ovmf", "no OVMF.amdsev.fd or OVMF.fd")
	}
	for path, b := range firmwares {
		t.Run(path, func(t *testing.T) {
			f, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			kernel := filepath.Join(t.TempDir(), "kernel")
			if err := os.WriteFile(kernel, kernelApplication(), 0o600); err != nil {
				t.Fatal(err)
			}
			code, console := machine(t, "No bootable option", "-bios", path, "-kernel", kernel)
			if started := code == exitCode; started == f.ChecksHashes {
				t.Errorf("started %v, compares hashes %v; console:\n%s", started, f.ChecksHashes, console)
			}
		})
	}
}

// named returns the real firmware files of these names, by path; one of each
// content.
func named(t *testing.T, names ...string) map[string][]byte {
	t.Helper()
	files, seen := map[string][]byte{}, map[string]bool{}
	for path, b := range firmware(t) {
		if slices.Contains(names, filepath.Base(path)) && !seen[sum(b)] {
			files[path], seen[sum(b)] = b, true
		}
	}
	return files
}

// boot runs image from a disk until it ends the machine or firmware refuses it.
func boot(t *testing.T, code string, vars []byte, image string) (exit int, console string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vars.fd"), vars, 0o600); err != nil {
		t.Fatal(err)
	}
	efi, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	args := append(disk(t, dir, efi), "-machine", "smm=on",
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+code,
		"-drive", "if=pflash,format=raw,unit=1,file="+filepath.Join(dir, "vars.fd"))
	return machine(t, "Access Denied", args...)
}

// disk puts an image where firmware looks for it, below dir, and returns the
// arguments that make that a disk.
func disk(t *testing.T, dir string, image []byte) []string {
	t.Helper()
	esp := filepath.Join(dir, "esp", "EFI", "BOOT")
	if err := os.MkdirAll(esp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(esp, "BOOTX64.EFI"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "if=none,id=d,format=raw,readonly=on,file=fat:" + filepath.Join(dir, "esp"), "-device", "virtio-blk-pci,drive=d"}
}

// machine runs QEMU until the guest ends it or its console says until.
func machine(t *testing.T, until string, args ...string) (exit int, console string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := &watcher{until: until, found: cancel}
	cmd := exec.CommandContext(ctx, testenv.Tool("qemu-system-x86_64"), append([]string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-net", "none", "-display", "none", "-no-reboot",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-serial", "stdio",
	}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
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
