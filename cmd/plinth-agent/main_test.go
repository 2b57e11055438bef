package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("PLINTH_TEST_AGENT") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Outside of a guest the agent does nothing.
func TestNotPID1(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		want   string
		status int
	}{
		{nil, "plinth-agent: this is PID 1 of a guest", 2},
		{[]string{"--help"}, "plinth-agent: this is PID 1 of a guest", 2},
		{[]string{"--version", "x"}, "plinth-agent: this is PID 1 of a guest", 2},
		{[]string{"--version"}, "plinth-agent ", 0},
	} {
		cmd := exec.Command("/proc/self/exe", tt.args...)
		cmd.Env = append(os.Environ(), "PLINTH_TEST_AGENT=1")
		out, _ := cmd.CombinedOutput() // the status says it
		if got := cmd.ProcessState.ExitCode(); got != tt.status || !strings.HasPrefix(string(out), tt.want) {
			t.Errorf("%q: got %q and status %d, want %q and %d", tt.args, out, got, tt.want, tt.status)
		}
	}
}
