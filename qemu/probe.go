package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A Host is what this machine can do for a boot.
type Host struct {
	QEMU     Program  `json:"qemu"`
	SWTPM    Program  `json:"swtpm"`
	KVM      KVM      `json:"kvm"`
	Firmware []string `json:"firmware"` // OVMF code volumes installed here; a profile brings its own
}

// A Program is an outside program; Problem is empty when it can be used.
type Program struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Problem string `json:"problem"`
}

// KVM says whether a firmware runs under KVM, which needs more than a device.
type KVM struct {
	Usable  bool   `json:"usable"`
	Problem string `json:"problem"` // why not, or that it was not tried
}

// Probe finds out what this host can do. It takes a second or two, because it
// tries KVM with one of the installed firmwares.
func Probe(ctx context.Context) Host {
	h := Host{Firmware: installedFirmware()}
	h.QEMU = probeProgram(ctx, func() (string, error) { return Find("") }, "-version")
	h.SWTPM = probeProgram(ctx, findSWTPM, "--version")
	if err := h.tryKVM(ctx); err != nil {
		h.KVM.Problem = err.Error()
	} else {
		h.KVM.Usable = true
	}
	return h
}

func probeProgram(ctx context.Context, find func() (string, error), versionFlag string) Program {
	path, err := find()
	if err != nil {
		return Program{Problem: describe(err)}
	}
	p := Program{Path: path}
	out, err := output(ctx, path, versionFlag)
	if err == nil {
		p.Version, err = parseVersion(path, out)
	}
	if err != nil {
		p.Problem = describe(err)
	}
	return p
}

// describe adds the hint, if err has one.
func describe(err error) string {
	var missing *MissingToolError
	if errors.As(err, &missing) {
		return err.Error() + "; " + missing.Hint
	}
	return err.Error()
}

// tryKVM starts a firmware under KVM and waits for its first sign of life.
func (h *Host) tryKVM(ctx context.Context) error {
	if err := openKVM(); err != nil {
		return err
	}
	code, vars := firmwarePair(h.Firmware)
	if h.QEMU.Problem != "" || code == "" {
		return errors.New("not tried: needs QEMU and the Debian package ovmf")
	}
	v, err := Start(ctx, Machine{Firmware: code, Vars: vars, MemoryMiB: 256}, Options{Accel: "kvm", Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	r := v.current()
	return errors.Join(r.awaitLife(ctx, r.limits.life), v.Close())
}

// installedFirmware lists the OVMF builds of Debian, Fedora and Arch packages.
func installedFirmware() []string {
	var found []string
	for _, pattern := range []string{
		"/usr/share/OVMF/OVMF_CODE*.fd", "/usr/share/edk2/ovmf/OVMF_CODE*.fd", "/usr/share/edk2/x64/OVMF_CODE*.fd",
	} {
		paths, _ := filepath.Glob(pattern) // fails on a bad pattern only
		found = append(found, paths...)
	}
	return found
}

// firmwarePair is the first of code that needs no system management mode,
// and the variables that belong to it.
func firmwarePair(code []string) (string, string) {
	for _, path := range code {
		name := filepath.Base(path)
		if strings.Count(name, ".") > 1 { // .secboot, .ms, .snakeoil
			continue
		}
		vars := filepath.Join(filepath.Dir(path), strings.Replace(name, "CODE", "VARS", 1))
		if fi, err := os.Stat(vars); err == nil && fi.Mode().IsRegular() {
			return path, vars
		}
	}
	return "", ""
}
