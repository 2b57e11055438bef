package workload

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// sample has two workloads and every field of the first.
func sample() *Config {
	return &Config{
		Schema: Schema, Policy: json.RawMessage(`{"default":[{"type":"reject"}]}`), Admit: []string{"plain+signed", "encrypted+signed"},
		Registries: "[[registry]]\n", Lookaside: []string{"docker: {}\n"}, CAs: "PEM", Proxy: &Proxy{"http://192.0.2.1:3128", "example.com"},
		Auth: "kbs:///default/registry/auth", Limits: &Limits{1, 1},
		Workloads: []Process{
			{
				Name: "web", Image: "docker://registry.example.com/team/app:1@sha256:" + strings.Repeat("ab", 32),
				Command: []string{"/app", ""}, Args: []string{"-v"}, Env: map[string]string{"A": "", "B": "x=y", "C": "sealed.e30.e30.AA"}, Dir: "/srv", User: "app:1000",
				Mounts: []Mount{{Path: "/cache", TmpfsMiB: 1}, {Path: "/etc/app", Source: "/etc/app"}, {Path: "/data", Volume: "data"}, {Path: "/key", Secret: "kbs://kbs.example.com:8443/a/b/c"}, {Path: "/sealed", Secret: "sealed.e30.e30.AA"}},
				Ports:  []Port{{"", 80, 8080}, {"udp", 80, 80}}, Network: NetworkNAT, Resources: Resources{1, 1, 1},
				Capabilities: []string{"CAP_NET_ADMIN", "CAP_CHOWN"}, ScratchMiB: 1, Devices: []string{"vendor.example/class=name"},
				Restart: RestartAlways, Output: OutputConsole, Exec: true, API: &API{Resources: []string{"kbs:///b/c/d", "kbs:///a/", "kbs:///a/b/"}, Evidence: true, Token: true, TEEKey: true, Measure: true},
			},
			{Name: "job", Image: "oci-archive:/dev/disk/by-id/virtio-job", Digest: "sha256:" + strings.Repeat("cd", 32), ReadOnly: true},
		},
	}
}

