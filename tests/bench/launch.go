package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// Sizes of what a launch measures, in bytes.
const (
	firmwareSize = 4 << 20
	varsSize     = 528 << 10
	kernelSize   = 12 << 20
	initrdSize   = 40 << 20
)

// A ratio compares a command with something that does as little as can be, or
// with another program. Both run in turns, and the best of each counts: other
// work on the machine only adds.
type ratio struct {
	what, beside string
	target       float64 // 0: none
	least        bool    // the ratio is to be at least target, not less than it
	once, base   func() (time.Duration, error)
	turns        int    // 0: turns
	tool         string // that the row is left out without
}

const turns = 9

// launch prints the rows of launch measurement.
func (b *bench) launch() error {
	l, err := newLaunchBench(b)
	if err != nil {
		return err
	}
	rows := []ratio{
		{what: "measure snp, 4 MiB firmware, 12 MiB kernel, 40 MiB initrd", beside: "a process that only hashes these files", target: 1.3, once: l.one, base: l.bareProcess},
		{what: "the same", beside: "SHA of these bytes, already in memory", once: l.one, base: l.bare},
		{what: "measure snp, 200 values in one call", beside: "one value", target: 1.5, once: l.many, base: l.one},
		{what: "measure tdx, MRTD of a 4 MiB firmware", beside: "SHA-384 of it alone", once: l.mrtd, base: l.bareMRTD},
	}
	if dir := os.Getenv("PLINTH_SSM"); dir != "" {
		rows = append(rows, ratio{what: "sev-snp-measure", beside: "measure snp", target: 4, least: true, once: l.python(dir), base: l.one})
	}
	fmt.Printf("launch measurement, best of %d, a process with its files in the page cache\n\n", turns)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\ttakes\tbeside\ttakes\tratio\ttarget\n")
	for _, r := range rows {
		if err := r.print(t); err != nil {
			return fmt.Errorf("%s: %w", r.what, err)
		}
	}
	if os.Getenv("PLINTH_SSM") == "" {
		fmt.Fprintf(t, "sev-snp-measure\tnot run: PLINTH_SSM names no checkout\n")
	}
	return t.Flush()
}

func (r *ratio) print(t *tabwriter.Writer) error {
	var once, base time.Duration
	for n := range cmp.Or(r.turns, turns) {
		o, err := r.once()
		if err != nil {
			return err
		}
		x, err := r.base()
		if err != nil {
			return err
		}
		if n == 0 {
			once, base = o, x
		}
		once, base = min(once, o), min(base, x)
	}
	got := float64(once) / float64(base)
	fmt.Fprintf(t, "%s\t%d ms\t%s\t%d ms\t%.2f\t%s\n", r.what, once.Milliseconds(), r.beside, base.Milliseconds(), got, r.verdict(got))
	return nil
}

func (r *ratio) verdict(got float64) string {
	if !r.least {
		return verdict(got, r.target, "")
	}
	s := fmt.Sprintf(">= %g", r.target)
	if got < r.target {
		s += ": missed"
	}
	return s
}

// launchBench holds what is measured, as files and in memory.
type launchBench struct {
	bench                          *bench
	firmware, tdvf, kernel, initrd []byte
	firmwareFile, tdvfFile         string
	kernelFile, initrdFile         string
	want                           string // the value, of plinth
}

