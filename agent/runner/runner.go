// Package runner runs a container: an image's tree that is mounted somewhere
// becomes a process with namespaces of its own. It writes the OCI runtime
// configuration, prepares root and user, and has crun do the rest. What it gives a
// container beyond the image is in the Effective process, whose digest is measured,
// and in the lists of rights.go; an image's configuration is never read here.
//
// It serves one front end as well as another: the agent's workloads today.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/plinth-os/plinth/workload"
)

// Runner makes containers. Its methods may be called side by side; its fields stay
// as they are once it is in use.
type Runner struct {
	Crun      string // path of the program
	Dir       string // what belongs to running containers; on a tmpfs, and reachable for every user (mode 0711): crun looks there with the rights of a container
	Processes Processes
	Network   Network  // nil: a container has an empty network, not even loopback is up
	CDI       []string // directories of the measured root with CDI specifications
	Logf      func(format string, args ...any)

	adjust func(*config) // for tests on machines that cannot bound anything
	group  string        // the cgroup that holds those of the containers; "": cgroupTop

	mu    sync.Mutex
	slots []bool // ranges of user IDs in use
	names map[string]bool
	left  map[string]*Container // what could not be taken away after an error
}

// A Network connects containers. Package agent/network has one.
type Network interface {
	// Attach sets up the network namespace of process pid, which waits to be started.
	// The address is the container's own; the zero Addr where it has none.
	Attach(id string, pid int, p *workload.Process) (netip.Addr, error)
	Detach(id string) error
}

// A Spec is what one container is made of.
type Spec struct {
	ID         string              // a DNS label; also the container's host name
	Root       string              // where the image is mounted, read-only; its file system must know idmapped mounts (EROFS does)
	Process    *workload.Process   // for Network alone
	Effective  *workload.Effective // everything that decides how it runs
	ResolvConf []byte              // /etc/resolv.conf inside
	Volumes    map[string]string   // where file systems are mounted that Effective.Mounts name; they must know idmapped mounts (ext4 does)
	Secrets    map[string][]byte   // of Effective.Mounts, by Path; not kept
	Output     io.Writer           // what it prints; nil: read and dropped. A slow Writer loses lines, it never holds the container up
}

var (
	// ErrExec is the answer to Exec where the measured configuration does not admit it.
	ErrExec = errors.New("its configuration admits no exec")
	// ErrEnded is the answer to whoever wants something of a process that is over.
	ErrEnded = errors.New("it has ended")
)

var validID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Create makes a container up to the point where its program would start. Whoever
// gets a Container calls Delete in the end; after an error nothing is left, or goes
// when its name is wanted again.
func (r *Runner) Create(ctx context.Context, s Spec) (*Container, error) {
	if !validID.MatchString(s.ID) {
		return nil, fmt.Errorf("runner: container %.100q: want at most 63 small letters, digits and \"-\"", s.ID)
	}
	if s.Effective == nil || s.Process == nil || len(s.Effective.Args) == 0 {
		return nil, fmt.Errorf("runner: %s: no program", s.ID)
	}
	if err := r.clear(ctx, s.ID); err != nil {
		return nil, err
	}
	slot, err := r.claim(s.ID)
	if err != nil {
		return nil, fmt.Errorf("runner: %s: %w", s.ID, err)
	}
	c := &Container{r: r, id: s.ID, effective: s.Effective, slot: slot, dir: filepath.Join(r.Dir, s.ID), done: make(chan struct{}), pidfd: -1}
	if err := c.create(ctx, s); err != nil {
		return nil, errors.Join(fmt.Errorf("runner: %s: %w", s.ID, err), c.undo(ctx))
	}
	return c, nil
}

// undoTime bounds how long what is half made may take to go.
const undoTime = time.Minute

// undo takes away what is half made, even when the caller has lost patience.
func (c *Container) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	err := c.Delete(ctx)
	if err != nil {
		c.r.mu.Lock()
		defer c.r.mu.Unlock()
		if c.r.left == nil {
			c.r.left = map[string]*Container{}
		}
		c.r.left[c.id] = c
	}
	return err
}

// clear takes away what an undo left under a name, if it can by now.
func (r *Runner) clear(ctx context.Context, id string) error {
	r.mu.Lock()
	c := r.left[id]
	r.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Delete(ctx)
}

