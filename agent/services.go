package agent

import (
	"context"
	"os"

	"github.com/plinth-os/plinth/agent/config"
)

// baseEnv is what a service finds beside what the configuration gives it. The
// agent's own environment is not inherited: the kernel fills it from unknown
// words of its command line.
var baseEnv = map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/"}

// startServices starts the user's programs. One that does not run is in the
// report, and on the console of a debug build; the others run all the same.
func startServices(_ context.Context, s *State) error {
	for _, c := range s.Config.Services {
		s.processes.start(&process{name: c.Name, service: true, after: c.After, retry: c.Retry, restart: c.Restart, argv: c.Exec, env: environment(c)})
	}
	return nil
}

// environment returns the variables of a service, sorted.
func environment(c config.Service) []string {
	vars := map[string]string{}
	for k, v := range baseEnv {
		vars[k] = v
	}
	for k, v := range c.Env {
		vars[k] = v
	}
	var out []string
	for _, k := range sortedKeys(vars) {
		out = append(out, k+"="+vars[k])
	}
	return out
}

// startShell gives the console of a debug build a shell.
func startShell(_ context.Context, s *State) error {
	if s.Config.Shell == "" {
		return nil
	}
	env := environment(config.Service{Env: map[string]string{"TERM": "linux"}})
	s.processes.start(&process{name: "shell", terminal: true, restart: true, argv: []string{s.Config.Shell}, env: env})
	return nil
}

// there tells whether the guest has a path by now.
func (s *State) there(name string) bool {
	_, err := os.Stat(s.path(name))
	return err == nil
}