func newLaunchBench(b *bench) (*launchBench, error) {
	l := &launchBench{bench: b, kernel: noise(kernelSize), initrd: noise(initrdSize)}
	amd := ovmftest.AmdSev("bench")
	l.firmware = append(noise(firmwareSize-len(amd)), amd...)
	tail := ovmftest.TDXTail(varsSize, firmwareSize-varsSize).Bytes()
	l.tdvf = append(noise(firmwareSize-len(tail)), tail...)
	for _, f := range []struct {
		name string
		data []byte
		path *string
	}{{"firmware.fd", l.firmware, &l.firmwareFile}, {"tdvf.fd", l.tdvf, &l.tdvfFile}, {"kernel", l.kernel, &l.kernelFile}, {"initrd", l.initrd, &l.initrdFile}} {
		*f.path = filepath.Join(b.dir, f.name)
		if err := os.WriteFile(*f.path, f.data, 0o644); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// noise is the same bytes every time.
func noise(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

const benchCmdline = "console=ttyS0 panic=-1"

// run takes the time of a process, and returns its first word.
func (l *launchBench) run(name string, args ...string) (time.Duration, string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		return 0, "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.Bytes())
	}
	word, _, _ := strings.Cut(strings.TrimSpace(out.String()), " ")
	return took, word, nil
}

func (l *launchBench) snp(vcpus, types string) (time.Duration, error) {
	took, value, err := l.run(l.bench.plinth, "measure", "snp", "--vcpus", vcpus, "--vcpu-type", types, "--ovmf", l.firmwareFile,
		"--kernel", l.kernelFile, "--initrd", l.initrdFile, "--append", benchCmdline)
	l.want = value
	return took, err
}

func (l *launchBench) one() (time.Duration, error) { return l.snp("1", "EPYC-v4") }

// many are 20 numbers of vCPUs with 10 types.
func (l *launchBench) many() (time.Duration, error) {
	return l.snp("1,2,3,4,5,6,7,8,9,10,12,14,16,20,24,28,32,48,64,128",
		"EPYC,EPYC-v1,EPYC-v2,EPYC-v3,EPYC-v4,EPYC-Rome,EPYC-Rome-v1,EPYC-Milan,EPYC-Genoa,EPYC-Turin")
}

// bareCommand is the argument with which this program is such a process.
const bareCommand = "hash"

// bareProcess starts this program again to hash the files as hashFiles does.
func (l *launchBench) bareProcess() (time.Duration, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	took, _, err := l.run(self, bareCommand, l.firmwareFile, l.kernelFile, l.initrdFile)
	return took, err
}

// hashFiles digests a firmware with SHA-384, and a kernel and an initrd with
// SHA-256, all at once.
func hashFiles(paths []string) error {
	if len(paths) != 3 {
		return fmt.Errorf("%d files: want firmware, kernel and initrd", len(paths))
	}
	errs := make([]error, len(paths))
	var g sync.WaitGroup
	for i, h := range []hash.Hash{sha512.New384(), sha256.New(), sha256.New()} {
		g.Go(func() { errs[i] = hashFile(h, paths[i]) })
	}
	g.Wait()
	return errors.Join(errs...)
}

func hashFile(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 128<<10))
	return err
}

// bare digests the bytes at hand as fast as the standard library can on as many
// processors as the commands have.
func (l *launchBench) bare() (time.Duration, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	start := time.Now()
	var g sync.WaitGroup
	g.Go(func() { sha256.Sum256(l.initrd) })
	g.Go(func() {
		sha256.Sum256(l.kernel)
		sha512.Sum384(l.firmware)
	})
	g.Wait()
	return time.Since(start), nil
}

func (l *launchBench) mrtd() (time.Duration, error) {
	took, _, err := l.run(l.bench.plinth, "measure", "tdx", "--ovmf", l.tdvfFile, "--order", "single-pass")
	return took, err
}

// bareMRTD digests what MRTD covers: each 256 bytes come with a head of 128.
func (l *launchBench) bareMRTD() (time.Duration, error) {
	head := make([]byte, 128)
	start := time.Now()
	h := sha512.New384()
	for at := varsSize; at < len(l.tdvf); at += 256 {
		h.Write(head)
		h.Write(l.tdvf[at : at+256])
	}
	h.Sum(nil)
	return time.Since(start), nil
}

// python runs sev-snp-measure of a checkout, which must give the same value.
func (l *launchBench) python(dir string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		took, value, err := l.run("python3", filepath.Join(dir, "sev-snp-measure.py"), "--mode", "snp", "--vcpus", "1", "--vcpu-type", "EPYC-v4",
			"--ovmf", l.firmwareFile, "--kernel", l.kernelFile, "--initrd", l.initrdFile, "--append", benchCmdline)
		if err == nil && l.want != "" && value != l.want {
			err = fmt.Errorf("sev-snp-measure says %s, plinth %s", value, l.want)
		}
		return took, err
	}
}
