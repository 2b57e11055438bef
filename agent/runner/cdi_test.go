package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The first is the example of the specification (SPEC.md of CDI 1.1.0, "CDI JSON
// Specification"), with devices that every machine has.
const (
	exampleCDI = `{
  "cdiVersion": "0.6.0",
  "kind": "vendor.com/device",
  "devices": [
    {
      "name": "myDevice",
      "containerEdits": {
        "deviceNodes": [
          {"hostPath": "/dev/zero", "path": "/dev/card1", "type": "c", "major": 25, "minor": 25, "fileMode": 384, "permissions": "rw", "uid": 1000, "gid": 1000},
          {"path": "/dev/full"}
        ]
      }
    },
    {"name": "other", "containerEdits": {"env": ["OTHER=1"]}}
  ],
  "containerEdits": {
    "env": ["FOO=VALID_SPEC", "BAR=BARVALUE1"],
    "mounts": [{"hostPath": "/etc/debian_version", "containerPath": "/usr/local/version", "options": ["ro"]}],
    "additionalGids": [7]
  }
}`
	hookCDI = "cdiVersion: 1.1.0\nkind: vendor.example/net\ndevices:\n- name: all\n  containerEdits:\n    hooks:\n    - hookName: startContainer\n      path: /bin/probe\n      args: [probe, write, /tmp/hook, \"1\"]\n"
)

func cdiDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func newConfig() *config {
	return &config{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func TestDevices(t *testing.T) {
	r := newRunner(t)
	r.CDI = []string{"/nowhere", cdiDir(t, map[string]string{"a.json": exampleCDI, "b.yaml": hookCDI, "README": "not one"})}
	p := args("report")
	p.Devices = []string{"vendor.com/device=myDevice", "vendor.com/device=other", "vendor.example/net=all"}
	got := probe(t, r, spec(t, "devices", "base", p))
	if env := strings.Join(got.Env, " "); !strings.HasSuffix(env, "FOO=VALID_SPEC BAR=BARVALUE1 OTHER=1") || strings.Count(env, "FOO") != 1 {
		t.Errorf("variables are %s", env)
	}
	if len(got.Groups) != 1 || got.Groups[0] != 7 {
		t.Errorf("groups are %v", got.Groups)
	}
	if all := strings.Join(got.Devices, "\n"); !strings.Contains(all, "/dev/card1 Dcrw-rw-rw- 1:5\n") {
		t.Errorf("devices are %s", all)
	}
	if all := strings.Join(got.Mounts, "\n"); !strings.Contains(all, "/usr/local/version ") {
		t.Errorf("mounts are %s", all)
	}
	p = args("open", "/tmp/hook", "0")
	p.Devices = []string{"vendor.example/net=all"}
	if out, _ := run(t, r, spec(t, "hook", "base", p)); out != "\n" {
		t.Errorf("the hook did not run: %q", out)
	}
}

// A device is open to the container as far as the specification says, and another
// node of the guest is no way to it.
func TestDeviceAccess(t *testing.T) {
	needBounds(t)
	r := newRunner(t)
	node := "/dev/plinth-test" // the serial port, which is in no container otherwise
	if err := unix.Mknod(node, unix.S_IFCHR, 4<<8|64); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(node)
	if err := os.Chmod(node, 0o666); err != nil {
		t.Fatal(err)
	}
	cdi := `{"cdiVersion":"1.0.0","kind":"a.b/c","devices":[{"name":"d","containerEdits":{"deviceNodes":[{"path":"/dev/plinth-test","permissions":"PERMISSIONS"}]}}]}`
	for permissions, want := range map[string][2]string{"r": {"\n", denied + "\n"}, "w": {denied + "\n", "\n"}, "rw": {"\n", "\n"}, "m": {denied + "\n", denied + "\n"}} {
		r.CDI = []string{cdiDir(t, map[string]string{"a.json": strings.Replace(cdi, "PERMISSIONS", permissions, 1)})}
		for i, flags := range []string{"2304", "2305"} { // O_RDONLY and O_WRONLY, with O_NONBLOCK and O_NOCTTY
			p := args("open", node, flags)
			p.Devices = []string{"a.b/c=d"}
			if out, _ := run(t, r, spec(t, "access", "base", p)); out != want[i] {
				t.Errorf("%s, flags %s: got %q, want %q", permissions, flags, out, want[i])
			}
		}
	}
}

func TestDevicesRefused(t *testing.T) {
	one := func(edits string) string {
		return `{"cdiVersion":"1.0.0","kind":"a.b/c","devices":[{"name":"d","containerEdits":{` + edits + `}}]}`
	}
	node := func(fields string) string { return one(`"deviceNodes":[{` + fields + `}]`) }
	for _, tt := range []struct{ name, file, want string }{
		{"unknown key", one(`"x":1`), "field x not found"},
		{"resource control", one(`"intelRdt":{"closID":"x"}`), "field intelRdt not found"},
		{"two documents", "cdiVersion: 1.0.0\nkind: a.b/c\ndevices: [{name: d}]\n---\nx: 1\n", "want one document"},
		{"no devices", `{"cdiVersion":"1.0.0","kind":"a.b/c"}`, "want cdiVersion, kind and devices"},
		{"too large", one("") + strings.Repeat(" ", maxCDI), "more than 1048576 bytes"},
		{"no such device", node(`"path":"/dev/nothing-here"`), missing},
		{"not a device", node(`"path":"/etc/debian_version"`), "not a device"},
		{"attestation", node(`"path":"/dev/x","hostPath":"/dev/kmsg"`), "/dev/kmsg: a device that no container gets"},
		{"the console", node(`"path":"/dev/console"`), "a device that no container gets"},
		{"place", node(`"path":"/etc/x","hostPath":"/dev/null"`), "want a device of /dev"},
		{"place above", node(`"path":"/dev/../x","hostPath":"/dev/null"`), "want a device of /dev"},
		{"type", node(`"path":"/dev/null","type":"b"`), "type is c, want b"},
		{"permissions", node(`"path":"/dev/null","permissions":"rx"`), "permissions"},
		{"group", one(`"additionalGids":[65536]`), "additional group 65536"},
		{"hook", one(`"hooks":[{"hookName":"prestart","path":"/x"}]`), "not supported"},
		{"hook's path", one(`"hooks":[{"hookName":"poststop","path":"x"}]`), "want an absolute path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Container{r: &Runner{CDI: []string{cdiDir(t, map[string]string{"a.json": tt.file})}}, dir: t.TempDir()}
			err := c.addDevices(newConfig(), []string{"a.b/c=d"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	c := &Container{r: &Runner{CDI: []string{cdiDir(t, map[string]string{"a.json": one(""), "b.yml": one("")})}}}
	if err := c.addDevices(newConfig(), []string{"a.b/c=d"}); err == nil || !strings.Contains(err.Error(), "is in") {
		t.Errorf("the same device twice: %v", err)
	}
	if err := c.addDevices(newConfig(), nil); err != nil {
		t.Errorf("nobody asks for a device: %v", err)
	}
}

func TestForbidden(t *testing.T) {
	for _, name := range []string{"tpm0", "tpmrm0", "tdx_guest", "tdx-guest", "sev-guest", "sev", "vport1p1", "kmsg", "mem", "dm-0", "mapper/control", "loop-control", "hvc0", "ttyS0", "ttyAMA0", "nbd0"} {
		if err := checkNode("/dev/"+name, cdiNode{Path: "/dev/x"}, "c"); err == nil {
			t.Errorf("/dev/%s: no error", name)
		}
	}
	for _, name := range []string{"nvidia0", "nvidiactl", "dri/card0", "vfio/1"} {
		if err := checkNode("/dev/"+name, cdiNode{Path: "/dev/x"}, "c"); err != nil {
			t.Errorf("/dev/%s: %v", name, err)
		}
	}
	if err := checkNode("/run/null", cdiNode{Path: "/dev/x"}, "c"); err == nil {
		t.Error("a node that is not in /dev")
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(exampleCDI))
	f.Add([]byte(hookCDI))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxCDI {
			return
		}
		s, err := parseSpec(b)
		if err == nil && (s.Kind == "" || len(s.Devices) == 0) {
			t.Errorf("%+v", s)
		}
	})
}
