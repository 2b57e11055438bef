package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
)

func TestCheckCmdline(t *testing.T) {
	const want = "lockdown=integrity console=tty0"
	for _, tt := range []struct{ name, got, err string }{
		{"the same", want, ""},
		{"by -kernel, older firmware", want + " initrd=initrd", ""},
		{"by -kernel, newer firmware", "initrd=initrd " + want, ""},
		{"both", "initrd=initrd " + want + " initrd=initrd", "want"},
		{"twice", want + " initrd=initrd initrd=initrd", "want"},
		{"another initrd", want + " initrd=other", "want"},
		{"the word in the middle", "lockdown=integrity initrd=initrd console=tty0", "want"},
		{"nothing", "", "want"},
		{"a word more", want + " quiet", "want"},
		{"a word more in front", "quiet " + want, "want"},
		{"a word less", "lockdown=integrity", "want"},
		{"a space more", want + " ", "want"},
		{"a space more in front", " " + want, "want"},
		{"another order", "console=tty0 lockdown=integrity", "want"},
		{"a second line", want + "\nquiet", "want"},
		{"bootconfig", want + " bootconfig", "it asks for a bootconfig"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newGuest(t, config.Config{Cmdline: want})
			write(t, s, "proc/cmdline", tt.got+"\n")
			wantError(t, checkCmdline(t.Context(), s), tt.err)
			if s.Report.Cmdline != tt.got {
				t.Errorf("reported %q, want %q", s.Report.Cmdline, tt.got)
			}
		})
	}
}

func TestEmptyCmdline(t *testing.T) {
	for got, err := range map[string]string{"": "", " initrd=initrd": "", "initrd=initrd ": "", "quiet": "want"} {
		s, _ := newGuest(t, config.Config{})
		write(t, s, "proc/cmdline", got+"\n")
		wantError(t, checkCmdline(t.Context(), s), err)
	}
}

func TestCmdlineUnreadable(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	if err := os.Remove(s.path("proc/cmdline")); err != nil {
		t.Fatal(err)
	}
	wantError(t, checkCmdline(t.Context(), s), "no such file")
	write(t, s, "proc/cmdline", strings.Repeat("x", 64<<10+1))
	wantError(t, checkCmdline(t.Context(), s), "more than 65536 bytes")
}

func TestCheckBootconfig(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	wantError(t, checkBootconfig(t.Context(), s), "")
	write(t, s, "proc/bootconfig", "")
	wantError(t, checkBootconfig(t.Context(), s), "")
	write(t, s, "proc/bootconfig", "kernel.panic = \"0\"\n")
	wantError(t, checkBootconfig(t.Context(), s), "the kernel took 19 bytes of parameters")
}

func TestCheckExtra(t *testing.T) {
	digest := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:])
	}
	declared := map[string]string{"os-release": digest("ID=x\n"), "a/b/c": digest("c"), "sig": config.AnyContent}
	for _, tt := range []struct {
		name, err string
		make      func(t *testing.T, s *State)
	}{
		{"nothing", "", func(*testing.T, *State) {}},
		{"an empty folder", "", func(t *testing.T, s *State) { mkdir(t, s, ".extra") }},
		{"a declared file", "", func(t *testing.T, s *State) { write(t, s, ".extra/os-release", "ID=x\n") }},
		{"a declared file in folders", "", func(t *testing.T, s *State) { write(t, s, ".extra/a/b/c", "c") }},
		{"any content", "", func(t *testing.T, s *State) { write(t, s, ".extra/sig", "whatever") }},
		{"a declared file with other content", "os-release: sha256 is", func(t *testing.T, s *State) { write(t, s, ".extra/os-release", "ID=y\n") }},
		{"an undeclared file", "/.extra/profile: ", func(t *testing.T, s *State) { write(t, s, ".extra/profile", "ID=x\n") }},
		{"an undeclared file beside a declared one", "/.extra/a/b/d: ", func(t *testing.T, s *State) { write(t, s, ".extra/a/b/d", "c") }},
		{"a credential", "/.extra/credentials: a directory", func(t *testing.T, s *State) { write(t, s, ".extra/credentials/x.cred", "") }},
		{"an undeclared empty folder", "/.extra/sysext: a directory", func(t *testing.T, s *State) { mkdir(t, s, ".extra/sysext") }},
		{"a folder for a file", "/.extra/os-release: a directory", func(t *testing.T, s *State) { mkdir(t, s, ".extra/os-release") }},
		{"a link for a file", "/.extra/os-release: L", func(t *testing.T, s *State) {
			write(t, s, "elsewhere", "ID=x\n")
			mkdir(t, s, ".extra")
			symlink(t, "../elsewhere", s.path(".extra/os-release"))
		}},
		{"a link for the folder", "not what the image declares", func(t *testing.T, s *State) {
			mkdir(t, s, "elsewhere")
			symlink(t, "elsewhere", s.path(".extra"))
		}},
		{"a file for the folder", "not what the image declares", func(t *testing.T, s *State) { write(t, s, ".extra", "") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newGuest(t, config.Config{Extra: declared})
			tt.make(t, s)
			wantError(t, checkExtra(t.Context(), s), tt.err)
		})
	}
}

func symlink(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestCheckRegisters(t *testing.T) {
	for _, tt := range []struct {
		name, err string
		bank, pcr int
	}{
		{"others may hold anything", "", 1, 11},
		{"12 in the first bank", "PCR 12 in bank sha1", 0, 12},
		{"12 in the last bank", "PCR 12 in bank sha384", 2, 12},
		{"13 in the last bank", "PCR 13 in bank sha384", 2, 13},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newGuest(t, config.Config{})
			f := newFakeTPM("sha1", "sha256", "sha384")
			if err := s.useTPM(f); err != nil {
				t.Fatal(err)
			}
			value := f.pcrs[f.banks[tt.bank]][tt.pcr]
			value[len(value)-1] = 1
			wantError(t, checkRegisters(t.Context(), s), tt.err)
			if len(s.Report.Before) != 3 {
				t.Errorf("reported %d banks, want 3", len(s.Report.Before))
			}
		})
	}
}

func TestCheckRegistersWithoutTPM(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	wantError(t, checkRegisters(t.Context(), s), "no TPM")
}

// A register that is not there is not zero.
func TestCheckZeroMissing(t *testing.T) {
	wantError(t, checkZero(evidence.PCRs{"sha1": {0: "00"}}, 12), "want zero")
}
