package agent

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/workload"
)

// A program of the guest pulls an image: it is measured behind the separator, and only
// then are its layers asked for.
func TestImageService(t *testing.T) {
	s, m, f := newWorkloads(t, func(c *config.Config) {
		c.Workloads.ImageService, c.Workloads.Workloads = true, nil
		c.Phases, c.Events.PCR23 = nil, false
	})
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	before, err := s.readWorkloadLog()
	if err != nil {
		t.Fatal(err)
	}
	m.tpm.(*fakeTPM).lie = func(cc uint32, b []byte) []byte {
		if cc == ccPCRExtend {
			_ = f.note("extend")
		}
		return b
	}
	conn, err := net.Dial("unix", s.path(imageservice.Socket))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	r, err := api.NewImagePullServiceClient(client).PullImage(t.Context(), &api.ImagePullRequest{
		ImageUrl: strings.TrimPrefix(image("app"), "docker://"), BundlePath: "/run/kata-containers/c1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := fakeImage(image("app")).Digest; r.ManifestDigest != want {
		t.Errorf("got %s, want %s", r.ManifestDigest, want)
	}
	id := digest.FromString("chain " + image("app")).Encoded()[:8]
	if got := f.lines(); !slices.Equal(got[len(got)-4:], []string{"resolve " + image("app"), "extend", "fetch " + image("app"), "mount " + id}) {
		t.Errorf("got %q", got)
	}
	after, err := s.readWorkloadLog()
	if err != nil {
		t.Fatal(err)
	}
	e, err := workload.PullImage(image("app"), r.ManifestDigest)
	if err != nil {
		t.Fatal(err)
	}
	if added := string(after[len(before):]); !strings.HasSuffix(added, e.Text()) || strings.Count(added, "PullImage") != 1 {
		t.Errorf("the log has %q more, want %q at its end", added, e.Text())
	}
	if !slices.Equal(m.mounted[len(m.mounted)-2:], []string{"tmpfs", "overlay"}) {
		t.Errorf("mounted %q", m.mounted)
	}
	// The overlay alone has the memory, so that it goes with it.
	if !slices.Equal(m.unmounted, []string{s.path(bundleUppers + "/1")}) || s.there(bundleUppers+"/1") {
		t.Errorf("unmounted %q", m.unmounted)
	}
}

// A user by name is found in the image's tree, and an image without it is refused.
func TestServiceNamedUser(t *testing.T) {
	s, _, f := newWorkloads(t, func(c *config.Config) {
		c.Workloads.ImageService, c.Workloads.Workloads = true, nil
	})
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	im := fakeImage(image("app"))
	im.Settings.Config.User = "app"
	s.work.site.fetch = func(context.Context, *imagepull.Prepared, imagepull.Store) (*imagepull.Pulled, error) {
		return im, nil
	}
	b := &bundler{s: s}
	_, err := b.Pull(t.Context(), image("app"))
	wantError(t, err, `user "app": the image's /etc/passwd has none`)
	tree := imageMounts + "/" + im.ChainID.Encoded()
	write(t, s, tree+"/etc/passwd", "app:x:7:8::/:/bin/sh\n")
	write(t, s, tree+"/etc/group", "more:x:9:app\n")
	if _, err := b.Pull(t.Context(), image("app")); err != nil {
		t.Error(err)
	}
	if u, err := b.User(s.path(tree), "app"); err != nil || u.UID != 7 || u.GID != 8 || !slices.Equal(u.Groups, []uint32{9}) {
		t.Errorf("got %+v, %v", u, err)
	}
	if got := f.lines(); !slices.Contains(got, "mount "+im.ChainID.Encoded()[:8]) {
		t.Errorf("got %q", got)
	}
}

func TestNoImageService(t *testing.T) {
	s, _, _ := newWorkloads(t, nil)
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	if s.there(imageservice.Socket) {
		t.Error("there is a socket that nobody asked for")
	}
}

func TestServiceUser(t *testing.T) {
	b := &bundler{}
	for user, want := range map[string]imageservice.User{"": {}, "7": {UID: 7}, "7:8": {UID: 7, GID: 8}} {
		if u, err := b.User(t.TempDir(), user); err != nil || u.UID != want.UID || u.GID != want.GID {
			t.Errorf("%q: got %v, %v", user, u, err)
		}
	}
	for _, user := range []string{"app", "7:app", "-1", "4294967295"} {
		if u, err := b.User(t.TempDir(), user); err == nil {
			t.Errorf("%q: got %v", user, u)
		}
	}
}
