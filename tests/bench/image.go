package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/internal/gunzip"
	"github.com/plinth-os/plinth/internal/testenv"
	server "github.com/plinth-os/plinth/tests/registry"
)

const (
	imageSize   = 300 << 20 // bytes of the blobs
	imageLayers = 6
	imageTurns  = 5
	drainJobs   = 2 // layers at a time; as many as a pull takes on two processors
)

// Arguments with which this program is a process of its own.
const (
	drainCommand  = "drain"  // NAME CA AUTH: reads the layers of an image into nothing
	layoutCommand = "layout" // DIR: makes the image; a child's peak is at least its parent's size
)

// An imageBench pulls an image of files of this machine from a registry on it. All of
// it is in memory where there is a file system for that: the disk would decide else.
type imageBench struct {
	bench *bench
	root  *rootBench // runs processes
	dir   string
	size  int64 // of the blobs
	files int64 // bytes of the tars
	s     *server.Server
	peak  int64 // KiB, of a pull
}

// images prints the rows of pulling.
func (b *bench) images() (err error) {
	for _, tool := range []string{"docker-registry", "skopeo", "umoci"} {
		if testenv.Tool(tool) == "" {
			fmt.Printf("\npulling an image: not run: no %s here\n", tool)
			return nil
		}
	}
	i := &imageBench{bench: b, root: &rootBench{bench: b}}
	if i.dir, err = os.MkdirTemp(memoryDir(), "plinth-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(i.dir)
	ctx, stop := context.WithCancel(context.Background())
	host := &fakeTB{ctx: ctx}
	defer func() { stop(); host.end() }()
	if err := host.run(func() { i.s = server.Start(host) }); err != nil {
		return err
	}
	if err := i.prepare(); err != nil {
		return err
	}
	fmt.Printf("\nan image of %d MiB in %d layers, %d MiB of files, in %s, median of %d, 2 processors, load average %s\n\n",
		i.size>>20, imageLayers, i.files>>20, i.dir, imageTurns, loadAverage())
	rows := []struct {
		what string
		once func() (time.Duration, error)
		most float64 // that plinth may take, of this row's time; 0: no target
		got  []time.Duration
	}{
		{what: "plinth image pull", once: i.pull},
		{what: "skopeo copy, umoci unpack", once: i.others, most: 0.25},
		{what: "the layers read out of their gzip into nothing", once: i.drain, most: 1.3},
	}
	for range imageTurns {
		for n := range rows {
			took, err := rows[n].once()
			if err != nil {
				return fmt.Errorf("%s: %w", rows[n].what, err)
			}
			rows[n].got = append(rows[n].got, took)
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\ttakes\tfrom\tto\tplinth takes\ttarget\n")
	for _, r := range rows {
		slices.Sort(r.got)
		ratio := rows[0].got[imageTurns/2].Seconds() / r.got[imageTurns/2].Seconds()
		fmt.Fprintf(t, "%s\t%.2f s\t%.2f s\t%.2f s\t%.2f of it\t%s\n", r.what, r.got[imageTurns/2].Seconds(), r.got[0].Seconds(), r.got[imageTurns-1].Seconds(),
			ratio, verdict(ratio, r.most, "of it"))
	}
	peak := float64(i.peak) / 1024
	fmt.Fprintf(t, "peak memory of plinth image pull\t%.0f MiB\t\t\t\t%s\n", peak, verdict(peak, 96, "MiB"))
	return t.Flush()
}

func memoryDir() string {
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func (i *imageBench) path(name string) string { return filepath.Join(i.dir, name) }

// prepare makes the image and pushes it.
func (i *imageBench) prepare() error {
	path, err := os.Executable()
	if err != nil {
		return err
	}
	_, _, sizes, err := i.root.run(path, layoutCommand, i.path("layout"))
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(sizes), &i.size, &i.files); err != nil {
		return err
	}
	for name, b := range map[string][]byte{
		"ca.pem": i.s.CA, "auth.json": i.s.AuthFile(), "policy.json": []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`),
	} {
		if err := os.WriteFile(i.path(name), b, 0o600); err != nil {
			return err
		}
	}
	_, _, _, err = i.root.run(testenv.Tool("skopeo"), "copy", "--insecure-policy", "--quiet", "--dest-cert-dir", i.s.CertDir(),
		"--authfile", i.path("auth.json"), "oci:"+i.path("layout")+":app", i.name())
	return errors.Join(err, os.RemoveAll(i.path("layout")))
}

func (i *imageBench) name() string { return "docker://" + i.s.Host() + "/app:1" }

// makeLayout packs files of this machine's /usr until the image is large enough, and
// prints the bytes of its blobs and of its tars.
func makeLayout(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d arguments: want DIR", len(args))
	}
	l := &imageLayout{dir: args[0]}
	if err := l.make(); err != nil {
		return err
	}
	_, err := fmt.Println(l.size, l.files)
	return err
}

type imageLayout struct {
	dir         string
	size, files int64 // bytes of the blobs, of the tars
}

func (i *imageLayout) make() error {
	blobs := filepath.Join(i.dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	next, stop := iterFiles("/usr")
	defer stop()
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	for range imageLayers {
		d, diffID, err := i.layer(blobs, next)
		if err != nil {
			return err
		}
		manifest.Layers, config.RootFS.DiffIDs = append(manifest.Layers, d), append(config.RootFS.DiffIDs, diffID)
	}
	var err error
	if manifest.Config, err = putJSON(blobs, config, v1.MediaTypeImageConfig); err != nil {
		return err
	}
	d, err := putJSON(blobs, manifest, v1.MediaTypeImageManifest)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{v1.AnnotationRefName: "app"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []v1.Descriptor{d}})
	return errors.Join(err, os.WriteFile(filepath.Join(i.dir, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(i.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

func putJSON(dir string, v any, mediaType string) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, errors.Join(err, os.WriteFile(filepath.Join(dir, d.Digest.Encoded()), b, 0o644))
}

// layer makes one of its share of the size, as Docker compresses them.
func (i *imageLayout) layer(dir string, next func() (string, bool)) (d v1.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(dir, "layer")
	if err != nil {
		return d, "", err
	}
	blob, diff := sha256.New(), sha256.New()
	sized := &sizer{w: io.MultiWriter(f, blob)}
	z := pgzip.NewWriter(sized)
	unpacked := &sizer{w: io.MultiWriter(z, diff)}
	w := tar.NewWriter(unpacked)
	for sized.n < imageSize/imageLayers {
		path, ok := next()
		if !ok {
			break
		}
		if err := addFile(w, path); err != nil {
			return d, "", err
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		return d, "", err
	}
	i.size, i.files = i.size+sized.n, i.files+unpacked.n
	d = v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.NewDigest(digest.SHA256, blob), Size: sized.n}
	return d, digest.NewDigest(digest.SHA256, diff), os.Rename(f.Name(), filepath.Join(dir, d.Digest.Encoded()))
}

// sizer counts.
type sizer struct {
	w io.Writer
	n int64
}

func (s *sizer) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	return n, err
}

func addFile(w *tar.Writer, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil // it has gone
	}
	target, _ := os.Readlink(path) // of no other kind
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(path, "/")
	if !fi.Mode().IsRegular() {
		return w.WriteHeader(h)
	}
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) != h.Size {
		return nil // nor is this one of use
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// iterFiles walks a tree.
func iterFiles(root string) (next func() (string, bool), stop func()) {
	ch, done := make(chan string), make(chan bool)
	go func() {
		defer close(ch)
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error { // a file more or less
			if err != nil || !(e.Type().IsRegular() || e.IsDir() || e.Type() == fs.ModeSymlink) {
				return nil
			}
			select {
			case ch <- path:
				return nil
			case <-done:
				return fs.SkipAll
			}
		})
	}()
	return func() (string, bool) { path, ok := <-ch; return path, ok }, func() { close(done) }
}

func (i *imageBench) pull() (time.Duration, error) {
	store := i.path("store")
	defer os.RemoveAll(store)
	took, peak, _, err := i.root.run(i.bench.plinth, "image", "pull", i.name(), "--policy", i.path("policy.json"), "--admit", "plain+unsigned",
		"--ca", i.path("ca.pem"), "--authfile", i.path("auth.json"), "--store", store, "--progress", "none")
	i.peak = max(i.peak, peak)
	return took, err
}

func (i *imageBench) others() (time.Duration, error) {
	layout, bundle := i.path("copy"), i.path("bundle")
	defer os.RemoveAll(layout)
	defer os.RemoveAll(bundle)
	copied, _, _, err := i.root.run(testenv.Tool("skopeo"), "copy", "--insecure-policy", "--quiet", "--src-cert-dir", i.s.CertDir(),
		"--authfile", i.path("auth.json"), i.name(), "oci:"+layout+":app")
	if err != nil {
		return 0, err
	}
	args := []string{"unpack", "--image", layout + ":app", bundle}
	if os.Geteuid() != 0 {
		args = slices.Insert(args, 1, "--rootless")
	}
	unpacked, _, _, err := i.root.run(testenv.Tool("umoci"), args...)
	return copied + unpacked, err
}

func (i *imageBench) drain() (time.Duration, error) {
	return i.root.self(drainCommand, i.name(), i.path("ca.pem"), i.path("auth.json"))
}

// drainImage fetches the layers of an image with the client and the gzip reader that
// a pull has, as many at a time, and does nothing with what comes.
func drainImage(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%d arguments: want NAME CA AUTH", len(args))
	}
	n, err := policy.ParseName(args[0])
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	auth, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	client := &registry.Client{Roots: x509.NewCertPool()}
	client.Roots.AppendCertsFromPEM(ca)
	if client.Auth, err = registry.ParseAuthFile(auth); err != nil {
		return err
	}
	p := &imagepull.Puller{Registry: client, Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	ctx := context.Background()
	im, err := p.Inspect(ctx, n)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(drainJobs)
	for _, l := range im.Layers {
		g.Go(func() error {
			blob, err := client.Blob(ctx, n.Ref, v1.Descriptor{Digest: digest.Digest(l.Digest), Size: l.Size})
			if err != nil {
				return err
			}
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{gunzip.NewReader(blob)}, make([]byte, 512<<10))
			return errors.Join(err, blob.Close())
		})
	}
	return g.Wait()
}

// A fakeTB lets what starts servers for tests start one here.
type fakeTB struct {
	testing.TB
	ctx     context.Context
	cleanup []func()
	failed  string
}

func (f *fakeTB) run(start func()) error {
	done := make(chan bool)
	go func() { defer close(done); start() }() // Fatal ends the goroutine
	<-done
	if f.failed != "" {
		return errors.New(f.failed)
	}
	return nil
}

func (f *fakeTB) end() {
	for _, c := range slices.Backward(f.cleanup) {
		c()
	}
}

func (f *fakeTB) Helper()                      {}
func (f *fakeTB) Context() context.Context     { return f.ctx }
func (f *fakeTB) Cleanup(c func())             { f.cleanup = append(f.cleanup, c) }
func (f *fakeTB) Fatal(a ...any)               { f.failed = fmt.Sprint(a...); runtime.Goexit() }
func (f *fakeTB) Fatalf(s string, a ...any)    { f.Fatal(fmt.Sprintf(s, a...)) }
func (f *fakeTB) Skipf(s string, a ...any)     { f.Fatalf(s, a...) }
func (f *fakeTB) Logf(format string, a ...any) {}
