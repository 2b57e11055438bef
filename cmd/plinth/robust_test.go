package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/testenv"
)

// TestKill kills builds at moments that the seed decides: nothing is half-written
// under its final name, and the next build is right.
func TestKill(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		syntheticSite(t).killBuilds(4)
		return
	}
	const kills = 50
	s := realSite(t)
	hit := s.killBuilds(kills)
	for _, step := range s.steps {
		if hit[step] == 0 {
			t.Errorf("no kill landed in step %s", step)
		}
	}
}

// killBuilds returns how many kills landed in each step. One in three comes at a
// random moment of the whole build, the others soon after a step began, each step
// in turn.
func (s *site) killBuilds(kills int) map[string]int {
	s.t.Helper()
	const seed = 20260101
	s.t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	hit := map[string]int{}
	aimed := 0
	for n, landed := 0, 0; landed < kills && n < 3*kills; n++ {
		m := moment{delay: time.Duration(random.Int64N(int64(s.elapsed)))}
		if n%3 != 0 {
			m = moment{step: s.steps[aimed%len(s.steps)], delay: time.Duration(random.Int64N(int64(s.elapsed / 20)))}
			aimed++
			if hit[m.step] == 0 {
				m.delay = 0 // some steps last for milliseconds
			}
		}
		store, out := s.store(), fmt.Sprintf("out-%d", n)
		killed, during := s.killAt(store, out, m)
		s.t.Logf("%s: killed %t, during %s", m, killed, strings.Join(during, " "))
		if killed {
			landed++
		}
		for _, step := range during {
			hit[step]++
		}
		s.noneHalfWritten(store, out)
		s.right(store, out)
		s.forget(store, out)
	}
	return hit
}

// A moment of a build.
type moment struct {
	step  string        // "" is the build's beginning
	delay time.Duration // after the step's, or the build's, beginning
}

func (m moment) String() string { return fmt.Sprintf("%s+%v", m.step, m.delay.Round(time.Millisecond)) }

// killAt runs a build and kills it. during are the steps that it was in.
func (s *site) killAt(store, out string, m moment) (killed bool, during []string) {
	s.t.Helper()
	cmd := s.command("plinth", store, out)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var once sync.Once
	kill := func() { once.Do(func() { time.AfterFunc(m.delay, func() { cmd.Process.Kill() }) }) }
	if m.step == "" {
		kill()
	}
	running := map[string]bool{}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		var e builder.Event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		if e.State == "start" {
			running[e.Step] = true
			if e.Step == m.step {
				kill()
			}
		} else if e.State != "progress" {
			delete(running, e.Step)
		}
	}
	killed = cmd.Wait() != nil
	if killed {
		for _, step := range s.steps {
			if running[step] {
				during = append(during, step)
			}
		}
	}
	return killed, during
}

// TestManyBuilds runs builds at once that share a store; two share a folder too.
func TestManyBuilds(t *testing.T) {
	t.Parallel()
	s := syntheticSite(t)
	store := s.store()
	var wg sync.WaitGroup
	for _, out := range []string{"a", "b", "b"} {
		wg.Go(func() {
			if code, stderr := s.build("plinth", store, out); code != 0 {
				t.Errorf("exit %d\n%s", code, stderr)
			}
		})
	}
	wg.Wait()
	s.right(store, "a")
	s.right(store, "b")
}

// TestFileTooLarge lets no file grow beyond a limit, as a full disk would: exit
// 6, nothing half-written, and the next build is right.
func TestFileTooLarge(t *testing.T) {
	t.Parallel()
	s := syntheticSite(t)
	store := s.store()
	for _, limit := range limits {
		out := fmt.Sprintf("limited-%d", limit)
		code, stderr := s.build(limited(limit), store, out)
		if code != exitIO || !strings.Contains(stderr, "plinth: error: ") || !strings.Contains(stderr, "file too large") {
			t.Errorf("limit %d: exit %d, want %d\n%s", limit, code, exitIO, stderr)
		}
		s.noneHalfWritten(store, out)
		if _, err := os.Stat(filepath.Join(s.dir, out, "SHA256SUMS")); err == nil {
			t.Errorf("limit %d: there is a SHA256SUMS", limit)
		}
	}
	s.right(store, "limited")
}

