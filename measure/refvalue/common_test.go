package refvalue

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// Two boots of one UKI, on swtpm with OVMF and in an Azure VM, as a published
// article compares them: PCR 0 to 11, of which 3, 8, 9 and 11 agree. 3 is the
// value that the article gives; the others here are made up to the same pattern.
const separatorPCR = "3D458CFE55CC03EA1F443F1562BEEC8DF51C75E14A9FCF9A7234A13F198E7969"

func articleBoots() (swtpm, azure string) {
	for i := range 12 {
		a := hex.EncodeToString(append(make([]byte, 31), byte(i+1)))
		b := hex.EncodeToString(append(make([]byte, 31), byte(i+101)))
		switch i {
		case 1, 2:
			b = separatorPCR
		case 3:
			a, b = separatorPCR, strings.ToLower(separatorPCR)
		case 6:
			a = separatorPCR
		case 8:
			a, b = zero32, zero32
		case 9, 11:
			b = a
		}
		swtpm += fmt.Sprintf("PCR%02d: %s\n", i, strings.ToUpper(a))
		azure += fmt.Sprintf("    %-2d: 0x%s\n", i, b)
	}
	return swtpm, "  sha256:\n" + azure
}

func TestCommonOfArticle(t *testing.T) {
	sum := sha256.Sum256(make([]byte, 4))
	sum = sha256.Sum256(append(make([]byte, 32), sum[:]...))
	if !strings.EqualFold(hex.EncodeToString(sum[:]), separatorPCR) {
		t.Fatal("the constant is no separator")
	}
	swtpm, azure := articleBoots()
	var boots []Boot
	for _, text := range []string{swtpm, azure} {
		v, err := ParseRegisters([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		boots = append(boots, Boot{Values: v})
	}
	s := Common(boots)
	got := map[string]string{}
	for _, a := range s.Same {
		got[a.Name] = a.Trivial
		if a.Holds == "" || a.Bank != "sha256" {
			t.Errorf("%+v", a)
		}
	}
	want := map[string]string{"pcr3": trivialSeparator, "pcr8": trivialUnset, "pcr9": "", "pcr11": ""}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	if len(s.Differ) != 8 || s.Differ[0].Name != "pcr0" || s.Differ[7].Name != "pcr10" || len(s.Some) != 0 {
		t.Errorf("differ: %v, some: %v", s.Differ, s.Some)
	}
}

// Recorded boots of three firmwares with one disk: what they agree on, and which
// events lead to it.
func TestCommonOfRecordedBoots(t *testing.T) {
	var boots []Boot
	for _, name := range []string{"edk2-2022.11-disk", "edk2-2025.02-disk", "edk2-2025.02-secureboot"} {
		b, err := os.ReadFile(filepath.Join("..", "eventlog", "testdata", name+".bin"))
		if err != nil {
			t.Fatal(err)
		}
		l, err := eventlog.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		l.Describe()
		replayed, err := Replayed(l)
		if err != nil {
			t.Fatal(err)
		}
		recorded := recordedPCRs(t, filepath.Join("..", "eventlog", "testdata", name+".pcrs"))
		if recorded[Register{"pcr4", "sha256"}] != replayed[Register{"pcr4", "sha256"}] {
			t.Fatalf("%s: PCR 4 is not what the log leads to", name)
		}
		boots = append(boots, Boot{Name: name, Values: recorded, Log: l})
	}
	s := Common(boots)
	meaning := map[string][]string{}
	for _, a := range s.Same {
		if a.Bank != "sha256" {
			continue
		}
		if a.Trivial == "" {
			meaning[a.Name] = a.Events
		} else if n := a.Name; n != "pcr2" && n != "pcr3" && n != "pcr6" && n != "pcr8" && n != "pcr12" && n != "pcr13" && n != "pcr14" && n != "pcr15" {
			t.Errorf("%s says nothing: %s", n, a.Trivial)
		}
	}
	for name, events := range meaning {
		if len(events) == 0 {
			t.Errorf("%s: no events", name)
		}
		for _, e := range events {
			if e == "" {
				t.Errorf("%s: %q", name, events)
			}
		}
	}
	if len(meaning["pcr9"]) == 0 {
		t.Errorf("meaning: %v; differ: %v", meaning, s.Differ)
	}
	// A log that does not lead to the value explains nothing.
	for i := range boots {
		events := boots[i].Log.Events
		last := 0
		for j, e := range events {
			if e.Register == 11 {
				last = j
			}
		}
		boots[i].Log.Events = slices.Delete(events, last, last+1)
	}
	for _, a := range Common(boots[1:]).Same {
		if a.Name == "pcr11" && a.Events != nil || a.Name == "pcr9" && a.Bank == "sha256" && a.Events == nil {
			t.Errorf("%+v", a)
		}
	}
}

func recordedPCRs(t *testing.T, path string) map[Register]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[Register]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		out[Register{"pcr" + f[1], f[0]}] = f[2]
	}
	return out
}

