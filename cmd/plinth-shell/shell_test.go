package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain makes this program the shell when a test, or the shell itself, runs
// it again.
func TestMain(m *testing.M) {
	if os.Getenv("PLINTH_TEST_SHELL") != "" {
		os.Exit(run(os.Args))
	}
	os.Exit(m.Run())
}

// shell runs the shell with an empty PATH and returns what it prints.
func shell(t *testing.T, stdin, argv0 string, args ...string) (string, int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = argv0
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"PLINTH_TEST_SHELL=1", "PATH=", "GOCOVERDIR=" + t.TempDir()} // the last for "go test -cover"
	cmd.Stdin = strings.NewReader(stdin)
	out, _ := cmd.CombinedOutput() // the status says it
	return string(out), cmd.ProcessState.ExitCode()
}

func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		name, command, want string
		status              int
	}{
		{"builtin", "echo a b", "a b\n", 0},
		{"pipe of tools", "echo abc | cat | hexdump", "00000000  61 62 63 0a                                       |abc.|\n", 0},
		{"loop, file, glob", "for i in 1 2; do echo $i >f$i; done; cat f*; ls f*", "1\n2\nf1\nf2\n", 0},
		{"grep", "printf 'a\\nB\\n' | grep b; printf 'a\\nB\\n' | grep -i b; printf 'a\\nB\\n' | grep -v a", "B\nB\n", 0},
		{"status of a tool", "cat nosuch; echo $?", "cat: open nosuch: no such file or directory\n1\n", 0},
		{"exit", "exit 3", "", 3},
		{"unknown program", "nosuch; echo $?", "\"nosuch\": executable file not found in $PATH\n127\n", 0},
		{"syntax", "if", "sh: 1:1: \"if\" must be followed by a statement list\n", 1},
		{"kill wants numbers", "kill -HUP 1", "kill: signal \"HUP\": want a number\n", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, status := shell(t, "", "plinth-shell", "-c", tt.command)
			if got != tt.want || status != tt.status {
				t.Errorf("got %q and status %d, want %q and %d", got, status, tt.want, tt.status)
			}
		})
	}
}

func TestDispatch(t *testing.T) {
	for _, tt := range []struct {
		argv0 string
		args  []string
		want  string
		code  int
	}{
		{"/bin/cat", nil, "input", 0},
		{"plinth-shell", []string{"cat"}, "input", 0},
		{"plinth-shell", []string{"nosuch"}, "usage: plinth-shell", 2},
		{"plinth-shell", []string{"-c"}, "usage: plinth-shell", 2},
	} {
		got, code := shell(t, "input", tt.argv0, tt.args...)
		if !strings.HasPrefix(got, tt.want) || code != tt.code {
			t.Errorf("%s %q: got %q and status %d, want %q and %d", tt.argv0, tt.args, got, code, tt.want, tt.code)
		}
	}
}

func TestInteractive(t *testing.T) {
	got, status := shell(t, "echo one\nif true\nthen echo two; fi\nfalse\necho $?\nexit 4\necho three\n", filepath.Base(os.Args[0]))
	if want := "# one\n# two\n# # 1\n# "; got != want || status != 4 {
		t.Errorf("got %q and status %d, want %q and 4", got, status, want)
	}
}

// A line that makes no sense does not end the shell.
func TestInteractiveSyntax(t *testing.T) {
	got, status := shell(t, ")\n", "plinth-shell")
	if !strings.Contains(got, "can only be used to close a subshell") || status != 0 {
		t.Errorf("got %q and status %d", got, status)
	}
}

// The fields after a name that looks like fields: proc_pid_stat(5).
func TestProcess(t *testing.T) {
	for _, tt := range []struct{ stat, cmdline, want string }{
		{"7 (sh) S 1 7 7", "/bin/sh\x00-c\x00a b\x00", "    7     1 S /bin/sh -c a b"},
		{"12 (a) R (b) Z 3 0", "", "   12     3 Z [a) R (b]"},
		{"12", "", "12"},
		{"12 (x) R", "", "12 (x) R"},
		{")(", "", ")("},
	} {
		if got := process(tt.stat, tt.cmdline); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.stat, got, tt.want)
		}
	}
}
