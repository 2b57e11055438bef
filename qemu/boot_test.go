package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// hostMachine boots to the prompt of an installed OVMF.
func hostMachine(t *testing.T) Machine {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a firmware")
	}
	if os.Getenv("PLINTH_QEMU") == "" {
		testenv.Need(t, "qemu-system-x86_64")
	}
	code, vars := firmwarePair(installedFirmware())
	if code == "" {
		testenv.Missing(t, "ovmf", "not installed")
	}
	return Machine{Firmware: code, Vars: vars, MemoryMiB: 256, ReportPort: "org.plinth.report"}
}

// TestBoot boots the firmware as far as its own console output, with a TPM and
// with a disk whose name is hard on an option parser.
func TestBoot(t *testing.T) {
	m := hostMachine(t)
	if os.Getenv("PLINTH_SWTPM") == "" {
		testenv.Need(t, "swtpm")
	}
	m.TPM = true
	m.Disk = filepath.Join(t.TempDir(), "a,b:c,,=.raw")
	if err := os.WriteFile(m.Disk, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, accel := range []string{"tcg", "auto"} {
		t.Run(accel, func(t *testing.T) {
			leavesNothing(t)
			start := time.Now()
			v, err := Start(t.Context(), m, Options{Accel: accel, Logf: t.Logf})
			if err != nil {
				t.Fatal(err)
			}
			defer closeVM(t, v)
			t.Logf("QEMU %s runs under %s after %v", v.Version(), v.Accel(), time.Since(start))
			awaitFirmware(t, v)
			t.Logf("firmware is up after %v", time.Since(start))
			if status, err := v.Status(t.Context()); status != "running" || err != nil {
				t.Errorf("status: got %q, %v, want running", status, err)
			}
			short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			var noReport *NoReportError
			if _, err := v.Report(short); !errors.As(err, &noReport) || noReport.State != "running" || len(noReport.Console) == 0 {
				t.Errorf("report: got %v, want none while running", err)
			}
			if got := activeBanks(t, v); got != "0004 000b 000c" {
				t.Errorf("active PCR banks after the firmware: got %s, want sha1, sha256, sha384", got)
			}
		})
	}
}

// awaitFirmware waits until the boot manager has said something.
func awaitFirmware(t *testing.T, v *VM) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(v.ConsoleTail(), "BdsDxe"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the firmware does not come up; console: %q", lastLines(v.ConsoleTail(), 10))
		}
	}
}

// activeBanks asks a second swtpm on a copy of v's TPM state. If the firmware
// had allocated other banks, that would be there.
func activeBanks(t *testing.T, v *VM) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(v.current().dir.file("tpm"))); err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	os.Remove(filepath.Join(dir, ".lock"))
	c, err := startChild(v.tools.swtpm, []string{"socket", "--tpm2", "--fd", "3", "--tpmstate", "dir=" + dir,
		"--flags", "not-need-init,startup-clear"}, theirs)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.kill()
	ours.SetDeadline(time.Now().Add(10 * time.Second))
	return readBanks(t, ours)
}

// readBanks asks for TPM_CAP_PCRS (Part 2, 6.12) and names the banks that
// have registers.
func readBanks(t *testing.T, tpm net.Conn) string {
	t.Helper()
	const getCapability, capPCRs = 0x17a, 5
	answer, err := tpmCommand(tpm, 0x8001, getCapability, be(uint32(capPCRs), uint32(0), uint32(16)))
	if err != nil {
		t.Fatal(err)
	}
	// u8 more, u32 capability, u32 count, then {u16 alg, u8 3, [3]u8 registers}
	var active []string
	count := binary.BigEndian.Uint32(answer[5:])
	for i := range int(count) {
		selection := answer[9+6*i:][:6]
		if selection[3]|selection[4]|selection[5] != 0 {
			active = append(active, hex4(binary.BigEndian.Uint16(selection)))
		}
	}
	return strings.Join(active, " ")
}

func hex4(v uint16) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[v>>12], digits[v>>8&15], digits[v>>4&15], digits[v&15]})
}

func TestProbe(t *testing.T) {
	if testing.Short() {
		t.Skip("may boot a firmware")
	}
	leavesNothing(t)
	start := time.Now()
	h := Probe(t.Context())
	t.Logf("%+v after %v", h, time.Since(start))
	if h.KVM.Usable != (h.KVM.Problem == "") {
		t.Errorf("KVM: %+v", h.KVM)
	}
	for _, p := range []Program{h.QEMU, h.SWTPM} {
		if (p.Version == "") != (p.Problem != "") {
			t.Errorf("program: %+v", p)
		}
	}
}

func TestProbeWithoutTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("PLINTH_QEMU", "")
	t.Setenv("PLINTH_SWTPM", "/nonexistent")
	h := Probe(t.Context())
	if !strings.Contains(h.QEMU.Problem, "qemu-system-x86") || !strings.Contains(h.SWTPM.Problem, "PLINTH_SWTPM") || h.KVM.Usable {
		t.Errorf("got %+v", h)
	}
}
