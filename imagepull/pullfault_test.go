package imagepull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/store"
)

type answer = func(http.ResponseWriter, *http.Request, digest.Digest, []byte) bool

func flush(w http.ResponseWriter) {
	w.(interface{ Unwrap() http.ResponseWriter }).Unwrap().(http.Flusher).Flush()
}

// half sends the first half of a blob, waits until it was read, and does what then
// comes.
func half(t *testing.T, st *store.Dir, then func(*http.Request)) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, r *http.Request, b []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b[:len(b)/2])
		flush(w)
		waitPart(t, st, int64(len(b)/2))
		then(r)
	}
}

func dies(*http.Request) { panic(http.ErrAbortHandler) }

// Whatever a registry does once, no byte of the layer is read twice.
func TestPullFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(*testing.T, *store.Dir) func(http.ResponseWriter, *http.Request, []byte)
	}{
		{"dies in the middle", func(t *testing.T, st *store.Dir) func(http.ResponseWriter, *http.Request, []byte) {
			return half(t, st, dies)
		}},
		{"stalls", func(t *testing.T, st *store.Dir) func(http.ResponseWriter, *http.Request, []byte) {
			return half(t, st, func(r *http.Request) { <-r.Context().Done() })
		}},
		{"ends early", func(*testing.T, *store.Dir) func(http.ResponseWriter, *http.Request, []byte) {
			return func(w http.ResponseWriter, _ *http.Request, b []byte) {
				w.Header().Set("Content-Length", fmt.Sprint(len(b)/2))
				_, _ = w.Write(b[:len(b)/2])
			}
		}},
		{"429", refuses(http.StatusTooManyRequests)},
		{"500", refuses(http.StatusInternalServerError)},
		{"503", refuses(http.StatusServiceUnavailable)},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, st := newFakeRegistry(t), newStore(t)
			im := newImage(t, layer{tar: tarOf(t, "a="+noise(9, 1<<20))}, layer{tar: tarOf(t, "b=1")})
			f.put(t, "1", im)
			var asked atomic.Int64
			f.blob = func(w http.ResponseWriter, r *http.Request, d digest.Digest, b []byte) bool {
				if d != im.manifest.Layers[0].Digest || asked.Add(1) > 1 {
					return false
				}
				c.first(t, st)(w, r, b)
				return true
			}
			p := puller(t, f)
			p.Registry.Patience = 300 * time.Millisecond
			p.Parts = st.Parts()
			pulled, err := p.Pull(t.Context(), f.name(t, "1"), st)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := f.sentOf(im.manifest.Layers[0].Digest), im.manifest.Layers[0].Size; got != want {
				t.Errorf("%d bytes of bodies for a layer of %d", got, want)
			}
			if want := im.manifest.Config.Size + im.manifest.Layers[0].Size + im.manifest.Layers[1].Size; pulled.Fetched != want {
				t.Errorf("fetched %d bytes: want %d", pulled.Fetched, want)
			}
			staged(t, st, 0)
		})
	}
}

func refuses(status int) func(*testing.T, *store.Dir) func(http.ResponseWriter, *http.Request, []byte) {
	return func(*testing.T, *store.Dir) func(http.ResponseWriter, *http.Request, []byte) {
		return func(w http.ResponseWriter, _ *http.Request, _ []byte) { http.Error(w, "later", status) }
	}
}

