package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/plinth-os/plinth/tests/synthetic"
)

func TestMain(m *testing.M) {
	testscript.Main(m, programs())
}

// TestScript runs tests/script: each file is one behaviour of the command. No
// script needs the network, root or an outside tool.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("..", "..", "tests", "script"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("PLINTH_CACHE", filepath.Join(e.WorkDir, "cache"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"archive":  writeArchive,
			"damage":   damage,
			"firmware": writeFirmware,
			"want":     wantDigest,
			"args":     writeArgs,
			"key":      writeKey,
		},
		RequireUniqueNames: true,
	})
}

// exits CODE PROGRAM ARGS... runs a program that must end with that exit code.
func exits(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARGS...]")
	}
	want, err := strconv.Atoi(a[0])
	ts.Check(err)
	got, err := 0, ts.Exec(a[1], a[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// archive writes tiny.toml, and the packages that it builds from into debs.
func writeArchive(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 0 {
		ts.Fatalf("usage: archive")
	}
	ts.Check(synthetic.Write(ts.MkAbs("debs")))
	ts.Check(os.WriteFile(ts.MkAbs("tiny.toml"), []byte(synthetic.Profile), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("agent"), []byte("the guest's first program\n"), 0o755))
}

// damage FILE... flips a bit in the middle of each file.
func damage(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) == 0 {
		ts.Fatalf("usage: damage FILE...")
	}
	for _, name := range a {
		b, err := os.ReadFile(ts.MkAbs(name))
		ts.Check(err)
		b[len(b)/2] ^= 1
		ts.Check(os.WriteFile(ts.MkAbs(name), b, 0o644))
	}
}
