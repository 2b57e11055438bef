package agent

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/workload"
)

// A program of the guest pulls an image: it is measured behind the separator, and
// shown only then.
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
	r, err := imageservice.NewImagePullServiceClient(client).PullImage(t.Context(), &imageservice.ImagePullRequest{
		ImageUrl: strings.TrimPrefix(image("app"), "docker://"), BundlePath: "/run/kata/c1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := fakeImage(image("app")).Digest; r.ManifestDigest != want {
		t.Errorf("got %s, want %s", r.ManifestDigest, want)
	}
	id := digest.FromString("chain " + image("app")).Encoded()[:8]
	if got := f.lines(); !slices.Equal(got[len(got)-3:], []string{"pull " + image("app"), "extend", "mount " + id}) {
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
		if u, err := b.User("", user); err != nil || u.UID != want.UID || u.GID != want.GID {
			t.Errorf("%q: got %v, %v", user, u, err)
		}
	}
	for _, user := range []string{"app", "7:app", "-1", "4294967295"} {
		if u, err := b.User("", user); err == nil {
			t.Errorf("%q: got %v", user, u)
		}
	}
}
