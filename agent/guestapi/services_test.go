package guestapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/workload"
)

// sockets starts services at sockets of their own.
func sockets(t *testing.T, s *Services) (aa, cdh string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	aa, cdh = filepath.Join(dir, AttestationAgent), filepath.Join(dir, imageservice.Socket)
	var listeners []net.Listener
	for _, name := range []string{aa, cdh} {
		l, err := imageservice.Listen(name)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, listeners[0], listeners[1]) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, name := range []string{aa, cdh} {
			if conn, err := net.Dial("unix", name); err == nil {
				conn.Close()
				t.Errorf("%s is still served", name)
			}
		}
	})
	return aa, cdh
}

func client(t *testing.T, socket string) *ttrpc.Client {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

// A rpc is one call of each method.
type rpc struct {
	name, journal string
	call          func(ctx context.Context) (string, error)
	want          string
}

// calls are one of every method that the guest has a part in.
func calls(t *testing.T, aa, cdh string) []rpc {
	a := api.NewAttestationAgentServiceClient(client(t, aa))
	hub := client(t, cdh) // one connection for all services
	packet := base64.StdEncoding.EncodeToString([]byte(`{"kid":"kbs:///r/t/kek"}`))
	return []rpc{
		{"GetEvidence", `evidence "\x00abc"`, func(ctx context.Context) (string, error) {
			r, err := a.GetEvidence(ctx, &api.GetEvidenceRequest{RuntimeData: []byte("\x00abc")})
			return string(r.GetEvidence()), err
		}, `{"quote":1}`},
		{"GetAdditionalEvidence", `additional evidence ""`, func(ctx context.Context) (string, error) {
			r, err := a.GetAdditionalEvidence(ctx, &api.GetAdditionalEvidenceRequest{})
			return string(r.GetEvidence()), err
		}, `{"sampledevice":{}}`},
		{"GetToken", "token true", func(ctx context.Context) (string, error) {
			r, err := a.GetToken(ctx, &api.GetTokenRequest{TokenType: "kbs"})
			return string(r.GetToken()), err
		}, `{"token":"a.b.c","tee_keypair":"-----BEGIN PRIVATE KEY----- ` + canary + `"}`},
		{"ExtendRuntimeMeasurement", `measure ` + workload.DomainCoCo + ` PullImage {"a":1}`, func(ctx context.Context) (string, error) {
			r, err := a.ExtendRuntimeMeasurement(ctx, &api.ExtendRuntimeMeasurementRequest{Domain: workload.DomainCoCo, Operation: "PullImage", Content: `{"a":1}`})
			return r.GetResult().String(), err
		}, "OK"},
		{"GetResource", "resource kbs:///r/t/tag", func(ctx context.Context) (string, error) {
			r, err := api.NewGetResourceServiceClient(hub).GetResource(ctx, &api.GetResourceRequest{ResourcePath: "kbs:///r/t/tag"})
			return string(r.GetResource()), err
		}, "resource " + canary},
		{"UnsealSecret", "unseal sealed.a.b.c", func(ctx context.Context) (string, error) {
			r, err := api.NewSealedSecretServiceClient(hub).UnsealSecret(ctx, &api.UnsealSecretInput{Secret: []byte("sealed.a.b.c")})
			return string(r.GetPlaintext()), err
		}, "plain " + canary},
		{"SecureMount", "mount block-device map[deviceId:8:0 targetType:fileSystem] [ro] /mnt", func(ctx context.Context) (string, error) {
			_, err := api.NewSecureMountServiceClient(hub).SecureMount(ctx, &api.SecureMountRequest{
				VolumeType: "block-device", Options: map[string]string{"deviceId": "8:0", "targetType": "fileSystem"}, Flags: []string{"ro"}, MountPoint: "/mnt",
			})
			return "", err
		}, ""},
		{"UnWrapKey", `unwrap {"kid":"kbs:///r/t/kek"}`, func(ctx context.Context) (string, error) {
			// As ocicrypt writes it.
			in := `{"op":"keyunwrap","keywrapparams":{},"keyunwrapparams":{"dc":{"Parameters":{"attestation-agent":["YQ=="]}},"annotation":"` + packet + `"}}`
			r, err := api.NewKeyProviderServiceClient(hub).UnWrapKey(ctx, &api.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(in)})
			return string(r.GetKeyProviderKeyWrapProtocolOutput()), err
		}, `{"keyunwrapresults":{"optsdata":[0,127,128,255]}}`},
	}
}

