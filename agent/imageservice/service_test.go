package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/imagepull"
)

const (
	manifest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	name     = "registry.example.com/app@" + manifest
)

// fakeGuest keeps a journal, and pulls when it is let.
type fakeGuest struct {
	mu      sync.Mutex
	journal []string
	fail    map[string]error // by the journal's first word
	gate    chan struct{}    // nil: open
	pulling func()           // nil: nothing
}

func (g *fakeGuest) note(what string, args ...string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.journal = append(g.journal, strings.Join(append([]string{what}, args...), " "))
	return g.fail[what]
}

func (g *fakeGuest) Pull(ctx context.Context, image string) (*imagepull.Pulled, error) {
	if g.gate != nil {
		<-g.gate
	}
	if g.pulling != nil {
		g.pulling()
	}
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), g.note("cancelled"))
	}
	im := &imagepull.Pulled{}
	im.Digest = manifest
	im.Settings = v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Config: v1.ImageConfig{
		Entrypoint: []string{"/app"}, Cmd: []string{"-v"}, Env: []string{"A=1"}, User: "app", WorkingDir: "srv", StopSignal: "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, Volumes: map[string]struct{}{"/data": {}},
		Labels: map[string]string{"org.opencontainers.image.os": "other", "x": "y"},
	}}
	return im, g.note("pull", image)
}

func (g *fakeGuest) Mount(_ *imagepull.Pulled, dir string) error {
	if g.fail["panic"] != nil {
		panic("boom")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		return errors.New("not an empty directory")
	}
	return g.note("mount", dir)
}

func (g *fakeGuest) Unmount(dir string) error { return g.note("unmount", dir) }

func (g *fakeGuest) User(dir, user string) (*User, error) {
	return &User{UID: 7, GID: 8, Groups: []uint32{9}}, g.note("user", filepath.Base(dir), user)
}

func (g *fakeGuest) lines() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.journal)
}

// serve starts a service and returns a client of it, and the directory that stands
// for "/".
func serve(t *testing.T, g *fakeGuest) (api.ImagePullServiceService, string) {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(root, "run", "confidential-containers", "cdh.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", fi.Mode(), err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	(&Server{Guest: g, Root: root, Logf: t.Logf}).Register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = srv.Close() // of the listener, which Serve closes as well
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Error(err)
		}
	})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return api.NewImagePullServiceClient(c), root
}

func TestPullImage(t *testing.T) {
	g := &fakeGuest{}
	c, root := serve(t, g)
	r, err := c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: name, BundlePath: "/run/kata-containers/c1"})
	if err != nil {
		t.Fatal(err)
	}
	if r.ManifestDigest != manifest {
		t.Errorf("got %s", r.ManifestDigest)
	}
	dir := filepath.Join(root, "run/kata-containers/c1")
	if got, want := g.lines(), []string{"pull docker://" + name, "mount " + dir + "/rootfs", "user rootfs app"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	b, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	p := s.Process
	if !slices.Equal(p.Args, []string{"/app", "-v"}) || !slices.Equal(p.Env, []string{"A=1"}) || p.Cwd != "/srv" ||
		p.User.UID != 7 || p.User.GID != 8 || !slices.Equal(p.User.AdditionalGids, []uint32{9}) || s.Root.Path != "rootfs" {
		t.Errorf("got %s", b)
	}
	for k, want := range map[string]string{"stopSignal": "SIGQUIT", "os": "other", "architecture": "amd64", "exposedPorts": "443/tcp,80/tcp"} {
		if got := s.Annotations["org.opencontainers.image."+k]; got != want {
			t.Errorf("%s is %q, want %q", k, got, want)
		}
	}
	if s.Annotations["x"] != "y" || len(s.Mounts) != 1 || s.Mounts[0].Destination != "/data" {
		t.Errorf("got %s", b)
	}
	// Whoever asks again gets the same, and nothing is done twice.
	r, err = c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: "docker://" + name, BundlePath: "/run/kata-containers/c1"})
	if err != nil || r.ManifestDigest != manifest || len(g.lines()) != 3 {
		t.Errorf("%v, %v, %q", r, err, g.lines())
	}
	_, err = c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: "registry.example.com/other:1", BundlePath: "/run/kata-containers/c1"})
	wantCode(t, err, codes.AlreadyExists, "it is for docker://"+name)
	// A bundle that is gone is made anew.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: name, BundlePath: "/run/kata-containers/c1"}); err != nil || len(g.lines()) != 6 {
		t.Errorf("%v, %q", err, g.lines())
	}
}

func wantCode(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %s: %s", err, code, text)
	}
}

