package imagepull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/store"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/internal/testenv"
)

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Every form of a layer gives the content and the tree that the plain tar gives.
func TestPullForms(t *testing.T) {
	bottom, top := tarOf(t, "etc/", "etc/motd=hello", "big="+noise(1, 300<<10)), tarOf(t, "etc/.wh.motd=", "etc/issue=plinth")
	half := len(bottom) / 2
	members := append(compress(t, ociGzip, bottom[:half]), compress(t, ociGzip, bottom[half:])...)
	frames := slices.Concat(compress(t, ociZstd, bottom[:half]), []byte{0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, compress(t, ociZstd, bottom[half:]), []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9})
	coco := []crypt.Wrapper{crypt.ForCoCo(keyName, layerKey)}
	var want map[string]string
	for _, c := range []struct {
		name   string
		bottom layer
	}{
		{"plain", layer{mediaType: ociTar}},
		{"gzip", layer{}},
		{"zstd", layer{mediaType: ociZstd}},
		{"gzip in members", layer{blob: members}},
		{"zstd in frames, some to skip", layer{mediaType: ociZstd, blob: frames}},
		{"docker", layer{mediaType: dockerGzip}},
		{"docker plain", layer{mediaType: "application/vnd.docker.image.rootfs.diff.tar"}},
		{"not distributable", layer{mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}},
		{"encrypted gzip", layer{encrypt: coco}},
		{"encrypted zstd", layer{mediaType: ociZstd, encrypt: coco}},
		{"encrypted plain", layer{mediaType: ociTar, encrypt: coco}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.bottom.tar = bottom
			f, st := newFakeRegistry(t), newStore(t)
			im := newImage(t, c.bottom, layer{tar: top})
			f.put(t, "1", im)
			pulled, err := puller(t, f).Pull(t.Context(), f.name(t, "1"), st)
			if err != nil {
				t.Fatal(err)
			}
			if want := len(im.blobs[im.manifest.Config.Digest]) + int(im.manifest.Layers[0].Size+im.manifest.Layers[1].Size); pulled.Fetched != int64(want) {
				t.Errorf("fetched %d bytes: want %d", pulled.Fetched, want)
			}
			if pulled.Settings.Config.Cmd[0] != "/bin/app" || !bytes.Equal(pulled.Raw, im.blobs[im.manifest.Config.Digest]) {
				t.Errorf("configuration %s", pulled.Raw)
			}
			got := published(t, st, pulled)
			if want == nil {
				want = got
			}
			compareFiles(t, got, want)
			staged(t, st, 0)
			if os.Geteuid() == 0 {
				checkTree(t, st, pulled)
			}
		})
	}
}

// published reads what a pull left in the store, besides what differs from image to
// image.
func published(t *testing.T, st *store.Dir, p *imagepull.Pulled) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, kind := range []string{"layers", "trees"} {
		for name, content := range files(t, filepath.Join(filepath.Dir(st.Parts()), kind)) {
			out[kind+"/"+name] = content
		}
	}
	if len(out) != 2*len(p.DiffIDs)+1 {
		t.Errorf("%d files of %d layers and a tree", len(out), len(p.DiffIDs))
	}
	return out
}

func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func compareFiles(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %d bytes, not those of the other form", name, len(got[name]))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files: want %d", len(got), len(want))
	}
}

func checkTree(t *testing.T, st *store.Dir, p *imagepull.Pulled) {
	t.Helper()
	dir := t.TempDir()
	if err := st.Extract(t.Context(), p, dir, unpack.Limits{}); err != nil {
		t.Fatal(err)
	}
	got := files(t, dir)
	if got["big"] != noise(1, 300<<10) || got["etc/issue"] != "plinth" || len(got) != 2 {
		t.Errorf("unpacked %d files", len(got))
	}
}

// staged checks that nothing is left of pulls but so many parts.
func staged(t testing.TB, st *store.Dir, parts int) {
	t.Helper()
	for dir, want := range map[string]int{filepath.Join(filepath.Dir(st.Parts()), "staging"): 0, st.Parts(): parts} {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != want {
			t.Errorf("%s: %d files left: want %d", dir, len(list), want)
		}
	}
}