func TestServices(t *testing.T) {
	g := &fakeGuest{}
	aa, cdh := sockets(t, &Services{Guest: g, Logf: t.Logf})
	for _, c := range calls(t, aa, cdh) {
		got, err := c.call(t.Context())
		if journal := g.take(); err != nil || got != c.want || journal != c.journal {
			t.Errorf("%s: %q, %v, guest: %q; want %q, %q", c.name, got, err, journal, c.want, c.journal)
		}
	}
	a := api.NewAttestationAgentServiceClient(client(t, aa))
	if r, err := a.GetTeeType(t.Context(), &api.GetTeeTypeRequest{}); err != nil || r.Tee != "tpm" {
		t.Errorf("GetTeeType: %v, %v", r, err)
	}
	if r, err := a.GetAdditionalTees(t.Context(), &api.GetAdditionalTeesRequest{}); err != nil || !slices.Equal(r.AdditionalTees, []string{"sampledevice"}) {
		t.Errorf("GetAdditionalTees: %v, %v", r, err)
	}
	g.err = ErrNoRegister
	r, err := a.ExtendRuntimeMeasurement(t.Context(), &api.ExtendRuntimeMeasurementRequest{Domain: "example.com", Operation: "Start"})
	if err != nil || r.Result != api.RuntimeMeasurementResult_NOT_SUPPORTED {
		t.Errorf("without a register: %v, %v", r, err)
	}
}

// Go's ocicrypt reads its options from numbers too: they are for a []byte.
func TestUnwrappedForGo(t *testing.T) {
	var out struct {
		Results struct {
			OptsData []byte `json:"optsdata"`
		} `json:"keyunwrapresults"`
	}
	want := []byte{0, 1, 254, 255}
	if err := json.Unmarshal(unwrapped(want), &out); err != nil || !slices.Equal(out.Results.OptsData, want) {
		t.Errorf("%v, %v", out, err)
	}
}

