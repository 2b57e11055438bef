package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/agent/network"
	"github.com/plinth-os/plinth/agent/runner"
	"github.com/plinth-os/plinth/agent/storage"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/workload"
)

// fakeSite stands in for network, storage, registry and crun, and keeps a journal of
// what was asked of them.
type fakeSite struct {
	mu      sync.Mutex
	journal []string
	fail    map[string]error  // by the journal's line
	hold    map[string]func() // the same
	runs    []*fakeInstance

	secrets map[string]string // of a broker
	clients []*kbs.Client

	listening string // where a container asks
}

// Resource is that of a broker.
func (f *fakeSite) Resource(_ context.Context, uri string) ([]byte, error) {
	if err := f.note("secret %s", uri); err != nil {
		return nil, err
	}
	if v, ok := f.secrets[uri]; ok {
		return []byte(v), nil
	}
	return nil, kbs.ErrNotFound
}

// Token is that of a broker.
func (f *fakeSite) Token(context.Context) (*kbs.Token, error) { return nil, kbs.ErrForbidden }

// at is where a container asks.
func (f *fakeSite) at() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.listening
}

// fakeVolume is a disk that is open.
type fakeVolume struct {
	f    *fakeSite
	name string
}

func (v fakeVolume) Device() string { return "/dev/dm-9" }
func (v fakeVolume) Close() error   { return v.f.note("close volume %s", v.name) }

func (v fakeVolume) Mount(target string, readOnly bool) error {
	return v.f.note("mount volume %s at %s, read-only %v", v.name, filepath.Base(target), readOnly)
}

func (f *fakeSite) note(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	f.mu.Lock()
	f.journal = append(f.journal, line)
	err, hold := f.fail[line], f.hold[line]
	f.mu.Unlock()
	if hold != nil {
		hold()
	}
	return err
}

func (f *fakeSite) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.journal)
}

// fakeStore keeps nothing.
type fakeStore struct {
	imagepull.Store
	f *fakeSite
}

func (s fakeStore) Mount(id digest.Digest, target string) error {
	return s.f.note("mount %s", filepath.Base(target)[:8])
}

func (s fakeStore) Unmount(target string) error {
	return s.f.note("unmount %s", filepath.Base(target)[:8])
}

func (s fakeStore) Collect([]digest.Digest) (int64, error) { return 0, s.f.note("collect") }
func (s fakeStore) Close() error                           { return s.f.note("close") }

// fakeInstance runs until it is told how to end.
type fakeInstance struct {
	f        *fakeSite
	name     string
	spec     runner.Spec
	files    map[string]string // of secrets
	n        int
	out      io.Writer
	ended    chan syscall.WaitStatus
	stubborn bool // SIGKILL alone ends it
}

const exited0, exited1 = syscall.WaitStatus(0), syscall.WaitStatus(1 << 8)

func (i *fakeInstance) PID() int            { return 100 + i.n }
func (i *fakeInstance) Address() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i.n)}) }

func (i *fakeInstance) Start(context.Context) error { return i.f.note("start %s", i.name) }