// Two images share a layer and a tree: what the store has is not fetched, not even
// where it comes encrypted for somebody else.
func TestPullShared(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	shared := tarOf(t, "shared="+noise(2, 100<<10))
	one := newImage(t, layer{tar: shared}, layer{tar: tarOf(t, "one=1")})
	two := newImage(t, layer{tar: shared, encrypt: []crypt.Wrapper{crypt.ForCoCo("kbs:///nobody/has/it", layerKey)}}, layer{tar: tarOf(t, "two=2")}, layer{tar: tarOf(t, "two=2")})
	f.put(t, "1", one)
	f.put(t, "2", two)
	p := puller(t, f)
	p.Admit = append(p.Admit, imagepull.PlainUnsigned)
	if _, err := p.Pull(t.Context(), f.name(t, "1"), st); err != nil {
		t.Fatal(err)
	}
	pulled, err := p.Pull(t.Context(), f.name(t, "2"), st)
	if err != nil {
		t.Fatal(err)
	}
	if n := f.asked[two.manifest.Layers[0].Digest]; n != 0 {
		t.Errorf("the shared layer was asked for %d times", n)
	}
	if n := f.asked[two.manifest.Layers[1].Digest]; n != 1 {
		t.Errorf("a layer that is there twice was asked for %d times", n)
	}
	if pulled.Layers[1] != pulled.Layers[2] || pulled.Layers[0] == nil {
		t.Error("layers are not beside the diff IDs")
	}
	again, err := p.Pull(t.Context(), f.name(t, "2"), st)
	if err != nil {
		t.Fatal(err)
	}
	if again.Fetched != two.manifest.Config.Size || again.ChainID != pulled.ChainID || !slices.Equal(again.Devices, pulled.Devices) {
		t.Errorf("again: %d bytes fetched, %v", again.Fetched, again.Devices)
	}
}

// Of a store without room nothing is asked; of one that fills up, nothing is left.
func TestPullDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "mounts a small file system")
	}
	f := newFakeRegistry(t)
	f.put(t, "large", newImage(t, layer{tar: tarOf(t, "a="+noise(3, 6<<20))}))
	f.put(t, "dense", newImage(t, layer{tar: tarOf(t, "a="+strings.Repeat("a", 5<<20), "b="+strings.Repeat("b", 5<<20))}))
	for _, c := range []struct {
		tag  string
		sent bool
	}{{"large", false}, {"dense", true}} {
		t.Run(c.tag, func(t *testing.T) {
			dir := t.TempDir()
			mountTmpfs(t, dir, "4m")
			st, err := store.Open(filepath.Join(dir, "store"))
			if err != nil {
				t.Fatal(err)
			}
			before, err := st.Free()
			if err != nil {
				t.Fatal(err)
			}
			p := puller(t, f)
			p.Parts = st.Parts()
			_, err = p.Pull(t.Context(), f.name(t, c.tag), st)
			var space *imagepull.SpaceError
			if !errors.As(err, &space) {
				t.Fatalf("got %v: want a SpaceError", err)
			}
			if space.Available > before || space.Needed <= space.Available {
				t.Errorf("%v, of %d", err, before)
			}
			if !strings.Contains(err.Error(), fmt.Sprint(space.Needed)) || !strings.Contains(err.Error(), fmt.Sprint(space.Available)) {
				t.Errorf("%v: the sizes are not named", err)
			}
			if isRefused(err) {
				t.Errorf("%v: the image is not to blame", err)
			}
			staged(t, st, 0)
			if after, err := st.Free(); err != nil || after < before-64<<10 {
				t.Errorf("%d bytes free: want %d, %v", after, before, err)
			}
		})
	}
	for d := range f.sent {
		if f.blobs[d] != nil && len(f.blobs[d]) > 6<<20 {
			t.Errorf("%d bytes of a layer were fetched that did not fit", f.sent[d])
		}
	}
}

func isRefused(err error) bool {
	var refused *imagepull.RefusedError
	return errors.As(err, &refused)
}

// The policy and Admit are asked before a blob is.
func TestPullNotAdmitted(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	f.put(t, "1", newImage(t, layer{tar: tarOf(t, "a=1")}))
	for _, c := range []struct {
		name, want string
		change     func(*imagepull.Puller)
	}{
		{"no policy", "rejected by the policy's default", func(p *imagepull.Puller) { p.Policy = nil }},
		{"unsigned", "the image is plain+unsigned", func(p *imagepull.Puller) { p.Admit = nil }},
		{"plain", "the image is plain+unsigned", func(p *imagepull.Puller) { p.Admit = imagepull.Admit{imagepull.EncryptedUnsigned} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := puller(t, f)
			c.change(p)
			_, err := p.Pull(t.Context(), f.name(t, "1"), st)
			if !isRefused(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v: want a refusal with %q", err, c.want)
			}
			if len(f.asked) > 0 {
				t.Error("a blob was fetched")
			}
		})
	}
}

// No byte of a layer is fetched before there is a key for all of them.
func TestPullKeysFirst(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	im := newImage(t, layer{tar: tarOf(t, "a=1"), encrypt: []crypt.Wrapper{crypt.ForCoCo(keyName, layerKey)}},
		layer{tar: tarOf(t, "b=1"), encrypt: []crypt.Wrapper{crypt.ForCoCo("kbs:///nobody/has/it", layerKey)}})
	f.put(t, "1", im)
	_, err := puller(t, f).Pull(t.Context(), f.name(t, "1"), st)
	if !isRefused(err) || !strings.Contains(err.Error(), "layer 2: "+im.manifest.Layers[1].Digest.String()+": crypt: no key: provider.attestation-agent: no key kbs:///nobody/has/it") {
		t.Error(err)
	}
	for _, l := range im.manifest.Layers {
		if f.asked[l.Digest] > 0 {
			t.Error("a layer was fetched")
		}
	}
	staged(t, st, 0)
}

