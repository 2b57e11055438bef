package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
)

// Registers that a boot without additions leaves at zero.
// systemd-stub(7), "TPM PCR Notes".
const (
	overridesPCR  = 12 // command line, add-ons and credentials that did not come with the image
	extensionsPCR = 13 // system extensions
)

// checkCmdline compares the kernel's command line with the one that the image
// was built for.
func checkCmdline(_ context.Context, s *State) error {
	b, err := s.readFile("/proc/cmdline", 64<<10)
	if err != nil {
		return err
	}
	got := strings.TrimSuffix(string(b), "\n")
	s.Report.Cmdline = got
	if config.Bootconfig(got) {
		return fmt.Errorf("%q: it asks for a bootconfig", got)
	}
	if want := s.Config.Cmdline; !sameCmdline(got, want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// sameCmdline allows for the one word that OVMF adds when it loads kernel and
// initrd by QEMU's -kernel: behind the rest before edk2 202508, in front since.
func sameCmdline(got, want string) bool {
	const loaders = "initrd=initrd"
	return got == want || got == want+" "+loaders || got == loaders+" "+want
}

// checkBootconfig refuses parameters that came from the end of the initrd. The
// file exists in every kernel that can take them, and is empty without them.
func checkBootconfig(_ context.Context, s *State) error {
	b, err := s.readFile("/proc/bootconfig", 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) > 0 {
		return fmt.Errorf("the kernel took %d bytes of parameters, want none: %q", len(b), b[:min(len(b), 200)])
	}
	return nil
}

// checkExtra looks at what the stub put into the initrd beside the image's own
// files: credentials, extensions and the like are the host's.
func checkExtra(_ context.Context, s *State) error {
	top := s.path(".extra")
	return filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if name == top && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		return checkExtraFile(s.Config.Extra, rel, name, d)
	})
}

// checkExtraFile compares one file with the declared ones. A directory is fine
// when a declared file may be in it.
func checkExtraFile(declared map[string]string, rel, name string, d fs.DirEntry) error {
	if d.IsDir() {
		for p := range declared {
			if strings.HasPrefix(p, rel+"/") {
				return nil
			}
		}
		if rel == "." {
			return nil
		}
		return fmt.Errorf("/.extra/%s: a directory that the image does not declare", rel)
	}
	want, ok := declared[rel]
	if !ok || !d.Type().IsRegular() {
		return fmt.Errorf("/.extra/%s: %s: not what the image declares", rel, d.Type())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	if got := hex.EncodeToString(sum[:]); want != config.AnyContent && got != want {
		return fmt.Errorf("/.extra/%s: sha256 is %s, want %s", rel, got, want)
	}
	return nil
}

// checkRegisters keeps the registers as the agent found them, and refuses a
// boot to which something was added.
func checkRegisters(_ context.Context, s *State) error {
	if s.TPM == nil && s.tpmOptional() {
		return nil
	}
	if s.TPM == nil {
		return errNoTPM
	}
	pcrs, err := s.TPM.Read()
	if err != nil {
		return err
	}
	s.Report.Before = pcrs
	return checkZero(pcrs, overridesPCR, extensionsPCR)
}

func checkZero(pcrs evidence.PCRs, registers ...int) error {
	for _, bank := range sortedKeys(pcrs) {
		for _, r := range registers {
			if v := pcrs[bank][r]; v == "" || strings.Trim(v, "0") != "" {
				return fmt.Errorf("PCR %d in bank %s is %q, want zero: the boot loader was given more than this image", r, bank, v)
			}
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
