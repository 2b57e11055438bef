package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/store"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

func open(t testing.TB) (*store.Dir, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	d, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d, dir
}

// stageOf makes a stage with an image of layers without files. Layers of equal names
// are equal.
func stageOf(t testing.TB, d *store.Dir, name string, layers ...string) (imagepull.Stage, *imagepull.Pulled) {
	t.Helper()
	s, err := d.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := &imagepull.Pulled{Manifest: []byte("manifest of " + fmt.Sprint(layers)), Raw: []byte("{}"), ChainID: digest.FromString(fmt.Sprint(layers))}
	p.Name, p.Digest = name, digest.FromBytes(p.Manifest).String()
	for i, l := range layers {
		id := digest.FromString(l)
		p.DiffIDs, p.Devices, p.Layers = append(p.DiffIDs, id), append(p.Devices, i), append(p.Layers, emptyLayer(t))
		if known, err := d.Layer(id); err != nil || known != nil {
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		w, err := s.Content(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if there, err := d.Tree(p.ChainID); err != nil {
		t.Fatal(err)
	} else if !there {
		w, err := s.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("tree")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return s, p
}

func emptyLayer(t testing.TB) *unpack.Layer {
	t.Helper()
	l, err := unpack.Read(t.Context(), strings.NewReader(strings.Repeat("\x00", 1024)), writer{}, unpack.NewBudget(unpack.Limits{}))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type writer struct{}

func (writer) Write(p []byte) (int, error) { return len(p), nil }

func publish(t testing.TB, d *store.Dir, name string, layers ...string) *imagepull.Pulled {
	t.Helper()
	s, p := stageOf(t, d, name, layers...)
	if err := s.Publish(p); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	return p
}

func list(t testing.TB, dir, kind string) []string {
	t.Helper()
	l, err := os.ReadDir(filepath.Join(dir, kind))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range l {
		out = append(out, e.Name())
	}
	return out
}

func counts(t testing.TB, dir string) [4]int {
	return [4]int{len(list(t, dir, "images")), len(list(t, dir, "trees")), len(list(t, dir, "layers")), len(list(t, dir, "staging"))}
}

func TestPublish(t *testing.T) {
	d, dir := open(t)
	s, p := stageOf(t, d, "one", "a", "b")
	if got := counts(t, dir); got != [4]int{0, 0, 0, 1} {
		t.Errorf("before: %v", got)
	}
	if err := s.Publish(p); err != nil {
		t.Fatal(err)
	}
	if got := counts(t, dir); got != [4]int{1, 1, 2, 0} {
		t.Errorf("after: %v", got)
	}
	for name, want := range map[string]string{"manifest.json": string(p.Manifest), "config.json": "{}"} {
		b, err := os.ReadFile(filepath.Join(dir, "images", digest.Digest(p.Digest).Encoded(), name))
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v: want %q", name, b, err, want)
		}
	}
	if b, err := os.ReadFile(d.Root(p.ChainID)); err != nil || string(b) != "tree" {
		t.Errorf("root: %q, %v", b, err)
	}
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v: want 0700", fi.Mode(), err)
	}
	images, err := d.Images()
	if err != nil || len(images) != 1 || !slices.Equal(images[0].Names, []string{"one"}) || !slices.Equal(images[0].Devices, p.DiffIDs) {
		t.Errorf("%+v, %v", images, err)
	}
}

func TestDiscard(t *testing.T) {
	d, dir := open(t)
	s, _ := stageOf(t, d, "one", "a")
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if got := counts(t, dir); got != [4]int{} {
		t.Errorf("left: %v", got)
	}
}

// A name is that of the image that was pulled last.
func TestNames(t *testing.T) {
	d, dir := open(t)
	publish(t, d, "tag", "a")
	publish(t, d, "other", "a")
	publish(t, d, "tag", "a", "b")
	images, err := d.Images()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, im := range images {
		got = append(got, fmt.Sprint(im.Names, len(im.DiffIDs)))
	}
	if want := []string{"[other] 1", "[tag] 2"}; !slices.Equal(got, want) {
		t.Errorf("got %q: want %q", got, want)
	}
	publish(t, d, "other", "c")
	r, err := d.Prune(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Images) != 1 || r.Trees != 1 || r.Layers != 0 { // layer a is needed
		t.Errorf("removed %+v", r)
	}
	if got := counts(t, dir); got != [4]int{2, 2, 3, 0} {
		t.Errorf("left: %v", got)
	}
}

func TestRemove(t *testing.T) {
	d, dir := open(t)
	publish(t, d, "one", "a", "b")
	publish(t, d, "also one", "a", "b")
	two := publish(t, d, "two", "a", "c")
	for _, c := range []struct {
		what string
		left [4]int
	}{
		{"one", [4]int{2, 2, 3, 0}}, {"also one", [4]int{1, 1, 2, 0}}, {two.Digest, [4]int{}},
	} {
		if _, err := d.Remove(t.Context(), c.what); err != nil {
			t.Fatal(err)
		}
		if got := counts(t, dir); got != c.left {
			t.Errorf("%s: left %v: want %v", c.what, got, c.left)
		}
	}
	if _, err := d.Remove(t.Context(), "one"); !errors.Is(err, store.ErrNoImage) {
		t.Errorf("got %v: want ErrNoImage", err)
	}
}

func TestPruneParts(t *testing.T) {
	d, dir := open(t)
	if err := os.WriteFile(filepath.Join(d.Parts(), "x"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := d.Prune(t.Context())
	if err != nil || r.Parts != 1 || r.Bytes != 1000 || len(list(t, dir, "parts")) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// Nothing is removed while a pull may count on it.
func TestPruneWaits(t *testing.T) {
	d, dir := open(t)
	publish(t, d, "one", "a")
	publish(t, d, "one", "b") // nobody needs a now
	s, p := stageOf(t, d, "two", "a", "c")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Prune(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v: want to wait", err)
	} else if errors.Is(err, os.ErrClosed) {
		t.Errorf("%v: a file was closed twice", err)
	}
	if err := s.Publish(p); err != nil {
		t.Fatal(err)
	}
	if r, err := d.Prune(t.Context()); err != nil || r.Layers != 0 || len(r.Images) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if got := counts(t, dir); got != [4]int{2, 2, 3, 0} {
		t.Errorf("left %v", got)
	}
}

// The next stage removes those of the dead, and no other.
func TestSweep(t *testing.T) {
	d, dir := open(t)
	alive, _ := stageOf(t, d, "alive", "a")
	name := list(t, dir, "staging")[0]
	for _, dead := range []string{"with-lock", "without-lock"} {
		if err := os.MkdirAll(filepath.Join(dir, "staging", dead, "layers/x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "staging/with-lock/owner.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := d.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, dir, "staging"); len(got) != 2 || !slices.Contains(got, name) {
		t.Errorf("staging: %q", got)
	}
	if err := errors.Join(s.Discard(), alive.Discard()); err != nil {
		t.Fatal(err)
	}
}

// Pulls of the same image at a time all succeed.
func TestConcurrent(t *testing.T) {
	d, dir := open(t)
	type staged struct {
		s imagepull.Stage
		p *imagepull.Pulled
	}
	var all []staged
	for i := range 8 {
		s, p := stageOf(t, d, fmt.Sprintf("name%d", i), "a", "b", fmt.Sprintf("c%d", i/2))
		all = append(all, staged{s, p})
	}
	var g sync.WaitGroup
	for _, a := range all {
		g.Go(func() {
			if err := a.s.Publish(a.p); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if got := counts(t, dir); got != [4]int{4, 4, 6, 0} {
		t.Errorf("left %v", got)
	}
	images, err := d.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range images {
		if len(im.Names) != 2 {
			t.Errorf("names %q", im.Names)
		}
	}
}

// What was changed after it was published is not believed.
func TestDamaged(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		use              func(*store.Dir, *imagepull.Pulled) error
	}{
		{"content", "layers/*/content", "x", layer},
		{"layer", "layers/*/layer", "x", layer},
		{"image", "images/*/image.json", "{}", images},
		{"image's chain", "images/*/image.json", "", images},
		{"image's digest", "images/*/image.json", `{"schema":1,"names":[],"manifest":"sha256:../../x","chain_id":"","diff_ids":[],"devices":[],"size":0}`, images},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, dir := open(t)
			p := publish(t, d, "one", "a")
			if err := c.use(d, p); err != nil {
				t.Fatal(err)
			}
			found, err := filepath.Glob(filepath.Join(dir, c.file))
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			if c.text == "" { // what a path is made of
				b, err := os.ReadFile(found[0])
				if err != nil {
					t.Fatal(err)
				}
				c.text = strings.ReplaceAll(string(b), p.ChainID.String(), "sha256:../../x")
			}
			if err := os.WriteFile(found[0], []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.use(d, p); err == nil || !strings.Contains(err.Error(), filepath.Dir(found[0])) {
				t.Errorf("got %v: want an error that names %s", err, filepath.Dir(found[0]))
			}
		})
	}
}

func layer(d *store.Dir, p *imagepull.Pulled) error  { _, err := d.Layer(p.DiffIDs[0]); return err }
func images(d *store.Dir, _ *imagepull.Pulled) error { _, err := d.Images(); return err }

// A store that cannot be written fails before anything is fetched.
func TestReadOnly(t *testing.T) {
	d, dir := open(t)
	staging := filepath.Join(dir, "staging")
	if err := errors.Join(os.Remove(staging), os.WriteFile(staging, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Stage(t.Context()); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("got %v", err)
	}
}

// Beside an image that is damaged nothing is published, or all of it.
func TestPublishBesideDamaged(t *testing.T) {
	d, dir := open(t)
	one := publish(t, d, "one", "a")
	if err := os.WriteFile(filepath.Join(dir, "images", digest.Digest(one.Digest).Encoded(), "image.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, p := stageOf(t, d, "two", "b")
	var damaged *store.DamagedError
	if err := s.Publish(p); !errors.As(err, &damaged) {
		t.Errorf("got %v: want a DamagedError", err)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, dir, "images"); len(got) != 1 {
		t.Errorf("images %q", got)
	}
}

// Nothing is unpacked of what is being removed.
func TestExtractWaits(t *testing.T) {
	d, dir := open(t)
	p := publish(t, d, "one", "a")
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Extract(ctx, p, filepath.Join(t.TempDir(), "none"), unpack.Limits{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v: want to wait", err)
	}
}
