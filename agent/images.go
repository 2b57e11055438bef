package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/http/httpproxy"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/workload"
)

// An imageStore keeps what was pulled and shows it.
type imageStore interface {
	imagepull.Store
	Mount(chainID digest.Digest, target string) error // of a tree, read-only
	Unmount(target string) error
	Collect(keep []digest.Digest) (freed int64, err error)
	Close() error // forgets its keys
}

// imageMounts is where trees are shown.
const imageMounts = "/run/plinth/images"

// shownImages are the trees that are mounted, and where. What is in imageMounts says
// nothing of that.
type shownImages struct {
	mu   sync.Mutex               // also for work.store, which whoever stops the guest looks at
	dirs map[digest.Digest]string // by chain
}

// openStorage sets up where images are kept until the guest stops.
func openStorage(ctx context.Context, s *State) error {
	store, err := s.newStore(ctx)
	if err != nil {
		return err
	}
	s.work.shown.mu.Lock()
	defer s.work.shown.mu.Unlock()
	s.work.store = store
	return nil
}

func (s *State) newStore(ctx context.Context) (imageStore, error) {
	c := s.Config.Storage
	if c.Disk == "" {
		return s.work.site.memory(int64(c.MemoryMiB) << 20)
	}
	device, err := s.disk(ctx, c.Disk)
	if err != nil {
		return nil, err
	}
	return s.work.site.disk(ctx, device)
}

// closeTime is how long a guest that stops waits for its images to go.
const closeTime = 3 * time.Second

// closeImages takes away what is shown and the keys with it, as far as nobody uses
// them still: the machine ends all the same.
func (s *State) closeImages(grace time.Duration) {
	done := make(chan error, 1)
	s.background(func() { done <- s.closeStore() })
	select {
	case err := <-done:
		if err != nil {
			s.logf("images: %v", err)
		}
	case <-time.After(grace):
		s.logf("images: still in use")
	}
}

func (s *State) closeStore() error {
	shown := &s.work.shown
	shown.mu.Lock()
	defer shown.mu.Unlock()
	if s.work.store == nil {
		return nil
	}
	for id, dir := range shown.dirs {
		if err := s.work.store.Unmount(dir); err != nil {
			return err
		}
		delete(shown.dirs, id)
	}
	return s.work.store.Close()
}

// resolveImages learns what every image is, and asks the policy. Nothing of an image
// but its configuration is fetched, and no key of one is asked for.
func resolveImages(ctx context.Context, s *State) (err error) {
	if s.work.puller, err = s.newPuller(ctx); err != nil {
		return err
	}
	for i := range s.work.config.Workloads {
		w := &s.work.config.Workloads[i]
		if err := s.resolveImage(ctx, w); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w.Name, err), s.closePrepared())
		}
	}
	return nil
}

func (s *State) resolveImage(ctx context.Context, w *workload.Process) error {
	im, err := s.prepare(ctx, w.Image)
	if err != nil {
		return err
	}
	s.work.prepared = append(s.work.prepared, im)
	if want := w.Wanted(); want != "" && im.Digest != want && im.Index != want {
		return fmt.Errorf("%s is %s, want %s", w.Image, im.Digest, want)
	}
	e, err := w.Effective(&im.Settings.Config)
	if err != nil {
		return err
	}
	s.work.admit = append(s.work.admit, workload.Admitted{Process: w, Manifest: im.Digest, Effective: e})
	return nil
}

// closePrepared lets go of where images are.
func (s *State) closePrepared() error {
	var errs []error
	for _, im := range s.work.prepared {
		errs = append(errs, im.Close())
	}
	s.work.prepared = nil
	return errors.Join(errs...)
}

// fetchImages gets every image, or ends the boot. What came is proven and not shown to
// anybody yet.
func fetchImages(ctx context.Context, s *State) error {
	for i, w := range s.work.config.Workloads {
		im, err := s.fetch(ctx, s.work.prepared[i])
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w.Name, err), s.closePrepared())
		}
		s.logf("%s: %s, %d bytes fetched", w.Name, im.Digest, im.Fetched)
		s.work.images = append(s.work.images, im)
	}
	return s.closePrepared()
}