func (i *fakeInstance) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	select {
	case s := <-i.ended:
		return s, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (i *fakeInstance) Kill(_ context.Context, sig syscall.Signal) error {
	err := i.f.note("kill %s %d", i.name, sig)
	i.f.mu.Lock()
	ends := sig == syscall.SIGKILL || !i.stubborn
	i.f.mu.Unlock()
	if ends {
		select {
		case i.ended <- syscall.WaitStatus(sig):
		default:
		}
	}
	return err
}

func (i *fakeInstance) Delete(context.Context) error { return i.f.note("delete %s", i.name) }

func (f *fakeSite) site() site {
	return site{
		up: func(context.Context, *config.Network, func(string, ...any)) (*network.Uplink, error) {
			u := &network.Uplink{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
			return u, f.note("network")
		},
		containers: func(*network.Uplink, func(string, ...any)) (runner.Network, error) { return nil, f.note("containers") },
		memory:     func(size int64) (imageStore, error) { return fakeStore{f: f}, f.note("memory %d", size) },
		disk: func(_ context.Context, device string) (imageStore, error) {
			return fakeStore{f: f}, f.note("disk %s", filepath.Base(device))
		},
		prepare: func(_ context.Context, p *imagepull.Puller, n policy.Name) (*imagepull.Prepared, error) {
			if p.Trust.Now.IsZero() {
				return nil, errors.New("no time")
			}
			im := fakeImage(n.String())
			return &imagepull.Prepared{Image: im.Image, Settings: im.Settings}, f.note("resolve %s", n)
		},
		fetch: func(_ context.Context, im *imagepull.Prepared, _ imagepull.Store) (*imagepull.Pulled, error) {
			return fakeImage(im.Name), f.note("fetch %s", im.Name)
		},
		brokers: func(clients ...*kbs.Client) (broker, error) {
			f.clients = clients
			return f, f.note("brokers %d", len(clients))
		},
		volume: func(_ context.Context, o storage.VolumeOptions) (volume, error) {
			if o.Random == (len(o.Key) > 0) {
				return nil, errors.New("want a key, or a random one")
			}
			return fakeVolume{f, o.Name}, f.note("open %s %s %q", o.Name, filepath.Base(o.Device), o.Key)
		},
		listen: func(pid int) (net.Listener, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				f.mu.Lock()
				f.listening = l.Addr().String()
				f.mu.Unlock()
			}
			return l, errors.Join(err, f.note("listen %d", pid))
		},
		create: func(_ context.Context, _ *runner.Runner, s runner.Spec) (instance, error) {
			f.mu.Lock()
			i := &fakeInstance{f: f, name: s.ID, spec: s, n: len(f.runs) + 1, out: s.Output, ended: make(chan syscall.WaitStatus, 1), files: map[string]string{}}
			for at, b := range s.Secrets { // which are cleared
				i.files[at] = string(b)
			}
			f.runs = append(f.runs, i)
			f.mu.Unlock()
			if err := f.note("create %s", s.ID); err != nil {
				return nil, err
			}
			return i, nil
		},
	}
}

// run returns the nth run that was created, from 1.
func (f *fakeSite) run(t *testing.T, n int) *fakeInstance {
	t.Helper()
	eventually(t, fmt.Sprintf("run %d", n), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.runs) >= n
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs[n-1]
}

// fakeImage is an image whose digests derive from its name.
func fakeImage(name string) *imagepull.Pulled {
	im := &imagepull.Pulled{ChainID: digest.FromString("chain " + name)}
	im.Name = name
	im.Digest = digest.FromString(name).String()
	if _, d, ok := strings.Cut(name, "@"); ok {
		im.Digest = d
	}
	im.Settings.Config = v1.ImageConfig{Entrypoint: []string{"/app"}, Env: []string{"SECRET=canary"}, StopSignal: "SIGUSR1"}
	return im
}

const hexDigest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func image(name string) string {
	return "docker://registry.example.com/" + name + "@" + digest.FromString(name).String()
}

// attested is by a TPM, for one broker.
func attested() *config.Attestation {
	return &config.Attestation{TEE: evidence.TEETPM, Brokers: []config.Broker{{URL: "https://kbs.example.com"}}}
}

// newWorkloads is a guest with two workloads, measured in PCR 14.
func newWorkloads(t *testing.T, spoil func(*config.Config)) (*State, *fakeMachine, *fakeSite) {
	t.Helper()
	c := config.Config{
		Cmdline: "quiet plinth.workloads=image", Phases: config.Phases,
		Workloads: &workload.Config{Schema: workload.Schema, Policy: json.RawMessage(`{"default":[{"type":"insecureAcceptAnything"}]}`),
			Workloads: []workload.Process{{Name: "web", Image: image("web")}, {Name: "db", Image: image("db"), Network: workload.NetworkNone}}},
		Network: &config.Network{DHCP: true},
		Storage: &config.Storage{MemoryMiB: 64},
		Events:  &config.Events{PCR: 14, PCR23: true},
	}
	if spoil != nil {
		spoil(&c)
	}
	s, m := newGuest(t, c)
	f := &fakeSite{fail: map[string]error{}}
	s.work.site = f.site()
	write(t, s, cgroupRoot+"/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")
	write(t, s, cgroupRoot+"/cgroup.subtree_control", "")
	mkdir(t, s, "sys/kernel/config")
	return s, m, f
}

// bootWorkloads runs the stages but those of clock and random numbers, which have
// tests of their own.
func bootWorkloads(t *testing.T, s *State) error {
	t.Helper()
	skip := []string{"clock", "entropy"}
	if !s.there("/sys/class/virtio-ports") {
		skip = append(skip, "report") // which waits for a port
	}
	some := slices.DeleteFunc(slices.Clone(stages), func(st stage) bool { return slices.Contains(skip, st.name) })
	err := s.boot(t.Context(), some)
	t.Cleanup(func() { s.stopContainers(0) })
	return err
}

func sha(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// fold is what a register holds after the events, SHA-256.
func fold(events []workload.Event) string {
	value := make([]byte, sha256.Size)
	for _, e := range events {
		text := fmt.Sprintf("%s %s %s", e.Domain, e.Operation, e.Content)
		tagged := append([]byte("LEAA"), binary.LittleEndian.AppendUint32(nil, uint32(len(text)))...)
		d := sha256.Sum256(append(tagged, text...))
		v := sha256.Sum256(append(value, d[:]...))
		value = v[:]
	}
	return hex.EncodeToString(value)
}

// TestWorkloads boots a guest with two of them, up to the report.
func TestWorkloads(t *testing.T) {
	s, m, f := newWorkloads(t, nil)
	port := addPort(t, s, "vport2p1", config.ReportPort)
	m.tpm.(*fakeTPM).lie = func(cc uint32, b []byte) []byte {
		if cc == ccPCRExtend {
			_ = f.note("extend")
		}
		return b
	}
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	// Policy, two events of each workload, separator: each into PCR 14 and 23.
	// Nothing is mounted before all of them.
	want := []string{"extend", "extend", "network", "memory 67108864", "resolve " + image("web"), "resolve " + image("db")}
	want = append(want, slices.Repeat([]string{"extend"}, 2*6)...)
	want = append(want, "fetch "+image("web"), "fetch "+image("db"))
	want = append(want, "extend", "containers", "mount "+digest.FromString("chain " + image("web")).Encoded()[:8], "create web",
		"mount "+digest.FromString("chain " + image("db")).Encoded()[:8], "create db", "start web", "start db", "extend")
	if got := f.lines(); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r, err := evidence.ReadReport(port)
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.work.config.Events(s.work.admit)
	if err != nil {
		t.Fatal(err)
	}
	for _, pcr := range []int{14, 23} {
		if got := r.After["sha256"][pcr]; got != fold(events) {
			t.Errorf("PCR %d is %s, want %s", pcr, got, fold(events))
		}
	}
	wantWorkloads := []evidence.Workload{
		{Name: "web", Image: image("web"), Digest: fakeImage(image("web")).Digest, PID: 101, State: evidence.Running, Address: "192.0.2.1"},
		{Name: "db", Image: image("db"), Digest: fakeImage(image("db")).Digest, PID: 102, State: evidence.Running, Address: "192.0.2.2"},
	}
	if !slices.Equal(r.Workloads, wantWorkloads) || !slices.Equal(r.Addresses, []string{"192.0.2.2/24"}) {
		t.Errorf("reported %+v and %q, want %+v", r.Workloads, r.Addresses, wantWorkloads)
	}
	checkLog(t, r.WorkloadLog, events)
	if bytes.Contains(r.WorkloadLog, []byte("canary")) {
		t.Error("the log has the value of a variable")
	}
	if b, err := os.ReadFile(s.path(config.ResolvConf)); err != nil || string(b) != "nameserver 192.0.2.1\n" {
		t.Errorf("resolv.conf is %q, %v", b, err)
	}
	if b, err := os.ReadFile(s.path(cgroupRoot + "/cgroup.subtree_control")); err != nil || !strings.HasPrefix(string(b), "+pids") {
		t.Errorf("the last controller that was enabled is %q, %v", b, err)
	}
}

// checkLog reads the log by its layout, TCG_PCR_EVENT2: it has every event once for
// each register, in order.
func checkLog(t *testing.T, log []byte, events []workload.Event) {
	t.Helper()
	r := bytes.NewReader(log)
	for _, e := range events {
		for _, pcr := range []uint32{14, 23} {
			var head struct{ PCR, Type, Count uint32 }
			if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
				t.Fatal(err)
			}
			if head.PCR != pcr || head.Type != 6 || head.Count != 2 {
				t.Fatalf("got %+v, want PCR %d, EV_EVENT_TAG, two digests", head, pcr)
			}
			var digests struct {
				SHA1   uint16
				D1     [20]byte
				SHA256 uint16
				D256   [32]byte
				Size   uint32
			}
			if err := binary.Read(r, binary.LittleEndian, &digests); err != nil {
				t.Fatal(err)
			}
			data := make([]byte, digests.Size)
			if _, err := r.Read(data); err != nil {
				t.Fatal(err)
			}
			if digests.SHA1 != 4 || digests.SHA256 != 0xb || sha256.Sum256(data) != digests.D256 || string(data[8:]) != e.Text() {
				t.Errorf("PCR %d: event %q does not fit its digests, or is not %q", pcr, data, e.Text())
			}
		}
	}
	if r.Len() != 0 {
		t.Errorf("%d bytes behind the log", r.Len())
	}
}

// A network is for services, too.
func TestNetworkAlone(t *testing.T) {
	t.Parallel()
	s, _, f := newWorkloads(t, func(c *config.Config) {
		c.Cmdline, c.Workloads = "quiet", nil
	})
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	if got := f.lines(); !slices.Equal(got, []string{"network"}) {
		t.Errorf("got %q", got)
	}
}

// Without the argument a guest does nothing of it.
func TestNoWorkloads(t *testing.T) {
	t.Parallel()
	s, m, f := newWorkloads(t, func(c *config.Config) {
		c.Cmdline, c.Workloads, c.Network = "quiet", nil, nil
	})
	if err := s.boot(t.Context(), stages); err != nil { // clock and random numbers, too
		t.Fatal(err)
	}
	if got := f.lines(); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	if slices.Contains(m.mounted, "configfs") || s.there(eventLogPath) {
		t.Error("configfs was mounted, or a log begun")
	}
}

// What fails ends the boot, and no container runs.
func TestWorkloadsFail(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name, want string
		spoil      func(*config.Config)
		fail       func(m *fakeMachine, f *fakeSite)
		deleted    []string
	}{
		{"network", "network: boom", nil, func(_ *fakeMachine, f *fakeSite) { f.fail["network"] = boom }, nil},
		{"storage", "storage: boom", nil, func(_ *fakeMachine, f *fakeSite) { f.fail["memory 67108864"] = boom }, nil},
		{"image", "resolve: db: boom", nil, func(_ *fakeMachine, f *fakeSite) { f.fail["resolve "+image("db")] = boom }, nil},
		{"layers", "images: db: boom", nil, func(_ *fakeMachine, f *fakeSite) { f.fail["fetch "+image("db")] = boom }, nil},
		{"register", "events: PCR 14", nil, func(m *fakeMachine, _ *fakeSite) {
			n := 0
			m.tpm.(*fakeTPM).lie = func(cc uint32, b []byte) []byte {
				if cc == ccPCRExtend {
					n++
				}
				if n == 5 { // after two phases and one event, twice
					return nil
				}
				return b
			}
		}, nil},
		{"policy", "resolve: policy: ", func(c *config.Config) { c.Workloads.Policy = json.RawMessage(`{"default":[{"type":"reject"}],"x":1}`) }, func(*fakeMachine, *fakeSite) {}, nil},
		{"credentials", "resolve: " + kbs.ErrNotFound.Error(), func(c *config.Config) { c.Workloads.Auth, c.Attestation = "kbs:///a/b/c", attested() }, func(*fakeMachine, *fakeSite) {}, nil},
		{"mount", "containers: web: boom", nil, func(_ *fakeMachine, f *fakeSite) {
			f.fail["mount "+digest.FromString("chain " + image("web")).Encoded()[:8]] = boom
		}, nil},
		{"second container", "containers: db: boom", nil, func(_ *fakeMachine, f *fakeSite) { f.fail["create db"] = boom }, []string{"delete web"}},
		{"start", "containers: db: boom", nil, func(_ *fakeMachine, f *fakeSite) { f.fail["start db"] = boom }, []string{"delete web", "delete db"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, debug := range []bool{false, true} {
				s, m, f := newWorkloads(t, func(c *config.Config) {
					if tt.spoil != nil {
						tt.spoil(c)
					}
					c.Debug = debug
				})
				tt.fail(m, f)
				err := bootWorkloads(t, s)
				if !debug {
					wantError(t, err, tt.want)
				} else if err != nil || !strings.Contains(s.console.(*lockedBuffer).String(), "WARNING: "+tt.want) {
					t.Errorf("a debug build got %v and says\n%s\nwant %q", err, s.console.(*lockedBuffer).String(), tt.want)
				}
				deleted := slices.DeleteFunc(f.lines(), func(l string) bool { return !strings.HasPrefix(l, "delete") })
				if !slices.Equal(deleted, tt.deleted) {
					t.Errorf("debug %v: deleted %q, want %q", debug, deleted, tt.deleted)
				}
				if len(tt.deleted) == 0 && slices.ContainsFunc(f.lines(), func(l string) bool { return strings.HasPrefix(l, "create") }) {
					t.Errorf("debug %v: a container was made: %q", debug, f.lines())
				}
				for _, w := range s.work.fleet.states() {
					if w.State != evidence.Failed {
						t.Errorf("debug %v: %s is %s", debug, w.Name, w.State)
					}
				}
			}
		})
	}
}

