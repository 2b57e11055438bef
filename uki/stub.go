package uki

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/internal/pe"
)

// ErrUnknownStub is wrapped where a file does not say which systemd-stub it
// is, so that nobody can say what it will measure.
var ErrUnknownStub = errors.New("unknown stub")

// Version is the version of systemd-stub.
type Version struct {
	Major int    `json:"major"`
	Minor int    `json:"minor"` // 0 when the stub names none
	Full  string `json:"full"`  // "257.13-1~deb13u1"
}

// String is the version as the stub writes it.
func (v Version) String() string { return v.Full }

// Known reports whether this package's tables were compared with the source of
// this version. For a newer stub they are the newest known ones: a guess that
// a prediction must not hide.
func (v Version) Known() bool { return v.Major >= oldestStub && v.Major <= newestStub }

const (
	oldestStub = 252 // the first with phases in PCR 11
	newestStub = 262
)

// measured lists the sections that systemd-stub extends into PCR 11, in its
// order, each with the first version that does. Versions only ever inserted.
//
// Source: enum UnifiedSection in systemd's src/fundamental/tpm-pcr.h (252,
// 253) and src/fundamental/uki.h (254 and later); read for 252.39, 253.26,
// 254.19, 255.13, 257.13 and main at 262. 252.39, 257.13 and 262.1 were also
// booted. .pcrsig stands between .sbat and .pcrpkey there and is never measured.
var measured = []struct {
	name  string
	since int
}{
	{".linux", 252},
	{".osrel", 252},
	{".cmdline", 252},
	{".initrd", 252},
	{".ucode", 256},
	{".splash", 252},
	{".dtb", 252},
	{".uname", 254},
	{".sbat", 254},
	{".pcrpkey", 252},
	{".profile", 257},
	{".dtbauto", 257},
	{".hwids", 257},
	{".efifw", 258},
}

// MeasuredOrder returns the names of the sections that the stub measures, in
// its order, whether an image has them or not. See [Version.Known].
func MeasuredOrder(v Version) []string {
	var names []string
	for _, m := range measured {
		if m.since <= v.Major {
			names = append(names, m.name)
		}
	}
	return names
}

const (
	magicSection = ".sdmagic"
	magicPrefix  = "#### LoaderInfo: systemd-stub "
	magicSuffix  = " ####"
	maxMagic     = 256 // bytes
)

// StubVersion reads the version from the section .sdmagic, which a stub and
// every image made of it carry. It wraps ErrUnknownStub when there is none or
// when it belongs to another program.
func StubVersion(f *pe.File) (Version, error) {
	s, ok := f.Section(magicSection)
	if !ok {
		return Version{}, fmt.Errorf("uki: no section %s: %w", magicSection, ErrUnknownStub)
	}
	b, err := io.ReadAll(io.LimitReader(f.Data(s), maxMagic))
	if err != nil {
		return Version{}, fmt.Errorf("uki: section %s: %w", magicSection, err)
	}
	return parseMagic(strings.TrimRight(string(b), "\x00"))
}

func parseMagic(magic string) (Version, error) {
	full, ok := strings.CutPrefix(magic, magicPrefix)
	full, ok2 := strings.CutSuffix(full, magicSuffix)
	if !ok || !ok2 {
		return Version{}, fmt.Errorf("uki: section %s: %q: want %q and a version: %w", magicSection, magic, magicPrefix, ErrUnknownStub)
	}
	v := Version{Full: full}
	if n, _ := fmt.Sscanf(full, "%d.%d", &v.Major, &v.Minor); n == 0 || v.Major <= 0 || v.Minor < 0 {
		return Version{}, fmt.Errorf("uki: section %s: version %q: want a number: %w", magicSection, full, ErrUnknownStub)
	}
	return v, nil
}
