// Package imageservice lets programs of the guest's measured root file system pull
// images by the interface that CoCo's confidential-data-hub has for Kata's agent:
// api.ImagePullService over ttRPC. What may be pulled is for the guest's own policy
// to say; the caller, whose requests may come from the host, names the image and
// the place.
package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
)

// Socket is where callers look for the service.
const Socket = "/run/confidential-containers/cdh.sock"

// Bundles is the directory below which bundles may be, and nothing of the guest's own
// is: Kata's, kata-agent, CONTAINER_BASE. It is in memory.
const Bundles = "/run/kata-containers"

// A Guest does what the service was asked for.
type Guest interface {
	// Pull gets an image under the guest's policy and measures that it did, before
	// anybody can see it.
	Pull(ctx context.Context, image string) (*imagepull.Pulled, error)
	// Mount shows the image's tree, writable, at an empty directory.
	Mount(im *imagepull.Pulled, dir string) error
	// Unmount undoes Mount.
	Unmount(dir string) error
	// User finds a user and its groups inside a tree.
	User(dir, user string) (*User, error)
}

// A User as a container's process has it.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// A Server answers calls. An image that takes longer than its caller waits is pulled
// to the end: callers ask again, and then it is there.
type Server struct {
	Guest Guest
	Root  string // what Bundles is below; "/" in a guest
	Logf  func(format string, args ...any)

	mu    sync.Mutex
	calls map[string]*call // by bundle
}

// A call is one pull, which callers may ask for more than once.
type call struct {
	image  string
	done   chan struct{} // closed when the rest is set
	digest string
	err    error
}

// Listen makes a socket for programs of the root file system. None but the agent's own
// user connects to it.
func Listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Register makes srv answer the calls. Who may connect is for srv to say.
func (s *Server) Register(srv *ttrpc.Server) { api.RegisterImagePullServiceService(srv, s) }

// PullImage is api.ImagePullService's.
func (s *Server) PullImage(ctx context.Context, r *api.ImagePullRequest) (*api.ImagePullResponse, error) {
	image, err := s.check(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := s.join(context.WithoutCancel(ctx), image, r.BundlePath)
	if err != nil {
		return nil, status.Error(codes.AlreadyExists, err.Error())
	}
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-c.done:
	}
	if c.err != nil {
		return nil, status.Error(codes.Internal, fmt.Sprintf("%s: %v", image, c.err))
	}
	return &api.ImagePullResponse{ManifestDigest: c.digest}, nil
}

// check judges what a caller wants. Names of images come without a transport.
func (s *Server) check(r *api.ImagePullRequest) (image string, err error) {
	image = r.ImageUrl
	if !strings.HasPrefix(image, policy.Docker+"://") {
		image = policy.Docker + "://" + image
	}
	n, err := policy.ParseName(image)
	if err != nil {
		return "", err
	}
	b := r.BundlePath
	if path.Clean(b) != b || !strings.HasPrefix(b, Bundles+"/") || strings.ContainsRune(b, 0) {
		return "", fmt.Errorf("bundle %.200q: want a path below %s", b, Bundles)
	}
	return n.String(), nil
}

// join returns the call that makes a bundle: one that is under way, or done and
// there, or a new one.
func (s *Server) join(ctx context.Context, image, bundle string) (*call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = map[string]*call{}
	}
	if c := s.calls[bundle]; c != nil && !s.stale(c, bundle) {
		if c.image != image {
			return nil, fmt.Errorf("bundle %s: it is for %s", bundle, c.image)
		}
		return c, nil
	}
	c := &call{image: image, done: make(chan struct{})}
	s.calls[bundle] = c
	go func() {
		defer s.finish(c, bundle)
		c.digest, c.err = s.make(ctx, image, bundle)
	}()
	return c, nil
}

// stale tells whether a call is over and its bundle is no longer there.
func (s *Server) stale(c *call, bundle string) bool {
	select {
	case <-c.done:
	default:
		return false
	}
	_, err := os.Lstat(filepath.Join(s.Root, bundle, configFile))
	return errors.Is(err, fs.ErrNotExist)
}

// finish ends a call, which is deferred: a mistake in it must not end PID 1. One that
// failed is forgotten, so that the next caller begins anew.
func (s *Server) finish(c *call, bundle string) {
	if p := recover(); p != nil {
		c.err = fmt.Errorf("panic: %v", p)
	}
	if c.err != nil {
		s.logf("image service: %s: %v", c.image, c.err)
		s.mu.Lock()
		delete(s.calls, bundle)
		s.mu.Unlock()
	}
	close(c.done)
}

func (s *Server) logf(format string, args ...any) {
	if s.Logf != nil {
		s.Logf(format, args...)
	}
}