// firstID and rangeSize: container n maps its users 0 to 65535 to 65536 of its own,
// which are nobody's else in the guest and no other container's.
const (
	firstID   = 1 << 16
	rangeSize = 1 << 16
	maxSlots  = 1<<15 - 2 // user IDs are 32 bits, and some programs take them for signed
)

// claim takes a name and a range of user IDs.
func (r *Runner) claim(id string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[id] {
		return 0, errors.New("there is a container of this name")
	}
	slot := slices.Index(r.slots, false)
	if slot < 0 {
		if len(r.slots) == maxSlots {
			return 0, errors.New("no user IDs are left")
		}
		slot = len(r.slots)
		r.slots = append(r.slots, false)
	}
	if r.names == nil {
		r.names = map[string]bool{}
	}
	r.names[id], r.slots[slot] = true, true
	return slot, nil
}

func (r *Runner) release(id string, slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.names, id)
	delete(r.left, id)
	r.slots[slot] = false
}

func (r *Runner) logf(format string, args ...any) {
	if r.Logf != nil {
		r.Logf(format, args...)
	}
}

// base is the guest's user ID of the container's root.
func (c *Container) base() int { return firstID + c.slot*rangeSize }

func (c *Container) create(ctx context.Context, s Spec) error {
	if err := c.makeDir(s); err != nil {
		return err
	}
	userns, err := c.r.userNamespace(ctx, c.base())
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer userns.Close()
	c.given = given{userns: userns, volumes: s.Volumes, secrets: s.Secrets}
	defer func() { c.given = given{} }()
	if err := c.mountImage(s.Root, userns); err != nil {
		return err
	}
	u, err := findUser(c.path(imageDir), s.Effective.User)
	if err != nil {
		return err
	}
	if err := c.mountRoot(); err != nil {
		return err
	}
	if err := c.makeWorkDir(s.Effective.Dir); err != nil {
		return fmt.Errorf("working directory %s: %w", s.Effective.Dir, err)
	}
	conf, err := c.config(u)
	if err != nil {
		return err
	}
	c.process = conf.Process
	if err := c.writeConfig(conf); err != nil {
		return err
	}
	if err := c.launch(ctx, s.Output); err != nil {
		return err
	}
	return c.connect(s.Process)
}

// The files of a container's directory. bundle is what crun reads.
const (
	imageDir    = "image"   // the image, with the container's user IDs
	scratchDir  = "scratch" // tmpfs: what the container writes to its root
	rootDir     = "rootfs"  // both together
	sourcesDir  = "sources" // what of the measured root it sees, and what else the guest gives it
	secretsDir  = "secrets" // files of secrets
	resolvFile  = "resolv.conf"
	hostsFile   = "hosts"
	nameFile    = "hostname"
	logFile     = "log" // crun's
	pidFile     = "pid"
	bundleFile  = "config.json"
	processFile = "process.json"
)

func (c *Container) path(name string) string { return filepath.Join(c.dir, name) }

func (c *Container) makeDir(s Spec) error {
	if err := os.MkdirAll(c.r.Dir, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return err
	}
	for _, d := range []string{imageDir, scratchDir, rootDir, sourcesDir, secretsDir} {
		if err := os.Mkdir(c.path(d), 0o711); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{resolvFile: s.ResolvConf, hostsFile: hosts(s.ID, netip.Addr{}), nameFile: []byte(s.ID + "\n")} {
		if err := writeFile(c.path(name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeFile gives the file its mode whatever the umask is.
func writeFile(name string, b []byte, mode os.FileMode) error {
	if err := os.WriteFile(name, b, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode)
}

func hosts(id string, a netip.Addr) []byte {
	b := []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if a.IsValid() {
		b = fmt.Appendf(b, "%s\t%s\n", a, id)
	}
	return b
}

// connect gives the waiting container its network. Its hosts file is mounted by
// now, so that it is written and not replaced.
func (c *Container) connect(p *workload.Process) error {
	if c.r.Network == nil {
		return nil
	}
	c.attached = true
	a, err := c.r.Network.Attach(c.id, c.pid, p)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	c.address = a
	return writeFile(c.path(hostsFile), hosts(c.id, a), 0o644)
}