// Prepare judges an image and asks for no key and no layer; Fetch gets what was
// judged, also when its name means another image by then, and again after an error.
func TestPrepare(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	im := newImage(t, layer{tar: tarOf(t, "a=1"), encrypt: []crypt.Wrapper{crypt.ForCoCo(keyName, layerKey)}})
	f.put(t, "1", im)
	p := puller(t, f)
	keys, failing := 0, errors.New("the broker is away")
	p.Unwrappers = []crypt.Unwrapper{crypt.CoCo(func(ctx context.Context, id string) ([]byte, error) {
		if keys++; keys == 1 {
			return nil, failing
		}
		return testKeys(ctx, id)
	})}
	prepared, err := p.Prepare(t.Context(), f.name(t, "1"))
	if err != nil {
		t.Fatal(err)
	}
	defer prepared.Close()
	if d := im.manifest.Layers[0].Digest; keys != 0 || f.asked[d] != 0 {
		t.Errorf("%d keys and the layer %d times were asked for", keys, f.asked[d])
	}
	if prepared.Settings.Config.Cmd[0] != "/bin/app" || prepared.Digest == "" || prepared.Verdict == nil {
		t.Errorf("got %+v", prepared.Image)
	}
	f.put(t, "1", newImage(t, layer{tar: tarOf(t, "b=2")}))
	if _, err := prepared.Fetch(t.Context(), st); !errors.Is(err, failing) {
		t.Errorf("got %v", err)
	}
	staged(t, st, 0)
	pulled, err := prepared.Fetch(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	if pulled.Digest != prepared.Digest || pulled.DiffIDs[0] != digest.FromBytes(tarOf(t, "a=1")) {
		t.Errorf("pulled %s, want %s", pulled.Digest, prepared.Digest)
	}
	// An image that is refused is refused here.
	p.Admit = nil
	if _, err := p.Prepare(t.Context(), f.name(t, "1")); !isRefused(err) {
		t.Errorf("got %v", err)
	}
}

// A layer in the making holds no more than its share of memory, whatever its size.
func TestPullMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 400 MiB")
	}
	f := newFakeRegistry(t)
	zeros := make([]byte, 100<<20)
	var layers []layer
	for i := range 4 {
		zeros[600] = byte(i)
		tar := tarOf(t, fmt.Sprintf("f%d=%s", i, zeros))
		layers = append(layers, layer{tar: tar, mediaType: []string{ociGzip, ociZstd}[i%2]})
	}
	f.put(t, "1", newImage(t, layers...))
	layers, zeros = nil, nil
	p := puller(t, f)
	p.Limits.Ratio = 100_000 // zeros
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	peak := watchHeap(t, func() {
		if _, err := p.Pull(t.Context(), f.name(t, "1"), newStore(t)); err != nil {
			t.Error(err)
		}
	})
	if grown := int64(peak) - int64(before.HeapInuse); grown > 80<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	} else {
		t.Logf("the heap grew by %d MiB", grown>>20)
	}
}

func watchHeap(t *testing.T, f func()) (peak uint64) {
	t.Helper()
	done, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			default:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
				runtime.Gosched()
			}
		}
	}()
	f()
	close(done)
	<-stopped
	return peak
}

// A pull that is stopped ends soon and keeps what it has.
func TestPullStopped(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	im := newImage(t, layer{tar: tarOf(t, "a="+noise(4, 1<<20))})
	f.put(t, "1", im)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var once sync.Once
	f.blob = func(w http.ResponseWriter, r *http.Request, d digest.Digest, b []byte) bool {
		if d != im.manifest.Layers[0].Digest || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b[:512<<10])
		w.(interface{ Unwrap() http.ResponseWriter }).Unwrap().(http.Flusher).Flush()
		waitPart(t, st, 512<<10)
		once.Do(cancel)
		<-r.Context().Done()
		return true
	}
	p := puller(t, f)
	p.Parts = st.Parts()
	if _, err := p.Pull(ctx, f.name(t, "1"), st); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	staged(t, st, 1)
	if _, err := p.Pull(t.Context(), f.name(t, "1"), st); err != nil {
		t.Fatal(err)
	}
	if got, want := f.sentOf(im.manifest.Layers[0].Digest), im.manifest.Layers[0].Size; got != want {
		t.Errorf("%d bytes sent of a layer of %d", got, want)
	}
	staged(t, st, 0)
}
