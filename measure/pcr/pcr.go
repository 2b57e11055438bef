// Package pcr computes what systemd-stub, the kernel's EFI stub and userspace
// extend into the registers of a TPM when a unified kernel image is booted:
// sections and phases (PCR 11), and the load options and the initrd as the
// stub hands them to the kernel (PCR 9).
//
// It is arithmetic over one image. Which events a machine logs, and in which
// order, is for package measure to say. A hash algorithm that Go cannot compute is an
// error where a function returns one, and panics elsewhere.
//
// Sources: systemd-stub(7), systemd-measure(1), systemd's src/boot/stub.c and
// src/boot/cpio.c (versions 252 to 262), TCG PC Client Platform Firmware
// Profile 1.06.
package pcr

import (
	"bytes"
	"fmt"
	"hash"
	"io"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// Digests hashes r to its end, once, in every algorithm, and returns the
// digests in the order of algs.
func Digests(algs []eventlog.Alg, r io.Reader) ([]eventlog.Digest, error) {
	return digests(algs, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// Authenticode returns the digests of an EFI image that firmware extends into
// PCR 4 when it loads it.
func Authenticode(algs []eventlog.Alg, f *pe.File) ([]eventlog.Digest, error) {
	return digests(algs, f.WriteAuthenticode)
}

// Separator returns the digests of the four zero bytes by which firmware ends
// its part of a register (EV_SEPARATOR).
func Separator(algs []eventlog.Alg) []eventlog.Digest { return ofBytes(algs, make([]byte, 4)) }

// Fold returns the value of one register after events, from zero. Events of
// other registers, and those that are never extended, are passed over. Every
// event of the register must have a digest in alg.
func Fold(alg eventlog.Alg, register int, events []eventlog.Event) []byte {
	value := make([]byte, alg.Size())
	for _, e := range events {
		if e.Register == register && e.Type != eventlog.NoAction {
			value = eventlog.Extend(alg, value, e.Digest(alg))
		}
	}
	return value
}

func digests(algs []eventlog.Alg, write func(io.Writer) error) ([]eventlog.Digest, error) {
	hashes := make([]hash.Hash, len(algs))
	writers := make([]io.Writer, len(algs))
	for i, alg := range algs {
		if !alg.Hash().Available() {
			return nil, fmt.Errorf("pcr: %s: unsupported hash algorithm", alg)
		}
		hashes[i] = alg.Hash().New()
		writers[i] = hashes[i]
	}
	if err := write(io.MultiWriter(writers...)); err != nil {
		return nil, err
	}
	out := make([]eventlog.Digest, len(algs))
	for i, alg := range algs {
		out[i] = eventlog.Digest{Alg: alg, Value: hashes[i].Sum(nil)}
	}
	return out, nil
}

func ofBytes(algs []eventlog.Alg, b []byte) []eventlog.Digest {
	out := make([]eventlog.Digest, len(algs))
	for i, alg := range algs {
		out[i] = eventlog.Digest{Alg: alg, Value: alg.Sum(b)}
	}
	return out
}

// text returns s as UTF-16LE with a NUL, the form of texts in UEFI. Runes
// beyond the basic plane must not be in it.
func text(s string) []byte {
	var b bytes.Buffer
	for _, r := range s + "\x00" {
		b.WriteByte(byte(r))
		b.WriteByte(byte(r >> 8))
	}
	return b.Bytes()
}