func TestParse(t *testing.T) {
	b, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(b)
	if err != nil || !reflect.DeepEqual(c, sample()) {
		t.Errorf("got %+v, %v", c, err)
	}
	for name, tt := range map[string]struct{ in, want string }{
		"unknown key":       {`{"schema":1,"workload":[]}`, "workload: unknown key"},
		"unknown key below": {`{"schema":1,"workloads":[{"name":"a","privileged":true}]}`, "workloads[0].privileged: unknown key"},
		"key twice":         {`{"schema":1,"schema":1}`, "schema: duplicate key"},
		"data behind":       {`{"schema":1,"image_service":true}{}`, "data after"},
		"too large":         {strings.Repeat(" ", MaxSize+1), "want at most"},
	} {
		if _, err := Parse([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	many := make([]string, maxList+1)
	for _, tt := range []struct {
		name, want string
		change     func(c *Config, p *Process)
	}{
		{"other schema", "schema is 2", func(c *Config, _ *Process) { c.Schema = 2 }},
		{"unknown kind", "admit[0]", func(c *Config, _ *Process) { c.Admit[0] = "signed" }},
		{"kind twice", "admit[1]", func(c *Config, _ *Process) { c.Admit[1] = c.Admit[0] }},
		{"auth elsewhere", "auth", func(c *Config, _ *Process) { c.Auth = "file:///etc/auth.json" }},
		{"auth of two parts", "auth", func(c *Config, _ *Process) { c.Auth = "kbs:///a/b" }},
		{"proxy with a password", "proxy", func(c *Config, _ *Process) { c.Proxy.HTTPS = "http://u:p@h:1" }},
		{"proxy by another protocol", "proxy", func(c *Config, _ *Process) { c.Proxy.HTTPS = "socks5://h:1" }},
		{"no proxy in two lines", "proxy: no", func(c *Config, _ *Process) { c.Proxy.No = "a\nb" }},
		{"limit below 0", "limits", func(c *Config, _ *Process) { c.Limits.Entries = -1 }},
		{"nothing to do", "no workloads", func(c *Config, _ *Process) { c.Workloads = nil }},
		{"too many", "want at most 64", func(c *Config, p *Process) { c.Workloads = make([]Process, maxWorkloads+1) }},
		{"name twice", "workloads[1]: name", func(c *Config, p *Process) { c.Workloads[1].Name = p.Name }},
		{"name in capitals", "workloads[0]: name", func(_ *Config, p *Process) { p.Name = "Web" }},
		{"name that leads elsewhere", "workloads[0]: name", func(_ *Config, p *Process) { p.Name = "../web" }},
		{"long name", "workloads[0]: name", func(_ *Config, p *Process) { p.Name = strings.Repeat("a", 64) }},
		{"no image", "web: image", func(_ *Config, p *Process) { p.Image = "" }},
		{"image without a host", "web: image", func(_ *Config, p *Process) { p.Image = "docker://nginx:1" }},
		{"image without a transport", "web: image", func(_ *Config, p *Process) { p.Image = "registry.example.com/app:1" }},
		{"image in a file", "web: image", func(_ *Config, p *Process) { p.Image = "oci-archive:/srv/app.tar" }},
		{"image in a directory", "web: image", func(_ *Config, p *Process) { p.Image = "oci:/srv/app" }},
		{"short digest", "web: image", func(_ *Config, p *Process) { p.Image = "docker://r.example/app@sha256:ab" }},
		{"image with a space", "web: image", func(_ *Config, p *Process) { p.Image = "docker://r.example/app:1 x" }},
		{"two digests", "web: digest", func(c *Config, p *Process) { p.Digest = c.Workloads[1].Digest }},
		{"digest in capitals", "job: digest", func(c *Config, _ *Process) { c.Workloads[1].Digest = "sha256:" + strings.Repeat("CD", 32) }},
		{"empty program", "web: command", func(_ *Config, p *Process) { p.Command[0] = "" }},
		{"NUL in an argument", "web: args[0]", func(_ *Config, p *Process) { p.Args[0] = "\x00" }},
		{"many arguments", "web: args", func(_ *Config, p *Process) { p.Args = many }},
		{"variable without a name", "web: env", func(_ *Config, p *Process) { p.Env[""] = "" }},
		{"variable's name with =", "web: env", func(_ *Config, p *Process) { p.Env["A=B"] = "" }},
		{"variable in another encoding", "web: env", func(_ *Config, p *Process) { p.Env["A"] = "\xff" }},
		{"relative directory", "web: dir", func(_ *Config, p *Process) { p.Dir = "srv" }},
		{"directory with ..", "web: dir", func(_ *Config, p *Process) { p.Dir = "/srv/../x" }},
		{"user of three parts", "web: user", func(_ *Config, p *Process) { p.User = "a:b:c" }},
		{"user with a path", "web: user", func(_ *Config, p *Process) { p.User = "../a" }},
		{"mount on the root", "web: mounts[0]", func(_ *Config, p *Process) { p.Mounts[0].Path = "/" }},
		{"relative mount", "web: mounts[0]", func(_ *Config, p *Process) { p.Mounts[0].Path = "cache" }},
		{"mount twice", "web: mounts[1]", func(_ *Config, p *Process) { p.Mounts[1].Path = p.Mounts[0].Path }},
		{"mount over proc", "web: mounts[0]", func(_ *Config, p *Process) { p.Mounts[0].Path = "/proc/sys" }},
		{"mount of both", "web: mounts[0]", func(_ *Config, p *Process) { p.Mounts[0].Source = "/etc" }},
		{"mount of nothing", "web: mounts[0]", func(_ *Config, p *Process) { p.Mounts[0].TmpfsMiB = 0 }},
		{"mount of less than nothing", "web: mounts[0]", func(_ *Config, p *Process) { p.Mounts[0].TmpfsMiB = -1 }},
		{"mount of the guest's devices", "web: mounts[1]", func(_ *Config, p *Process) { p.Mounts[1].Source = "/dev/tpm0" }},
		{"mount of the agent's sockets", "web: mounts[1]", func(_ *Config, p *Process) { p.Mounts[1].Source = "/run/confidential-containers" }},
		{"mount of the guest's root", "web: mounts[1]", func(_ *Config, p *Process) { p.Mounts[1].Source = "/" }},
		{"mount by a path with ..", "web: mounts[1]", func(_ *Config, p *Process) { p.Mounts[1].Source = "/etc/../run" }},
		{"mount of three", "web: mounts[2]", func(_ *Config, p *Process) { p.Mounts[2].Secret = "kbs:///a/b/c" }},
		{"volume by a path", "web: mounts[2]", func(_ *Config, p *Process) { p.Mounts[2].Volume = "../data" }},
		{"secret of two parts", "web: mounts[3]", func(_ *Config, p *Process) { p.Mounts[3].Secret = "kbs:///a/b" }},
		{"secret that climbs", "web: mounts[3]", func(_ *Config, p *Process) { p.Mounts[3].Secret = "kbs:///a/../c" }},
		{"secret of a plugin", "web: mounts[3]", func(_ *Config, p *Process) { p.Mounts[3].Secret = "kbs+pkcs11:///a/b/c" }},
		{"secret by https", "web: mounts[3]", func(_ *Config, p *Process) { p.Mounts[3].Secret = "https://kbs.example.com/a/b/c" }},
		{"secret of a user", "web: mounts[3]", func(_ *Config, p *Process) { p.Mounts[3].Secret = "kbs://a@kbs.example.com/a/b/c" }},
		{"sealed secret of two parts", "web: mounts[4]", func(_ *Config, p *Process) { p.Mounts[4].Secret = "sealed.e30.e30" }},
		{"large sealed secret", "web: mounts[4]", func(_ *Config, p *Process) { p.Mounts[4].Secret += strings.Repeat("A", maxValue) }},
		{"sealed variable of two parts", "web: env: \"C\"", func(_ *Config, p *Process) { p.Env["C"] = "sealed.e30.e30" }},
		{"sealed variable and more", "web: env: \"C\"", func(_ *Config, p *Process) { p.Env["C"] += "\n" }},
		{"API that grants nothing", "web: api: grants nothing", func(_ *Config, p *Process) { p.API = &API{} }},
		{"key without a token", "web: api: tee_key", func(_ *Config, p *Process) { p.API.Token = false }},
		{"resource twice", "web: api: resources[1]", func(_ *Config, p *Process) { p.API.Resources[1] = p.API.Resources[0] }},
		{"resource by half a word", "web: api: resources[1]", func(_ *Config, p *Process) { p.API.Resources[1] = "kbs:///a" }},
		{"resource of a host", "web: api: resources[1]", func(_ *Config, p *Process) { p.API.Resources[1] = "kbs://kbs.example.com/a/b/c" }},
		{"resource that climbs", "web: api: resources[1]", func(_ *Config, p *Process) { p.API.Resources[1] = "kbs:///a/../" }},
		{"resource of four parts", "web: api: resources[1]", func(_ *Config, p *Process) { p.API.Resources[1] = "kbs:///a/b/c/" }},
		{"many resources", "web: api: 257 resources", func(_ *Config, p *Process) { p.API.Resources = many }},
		{"two policies", "policy_from", func(c *Config, _ *Process) { c.PolicyFrom = "kbs:///a/b/c" }},
		{"policy in a file", "policy_from", func(c *Config, _ *Process) { c.Policy, c.PolicyFrom = nil, "/etc/policy.json" }},
		{"unknown network", "web: network", func(_ *Config, p *Process) { p.Network = "host" }},
		{"ports without a network", "web: ports", func(_ *Config, p *Process) { p.Network = NetworkNone }},
		{"unknown protocol", "web: ports[0]", func(_ *Config, p *Process) { p.Ports[0].Protocol = "sctp" }},
		{"port 0", "web: ports[0]", func(_ *Config, p *Process) { p.Ports[0].Guest = 0 }},
		{"port 65536", "web: ports[0]", func(_ *Config, p *Process) { p.Ports[0].Container = 65536 }},
		{"port twice", "leads to web already", func(c *Config, p *Process) { c.Workloads[1].Ports = []Port{{"tcp", 80, 1}} }},
		{"memory below 0", "web: resources: memory_mib", func(_ *Config, p *Process) { p.Resources.MemoryMiB = -1 }},
		{"memory beyond 64 bits in bytes", "web: resources: memory_mib", func(_ *Config, p *Process) { p.Resources.MemoryMiB = 1 << 44 }},
		{"processor below 0", "web: resources: milli_cpu", func(_ *Config, p *Process) { p.Resources.MilliCPU = -1 }},
		{"many processes", "web: resources: pids", func(_ *Config, p *Process) { p.Resources.PIDs = maxPIDs + 1 }},
		{"scratch below 0", "web: scratch_mib", func(_ *Config, p *Process) { p.ScratchMiB = -1 }},
		{"scratch of what is read-only", "job: scratch_mib", func(c *Config, _ *Process) { c.Workloads[1].ScratchMiB = 1 }},
		{"unknown capability", "web: capabilities[0]", func(_ *Config, p *Process) { p.Capabilities[0] = "CAP_ALL" }},
		{"capability twice", "web: capabilities[1]", func(_ *Config, p *Process) { p.Capabilities[1] = p.Capabilities[0] }},
		{"device by path", "web: devices[0]", func(_ *Config, p *Process) { p.Devices[0] = "/dev/mem" }},
		{"unknown restart", "web: restart", func(_ *Config, p *Process) { p.Restart = "yes" }},
		{"unknown output", "web: output", func(_ *Config, p *Process) { p.Output = "serial" }},
	} {
		c := sample()
		if err := c.Check(); err != nil {
			t.Fatal(err)
		}
		tt.change(c, &c.Workloads[0])
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestImages(t *testing.T) {
	for _, image := range []string{
		"docker://localhost/app:1", "docker://localhost:5000/app", "docker://127.0.0.1:5000/a/b_c/d__e.f-g:v1.2_3", "docker://[::1]:5000/app:1",
		"docker://registry.example.com/app@sha256:" + strings.Repeat("0", 64), "oci-archive:/dev/disk/by-id/virtio-a.b_c-1:name:1",
	} {
		p := Process{Name: "a", Image: image}
		if err := p.check(); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestPinned(t *testing.T) {
	c := sample()
	if err := c.Pinned(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"tag":           func(c *Config) { c.Workloads[0].Image = "docker://registry.example.com/app:1" },
		"archive":       func(c *Config) { c.Workloads[1].Digest = "" },
		"image service": func(c *Config) { c.ImageService = true },
	} {
		c := sample()
		change(c)
		if err := c.Pinned(); err == nil {
			t.Errorf("%s: pinned", name)
		}
	}
	c.Workloads[0].Image, c.Workloads[0].Digest = "docker://registry.example.com/app:1", c.Workloads[1].Digest
	if err := c.Pinned(); err != nil {
		t.Errorf("tag beside a digest: %v", err)
	}
}

// FuzzParse: what is accepted is written back and read as the same.
func FuzzParse(f *testing.F) {
	b, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"schema":1,"workloads":[],"image_service":true}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		if err != nil {
			return
		}
		once, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(once)
		if err != nil {
			if len(once) > MaxSize {
				return
			}
			t.Fatalf("written back: %v", err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("got %s, want %s", twice, once)
		}
	})
}