// prepare judges one image by the policy.
func (s *State) prepare(ctx context.Context, image string) (*imagepull.Prepared, error) {
	n, err := policy.ParseName(image)
	if err != nil {
		return nil, err
	}
	p := *s.work.puller
	p.Trust.Now = time.Now()
	p.Trust.ReadFile = func(name string) ([]byte, error) { return s.readTrusted(ctx, name) }
	p.OpenFile = func(name string) (imagepull.File, error) { return s.openImage(ctx, name) }
	return s.work.site.prepare(ctx, &p, n)
}

// fetch gets one image.
func (s *State) fetch(ctx context.Context, im *imagepull.Prepared) (*imagepull.Pulled, error) {
	pulled, err := s.work.site.fetch(ctx, im, s.work.store)
	var full *imagepull.SpaceError
	if !errors.As(err, &full) || !s.collect() {
		return pulled, err
	}
	return s.work.site.fetch(ctx, im, s.work.store)
}

// collect frees what no container of the configuration runs from, and no bundle that
// is still mounted. It tells whether there is more room now.
func (s *State) collect() bool {
	shown := &s.work.shown
	shown.mu.Lock()
	defer shown.mu.Unlock()
	var keep []digest.Digest
	for _, im := range s.work.images {
		keep = append(keep, im.ChainID)
	}
	for id, dir := range shown.dirs {
		if slices.Contains(keep, id) {
			continue
		}
		if err := s.work.store.Unmount(dir); err != nil { // a bundle has it: it is kept
			s.logf("images: %v", err)
		}
		delete(shown.dirs, id)
	}
	freed, err := s.work.store.Collect(keep)
	if err != nil {
		s.logf("images: %v", err)
	}
	return freed > 0
}

// rejectAll is the policy of a configuration without one.
var rejectAll = &policy.Policy{Default: []policy.Requirement{{Type: policy.Reject}}}

// newPuller reads what the configuration says of images.
func (s *State) newPuller(ctx context.Context) (_ *imagepull.Puller, err error) {
	if err := s.policyFrom(ctx); err != nil {
		return nil, err
	}
	c := s.work.config
	client := &registry.Client{UserAgent: "plinth-agent", Log: s.logf}
	p := &imagepull.Puller{
		Registry: client, Policy: rejectAll,
		Platform:   v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Unwrappers: []crypt.Unwrapper{crypt.CoCo(s.key)}, Log: s.logf,
	}
	if c.Policy != nil {
		if p.Policy, err = policy.Parse(c.Policy); err != nil {
			return nil, err
		}
	}
	if p.Admit, err = imagepull.ParseAdmit(c.Admit); err != nil {
		return nil, err
	}
	if c.Registries != "" {
		if client.Config, err = registry.ParseConfig([]byte(c.Registries)); err != nil {
			return nil, err
		}
	}
	if p.Lookaside, err = lookaside(c.Lookaside); err != nil {
		return nil, err
	}
	if client.Roots, err = roots(c.CAs); err != nil {
		return nil, err
	}
	if client.Auth, err = s.auth(ctx, c.Auth); err != nil {
		return nil, err
	}
	if c.Proxy != nil {
		find := (&httpproxy.Config{HTTPSProxy: c.Proxy.HTTPS, NoProxy: c.Proxy.No}).ProxyFunc()
		client.Proxy = func(r *http.Request) (*url.URL, error) { return find(r.URL) }
	}
	if c.Limits != nil {
		p.Limits = unpack.Limits{Bytes: c.Limits.Bytes, Entries: c.Limits.Entries}
	}
	return p, nil
}

func lookaside(files []string) (*imagepull.Lookaside, error) {
	if len(files) == 0 {
		return nil, nil
	}
	var in [][]byte
	for _, f := range files {
		in = append(in, []byte(f))
	}
	return imagepull.ParseLookaside(in...)
}

// roots are the certificates of the root file system and those of the configuration.
func roots(pem string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil { // there are none
		pool = x509.NewCertPool()
	}
	if pem != "" && !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("cas: no certificate in PEM")
	}
	return pool, nil
}

// showImage mounts a tree, once for all who run it, and returns where.
func (s *State) showImage(im *imagepull.Pulled) (string, error) {
	shown := &s.work.shown
	shown.mu.Lock()
	defer shown.mu.Unlock()
	if dir, ok := shown.dirs[im.ChainID]; ok {
		return dir, nil
	}
	dir := s.path(imageMounts + "/" + im.ChainID.Encoded())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := s.work.store.Mount(im.ChainID, dir); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	if shown.dirs == nil {
		shown.dirs = map[digest.Digest]string{}
	}
	shown.dirs[im.ChainID] = dir
	return dir, nil
}