// limits are sizes in bytes beyond which no file can grow.
var limits = []uint64{0, 100, 10 << 10, 600 << 10, 8 << 20}

func limited(limit uint64) string { return fmt.Sprintf("plinth-limited-%d", limit) }

// programs are what a test can run: plinth, and plinth with limits.
func programs() map[string]func() {
	p := map[string]func(){"plinth": main}
	for _, n := range limits {
		p[limited(n)] = func() {
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: n}); err != nil {
				panic(err)
			}
			main()
		}
	}
	return p
}

// TestDiskFull does so on a small file system.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := syntheticSite(t)
	for _, kib := range []int{64, 300, 600, 900, 1100} {
		store := filepath.Join(t.TempDir(), "store")
		if err := os.Mkdir(store, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", store, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
			testenv.Missing(t, "mount", err.Error())
		}
		t.Cleanup(func() { unix.Unmount(store, unix.MNT_DETACH) })
		code, stderr := s.build("plinth", store, "full")
		if code != exitIO || !strings.Contains(stderr, "no space left on device") {
			t.Errorf("%d KiB: exit %d, want %d\n%s", kib, code, exitIO, stderr)
		}
		s.noneHalfWritten(store, "full")
		if err := unix.Mount("", store, "", unix.MS_REMOUNT, "size=1g"); err != nil {
			t.Fatal(err)
		}
		s.right(store, "full")
		s.forget("", "full")
	}
}

// TestDamagedStore flips a bit of every file of the store: each is noticed and
// removed, by a build that stops or by one that does without it, and in the end
// the image is right.
func TestDamagedStore(t *testing.T) {
	t.Parallel()
	s := syntheticSite(t)
	store := s.store()
	s.mustBuild(store, "a")
	all := files(t, filepath.Join(store, "blobs"))
	for _, path := range append(all, files(t, filepath.Join(store, "results"))...) {
		flip(t, path)
	}
	stopped := 0
	for range all {
		code, stderr := s.build("plinth", store, "b")
		if code == 0 {
			break
		}
		if stopped++; code != exitIO || !strings.Contains(stderr, "content has digest") {
			t.Fatalf("exit %d, want %d and the digest\n%s", code, exitIO, stderr)
		}
	}
	t.Logf("%d builds stopped", stopped)
	if stopped == 0 {
		t.Error("no build noticed the damage")
	}
	got, err := readSums(filepath.Join(s.dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range s.want {
		if got[name] != want || digestOf(t, filepath.Join(s.dir, "b", name)) != want {
			t.Errorf("%s: sha256 is %s, want %s", name, got[name], want)
		}
	}
}

// TestDamagedBlob flips a bit of one blob at a time, before a build that has
// nothing else to do than to write the folder, and before one with another
// command line.
func TestDamagedBlob(t *testing.T) {
	if testing.Short() {
		t.Skip("100 builds")
	}
	s := syntheticSite(t)
	s.mustBuild(s.store(), "other", "--set", "cmdline=other")
	other, err := readSums(filepath.Join(s.dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	built := s.store()
	s.mustBuild(built, "a")
	for _, blob := range files(t, filepath.Join(built, "blobs")) {
		for _, c := range []struct {
			args []string
			want map[string]string
		}{{nil, s.want}, {[]string{"--set", "cmdline=other"}, other}} {
			store := s.clone(built)
			flip(t, strings.Replace(blob, built, store, 1))
			code, stderr := s.build("plinth", store, "b", c.args...)
			if code == exitIO && strings.Contains(stderr, "content has digest") {
				s.mustBuild(store, "b", c.args...)
			} else if code != 0 {
				t.Errorf("exit %d\n%s", code, stderr)
			}
			for name, digest := range c.want {
				if digestOf(t, filepath.Join(s.dir, "b", name)) != digest {
					t.Errorf("%s: %s is wrong after %s was damaged\n%s", c.args, name, blob, stderr)
				}
			}
			s.forget(store, "b")
		}
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return
	}
	b[len(b)/2] ^= 1
	// A new file, for the old one may have other names.
	if err := builder.WriteFile(path, b); err != nil {
		t.Fatal(err)
	}
}