func TestRefusedServices(t *testing.T) {
	g := &fakeGuest{}
	aa, cdh := sockets(t, &Services{Guest: g})
	a, hub := api.NewAttestationAgentServiceClient(client(t, aa)), client(t, cdh)
	extend := func(r *api.ExtendRuntimeMeasurementRequest) func() error {
		return func() error { _, err := a.ExtendRuntimeMeasurement(t.Context(), r); return err }
	}
	resource := func(uri string) func() error {
		return func() error {
			_, err := api.NewGetResourceServiceClient(hub).GetResource(t.Context(), &api.GetResourceRequest{ResourcePath: uri})
			return err
		}
	}
	unwrap := func(in string) func() error {
		return func() error {
			_, err := api.NewKeyProviderServiceClient(hub).UnWrapKey(t.Context(), &api.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(in)})
			return err
		}
	}
	eight := uint64(8)
	for _, tt := range []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"initdata", func() error {
			_, err := a.BindInitData(t.Context(), &api.BindInitDataRequest{Digest: make([]byte, 32)})
			return err
		}, codes.Unimplemented},
		{"wrapping", func() error {
			_, err := api.NewKeyProviderServiceClient(hub).WrapKey(t.Context(), &api.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(`{"op":"keywrap"}`)})
			return err
		}, codes.Unimplemented},
		{"65 bytes", func() error {
			_, err := a.GetEvidence(t.Context(), &api.GetEvidenceRequest{RuntimeData: make([]byte, 65)})
			return err
		}, codes.InvalidArgument},
		{"65 bytes of devices", func() error {
			_, err := a.GetAdditionalEvidence(t.Context(), &api.GetAdditionalEvidenceRequest{RuntimeData: make([]byte, 65)})
			return err
		}, codes.InvalidArgument},
		{"another token", func() error {
			_, err := a.GetToken(t.Context(), &api.GetTokenRequest{TokenType: "coco_as"})
			return err
		}, codes.InvalidArgument},
		{"a register", extend(&api.ExtendRuntimeMeasurementRequest{Domain: "example.com", Operation: "Start", RegisterIndex: &eight}), codes.InvalidArgument},
		{"two lines", extend(&api.ExtendRuntimeMeasurementRequest{Domain: "example.com", Operation: "Start", Content: "a\nb"}), codes.InvalidArgument},
		{"the agent's domain", extend(&api.ExtendRuntimeMeasurementRequest{Domain: workload.DomainPlinth, Operation: "Separator", Content: "{}"}), codes.PermissionDenied},
		{"in capitals", extend(&api.ExtendRuntimeMeasurementRequest{Domain: strings.ToUpper(workload.DomainPlinth), Operation: "Separator", Content: "{}"}), codes.PermissionDenied},
		{"no URI", resource("/r/t/tag"), codes.InvalidArgument},
		{"dots", resource("kbs:///r/../tag"), codes.InvalidArgument},
		{"long", resource("kbs:///r/t/" + strings.Repeat("a", 5000)), codes.InvalidArgument},
		{"no JSON", unwrap("x"), codes.InvalidArgument},
		{"another operation", unwrap(`{"op":"keywrap","keyunwrapparams":{"annotation":"YQ=="}}`), codes.InvalidArgument},
		{"no annotation", unwrap(`{"op":"keyunwrap","keyunwrapparams":{"annotation":null}}`), codes.InvalidArgument},
		{"no base64", unwrap(`{"op":"keyunwrap","keyunwrapparams":{"annotation":"!"}}`), codes.InvalidArgument},
		{"images", func() error { // there is no image service
			_, err := api.NewImagePullServiceClient(hub).PullImage(t.Context(), &api.ImagePullRequest{})
			return err
		}, codes.Unimplemented},
		{"of the other socket", func() error {
			_, err := api.NewGetResourceServiceClient(client(t, aa)).GetResource(t.Context(), &api.GetResourceRequest{ResourcePath: "kbs:///r/t/tag"})
			return err
		}, codes.Unimplemented},
	} {
		err := tt.call()
		if journal := g.take(); status.Code(err) != tt.want || journal != "" {
			t.Errorf("%s: %v, guest: %q; want %s", tt.name, err, journal, tt.want)
		}
	}
}

// Errors have codes that clients tell apart, and no secret.
func TestServiceErrors(t *testing.T) {
	g := &fakeGuest{}
	l := &logs{}
	aa, cdh := sockets(t, &Services{Guest: g, Logf: l.logf})
	all := calls(t, aa, cdh)
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{&kbs.StatusError{Status: 401}, codes.Unauthenticated},
		{&kbs.StatusError{Status: 401, Kind: "PolicyDeny"}, codes.PermissionDenied},
		{&kbs.StatusError{Status: 403}, codes.PermissionDenied},
		{&kbs.StatusError{Status: 404}, codes.NotFound},
		{&kbs.StatusError{Status: 500}, codes.Internal},
		{&kbs.VersionError{Client: "0.4.0", Server: "0.2.0"}, codes.Internal},
		{errors.New("boom"), codes.Internal},
		{badText{}, codes.Internal},
	} {
		g.err = tt.err
		for _, c := range all {
			_, err := c.call(t.Context())
			if status.Code(err) != tt.want || !strings.Contains(err.Error(), strings.ToValidUTF8(tt.err.Error(), "?")) || strings.Contains(err.Error(), canary) {
				t.Errorf("%s: got %v, want %s: %v", c.name, err, tt.want, tt.err)
			}
		}
	}
	g.err, g.before = nil, func(context.Context, string) { panic("boom") }
	for _, c := range all {
		if _, err := c.call(t.Context()); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "boom") {
			t.Errorf("%s: panic: %v", c.name, err)
		}
	}
	if s := l.String(); strings.Contains(s, canary) || !strings.Contains(s, "/api.GetResourceService/GetResource: panic: boom") {
		t.Errorf("the log is %q", s)
	}
}

