package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"golang.org/x/sys/unix"
)

// TestBoot runs every stage, up to the report that a host reads.
func TestBoot(t *testing.T) {
	s, m := newGuest(t, config.Config{
		Cmdline: "quiet",
		Modules: []config.Module{{Path: "/m/b.ko", Params: "x=1"}, {Path: "/m/a.ko"}},
		Phases:  config.Phases,
	})
	write(t, s, "m/a.ko", "")
	write(t, s, "m/b.ko", "")
	write(t, s, "sys/kernel/security/tpm0/binary_bios_measurements", "the log")
	mkdir(t, s, "sys/fs/cgroup")
	port := addPort(t, s, "vport2p1", config.ReportPort)
	s.Config = nil
	if err := s.boot(t.Context(), stages); err != nil {
		t.Fatal(err)
	}
	r, err := evidence.ReadReport(port)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(r.EventLog); got != "the log" || r.Kernel != "6.12.0-test" || r.Cmdline != "quiet" || r.Root != "initrd" {
		t.Errorf("got %+v", r)
	}
	if want := []string{"sha1", "sha256"}; !slices.Equal(r.Banks, want) {
		t.Errorf("banks are %q, want %q", r.Banks, want)
	}
	if want := []string{"b.ko x=1", "a.ko"}; !slices.Equal(m.loaded, want) {
		t.Errorf("loaded %q, want %q", m.loaded, want)
	}
	if want := []string{"proc", "sysfs", "devtmpfs", "tmpfs", "tmpfs", "securityfs", "cgroup2"}; !slices.Equal(m.mounted, want) {
		t.Errorf("mounted %q, want %q", m.mounted, want)
	}
	var phases []string
	for _, e := range r.Extends {
		phases = append(phases, e.What)
	}
	if !slices.Equal(phases, config.Phases) {
		t.Errorf("extended %q, want %q", phases, config.Phases)
	}
	for bank, before := range r.Before {
		for n, v := range before {
			if changed := r.After[bank][n] != v; changed != (n == phasePCR) {
				t.Errorf("%s PCR %d: before %s, after %s", bank, n, v, r.After[bank][n])
			}
		}
	}
	checkStages(t, r.Stages)
}

// checkStages compares what was reported with the table. The report's own end
// cannot be in it.
func checkStages(t *testing.T, got []evidence.Stage) {
	t.Helper()
	want := []string{"kernel"}
	for _, st := range stages[:len(stages)-1] {
		want = append(want, st.name)
	}
	last := int64(0)
	var names []string
	for _, st := range got {
		names = append(names, st.Name)
		if st.MS < last {
			t.Errorf("%s ended at %d ms, before the stage before it", st.Name, st.MS)
		}
		last = st.MS
	}
	if !slices.Equal(names, want) {
		t.Errorf("stages are %q, want %q", names, want)
	}
}

// What is found wrong stops the boot before anything acts on it: see the table.
func TestOrder(t *testing.T) {
	at := func(name string) int {
		return slices.IndexFunc(stages, func(st stage) bool { return st.name == name })
	}
	order := []string{"mounts", "configuration", "cmdline", "bootconfig", "extra", "modules", "tpm", "registers",
		config.EnterInitrd, config.LeaveInitrd, "loopback", config.SysInit, "services", config.Ready, "report"}
	for i, name := range order {
		if at(name) < 0 || i > 0 && at(name) <= at(order[i-1]) {
			t.Errorf("%s is stage %d", name, at(name))
		}
	}
}