// A pull from a registry that stays away fails as the network's fault and keeps what
// came; the next reads the rest alone, also of a layer that had come whole.
func TestPullGoesOn(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(10, 1<<20))}, layer{tar: tarOf(t, "b="+noise(11, 100<<10))})
	f.put(t, "1", im)
	whole := im.manifest.Layers[1]
	f.blob = func(w http.ResponseWriter, r *http.Request, d digest.Digest, b []byte) bool {
		if d != im.manifest.Layers[0].Digest {
			return false
		}
		if r.Header.Get("Range") != "" {
			dies(r)
		}
		for f.sentOf(whole.Digest) < whole.Size {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		half(t, st, dies)(w, r, b)
		return true
	}
	p := puller(t, f)
	p.Parts, p.Registry.Tries, p.Parallel = st.Parts(), 2, 2
	_, err := p.Pull(t.Context(), f.name(t, "1"), st)
	if err == nil || isRefused(err) {
		t.Fatalf("got %v: want an error of the network", err)
	}
	staged(t, st, 2)
	f.blob = nil
	if _, err := p.Pull(t.Context(), f.name(t, "1"), st); err != nil {
		t.Fatal(err)
	}
	for _, l := range im.manifest.Layers {
		if got := f.sentOf(l.Digest); got != l.Size {
			t.Errorf("%d bytes of bodies for a layer of %d", got, l.Size)
		}
	}
	staged(t, st, 0)
}

// A part that is wrong is dropped, and the blob fetched anew, once. What another
// process writes is left alone.
func TestPullParts(t *testing.T) {
	f := newFakeRegistry(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(12, 200<<10))}, layer{tar: tarOf(t, "b="+noise(13, 100<<10))})
	f.put(t, "1", im)
	first := im.manifest.Layers[0]
	blob := im.blobs[first.Digest]
	for _, c := range []struct {
		name string
		part []byte
		sent int64
		left int
		lock bool
	}{
		{"right", blob[:5000], first.Size - 5000, 0, false},
		{"whole", blob, 0, 0, false},
		{"garbage", bytes.Repeat([]byte("x"), 5000), 2*first.Size - 5000, 0, false},
		{"a wrong byte", append(bytes.Repeat([]byte{^blob[0]}, 1), blob[1:]...), first.Size, 0, false},
		{"too long", append(bytes.Clone(blob), 'x'), first.Size, 0, false},
		{"another's", blob[:5000], first.Size, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStore(t)
			path := filepath.Join(st.Parts(), first.Digest.Encoded())
			writeFile(t, path, c.part)
			if c.lock {
				file, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
					t.Fatal(err)
				}
			}
			clear(f.sent)
			p := puller(t, f)
			p.Parts, p.Parallel = st.Parts(), 1
			if _, err := p.Pull(t.Context(), f.name(t, "1"), st); err != nil {
				t.Fatal(err)
			}
			if got := f.sentOf(first.Digest); got != c.sent {
				t.Errorf("%d bytes of bodies: want %d of a layer of %d", got, c.sent, first.Size)
			}
			if other := im.manifest.Layers[1]; f.sentOf(other.Digest) != other.Size {
				t.Errorf("%d bytes of bodies for the other layer of %d", f.sentOf(other.Digest), other.Size)
			}
			staged(t, st, c.left)
		})
	}
}

// spoiled is a store before whose every stage somebody leaves a part of other bytes.
type spoiled struct {
	*store.Dir
	part   string
	stages int
}

func (s *spoiled) Stage(ctx context.Context) (imagepull.Stage, error) {
	s.stages++
	if err := os.WriteFile(s.part, []byte("other bytes"), 0o600); err != nil {
		return nil, err
	}
	return s.Dir.Stage(ctx)
}

// Whatever an earlier pull left is tried once.
func TestPullPartsOnce(t *testing.T) {
	f := newFakeRegistry(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(18, 100<<10))})
	f.put(t, "1", im)
	st := &spoiled{Dir: newStore(t)}
	st.part = filepath.Join(st.Parts(), im.manifest.Layers[0].Digest.Encoded())
	p := puller(t, f)
	p.Parts = st.Parts()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := p.Pull(ctx, f.name(t, "1"), st); err != nil || st.stages != 2 {
		t.Errorf("%d stages, %v: want 2", st.stages, err)
	}
	staged(t, st.Dir, 0)
}

// broken is a store whose disk is full from the beginning.
type broken struct{ imagepull.Nowhere }

