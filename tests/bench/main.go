// Command bench prints how long plinth takes on two processors, and how much
// memory, beside the targets. Processor time is there for a machine that does
// other work too. Run it with "make bench"; it fetches packages once. With the
// argument "launch", "root", "image" or "attest" it measures only that, which needs no
// network; "attest" boots out/vtpm, if it is there.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

const (
	rounds  = 5 // of each row; the median counts
	profile = "vtpm"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		switch args := os.Args[2:]; os.Args[1] {
		case bareCommand:
			return hashFiles(args)
		case readCommand:
			return readFile(args)
		case erofsCommand:
			return makeEROFS(args)
		case drainCommand:
			return drainImage(args)
		case layoutCommand:
			return makeLayout(args)
		case attestCommand:
			return attestOnce(args)
		}
	}
	plinth, err := filepath.Abs("bin/plinth")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "plinth-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{plinth: plinth, dir: dir}
	fmt.Printf("%s/%s, %d processors of which 2 are used\n\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	only := strings.Join(os.Args[1:], " ")
	switch only {
	case "image":
		return b.images()
	case "attest":
		return b.attest(filepath.Join("out", profile))
	}
	if only != "root" {
		if err := b.launch(); err != nil {
			return err
		}
	}
	if only == "launch" {
		return nil
	}
	if err := b.root(); err != nil || only == "root" {
		return err
	}
	if err := b.images(); err != nil {
		return err
	}
	if err := b.fetch(); err != nil {
		return err
	}
	table := []row{
		{"build, packages there, no step done", 8, b.cold},
		{"build, nothing to do", 0.5, b.again},
		{"build, another command line", 1.5, b.cmdline},
		{"measure image, sha256", 0.3, b.measure},
		{"measure image, all banks, empty store", 1.5, b.measureCold},
		{"boot to the report", 0, b.boot},
	}
	if err := b.print(table); err != nil {
		return err
	}
	return b.attest(filepath.Join(b.dir, "out", profile))
}

// A row of the table is run several times.
type row struct {
	what   string
	target float64 // seconds; 0 is none
	once   func(round int) (sample, error)
}

// A sample is one run; it is zero when the host lacks what it takes.
type sample struct{ wall, processor time.Duration }

type bench struct {
	plinth, dir string
	peak        int64 // KiB, of all builds and measurements
}

func (b *bench) print(table []row) error {
	fmt.Printf("\nimages, median of %d\n\n", rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\ttakes\tprocessors\ttarget\n")
	for _, r := range table {
		s, err := r.median()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", r.what, err)
		case s == sample{}:
			fmt.Fprintf(t, "%s\tnot run: no QEMU or swtpm here\n", r.what)
		default:
			fmt.Fprintf(t, "%s\t%.2f s\t%.2f s\t%s\n", r.what, s.wall.Seconds(), s.processor.Seconds(), verdict(s.wall.Seconds(), r.target, "s"))
		}
	}
	peak := float64(b.peak) / 1024
	fmt.Fprintf(t, "peak memory of one process\t%.0f MiB\t\t%s\n", peak, verdict(peak, 300, "MiB"))
	return t.Flush()
}

// median runs a row and returns the medians of both times.
func (r row) median() (sample, error) {
	var wall, processor []time.Duration
	for n := range rounds {
		s, err := r.once(n)
		if err != nil || s == (sample{}) {
			return s, err
		}
		wall, processor = append(wall, s.wall), append(processor, s.processor)
	}
	slices.Sort(wall)
	slices.Sort(processor)
	return sample{wall[rounds/2], processor[rounds/2]}, nil
}

// verdict is the target, and whether it was missed.
func verdict(got, target float64, unit string) string {
	switch {
	case target == 0:
		return ""
	case got >= target:
		return fmt.Sprintf("< %g %s: missed", target, unit)
	}
	return fmt.Sprintf("< %g %s", target, unit)
}

// command runs plinth once.
func (b *bench) command(store string, args ...string) (sample, error) {
	cmd := exec.Command(b.plinth, append(args, "--cache-dir", filepath.Join(b.dir, store))...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "CI=1")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return sample{}, fmt.Errorf("plinth %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && args[0] != "boot" {
		b.peak = max(b.peak, u.Maxrss)
	}
	return sample{took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

// fetch makes the lock, and a store with packages and nothing else: a build
// leaves more there, and what is a package begins like an ar archive.
func (b *bench) fetch() error {
	if _, err := b.command("fetched", "build", profile); err != nil {
		return err
	}
	blobs := filepath.Join(b.dir, "fetched", "blobs")
	return filepath.WalkDir(blobs, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		deb, err := isDeb(path)
		if err == nil && !deb {
			err = os.Remove(path)
		}
		return err
	})
}

func isDeb(path string) (bool, error) {
	const magic = "!<arch>\ndebian-binary"
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, len(magic))
	n, _ := f.Read(head)
	return string(head[:n]) == magic, nil
}

// cold builds in a store with packages alone, into an empty folder.
func (b *bench) cold(round int) (sample, error) {
	store := "store"
	for _, name := range []string{store, "out"} {
		if err := os.RemoveAll(filepath.Join(b.dir, name)); err != nil {
			return sample{}, err
		}
	}
	if err := os.CopyFS(filepath.Join(b.dir, store, "blobs"), os.DirFS(filepath.Join(b.dir, "fetched", "blobs"))); err != nil {
		return sample{}, err
	}
	syscall.Sync() // the copy's writes are not the build's
	return b.command(store, "build", profile, "--locked")
}

func (b *bench) again(int) (sample, error) {
	return b.command("store", "build", profile, "--locked")
}

func (b *bench) cmdline(round int) (sample, error) {
	return b.command("store", "build", profile, "--locked", "-o", "changed", "--set", fmt.Sprintf(`cmdline={append=["round=%d"]}`, round))
}

func (b *bench) measure(int) (sample, error) {
	return b.command("store", "measure", "image", filepath.Join("out", profile))
}

func (b *bench) measureCold(round int) (sample, error) {
	return b.command(fmt.Sprintf("empty-%d", round), "measure", "image", filepath.Join("out", profile), "--bank", "sha1", "--bank", "sha256", "--bank", "sha384")
}

// boot takes no time where there is nothing to boot with.
func (b *bench) boot(int) (sample, error) {
	for _, tool := range []string{"qemu-system-x86_64", "swtpm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return sample{}, nil
		}
	}
	return b.command("store", "boot", filepath.Join("out", profile))
}
