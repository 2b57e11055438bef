package workload

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestEffectiveArgs(t *testing.T) {
	image := v1.ImageConfig{Entrypoint: []string{"/e", "-e"}, Cmd: []string{"c"}}
	// The table of Kubernetes, "Define a Command and Arguments for a Container".
	for _, tt := range []struct{ command, args, want string }{
		{"", "", "/e -e c"}, {"/x", "", "/x"}, {"", "a b", "/e -e a b"}, {"/x y", "a", "/x y a"},
	} {
		p := Process{Name: "a", Command: strings.Fields(tt.command), Args: strings.Fields(tt.args)}
		e, err := p.Effective(&image)
		if err != nil || strings.Join(e.Args, " ") != tt.want {
			t.Errorf("%+v: got %+v, %v", tt, e, err)
		}
	}
	if e, err := (&Process{}).Effective(&v1.ImageConfig{Cmd: []string{"only"}}); err != nil || !slices.Equal(e.Args, []string{"only"}) {
		t.Errorf("Cmd alone: %+v, %v", e, err)
	}
	if image.Entrypoint[0] != "/e" || len(image.Cmd) != 1 {
		t.Error("the image was changed")
	}
}

func TestEffectiveEnv(t *testing.T) {
	for _, tt := range []struct {
		image []string
		own   map[string]string
		want  string
	}{
		{[]string{"PATH=/bin", "Z=1", "A=1"}, nil, "PATH=/bin Z=1 A=1"},
		{[]string{"PATH=/bin", "Z=1", "A=1", "Z=2"}, nil, "PATH=/bin Z=2 A=1"},
		{[]string{"PATH=/bin", "Z=1", "A=1"}, map[string]string{"Z": "9", "B": "2", "C": ""}, "PATH=/bin A=1 B=2 C= Z=9"},
		{nil, map[string]string{"B": "2"}, searchPath + " B=2"},
		{nil, map[string]string{"PATH": "/x"}, "PATH=/x"},
		{[]string{"PATH=/bin"}, map[string]string{"PATH": ""}, "PATH="},
		{[]string{"X=a=b"}, nil, searchPath + " X=a=b"},
	} {
		p := Process{Command: []string{"/x"}, Env: tt.own}
		e, err := p.Effective(&v1.ImageConfig{Env: tt.image})
		if err != nil || strings.Join(e.Env, " ") != tt.want {
			t.Errorf("%q %v: got %+v, %v, want %s", tt.image, tt.own, e, err, tt.want)
		}
	}
}

func TestEffective(t *testing.T) {
	image := &v1.ImageConfig{Cmd: []string{"/c"}, Env: []string{"PATH=/bin"}, User: "www", WorkingDir: "srv/../data", StopSignal: "quit", Volumes: map[string]struct{}{"/v": {}}}
	e, err := (&Process{Name: "a"}).Effective(image)
	want := &Effective{Args: []string{"/c"}, Env: []string{"PATH=/bin"}, Dir: "/data", User: "www", StopSignal: "SIGQUIT",
		Network: NetworkNAT, Resources: Resources{PIDs: DefaultPIDs}, ScratchMiB: DefaultScratchMiB}
	if err != nil || !same(e, want) {
		t.Errorf("got %+v, %v, want %+v", e, err, want)
	}
	c := sample()
	e, err = c.Workloads[0].Effective(image)
	want = &Effective{
		Args: []string{"/app", "", "-v"}, Env: []string{"PATH=/bin", "A=", "B=x=y", "C=sealed.e30.e30.AA"}, Dir: "/srv", User: "app:1000", StopSignal: "SIGQUIT",
		Mounts: c.Workloads[0].Mounts, Ports: []Port{{"tcp", 80, 8080}, {"udp", 80, 80}}, Network: NetworkNAT, Resources: Resources{1, 1, 1},
		Capabilities: []string{"CAP_CHOWN", "CAP_NET_ADMIN"}, ScratchMiB: 1, Devices: []string{"vendor.example/class=name"},
		Restart: RestartAlways, Output: OutputConsole, Exec: true,
		API: &API{Resources: []string{"kbs:///a/", "kbs:///a/b/", "kbs:///b/c/d"}, Evidence: true, Token: true, TEEKey: true, Measure: true},
	}
	if err != nil || !same(e, want) {
		t.Errorf("got %+v, %v, want %+v", e, err, want)
	}
	if c.Workloads[0].Ports[0].Protocol != "" {
		t.Error("the workload was changed")
	}
	if e, err := c.Workloads[1].Effective(image); err != nil || !e.ReadOnly || e.ScratchMiB != 0 {
		t.Errorf("read-only: %+v, %v", e, err)
	}
}

// same compares what is measured.
func same(a, b *Effective) bool {
	x, err1 := a.Digest()
	y, err2 := b.Digest()
	return err1 == nil && err2 == nil && x == y
}

// Every field of a process that decides how it runs is in what is measured: one
// that is added and forgotten fails here.
func TestEffectiveHasAll(t *testing.T) {
	from := reflect.TypeFor[Process]()
	to := reflect.TypeFor[Effective]()
	for i := range from.NumField() {
		name := from.Field(i).Name
		if _, ok := to.FieldByName(name); !ok && !slices.Contains([]string{"Name", "Image", "Digest", "Command"}, name) {
			t.Errorf("Process.%s is not in Effective", name)
		}
	}
	c := sample()
	image := &v1.ImageConfig{}
	plain, err := (&Process{Command: []string{"/app"}}).Effective(image)
	if err != nil {
		t.Fatal(err)
	}
	full := reflect.ValueOf(&c.Workloads[0]).Elem()
	full.FieldByName("Network").SetString(NetworkNone)
	for i := range full.NumField() {
		name := full.Type().Field(i).Name
		if slices.Contains([]string{"Name", "Image", "Digest", "ReadOnly"}, name) {
			continue
		}
		p := Process{Command: []string{"/app"}}
		reflect.ValueOf(&p).Elem().Field(i).Set(full.Field(i))
		if name == "Command" {
			p.Command = []string{"/other"}
		}
		if e, err := p.Effective(image); err != nil || same(e, plain) {
			t.Errorf("Process.%s is not measured: %v", name, err)
		}
	}
}