type brokenStage struct{ imagepull.Stage }

func (b broken) Stage(ctx context.Context) (imagepull.Stage, error) {
	s, err := b.Nowhere.Stage(ctx)
	return brokenStage{s}, err
}

func (brokenStage) Content(digest.Digest) (io.WriteCloser, error) { return fullFile{}, nil }

type fullFile struct{}

func (fullFile) Write([]byte) (int, error) { return 0, unix.ENOSPC }
func (fullFile) Close() error              { return nil }

// Of a layer that there is no room for the rest is not fetched.
func TestPullEndsWhereFull(t *testing.T) {
	f := newFakeRegistry(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(19, 32<<20)), mediaType: ociTar})
	f.put(t, "1", im)
	_, err := puller(t, f).Pull(t.Context(), f.name(t, "1"), broken{})
	if !errors.Is(err, unix.ENOSPC) || isRefused(err) {
		t.Errorf("got %v", err)
	}
	f.Close() // all was sent that will be
	if d := im.manifest.Layers[0]; f.sentOf(d.Digest) > d.Size*3/4 {
		t.Errorf("%d bytes of bodies for a layer of %d", f.sentOf(d.Digest), d.Size)
	}
}

// A mirror that has other bytes is left for the next place.
func TestPullMirrorLies(t *testing.T) {
	f, liar, st := newFakeRegistry(t), newFakeRegistry(t), newStore(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(14, 100<<10))})
	f.put(t, "1", im)
	liar.put(t, "1", im)
	d := im.manifest.Layers[0].Digest
	wrong := bytes.Clone(im.blobs[d])
	wrong[len(wrong)/2] ^= 1
	liar.blobs[d] = wrong
	p := puller(t, f)
	var err error
	p.Registry.Config, err = registry.ParseConfig(fmt.Appendf(nil, "[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n", host(f), host(liar)))
	if err != nil {
		t.Fatal(err)
	}
	p.Parts = st.Parts()
	if _, err := p.Pull(t.Context(), f.name(t, "1"), st); err != nil {
		t.Fatal(err)
	}
	if liar.asked[d] != 1 || f.asked[d] != 1 {
		t.Errorf("the mirror was asked %d times, the registry %d: want once each", liar.asked[d], f.asked[d])
	}
	staged(t, st, 0)
	f.blobs[d] = wrong // now nobody has it
	if _, err := p.Pull(t.Context(), f.name(t, "1"), newStore(t)); !isRefused(err) {
		t.Errorf("got %v: want a refusal", err)
	}
}

func host(f *fakeRegistry) string { return strings.TrimPrefix(f.URL, "https://") }

const childEnv = "PLINTH_TEST_PULL" // "URL STORE CA"

// TestPullChild is the process that TestPullKilled kills.
func TestPullChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		return
	}
	a := strings.Split(os.Getenv(childEnv), " ")
	st, err := store.Open(a[1])
	if err != nil {
		t.Fatal(err)
	}
	p := puller(t, nil)
	p.Registry.Config, err = registry.ParseConfig(fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", strings.TrimPrefix(a[0], "https://")))
	if err != nil {
		t.Fatal(err)
	}
	p.Parts, p.Parallel = st.Parts(), 3
	if _, err := p.Pull(t.Context(), parseName(t, "docker://"+strings.TrimPrefix(a[0], "https://")+"/app:1"), st); err != nil {
		t.Fatal(err)
	}
}