// Whichever stage fails before the containers: a debug build goes on without them.
func TestDebugFailures(t *testing.T) {
	boom := errors.New("boom")
	for i, failing := range stages {
		if failing.name == "containers" {
			break
		}
		t.Run(failing.name, func(t *testing.T) {
			t.Parallel()
			s, _, f := newWorkloads(t, func(c *config.Config) { c.Debug = true })
			some := slices.Clone(stages)
			some[i].run = func(context.Context, *State) error { return boom }
			some = slices.DeleteFunc(some, func(st stage) bool {
				return st.name != failing.name && slices.Contains([]string{"clock", "entropy", "report"}, st.name)
			})
			wantError(t, s.boot(t.Context(), some), "")
			if got := f.lines(); slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "create") }) {
				t.Errorf("a container was made: %q", got)
			}
		})
	}
}

// A guest that is asked to stop while it boots makes and starts no container more, and
// comes to no stage behind.
func TestStopWhileBooting(t *testing.T) {
	for at, want := range map[string][]string{
		"fetch " + image("db"): {},
		"create web":           {"create web", "delete web"},
		"create db":            {"create web", "create db", "delete web", "delete db"},
		"start web":            {"create web", "create db", "start web", "delete web", "delete db"},
	} {
		t.Run(at[:6], func(t *testing.T) {
			s, _, f := newWorkloads(t, nil)
			stopped := make(chan struct{})
			f.hold = map[string]func(){at: func() {
				go func() { defer close(stopped); s.stopContainers(time.Minute) }()
				eventually(t, "the guest stops", s.work.fleet.ends)
			}}
			ctx, cancel := context.WithCancel(t.Context())
			booted := make(chan error, 1)
			go func() {
				booted <- s.boot(ctx, slices.DeleteFunc(slices.Clone(stages), func(st stage) bool { return st.name == "clock" || st.name == "entropy" }))
			}()
			<-stopped
			select {
			case err := <-booted:
				t.Errorf("the boot went on: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			cancel()
			wantError(t, <-booted, "containers: the guest stops")
			got := slices.DeleteFunc(f.lines(), func(l string) bool {
				verb, _, _ := strings.Cut(l, " ")
				return !slices.Contains([]string{"create", "start", "delete"}, verb)
			})
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// What is in the directory of trees does not make one shown, nor does a mount that
// failed.
func TestShowImage(t *testing.T) {
	t.Parallel()
	s, _, f := newWorkloads(t, nil)
	s.work.store = fakeStore{f: f}
	im := fakeImage("app")
	mkdir(t, s, imageMounts+"/"+im.ChainID.Encoded())
	line := "mount " + im.ChainID.Encoded()[:8]
	f.fail[line] = errors.New("boom")
	_, err := s.showImage(im)
	wantError(t, err, "boom")
	delete(f.fail, line)
	for range 2 {
		if dir, err := s.showImage(im); err != nil || dir != s.path(imageMounts+"/"+im.ChainID.Encoded()) {
			t.Errorf("got %s, %v", dir, err)
		}
	}
	if got := f.lines(); !slices.Equal(got, []string{line, line}) {
		t.Errorf("got %q, want it mounted once after the failure", got)
	}
}

// A guest that stops takes its images away, and waits for none that is in use.
func TestCloseImages(t *testing.T) {
	s, _, f := newWorkloads(t, func(c *config.Config) { c.Workloads.Workloads = c.Workloads.Workloads[:1] })
	s.closeImages(time.Minute) // before there are any
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	s.stopContainers(time.Minute)
	gate := make(chan struct{})
	f.hold = map[string]func(){"close": func() { <-gate }}
	s.closeImages(10 * time.Millisecond)
	close(gate)
	want := []string{"unmount " + digest.FromString("chain " + image("web")).Encoded()[:8], "close"}
	eventually(t, "the images are closed", func() bool { got := f.lines(); return slices.Equal(got[len(got)-2:], want) })
	if got := s.console.(*lockedBuffer).String(); !strings.Contains(got, "images: still in use") {
		t.Errorf("the console has %q", got)
	}
}

// An error has no store beside it, also none that is a nil pointer.
func TestNoStore(t *testing.T) {
	if s, err := guestSite.memory(1); s != nil || err == nil {
		t.Errorf("got %v, %v", s, err)
	}
}

// A name on a disk says nothing of what is there: the digest beside it does.
func TestWanted(t *testing.T) {
	const archive = "oci-archive:/dev/disk/by-id/virtio-app"
	other := "sha256:" + hexDigest
	for _, tt := range []struct{ name, wanted, index, want string }{
		{"manifest", fakeImage(archive).Digest, "", ""},
		{"index", other, other, ""},
		{"another", other, "", "resolve: web: " + archive + " is " + fakeImage(archive).Digest + ", want " + other},
		{"another index", other, "sha256:" + strings.Repeat("1", 64), "resolve: web: " + archive + " is "},
	} {
		s, _, f := newWorkloads(t, func(c *config.Config) {
			c.Workloads.Workloads = []workload.Process{{Name: "web", Image: archive, Digest: tt.wanted}}
		})
		s.work.site.prepare = func(context.Context, *imagepull.Puller, policy.Name) (*imagepull.Prepared, error) {
			im := fakeImage(archive)
			im.Index = tt.index
			return &imagepull.Prepared{Image: im.Image, Settings: im.Settings}, nil
		}
		wantError(t, bootWorkloads(t, s), tt.want)
		if got := slices.Contains(f.lines(), "create web"); got != (tt.want == "") {
			t.Errorf("%s: made: %v", tt.name, got)
		}
	}
}

// Where nothing can be measured after the launch, the launch must say what runs.
func TestPinned(t *testing.T) {
	t.Parallel()
	tagged := "docker://registry.example.com/web:1"
	signed := json.RawMessage(`{"default":[{"type":"sigstoreSigned","keyPath":"/etc/key.pem"}]}`)
	for _, tt := range []struct {
		name, image, want string
		tpm               string
		noTPM             bool
		rtmr              bool
		service           bool
	}{
		{name: "digest, no register", image: image("web"), tpm: config.TPMOptional, noTPM: true},
		{name: "tag, no register", image: tagged, tpm: config.TPMOptional, noTPM: true, want: "workloads: nothing here can measure what a tag leads to"},
		{name: "tag, a TPM that nobody asks for", image: tagged, tpm: config.TPMOptional, want: "workloads: nothing here can measure"},
		{name: "tag, TPM", image: tagged},
		{name: "image service, no register", image: image("web"), tpm: config.TPMOptional, noTPM: true, service: true, want: "workloads: nothing here can measure"},
		{name: "tag, RTMR 3", image: tagged, tpm: config.TPMOptional, noTPM: true, rtmr: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, m, _ := newWorkloads(t, func(c *config.Config) {
				c.TPM, c.Phases = tt.tpm, nil
				c.Workloads.Policy, c.Workloads.ImageService = signed, tt.service
				c.Workloads.Workloads = []workload.Process{{Name: "web", Image: tt.image}}
			})
			if tt.noTPM {
				m.tpm = nil
			}
			if tt.rtmr {
				write(t, s, tdxMeasured+"/rtmr3:sha384", string(make([]byte, 48)))
			}
			wantError(t, bootWorkloads(t, s), tt.want)
		})
	}
}

// The registers of a trust domain are extended by writing the digest to a file.
func TestRTMR(t *testing.T) {
	t.Parallel()
	s, m, _ := newWorkloads(t, func(c *config.Config) { c.TPM, c.Phases = config.TPMOptional, nil })
	m.tpm = nil
	rtmr := tdxMeasured + "/rtmr3:sha384"
	write(t, s, rtmr, string(make([]byte, 48)))
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	events, err := s.work.config.Events(s.work.admit)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 48)
	for _, e := range events {
		d := sha512.Sum384(e.Bytes())
		sum := sha512.Sum384(append(want, d[:]...))
		want = sum[:]
	}
	last := events[len(events)-1]
	if b, err := os.ReadFile(s.path(rtmr)); err != nil || !bytes.Equal(b, want) {
		t.Errorf("RTMR 3 is %x, %v, want %x", b, err, want)
	}
	log, err := s.readWorkloadLog()
	if err != nil || binary.LittleEndian.Uint32(log) != 4 || !bytes.HasSuffix(log, last.Bytes()) {
		t.Errorf("the log begins with register %d, %v", binary.LittleEndian.Uint32(log), err)
	}
}

// Without a policy every image is rejected, and without Admit one that nobody signed.
func TestNoPolicy(t *testing.T) {
	s, _, _ := newWorkloads(t, func(c *config.Config) { c.Workloads.Policy = nil })
	s.work.config = s.Config.Workloads
	p, err := s.newPuller(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n, err := policy.ParseName(image("web"))
	if err != nil {
		t.Fatal(err)
	}
	if list, _, _ := p.Policy.Scope(n); len(list) != 1 || list[0].Type != policy.Reject {
		t.Errorf("got %+v, want reject", list)
	}
	if p.Admit != nil {
		t.Errorf("admitted are %v", p.Admit)
	}
}

// What a configuration says of registries reaches the puller, or ends the boot.
func TestPuller(t *testing.T) {
	c := &workload.Config{
		Admit: []string{"plain+unsigned"}, Registries: "unqualified-search-registries = [\"registry.example.com\"]\n",
		Proxy: &workload.Proxy{HTTPS: "http://proxy.example.com:3128", No: "direct.example.com"}, Auth: "kbs:///a/b/c",
		Limits: &workload.Limits{Bytes: 7, Entries: 8},
	}
	s, _ := newGuest(t, config.Config{Debug: true, TestKeys: map[string][]byte{"kbs:///a/b/c": []byte(`{"auths":{}}`)}})
	s.work.config = c
	p, err := s.newPuller(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Admit) != 1 || p.Registry.Config == nil || p.Registry.Auth == nil || p.Limits.Bytes != 7 || p.Limits.Entries != 8 {
		t.Errorf("got %+v", p)
	}
	for host, want := range map[string]string{"registry.example.com": "http://proxy.example.com:3128", "direct.example.com": "<nil>"} {
		u, err := p.Registry.Proxy(httptest.NewRequest("GET", "https://"+host+"/v2/", nil))
		if got := fmt.Sprint(u); err != nil || got != want {
			t.Errorf("%s: by %s, %v, want %s", host, got, err, want)
		}
	}
	for _, tt := range []struct {
		want  string
		spoil func(*workload.Config)
	}{
		{"admit: ", func(c *workload.Config) { c.Admit[0] = "all" }},
		{"registries.conf: ", func(c *workload.Config) { c.Registries = "x" }},
		{"registries.d: ", func(c *workload.Config) { c.Lookaside = []string{"x: y"} }},
		{"cas: no certificate", func(c *workload.Config) { c.CAs = "x" }},
		{"kbs:///a/b/c: not an auth.json", func(*workload.Config) { s.Config.TestKeys["kbs:///a/b/c"] = []byte("canary") }},
	} {
		bad := *c
		bad.Admit = slices.Clone(c.Admit)
		tt.spoil(&bad)
		s.work.config = &bad
		_, err := s.newPuller(t.Context())
		wantError(t, err, tt.want)
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the error quotes a secret: %v", err)
		}
	}
}

func TestKeys(t *testing.T) {
	s, _ := newGuest(t, config.Config{Debug: true, TestKeys: map[string][]byte{"kbs:///a/b/c": []byte("key")}})
	if k, err := s.key(t.Context(), "kbs:///a/b/c"); err != nil || string(k) != "key" {
		t.Errorf("got %q, %v", k, err)
	}
	_, err := s.key(t.Context(), "kbs:///a/b/d")
	wantError(t, err, "key kbs:///a/b/d: this guest has no key provider")
	s.Config.Debug = false // which no configuration can have
	_, err = s.key(t.Context(), "kbs:///a/b/c")
	wantError(t, err, "this guest has no key provider")
}
