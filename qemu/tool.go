package qemu

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"
)

// A MissingToolError says that this host lacks a program or a device, and what
// to do about it.
type MissingToolError struct {
	Tool string // "swtpm", "/dev/kvm"
	Hint string // "install the Debian package swtpm"
	Err  error  // why it cannot be used; may be nil
}

func (e *MissingToolError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("qemu: %s: %v", e.Tool, e.Err)
	}
	return fmt.Sprintf("qemu: %s: not found", e.Tool)
}

func (e *MissingToolError) Unwrap() error { return e.Err }

// Find returns the path of QEMU: binary itself if it is not empty, else what
// PLINTH_QEMU says, else qemu-system-x86_64 in PATH. It fails with a
// *MissingToolError.
func Find(binary string) (string, error) {
	return find(cmp.Or(binary, os.Getenv("PLINTH_QEMU")), "qemu-system-x86_64", "PLINTH_QEMU", "qemu-system-x86")
}

// findSWTPM is Find for the TPM emulator.
func findSWTPM() (string, error) {
	return find(os.Getenv("PLINTH_SWTPM"), "swtpm", "PLINTH_SWTPM", "swtpm")
}

func find(given, name, variable, debian string) (string, error) {
	path, err := exec.LookPath(cmp.Or(given, name))
	if err == nil {
		return path, nil
	}
	return "", &MissingToolError{cmp.Or(given, name),
		fmt.Sprintf("install the Debian package %s, or set %s to the program", debian, variable), err}
}

// Version returns the version that QEMU prints of itself, like "7.2.22".
func Version(ctx context.Context, binary string) (string, error) {
	out, err := output(ctx, binary, "-version")
	if err != nil {
		return "", err
	}
	return parseVersion(binary, out)
}

// versionAndSandbox is Version, and whether this QEMU has the seccomp sandbox:
// without it the very option is an error.
func versionAndSandbox(ctx context.Context, binary string) (version string, sandbox bool, err error) {
	out, err := output(ctx, binary, "-sandbox", "on", "-version")
	if err == nil {
		version, err = parseVersion(binary, out)
		return version, true, err
	}
	version, err = Version(ctx, binary)
	return version, false, err
}

// versionPattern fits "QEMU emulator version 7.2.22 (Debian ...)" and
// "TPM emulator version 0.7.1, Copyright ...".
var versionPattern = regexp.MustCompile(`\bversion ([0-9]+(?:\.[0-9]+)+)`)

func parseVersion(binary, out string) (string, error) {
	if match := versionPattern.FindStringSubmatch(out); match != nil {
		return match[1], nil
	}
	return "", fmt.Errorf("qemu: version of %s: got %q, want a line with \"version 1.2.3\"", binary, firstLine(out))
}

// output runs a program that prints something about itself, for 10 s at most,
// and returns the last of what it printed.
func output(ctx context.Context, binary string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := startChild(binary, args)
	if err != nil {
		return "", err
	}
	select {
	case <-c.done:
		if err := c.failure(); err != nil {
			return "", fmt.Errorf("qemu: %w", err)
		}
		return c.output.String(), nil
	case <-ctx.Done():
		c.kill()
		return "", fmt.Errorf("qemu: %s %v: %w", binary, args, ctx.Err())
	}
}
