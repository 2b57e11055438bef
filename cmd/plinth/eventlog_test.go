package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMeasureEventlogCC reads published CC logs, which name no PCRs, and arrives
// at the registers that were published with them.
func TestMeasureEventlogCC(t *testing.T) {
	dir := filepath.Join("..", "..", "measure", "eventlog", "testdata", "cc")
	files, err := filepath.Glob(filepath.Join(dir, "*.rtmrs"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		log := strings.TrimSuffix(file, ".rtmrs") + ".bin"
		args := []string{"measure", "eventlog", log}
		if filepath.Base(log) == "td-shim.bin" { // does not show what it is
			args = append(args, "--cc")
		}
		code, stdout, stderr := invoke(args...)
		if code != exitOK {
			t.Errorf("%s: exit %d\n%s", log, code, stderr)
		}
		for line := range strings.Lines(string(want)) {
			register, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.Trim(value, "0") != "" && !strings.Contains(stdout, "sha384 rtmr"+register+" "+value+"\n") {
				t.Errorf("%s: no rtmr%s %s in\n%s", log, register, value, stdout)
			}
		}
		if strings.Contains(stdout, "sha384 rtmr2") && !strings.Contains(oneSpace(stdout), "rtmr2 what these measured (PCR 8 to 15): command line, initrd, sections of the UKI") {
			t.Errorf("%s: it is not said what rtmr2 holds", log)
		}
	}
}

// TestMeasureEventlogOther: a bank that is not computed is shown all the same, and
// --cc decides where the log does not.
func TestMeasureEventlogOther(t *testing.T) {
	dir := filepath.Join("..", "..", "measure", "eventlog", "testdata")
	if code, stdout, stderr := invoke("measure", "eventlog", filepath.Join(dir, "cc", "hygon-csv.bin")); code != exitOK || !strings.Contains(stdout, "rtmr") {
		t.Errorf("SM3: exit %d\n%s%s", code, stdout, stderr)
	}
	empty := fdFile(t, "empty", nil)
	if code, _, stderr := invoke("measure", "eventlog", "--cc", empty); code == exitOK || !strings.Contains(stderr, "truncated") {
		t.Errorf("empty: exit %d\n%s", code, stderr)
	}
}