func TestRefusedCalls(t *testing.T) {
	for _, tt := range []struct {
		name, image, bundle, fail, want string
		code                            codes.Code
		lines                           int
	}{
		{"relative", name, "run/x", "", "want a path below /run/kata-containers", codes.InvalidArgument, 0},
		{"outside", name, "/etc/x", "", "want a path below /run/kata-containers", codes.InvalidArgument, 0},
		{"climbs", name, "/run/kata-containers/../etc", "", "want a path below /run/kata-containers", codes.InvalidArgument, 0},
		{"the directory itself", name, "/run/kata-containers", "", "want a path below /run/kata-containers", codes.InvalidArgument, 0},
		{"link", name, "/run/kata-containers/link/x", "", "escapes", codes.Internal, 0},
		{"shown images", name, "/run/plinth/images/x", "", "want a path below", codes.InvalidArgument, 0},
		{"a container", name, "/run/plinth/containers/web", "", "want a path below", codes.InvalidArgument, 0},
		{"attestation agent", name, "/run/attestation-agent", "", "want a path below", codes.InvalidArgument, 0},
		{"no name", "@", "/run/kata-containers/x", "", "invalid reference", codes.InvalidArgument, 0},
		{"another transport", "oci-archive:/dev/vda", "/run/kata-containers/x", "", "invalid reference", codes.InvalidArgument, 0},
		{"a bundle with a configuration", name, "/run/kata-containers/full", "", "it has a config.json", codes.Internal, 0},
		{"refused by the policy", name, "/run/kata-containers/x", "pull", "boom", codes.Internal, 1},
		{"mount", name, "/run/kata-containers/x", "mount", "boom", codes.Internal, 2},
		{"user", name, "/run/kata-containers/x", "user", "boom", codes.Internal, 4}, // and unmounted
		{"panic", name, "/run/kata-containers/x", "panic", "panic: boom", codes.Internal, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &fakeGuest{fail: map[string]error{tt.fail: errors.New("boom")}}
			c, root := serve(t, g)
			base := root + Bundles
			if err := errors.Join(os.Mkdir(base, 0o700), os.Symlink("/etc", base+"/link"), os.Mkdir(root+"/run/kata-containers/full", 0o700), os.WriteFile(base+"/full/config.json", nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // one that failed is tried anew
				_, err := c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: tt.image, BundlePath: tt.bundle})
				wantCode(t, err, tt.code, tt.want)
			}
			if got := g.lines(); len(got) != 2*tt.lines {
				t.Errorf("got %q, want %d lines twice", got, tt.lines)
			}
			if _, err := os.Lstat(base + "/x/config.json"); err == nil {
				t.Error("there is a config.json")
			}
		})
	}
}

// A link that stands where bundles are leads nowhere, and one in a bundle's path
// leads to nothing of the agent's.
func TestLinks(t *testing.T) {
	for _, link := range []string{Bundles, Bundles + "/link"} {
		g := &fakeGuest{}
		c, root := serve(t, g)
		images := filepath.Join(root, "run/plinth/images")
		if err := errors.Join(os.MkdirAll(images, 0o700), os.MkdirAll(filepath.Dir(root+link), 0o700), os.Symlink(images, root+link)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: name, BundlePath: Bundles + "/link/x"}); err == nil {
			t.Errorf("%s: no error", link)
		}
		if names, err := os.ReadDir(images); err != nil || len(names) > 0 || len(g.lines()) > 0 {
			t.Errorf("%s: %v, %v, %q", link, names, err, g.lines())
		}
	}
}

// A configuration that somebody wrote while the image was pulled stays.
func TestConfigRace(t *testing.T) {
	g := &fakeGuest{}
	c, root := serve(t, g)
	other := filepath.Join(root, Bundles, "x", configFile)
	g.pulling = func() { _ = os.WriteFile(other, []byte("other"), 0o600) }
	_, err := c.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: name, BundlePath: Bundles + "/x"})
	wantCode(t, err, codes.Internal, "exist")
	if b, err := os.ReadFile(other); err != nil || string(b) != "other" {
		t.Errorf("it is %q, %v", b, err)
	}
	if _, err := os.Lstat(other + ".part"); err == nil {
		t.Error("a part of another is left")
	}
}

// A caller that no longer waits leaves the pull to go on, and a later one gets what
// came of it.
func TestImpatientCaller(t *testing.T) {
	g := &fakeGuest{gate: make(chan struct{})}
	c, _ := serve(t, g)
	r := &api.ImagePullRequest{ImageUrl: name, BundlePath: "/run/kata-containers/x"}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.PullImage(ctx, r); err == nil {
		t.Error("no error")
	}
	time.Sleep(100 * time.Millisecond) // the server has a clock of its own
	close(g.gate)
	if out, err := c.PullImage(t.Context(), r); err != nil || out.ManifestDigest != manifest {
		t.Errorf("%v, %v", out, err)
	}
	if got := g.lines(); len(got) != 3 {
		t.Errorf("got %q, want one pull", got)
	}
}
