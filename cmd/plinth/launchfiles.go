package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/measure"
)

// inputList is what values were computed from, each name once.
type inputList struct {
	wanted bool // nothing is digested for a list that nobody sees
	all    []measure.Input
}

func input(name string, digest [32]byte, size int64) measure.Input {
	return measure.Input{Name: name, SHA256: hex.EncodeToString(digest[:]), Size: size}
}

func (l *inputList) bytes(name string, b []byte) {
	if !l.wanted {
		return
	}
	l.all = append(l.all, input(name, sha256.Sum256(b), int64(len(b))))
}

// section digests a whole file.
func (l *inputList) section(name string, s *io.SectionReader) error {
	if !l.wanted {
		return nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(s, 0, s.Size())); err != nil {
		return err
	}
	l.all = append(l.all, input(name, [32]byte(h.Sum(nil)), s.Size()))
	return nil
}

// digest notes a file that was digested already.
func (l *inputList) digest(name string, d *digestedFile) {
	l.all = append(l.all, input(name, d.sum, d.size))
}

// A digestedFile is the SHA-256 of a file, or of a pipe, and its size in bytes.
type digestedFile struct {
	path string // "": there is none
	sum  [32]byte
	size int64
}

// stat returns the size, as far as it is known beforehand.
func (d *digestedFile) stat() int64 {
	if fi, err := os.Stat(d.path); err == nil {
		return fi.Size()
	}
	return -1
}

// read digests the file. To copy a large one out of the page cache takes a quarter
// of the time that SHA-256 takes, so a regular file is mapped instead.
func (d *digestedFile) read() error {
	if d.path == "" {
		return nil
	}
	file, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	if fi.Mode().IsRegular() && fi.Size() > 0 && fi.Size() == int64(int(fi.Size())) {
		if m, err := unix.Mmap(int(file.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED); err == nil {
			d.size = fi.Size()
			return errors.Join(d.readMapped(m), unix.Munmap(m))
		}
	}
	h := sha256.New()
	d.size, err = io.Copy(h, file)
	h.Sum(d.sum[:0])
	return err
}

// readMapped digests a mapping. A page that somebody has cut off the file since
// then is an error, and not the end of the program.
func (d *digestedFile) readMapped(m []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // runtime/debug.SetPanicOnFault
			err = fmt.Errorf("%s: it became shorter while it was read", d.path)
		default:
			panic(r)
		}
	}()
	d.sum = sha256.Sum256(m)
	return nil
}