func TestCommonOfSome(t *testing.T) {
	a := Boot{Values: map[Register]string{{"pcr9", "sha256"}: "aa", {"pcr9", "sha1"}: "bb", {"rtmr2", "sha384"}: "cc", {"pcr10", "sha256"}: "dd"}}
	b := Boot{Values: map[Register]string{{"pcr9", "sha256"}: "aa", {"rtmr2", "sha384"}: "cc", {"pcr10", "sha256"}: "dd"}}
	s := Common([]Boot{a, b})
	if len(s.Same) != 3 || s.Same[0].Name != "pcr9" || s.Same[1].Name != "pcr10" || s.Same[2].Name != "rtmr2" {
		t.Errorf("%+v", s.Same)
	}
	if !strings.Contains(s.Same[2].Holds, "PCR 8 to 15") {
		t.Errorf("rtmr2 holds %q", s.Same[2].Holds)
	}
	if !reflect.DeepEqual(s.Some, []Register{{"pcr9", "sha1"}}) {
		t.Errorf("%v", s.Some)
	}
}

func TestParseRegisters(t *testing.T) {
	one := strings.Repeat("ab", 32)
	for name, row := range map[string]struct {
		text string
		want map[Register]string
	}{
		"tpm2_pcrread": {"  sha1:\n  sha256:\n    0 : 0x" + strings.ToUpper(one) + "\n    10: 0x" + one + "\n", map[Register]string{{"pcr0", "sha256"}: one, {"pcr10", "sha256"}: one}},
		"two banks":    {"sha1:\n 0 : 0x" + sum(20, 1) + "\nsha384:\n 0 : 0x" + sum(48, 1), map[Register]string{{"pcr0", "sha1"}: sum(20, 1), {"pcr0", "sha384"}: sum(48, 1)}},
		"list":         {"# swtpm\n\nPCR07: " + one + "\r\nPCR 8: 0x" + one, map[Register]string{{"pcr7", "sha256"}: one, {"pcr8", "sha256"}: one}},
		"sysfs":        {"PCR-07: " + strings.Repeat("AB ", 20), map[Register]string{{"pcr7", "sha1"}: strings.Repeat("ab", 20)}},
		"equals":       {"pcr7=" + one + "\npcr[8] = " + one, map[Register]string{{"pcr7", "sha256"}: one, {"pcr8", "sha256"}: one}},
		"systemd":      {"NR NAME          SHA256\n 0 platform-code " + one + "\n11 kernel-boot   " + one, map[Register]string{{"pcr0", "sha256"}: one, {"pcr11", "sha256"}: one}},
		"twice equal":  {"0: " + one + "\n0: " + one, map[Register]string{{"pcr0", "sha256"}: one}},
	} {
		got, err := ParseRegisters([]byte(row.text))
		if err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, row := range map[string]struct{ text, says string }{
		"empty":    {"", "no register"},
		"prose":    {"0: " + one + "\nhello world\n", "line 2"},
		"odd":      {"PCR 1: abc", "PCR 1: encoding/hex"},
		"length":   {"PCR 1: abcd", "2 bytes: no bank"},
		"heading":  {"sha1:\n1: " + one, "32 bytes under the heading sha1"},
		"number":   {"24: " + one, "want 0 to 23"},
		"conflict": {"0: " + one + "\n0: " + sum(32, 1), "a second value"},
		"size":     {strings.Repeat("\n", MaxRegisters+1), "at most"},
	} {
		if _, err := ParseRegisters([]byte(row.text)); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What tpm2_pcrread prints of a TPM, with one event in PCR 11.
func TestPCRRead(t *testing.T) {
	if testing.Short() {
		t.Skip("starts swtpm")
	}
	testenv.Need(t, "swtpm", "tpm2_pcrread", "tpm2_pcrextend")
	dir := t.TempDir()
	tcti := "swtpm:path=" + filepath.Join(dir, "sock")
	swtpm := exec.Command(testenv.Tool("swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+dir, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+filepath.Join(dir, "sock"), "--ctrl", "type=unixio,path="+filepath.Join(dir, "sock.ctrl"))
	if err := swtpm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { swtpm.Process.Kill(); swtpm.Wait() }()
	run := func(args ...string) []byte {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%v: %s", args, b)
		}
		return b
	}
	for range 50 { // until the socket is there
		if _, err := os.Stat(filepath.Join(dir, "sock")); err == nil {
			break
		}
		exec.Command("sleep", "0.1").Run()
	}
	run("tpm2_pcrextend", "11:sha256="+sum(32, 7))
	got, err := ParseRegisters(run("tpm2_pcrread"))
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256([]byte(string(make([]byte, 32)) + strings.Repeat("\x07", 32)))
	if v := got[Register{"pcr11", "sha256"}]; v != hex.EncodeToString(want[:]) {
		t.Errorf("PCR 11 is %s", v)
	}
	s := Common([]Boot{{Values: got}, {Values: got}})
	for _, a := range s.Same {
		if (a.Trivial == "") != (a.Name == "pcr11" && a.Bank == "sha256") {
			t.Errorf("%+v", a)
		}
	}
	if len(s.Same) < 24 {
		t.Errorf("%d registers", len(s.Same))
	}
}

func FuzzParseRegisters(f *testing.F) {
	swtpm, azure := articleBoots()
	f.Add([]byte(swtpm))
	f.Add([]byte(azure))
	f.Add([]byte("PCR-07: AB CD\nNR NAME\n 0 platform-code " + sum(20, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseRegisters(b)
		if err != nil {
			return
		}
		var text strings.Builder
		for r, v := range got {
			fmt.Fprintf(&text, "%s: %s\n", r.Name, v)
		}
		again, err := ParseRegisters([]byte(text.String()))
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Fatalf("%v, then %v, %v", got, again, err)
		}
	})
}