// A pull that is killed leaves a store that is right, and the next reads at most 1 MiB
// of a layer again.
func TestPullKilled(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 4
	}
	f := newFakeRegistry(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(15, 4<<20))}, layer{tar: tarOf(t, "b="+noise(16, 4<<20))}, layer{tar: tarOf(t, "c="+noise(17, 2<<20))})
	f.put(t, "1", im)
	reference := newStore(t)
	if _, err := puller(t, f).Pull(t.Context(), f.name(t, "1"), reference); err != nil {
		t.Fatal(err)
	}
	want := files(t, filepath.Dir(reference.Parts()))
	var current atomic.Pointer[store.Dir]
	f.blob = slowly(&current)
	undisturbed := newStore(t)
	current.Store(undisturbed)
	begin := time.Now()
	if pullAndKill(t, f, undisturbed, time.Minute) {
		t.Fatal("no pull ends within a minute")
	}
	long := time.Since(begin)
	r := rand.New(rand.NewPCG(1, 1))
	var died, whole int
	for i := range rounds {
		st := newStore(t)
		current.Store(st)
		clear(f.sent)
		if pullAndKill(t, f, st, time.Duration(r.Int64N(int64(long)*3/4))) {
			died++
		} else {
			whole++
		}
		checkStore(t, st, want)
		p := puller(t, f)
		p.Parts = st.Parts()
		if _, err := p.Pull(t.Context(), f.name(t, "1"), st); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		for _, l := range im.manifest.Layers {
			if got := f.sentOf(l.Digest); got > l.Size+1<<20 {
				t.Errorf("round %d: %d bytes of bodies for a layer of %d", i, got, l.Size)
			}
		}
		staged(t, st, 0)
		got := files(t, filepath.Dir(st.Parts()))
		for _, m := range []map[string]string{got, want} {
			maps.DeleteFunc(m, func(name, _ string) bool { return strings.HasSuffix(name, "lock") })
		}
		compareFiles(t, got, want)
	}
	t.Logf("%d killed, %d were through", died, whole)
	if died < rounds/2 {
		t.Errorf("%d of %d were killed: the moments are too late", died, rounds)
	}
}

// slowly sends a blob so that at most half a MiB is on its way: what the kernel holds
// of a connection nobody has read.
func slowly(st *atomic.Pointer[store.Dir]) answer {
	return func(w http.ResponseWriter, r *http.Request, d digest.Digest, b []byte) bool {
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
			w.Header().Set("Content-Length", fmt.Sprint(len(b)-from))
			w.WriteHeader(http.StatusPartialContent)
		}
		part := filepath.Join(st.Load().Parts(), d.Encoded())
		for from < len(b) {
			n, err := w.Write(b[from:min(len(b), from+64<<10)])
			if err != nil {
				return true
			}
			flush(w)
			from += n
			for r.Context().Err() == nil {
				time.Sleep(time.Millisecond)
				fi, err := os.Stat(part)
				if err == nil && int64(from)-fi.Size() < 512<<10 || err != nil && from < 512<<10 {
					break
				}
			}
		}
		return true
	}
}

func pullAndKill(t *testing.T, f *fakeRegistry, st *store.Dir, after time.Duration) (killed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestPullChild$")
	cmd.Env = append(os.Environ(), childEnv+"="+f.URL+" "+filepath.Dir(st.Parts()))
	out, err := cmd.CombinedOutput() // killed by SIGKILL
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && !exit.Exited()) && ctx.Err() == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return err != nil
}

// checkStore checks that what is under its final name is right.
func checkStore(t *testing.T, st *store.Dir, want map[string]string) {
	t.Helper()
	images, err := st.Images()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files(t, filepath.Dir(st.Parts())) {
		kind, _, _ := strings.Cut(name, "/")
		if kind != "staging" && kind != "parts" && !strings.HasSuffix(name, "lock") && content != want[name] {
			t.Errorf("%s: %d bytes, not the right ones", name, len(content))
		}
	}
	for _, im := range images {
		for _, id := range im.DiffIDs {
			if l, err := st.Layer(id); err != nil || l == nil {
				t.Errorf("image %s lacks layer %s: %v", im.Manifest, id, err)
			}
		}
		if there, err := st.Tree(im.ChainID); err != nil || !there {
			t.Errorf("image %s lacks its tree: %v", im.Manifest, err)
		}
	}
}

var _ imagepull.Store = (*store.Dir)(nil)