func TestBootStops(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(t *testing.T, s *State, m *fakeMachine)
	}{
		{"mount", "mounts: sysfs on /sys: operation not permitted", func(_ *testing.T, _ *State, m *fakeMachine) {
			m.mountErr = map[string]error{"sysfs": unix.EPERM}
		}},
		{"configuration", "configuration: config: invalid character", func(t *testing.T, s *State, _ *fakeMachine) { write(t, s, config.Path, "x") }},
		{"no configuration", "configuration: open", func(t *testing.T, s *State, _ *fakeMachine) { _ = os.Remove(s.path(config.Path)) }},
		{"command line", "cmdline: got", func(t *testing.T, s *State, _ *fakeMachine) { write(t, s, "proc/cmdline", "rescue\n") }},
		{"bootconfig", "bootconfig: the kernel took", func(t *testing.T, s *State, _ *fakeMachine) { write(t, s, "proc/bootconfig", "x") }},
		{"extra", "extra: /.extra/x", func(t *testing.T, s *State, _ *fakeMachine) { write(t, s, ".extra/x", "") }},
		{"module", "modules: /m.ko: invalid argument", func(_ *testing.T, _ *State, m *fakeMachine) { m.loadErr = unix.EINVAL }},
		{"TPM", "tpm: TPM2_GetCapability", func(_ *testing.T, _ *State, m *fakeMachine) {
			m.tpm.(*fakeTPM).lie = func(uint32, []byte) []byte { return nil }
		}},
		{"registers", "registers: PCR 12 in bank sha256", func(_ *testing.T, _ *State, m *fakeMachine) {
			f := m.tpm.(*fakeTPM)
			f.pcrs[f.banks[1]][12][0] = 1
		}},
		{"extend", "sysinit: PCR 11", func(_ *testing.T, _ *State, m *fakeMachine) {
			n := 0
			m.tpm.(*fakeTPM).lie = func(cc uint32, b []byte) []byte {
				if cc == ccPCRExtend {
					n++
				}
				if n == 3 {
					return nil
				}
				return b
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, m := newGuest(t, config.Config{
				Cmdline: "quiet", Phases: config.Phases,
				Modules:  []config.Module{{Path: "/m.ko"}},
				Services: []config.Service{{Name: "svc", Exec: []string{"/nosuch"}}},
			})
			write(t, s, "m.ko", "")
			s.Config = nil
			tt.spoil(t, s, m)
			wantError(t, s.boot(t.Context(), stages), tt.want)
			if n := len(s.processes.services()); n != 0 {
				t.Errorf("%d services were started", n)
			}
			if s.Extender != nil && tt.name != "extend" && len(s.Extender.Done()) != 0 {
				t.Errorf("extended %v", s.Extender.Done())
			}
		})
	}
}

// A debug build says loudly what is wrong, goes on, and reports it.
func TestDebugGoesOn(t *testing.T) {
	s, m := newGuest(t, config.Config{Cmdline: "quiet", Debug: true, Phases: config.Phases})
	write(t, s, "proc/cmdline", "rescue\n")
	write(t, s, ".extra/x", "")
	f := m.tpm.(*fakeTPM)
	f.pcrs[f.banks[0]][13][0] = 1
	port := addPort(t, s, "vport0p1", config.ReportPort)
	if err := s.boot(t.Context(), stages); err != nil {
		t.Fatal(err)
	}
	text := s.console.(*lockedBuffer).String()
	for _, want := range []string{"WARNING: cmdline: ", "WARNING: extra: ", "WARNING: registers: PCR 13 in bank sha1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the console lacks %q:\n%s", want, text)
		}
	}
	r, err := evidence.ReadReport(port)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cmdline != "rescue" || strings.Trim(r.Before["sha1"][13], "0") != "1" || len(r.Extends) != 4 {
		t.Errorf("got %+v", r)
	}
}

// Not even debug goes on without knowing that it is one.
func TestDebugNeedsConfiguration(t *testing.T) {
	s, _ := newGuest(t, config.Config{Debug: true})
	write(t, s, config.Path, `{"schema":1,"cmdline":"","debug":true,"x":1}`)
	s.Config = nil
	wantError(t, s.boot(t.Context(), stages), "x: unknown key")
}

func TestDebugWithoutTPM(t *testing.T) {
	s, m := newGuest(t, config.Config{Debug: true, Phases: config.Phases})
	m.tpm = nil
	port := addPort(t, s, "vport0p1", config.ReportPort)
	if err := s.boot(short(t), slices.DeleteFunc(slices.Clone(stages), func(st stage) bool { return st.name == "report" })); err != nil {
		t.Fatal(err)
	}
	if err := sendReport(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	r, err := evidence.ReadReport(port)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Banks)+len(r.Before)+len(r.After)+len(r.Extends) != 0 {
		t.Errorf("got registers without a TPM: %+v", r)
	}
}

