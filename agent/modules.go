package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/plinth-os/plinth/agent/config"
	"golang.org/x/sys/unix"
)

// loadModules loads the modules in the order of the configuration, which puts
// what a module depends on before it. One image serves several kinds of machines:
// a module that finds nothing to drive is left out, with those that need it.
func loadModules(_ context.Context, s *State) error {
	absent := false // a module was left out
	for _, m := range s.Config.Modules {
		out, err := s.loadModule(m, absent)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Path, err)
		}
		absent = absent || out
	}
	return nil
}

// loadModule loads one. It tells whether the module was left out: the machine lacks
// what it drives or, where absent says that another one was left out, it asks for
// symbols that are not there.
func (s *State) loadModule(m config.Module, absent bool) (out bool, err error) {
	f, err := os.Open(s.path(m.Path))
	if err != nil {
		return false, err
	}
	defer f.Close() // read only
	err = s.machine.loadModule(f, m.Params)
	switch {
	case errors.Is(err, unix.EEXIST): // built in, or loaded by the kernel itself
		return false, nil
	case errors.Is(err, unix.ENODEV), absent && errors.Is(err, unix.ENOENT):
		s.logf("%s: left out: %v", m.Path, err)
		return true, nil
	}
	return false, err
}

// locks close doors of the kernel that nobody uses after the boot. One that a
// kernel does not have needs no closing.
var locks = []struct{ file, value, why string }{
	{"/proc/sys/kernel/modules_disabled", "1", "the agent has loaded what is needed"},
	{"/proc/sys/kernel/kexec_load_disabled", "1", "another kernel would run in the name of this one"},
	{"/proc/sys/kernel/sysrq", "0", "the host presses keys"},
	{"/proc/sys/kernel/ctrl-alt-del", "0", "the same: PID 1 gets a signal instead of a reset"},
	{"/proc/sys/kernel/core_pattern", "|/bin/false", "memory of a program that crashed would be written somewhere; core(5), \"Piping core dumps to a program\""},
	{"/proc/sys/kernel/kptr_restrict", "2", "addresses of the kernel help whoever attacks it"},
	{"/proc/sys/kernel/dmesg_restrict", "1", "the same"},
	{"/proc/sys/kernel/unprivileged_bpf_disabled", "1", "containers load no programs into the kernel"},
	{"/proc/sys/kernel/perf_event_paranoid", "3", "nor watch it; Debian knows 3, other kernels take it for 2"},
}

// lockKernel applies locks, except in a debug build.
func lockKernel(_ context.Context, s *State) error {
	if s.debug() {
		return nil
	}
	for _, l := range locks {
		err := s.writeSetting(l.file, l.value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeSetting writes to a file of the kernel's and does not try to create it,
// which /proc answers with another error than "does not exist".
func (s *State) writeSetting(name, value string) error {
	f, err := os.OpenFile(s.path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
