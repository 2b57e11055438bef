package pcr

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/plinth-os/plinth/internal/pe"
)

// maxCmdline is the size in bytes up to which a .cmdline is read. The kernel
// takes 2047 bytes on x86.
const maxCmdline = 64 << 10

// LoadOptions returns a command line in the form in which a stub passes it to
// the kernel and the kernel's EFI stub measures it: UTF-16LE with a NUL.
func LoadOptions(cmdline string) []byte { return text(cmdline) }

// Cmdline returns .cmdline as the stub of that major version passes it on:
// control characters are spaces, and spaces at the end are gone, with 255 and
// later those in front too (src/boot/util.c, mangle_stub_cmdline). ok is false
// when f has no .cmdline. See AppendsConsole for what it may add.
func Cmdline(stub int, f *pe.File) (cmdline string, ok bool, err error) {
	sections, err := selected(f)
	if err != nil {
		return "", false, err
	}
	s, ok := sections[".cmdline"]
	if !ok {
		return "", false, nil
	}
	if s.VirtualSize > maxCmdline {
		return "", false, fmt.Errorf("pcr: section .cmdline: %d bytes: want at most %d", s.VirtualSize, maxCmdline)
	}
	b, err := io.ReadAll(f.Measured(s))
	if err != nil {
		return "", false, fmt.Errorf("pcr: section .cmdline: %w", err)
	}
	cmdline, _, _ = strings.Cut(string(b), "\x00")
	for _, r := range cmdline {
		if r == utf8.RuneError || r > 0xffff {
			return "", false, fmt.Errorf("pcr: section .cmdline: %q: a stub drops what is not UTF-8 or beyond U+FFFF", cmdline)
		}
	}
	if stub < 255 {
		cmdline = strings.Map(func(r rune) rune { return blank(r, r < ' ') }, cmdline)
		return strings.TrimRight(cmdline, " "), true, nil
	}
	cmdline = strings.Map(func(r rune) rune { return blank(r, r < ' ' || r == 0x7f) }, cmdline)
	return strings.Trim(cmdline, " "), true, nil
}

// AppendsConsole reports whether a stub of that major version adds console=
// arguments of its own choice to cmdline, as it does when there is none. They
// depend on the machine's devices: a virtio-serial controller gives
// "console=hvc0" even when it has no console, a lone serial port
// "console=uart,io,0x3f8" (src/boot/console.c). No register but 9 shows them.
// Seen with 262.1; the change came after 260.
func AppendsConsole(stub int, cmdline string) bool {
	return stub > 260 && !strings.HasPrefix(cmdline, "console=") && !strings.Contains(cmdline, " console=")
}

func blank(r rune, control bool) rune {
	if control {
		return ' '
	}
	return r
}