// A guest that is attested otherwise runs without a TPM, and says so soon.
func TestWithoutTPM(t *testing.T) {
	s, m := newGuest(t, config.Config{Cmdline: "quiet", TPM: config.TPMOptional, Services: []config.Service{{Name: "svc", Exec: []string{"/nosuch"}}}})
	m.tpm = nil
	port := addPort(t, s, "vport0p1", config.ReportPort)
	start := time.Now()
	if err := s.boot(t.Context(), stages); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > tpmWait {
		t.Errorf("the boot took %v", took)
	}
	r, err := evidence.ReadReport(port)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Banks)+len(r.Before)+len(r.After)+len(r.Extends) != 0 || len(r.Services) != 1 {
		t.Errorf("got %+v", r)
	}
}

// One that is there is reported, and checked as any other.
func TestOptionalTPM(t *testing.T) {
	s, _ := newGuest(t, config.Config{TPM: config.TPMOptional})
	port := addPort(t, s, "vport0p1", config.ReportPort)
	if err := s.boot(t.Context(), stages); err != nil {
		t.Fatal(err)
	}
	r, err := evidence.ReadReport(port)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Banks) != 2 || len(r.Before["sha256"]) != evidence.Registers || len(r.After["sha1"]) != evidence.Registers {
		t.Errorf("got %+v", r)
	}
	other, m := newGuest(t, config.Config{TPM: config.TPMOptional})
	f := m.tpm.(*fakeTPM)
	f.pcrs[f.banks[0]][12][0] = 1
	wantError(t, other.boot(t.Context(), stages), "registers: PCR 12 in bank sha1")
}

// Required is what a configuration without the key says, too.
func TestRequiredTPM(t *testing.T) {
	for _, want := range []string{"", config.TPMRequired} {
		s, m := newGuest(t, config.Config{TPM: want})
		m.tpm = nil
		wantError(t, openTPM(short(t), s), "no TPM")
		wantError(t, checkRegisters(t.Context(), s), "no TPM")
	}
}

func TestOptionalMounts(t *testing.T) {
	s, m := newGuest(t, config.Config{})
	wantError(t, mountFileSystems(t.Context(), s), "")
	if slices.Contains(m.mounted, "cgroup2") {
		t.Error("cgroup2 was mounted where sysfs has no place for it")
	}
	mkdir(t, s, "sys/fs/cgroup")
	m.mountErr = map[string]error{"cgroup2": unix.ENODEV}
	wantError(t, mountFileSystems(t.Context(), s), "")
	m.mountErr = map[string]error{"cgroup2": unix.EINVAL}
	wantError(t, mountFileSystems(t.Context(), s), "cgroup2 on /sys/fs/cgroup: invalid argument")
	m.mountErr = map[string]error{"tmpfs": unix.ENODEV}
	wantError(t, mountFileSystems(t.Context(), s), "tmpfs on /run: no such device")
}

// Nothing that the host fills may run programs or hold devices, but for /dev.
func TestMountFlags(t *testing.T) {
	for _, m := range mounts {
		want := uintptr(unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV)
		if m.fstype == "devtmpfs" {
			want &^= unix.MS_NODEV
		}
		if m.flags != want {
			t.Errorf("%s: flags %#x, want %#x", m.target, m.flags, want)
		}
	}
}