// An event is measured whole, and a disk opened, though the caller gives up.
func TestServiceOutlivesCaller(t *testing.T) {
	for name, want := range map[string]bool{"ExtendRuntimeMeasurement": false, "SecureMount": false, "GetResource": true, "UnsealSecret": true, "GetEvidence": true} {
		ended := make(chan bool)
		g := &fakeGuest{before: func(ctx context.Context, _ string) {
			select {
			case <-ctx.Done():
				ended <- true
			case <-time.After(300 * time.Millisecond):
				ended <- false
			}
		}}
		aa, cdh := sockets(t, &Services{Guest: g})
		all := calls(t, aa, cdh)
		c := all[slices.IndexFunc(all, func(c rpc) bool { return c.name == name })]
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		go func() { _, _ = c.call(ctx) }()
		if got := <-ended; got != want {
			t.Errorf("%s: stopped: %t, want %t", name, got, want)
		}
		cancel()
	}
}

// badText is an error whose text no protobuf takes.
type badText struct{}

func (badText) Error() string { return "bad \xff text" }

type fakeImages struct{ imageservice.Guest }

func (fakeImages) Pull(context.Context, string) (*imagepull.Pulled, error) {
	return nil, errors.New("refused by the policy")
}

// Images are pulled at the same socket, and alone where nothing else is configured.
func TestImages(t *testing.T) {
	images := func() *imageservice.Server { return &imageservice.Server{Guest: fakeImages{}, Root: t.TempDir()} }
	for _, s := range []*Services{{Guest: &fakeGuest{}, Images: images()}, {Images: images()}} {
		aa, cdh := sockets(t, s)
		hub := client(t, cdh)
		_, err := api.NewImagePullServiceClient(hub).PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: "registry.example.com/app:1", BundlePath: "/run/kata-containers/c1"})
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "refused by the policy") {
			t.Errorf("PullImage: %v", err)
		}
		want := codes.Unimplemented
		if s.Guest != nil {
			want = codes.OK
		}
		if _, err := api.NewGetResourceServiceClient(hub).GetResource(t.Context(), &api.GetResourceRequest{ResourcePath: "kbs:///r/t/tag"}); status.Code(err) != want {
			t.Errorf("GetResource: %v, want %s", err, want)
		}
		if _, err := api.NewAttestationAgentServiceClient(client(t, aa)).GetTeeType(t.Context(), &api.GetTeeTypeRequest{}); status.Code(err) != want {
			t.Errorf("GetTeeType: %v, want %s", err, want)
		}
	}
}

// One listener that fails ends the other.
func TestServeFails(t *testing.T) {
	dir := t.TempDir()
	aa, err := imageservice.Listen(dir + "/a/aa.sock")
	if err != nil {
		t.Fatal(err)
	}
	cdh, err := imageservice.Listen(dir + "/c/cdh.sock")
	if err != nil {
		t.Fatal(err)
	}
	cdh.Close()
	if err := (&Services{Guest: &fakeGuest{}}).Serve(t.Context(), aa, cdh); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := aa.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the other: %v", err)
	}
	if err := (&Services{}).Serve(t.Context(), nil, nil); err != nil {
		t.Error(err)
	}
}

// Another user is not answered, even where the sockets let it in.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "not root")
	}
	g := &fakeGuest{}
	aa, cdh := sockets(t, &Services{Guest: g})
	for _, socket := range []string{aa, cdh} {
		if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", socket, fi.Mode(), err)
		}
		for dir := socket; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		conn, err := dialAs(65534, socket)
		if err != nil {
			t.Fatal(err)
		}
		c := ttrpc.NewClient(conn)
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if socket == aa {
			_, err = api.NewAttestationAgentServiceClient(c).GetToken(ctx, &api.GetTokenRequest{TokenType: "kbs"})
		} else {
			_, err = api.NewGetResourceServiceClient(c).GetResource(ctx, &api.GetResourceRequest{ResourcePath: "kbs:///r/t/tag"})
		}
		if err == nil || g.take() != "" {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

func dialAs(user uintptr, socket string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
			done <- result{nil, errno}
			return
		}
		conn, err := net.Dial("unix", socket)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
