package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

const (
	rootSize  = 4 << 30   // bytes that a tree is made for, all random
	treeSize  = 500 << 20 // bytes of files that go into an EROFS
	rootTurns = 5
)

// Arguments with which this program is a process that is measured.
const (
	readCommand  = "read"  // FILE: reads and hashes it on two processors
	erofsCommand = "erofs" // STORE INDEX OUT: makes an EROFS of the files that INDEX lists
)

// root prints the rows of root file systems.
func (b *bench) root() error {
	r := &rootBench{bench: b, data: filepath.Join(b.dir, "root"), files: filepath.Join(b.dir, "files")}
	defer r.removeFiles()
	if err := errors.Join(r.makeData(), r.makeFiles(), r.makeStore()); err != nil {
		return err
	}
	defer os.Remove(r.data)
	fmt.Printf("\nroot file systems, best of %d, files in the page cache; load average %s\n\n", rootTurns, loadAverage())
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\ttakes\tbeside\ttakes\tratio\ttarget\n")
	for _, row := range []ratio{
		{what: "verity format of 4 GiB", beside: "reading and hashing it on 2 processors", target: 1.2, once: r.format, base: r.read, turns: rootTurns},
		{what: "veritysetup format of it", beside: "verity format", target: 1.8, least: true, once: r.veritysetup, base: r.format, turns: rootTurns, tool: "veritysetup"},
		{what: "EROFS of 500 MiB in 6000 files, from the store", beside: "mkfs.erofs", target: 1.3, once: r.erofs, base: r.mkfs, turns: rootTurns, tool: "mkfs.erofs"},
	} {
		if row.tool != "" && testenv.Tool(row.tool) == "" {
			fmt.Fprintf(t, "%s\tnot run: no %s here\n", row.what, row.tool)
			continue
		}
		if err := row.print(t); err != nil {
			return fmt.Errorf("%s: %w", row.what, err)
		}
	}
	peak := float64(r.peak) / 1024
	fmt.Fprintf(t, "peak memory of verity format\t%.0f MiB\t\t\t\t%s\n", peak, verdict(peak, 64, "MiB"))
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nload average %s\n", loadAverage())
	return nil
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 3 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}

type rootBench struct {
	bench       *bench
	data, files string
	peak        int64  // KiB, of verity format
	rootHash    string // every tool must find the same
}

func (r *rootBench) makeData() error {
	f, err := os.Create(r.data)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{2}), rootSize)
	return errors.Join(err, f.Sync(), f.Close())
}

// makeFiles makes a tree like that of a distribution: many small files, and a few
// large ones that hold most of the bytes.
func (r *rootBench) makeFiles() error {
	const small, large = 5990, 10
	random := rand.NewChaCha8([32]byte{3})
	size := func(i int) int64 {
		if i < small {
			return int64(i*7919%40_000 + 1)
		}
		return (treeSize - small*20_000) / large
	}
	for i := range small + large {
		path := filepath.Join(r.files, fmt.Sprintf("d%02d/e%d/f%d", i%40, i%7, i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		// Piece by piece: a child's peak is at least its parent's size when it was started.
		_, err = io.CopyN(f, random, size(i))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	syscall.Sync() // these writes are nobody's
	return nil
}

// run takes the time of a process.
func (r *rootBench) run(name string, args ...string) (took time.Duration, peak int64, out []byte, err error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	start := time.Now()
	if out, err = cmd.Output(); err != nil {
		return 0, 0, nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.Bytes())
	}
	took = time.Since(start)
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		peak = u.Maxrss
	}
	return took, peak, out, nil
}

// self runs this program as one of the processes.
func (r *rootBench) self(args ...string) (time.Duration, error) {
	path, err := os.Executable()
	if err != nil {
		return 0, err
	}
	took, _, _, err := r.run(path, args...)
	return took, err
}

// The salt is of the length that veritysetup gives one, and is that of both.
var formatFlags = []string{"--uuid", "01234567-89ab-cdef-0123-456789abcdef", "--salt", strings.Repeat("5a", 32)}

func (r *rootBench) format() (time.Duration, error) {
	tree := r.data + ".plinth"
	defer os.Remove(tree)
	took, peak, out, err := r.run(r.bench.plinth, append([]string{"verity", "format", r.data, tree}, formatFlags...)...)
	r.peak = max(r.peak, peak)
	return took, errors.Join(err, r.same(out))
}

func (r *rootBench) veritysetup() (time.Duration, error) {
	tree := r.data + ".veritysetup"
	defer os.Remove(tree)
	took, _, out, err := r.run(testenv.Tool("veritysetup"), append([]string{"format", r.data, tree}, formatFlags...)...)
	return took, errors.Join(err, r.same(out))
}

// same fails when a tool prints another root hash than the one before it.
func (r *rootBench) same(out []byte) error {
	_, line, ok := strings.Cut(string(out), "Root hash:")
	hash, _, _ := strings.Cut(strings.TrimSpace(line), "\n")
	if !ok || r.rootHash != "" && hash != r.rootHash {
		return fmt.Errorf("the root hash is %q, before it was %q", hash, r.rootHash)
	}
	r.rootHash = hash
	return nil
}

func (r *rootBench) read() (time.Duration, error) { return r.self(readCommand, r.data) }

// readFile reads a file in two halves at a time and hashes each.
func readFile(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d files: want one", len(args))
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	half := fi.Size() / 2
	errs := make([]error, 2)
	var g sync.WaitGroup
	for i, part := range []*io.SectionReader{io.NewSectionReader(f, 0, half), io.NewSectionReader(f, half, fi.Size()-half)} {
		g.Go(func() { _, errs[i] = io.CopyBuffer(sha256.New(), struct{ io.Reader }{part}, make([]byte, 512<<10)) })
	}
	g.Wait()
	return errors.Join(errs...)
}

func (r *rootBench) erofs() (time.Duration, error) {
	out := r.files + ".plinth"
	defer os.Remove(out)
	return r.self(erofsCommand, r.store(), r.index(), out)
}

func (r *rootBench) mkfs() (time.Duration, error) {
	out := r.files + ".mkfs"
	defer os.Remove(out)
	took, _, _, err := r.run(testenv.Tool("mkfs.erofs"), "-T0", "--all-root", "-U01234567-89ab-cdef-0123-456789abcdef", out, r.files)
	return took, err
}
