package qemu

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// victimVariable makes TestVictim start a VM, print QEMU's process id and wait
// for its death.
const victimVariable = "PLINTH_TEST_VICTIM"

func TestVictim(t *testing.T) {
	if os.Getenv(victimVariable) == "" {
		t.Skip("TestSIGKILL runs this")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Start(t.Context(), Machine{Binary: self, ReportPort: "org.plinth.report"}, Options{Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("QEMU is %d\n", v.run.qemu.cmd.Process.Pid)
	time.Sleep(time.Hour)
}

// After a SIGKILL of plinth, QEMU dies too and the next run takes away the files.
func TestSIGKILL(t *testing.T) {
	fakeMachine(t, "outlives")
	t.Setenv(victimVariable, "1")
	victim := exec.Command(os.Args[0], "-test.run=^TestVictim$")
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scanErr := fmt.Sscanf(line, "QEMU is %d", &pid); err != nil || scanErr != nil {
		t.Errorf("victim said %q, %v", line, err)
	}
	victim.Process.Kill()
	victim.Wait()
	stat := fmt.Sprintf("/proc/%d/stat", pid)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, state := processStat(stat); strings.Contains("gone Z X", state) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("QEMU has outlived plinth by 5 s")
		}
	}
	pattern := filepath.Join(os.TempDir(), runDirPattern)
	if left, _ := filepath.Glob(pattern); len(left) != 1 {
		t.Fatalf("run directories of the killed process: got %v, want one", left)
	}
	next, err := newRunDir()
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(pattern); len(left) != 1 || left[0] != next.path {
		t.Errorf("run directories: got %v, want only %s", left, next.path)
	}
	if err := next.remove(); err != nil {
		t.Error(err)
	}
}

func TestNoCoreFile(t *testing.T) {
	v, err := Start(t.Context(), fakeMachine(t, "ok"), Options{Accel: "tcg", limits: brief})
	if err != nil {
		t.Fatal(err)
	}
	defer closeVM(t, v)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", v.run.qemu.cmd.Process.Pid))
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("limits: got %v\n%s", err, limits)
	}
}

func TestSweepKeepsWhatIsHeld(t *testing.T) {
	leavesNothing(t)
	first, err := newRunDir()
	if err != nil {
		t.Fatal(err)
	}
	// Not ours to remove: a file, and a link to a directory.
	file, link := filepath.Join(os.TempDir(), "plinth-qemu-file"), filepath.Join(os.TempDir(), "plinth-qemu-link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(first.path, link); err != nil {
		t.Fatal(err)
	}
	second, err := newRunDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{first.path, second.path, file, link} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	os.Remove(file)
	os.Remove(link)
	for _, d := range []*runDir{first, second} {
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
}