// The digest is over the canonical form, written here by hand.
func TestEffectiveDigest(t *testing.T) {
	e := &Effective{Args: []string{"/app", "é<"}, Env: []string{"A=\t"}, Dir: "/", StopSignal: "SIGTERM", Network: NetworkNAT, Resources: Resources{PIDs: 1024}, ScratchMiB: 64}
	text := `{"args":["/app","é<"],"dir":"/","env":["A=\t"],"network":"nat","resources":{"pids":1024},"scratch_mib":64,"stop_signal":"SIGTERM"}`
	want := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
	if got, err := e.Digest(); err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	empty, none := *e, *e
	empty.Mounts, none.Mounts = []Mount{}, nil
	if !same(&empty, &none) {
		t.Error("an empty list and none have two digests")
	}
}

func variables(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("V%d=", i))
	}
	return out
}

func TestEffectiveRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		image      v1.ImageConfig
	}{
		{"nothing to run", "no program", v1.ImageConfig{}},
		{"empty program", "no program", v1.ImageConfig{Cmd: []string{""}}},
		{"NUL in an argument", "without NUL", v1.ImageConfig{Cmd: []string{"/a", "\x00"}}},
		{"NUL in a variable", "without NUL", v1.ImageConfig{Cmd: []string{"/a"}, Env: []string{"A=\x00"}}},
		{"variable without a value", "want NAME=VALUE", v1.ImageConfig{Cmd: []string{"/a"}, Env: []string{"A"}}},
		{"variable without a name", "want NAME=VALUE", v1.ImageConfig{Cmd: []string{"/a"}, Env: []string{"=A"}}},
		{"user with a line end", "user", v1.ImageConfig{Cmd: []string{"/a"}, User: "a\nb"}},
		{"directory with a line end", "working directory", v1.ImageConfig{Cmd: []string{"/a"}, WorkingDir: "/a\nb"}},
		{"unknown signal", "stop signal", v1.ImageConfig{Cmd: []string{"/a"}, StopSignal: "SIGSTOPP"}},
		{"too many variables", "513 variables: want at most 512", v1.ImageConfig{Cmd: []string{"/a"}, Env: variables(512)}}, // and PATH
		{"long name of a variable", "want names of at most 4096 bytes", v1.ImageConfig{Cmd: []string{"/a"}, Env: []string{strings.Repeat("A", 4097) + "="}}},
		{"too large", "want at most 1048576", v1.ImageConfig{Cmd: []string{"/a", strings.Repeat("a", maxEffective)}}},
	} {
		if e, err := (&Process{Name: "w"}).Effective(&tt.image); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "workload w: ") {
			t.Errorf("%s: got %+v, %v, want %q", tt.name, e, err, tt.want)
		}
	}
}

// Numbers: signal(7); those of real time as glibc has them.
func TestStopSignals(t *testing.T) {
	for in, want := range map[string]struct {
		name   string
		number int
	}{
		"": {"SIGTERM", 15}, "SIGTERM": {"SIGTERM", 15}, "TERM": {"SIGTERM", 15}, "sigterm": {"SIGTERM", 15}, "15": {"SIGTERM", 15},
		"9": {"SIGKILL", 9}, "SIGRTMIN+3": {"SIGRTMIN+3", 37}, "RTMIN": {"SIGRTMIN", 34}, "37": {"SIGRTMIN+3", 37}, "SIGRTMAX-1": {"SIGRTMAX-1", 63},
		"1": {"SIGHUP", 1}, "SIGSYS": {"SIGSYS", 31}, "31": {"SIGSYS", 31}, "64": {"SIGRTMIN+30", 64},
	} {
		got, err := stopSignal(in)
		if err != nil || got != want.name || (&Effective{StopSignal: got}).Signal() != want.number {
			t.Errorf("%q: got %s %d, %v, want %s %d", in, got, number(got), err, want.name, want.number)
		}
	}
	for _, in := range []string{"0", "32", "33", "65", "-1", "SIG", "SIGRTMIN+31", "SIGRTMIN3", "SIGRTMAX+1", "TERM "} {
		if got, err := stopSignal(in); err == nil {
			t.Errorf("%q: got %s", in, got)
		}
	}
}

// FuzzEffective: whatever an image says, the outcome can be run and digested, and
// the digest is of all of it.
func FuzzEffective(f *testing.F) {
	b, err := json.Marshal(v1.ImageConfig{Cmd: []string{"/a"}, Env: []string{"A=b"}, User: "u:g", WorkingDir: "d", StopSignal: "TERM"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		var image v1.ImageConfig
		if json.Unmarshal(in, &image) != nil {
			return
		}
		e, err := (&Process{}).Effective(&image)
		if err != nil {
			return
		}
		if _, err := e.Digest(); err != nil {
			t.Fatal(err)
		}
		if e.Args[0] == "" || !strings.HasPrefix(e.Dir, "/") || e.Signal() == 0 {
			t.Fatalf("%+v", e)
		}
	})
}