func TestModules(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		err        error
	}{
		{"built in", "", unix.EEXIST},
		{"no such hardware", "", unix.ENODEV},
		{"bad signature", "/m.ko: key was rejected", unix.EKEYREJECTED},
		{"unknown symbol", "/m.ko: no such file", unix.ENOENT},
		{"locked down", "/m.ko: operation not permitted", unix.EPERM},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, m := newGuest(t, config.Config{Modules: []config.Module{{Path: "/m.ko"}}})
			write(t, s, "m.ko", "")
			m.loadErr = tt.err
			wantError(t, loadModules(t.Context(), s), tt.want)
		})
	}
	// hv_vmbus on another machine than Hyper-V, and a driver of devices on its bus.
	t.Run("needs what was left out", func(t *testing.T) {
		s, m := newGuest(t, config.Config{Modules: []config.Module{{Path: "/bus.ko"}, {Path: "/disk.ko"}, {Path: "/other.ko"}}})
		for _, name := range []string{"bus.ko", "disk.ko", "other.ko"} {
			write(t, s, name, "")
		}
		m.loadErrs = map[string]error{"bus.ko": unix.ENODEV, "disk.ko": unix.ENOENT}
		wantError(t, loadModules(t.Context(), s), "")
		if got := strings.Join(m.loaded, " "); got != "bus.ko disk.ko other.ko" {
			t.Errorf("loaded %q", got)
		}
		m.loadErrs["bus.ko"] = nil
		wantError(t, loadModules(t.Context(), s), "/disk.ko: no such file")
		m.loadErrs = map[string]error{"bus.ko": unix.ENODEV}
		if err := os.Remove(s.path("/disk.ko")); err != nil {
			t.Fatal(err)
		}
		wantError(t, loadModules(t.Context(), s), "/disk.ko: open ")
	})
	t.Run("no such file", func(t *testing.T) {
		s, m := newGuest(t, config.Config{Modules: []config.Module{{Path: "/m.ko"}}})
		wantError(t, loadModules(t.Context(), s), "no such file")
		if len(m.loaded) != 0 {
			t.Errorf("loaded %q", m.loaded)
		}
	})
}

func TestLockKernel(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	missing := locks[1].file
	if err := os.Remove(s.path(missing)); err != nil {
		t.Fatal(err)
	}
	wantError(t, lockKernel(t.Context(), s), "")
	for _, l := range locks {
		b, err := os.ReadFile(s.path(l.file))
		if l.file == missing {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s was made", missing)
			}
			continue
		}
		if err != nil || !strings.HasPrefix(string(b), l.value) {
			t.Errorf("%s: got %q and %v, want %q", l.file, b, err, l.value)
		}
	}
}

func TestLockKernelFails(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	if err := os.Remove(s.path(locks[0].file)); err != nil {
		t.Fatal(err)
	}
	mkdir(t, s, locks[0].file) // cannot be written
	wantError(t, lockKernel(t.Context(), s), "is a directory")
	s.Config.Debug = true
	wantError(t, lockKernel(t.Context(), s), "")
}

// end runs f in a goroutine that stopping the machine ends, and returns how it
// was stopped.
func end(t *testing.T, m *fakeMachine, f func()) string {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	select {
	case how := <-m.stopped:
		return how
	default:
		return "runs on"
	}
}

func TestFail(t *testing.T) {
	for on, want := range map[string]string{"": "poweroff", config.PowerOff: "poweroff", config.Reboot: "reboot", config.Halt: "halt"} {
		s, m := newGuest(t, config.Config{OnFailure: on})
		if got := end(t, m, func() { s.fail(errors.New("the reason")) }); got != want {
			t.Errorf("on_failure %q: got %s, want %s", on, got, want)
		}
		if text := s.console.(*lockedBuffer).String(); !strings.Contains(text, "FATAL: the reason") {
			t.Errorf("the console says %q", text)
		}
	}
}

// Before there is a configuration the machine is powered off.
func TestFailEarly(t *testing.T) {
	s, m := newGuest(t, config.Config{})
	s.Config = nil
	if got := end(t, m, func() { s.fail(errors.New("x")) }); got != "poweroff" {
		t.Errorf("got %s, want poweroff", got)
	}
}

func TestPanic(t *testing.T) {
	s, m := newGuest(t, config.Config{OnFailure: config.Reboot})
	boom := []stage{{"boom", func(context.Context, *State) error { panic("the reason") }}}
	got := end(t, m, func() {
		defer s.recoverPanic()
		_ = s.boot(t.Context(), boom)
	})
	if got != "reboot" {
		t.Errorf("got %s, want reboot", got)
	}
	text := s.console.(*lockedBuffer).String()
	for _, want := range []string{"FATAL: panic: the reason", "boot_test.go"} {
		if !strings.Contains(text, want) {
			t.Errorf("the console lacks %q:\n%s", want, text)
		}
	}
}

func TestPanicInBackground(t *testing.T) {
	s, m := newGuest(t, config.Config{})
	s.background(func() { panic("the reason") })
	if got := <-m.stopped; got != "poweroff" {
		t.Errorf("got %s, want poweroff", got)
	}
}
