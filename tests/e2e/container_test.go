package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/qemu"
)

// A found is what a container finds around it, as agent/runner/testdata/probe says.
// The runner's own tests compare the whole of it; here is what a real guest, with its
// TPM and its agent, adds.
type found struct {
	UIDMap     string
	Status     map[string]string
	Namespaces map[string]string
	Mounts     []string
	Devices    []string
	Open       map[string]string
	Sockets    map[string]string
	Listening  []string
	Interfaces []string
	Programs   []string
}

// wantFound is the list, to the last entry.
func wantFound() found {
	const missing, noRight, denied = "no such file or directory", "permission denied", "operation not permitted"
	// Bits of linux/capability.h: 0 chown, 1 dac_override, 3 fowner, 4 fsetid, 5 kill, 6
	// setgid, 7 setuid, 10 net_bind_service, 18 sys_chroot.
	caps, none := fmt.Sprintf("%016x", 1<<0|1<<1|1<<3|1<<4|1<<5|1<<6|1<<7|1<<10|1<<18), strings.Repeat("0", 16)
	f := found{
		UIDMap: "0 65536 65536", Listening: []string{}, Interfaces: []string{"lo"}, Programs: []string{"1"},
		Status: map[string]string{
			"CapInh": none, "CapPrm": caps, "CapEff": caps, "CapBnd": caps, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
		},
		Devices: []string{
			"/dev drwxr-xr-x", "/dev/core -> /proc/kcore", "/dev/fd -> /proc/self/fd", "/dev/full Dcrw-rw-rw- 1:7", "/dev/mqueue dtrwxrwxrwx", "/dev/null Dcrw-rw-rw- 1:3",
			"/dev/ptmx -> pts/ptmx", "/dev/pts drwxr-xr-x", "/dev/pts/ptmx Dcrw-rw-rw- 5:2", "/dev/random Dcrw-rw-rw- 1:8", "/dev/shm dtrwxrwxrwx",
			"/dev/stderr -> /proc/self/fd/2", "/dev/stdin -> /proc/self/fd/0", "/dev/stdout -> /proc/self/fd/1",
			"/dev/tty Dcrw-rw-rw- 5:0", "/dev/urandom Dcrw-rw-rw- 1:9", "/dev/zero Dcrw-rw-rw- 1:5",
		},
		Open: map[string]string{
			"/proc/kcore": "0 bytes EOF", "/proc/keys": "0 bytes EOF", "/proc/timer_list": "0 bytes EOF", "/proc/kmsg": noRight,
			"/sys/firmware": "0 entries", "/sys/kernel/security": "0 entries",
		},
		Sockets: map[string]string{"unix": "", "inet": "", "inet6": "", "netlink": "", "raw": denied, "packet": denied, "alg": denied, "vsock": denied, "alg+1<<32": denied, "vsock+1<<32": denied},
		Mounts: []string{
			"/ overlay rw,nosuid,nodev,relatime", "/dev tmpfs rw,nosuid,noexec,relatime", "/dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime",
			"/dev/pts devpts rw,nosuid,noexec,relatime", "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime",
			"/proc proc rw,nosuid,nodev,noexec,relatime", "/sys sysfs ro,nosuid,nodev,noexec,relatime", "/sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime",
		},
	}
	for _, d := range []string{"full", "null", "random", "tty", "urandom", "zero"} {
		f.Mounts = append(f.Mounts, "/dev/"+d+" devtmpfs rw,nosuid,noexec,relatime")
	}
	for _, e := range []string{"hostname", "hosts", "resolv.conf"} {
		f.Mounts = append(f.Mounts, "/etc/"+e+" tmpfs ro,nosuid,nodev,noexec,relatime")
	}
	slices.Sort(f.Mounts)
	for _, p := range []string{"/dev/mem", "/dev/kmsg", "/dev/tpm0", "/dev/tpmrm0", "/dev/sev-guest", "/dev/tdx_guest", "/dev/vsock", "/sys/kernel/config/tsm", "/sys/kernel/debug",
		"/node", "/blocknode", "/rootonly", "/beyond"} {
		f.Open[p] = missing
	}
	return f
}

// TestContainer: what a container of a real guest finds is on the list, and nothing
// else, whatever the guest's root is.
func TestContainer(t *testing.T) {
	needs(t, append([]string{"tar", "go"}, bootTools...)...)
	t.Parallel()
	dir := workdir(t)
	l := &layout{dir: t.TempDir(), config: v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}}
	l.files(t, map[string]string{"bin/probe": string(program(t, "./agent/runner/testdata/probe"))})
	plain, _ := l.finish(t, v1.ImageConfig{Entrypoint: []string{"/bin/probe"}})
	tar := archive(t, plain)
	pad(t, tar)
	write(t, filepath.Join(dir, "policy.json"), []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`))
	for _, root := range []string{"verity", "initrd"} {
		t.Run(root, func(t *testing.T) {
			write(t, filepath.Join(dir, root+".toml"), fmt.Appendf(nil, `schema  = 1
extends = "vtpm"
cmdline = { append = ["console=ttyS0", "quiet"] }

[root]
kind     = %q
packages = ["crun"]

[workloads]
from   = "image"
policy = "policy.json"
admit  = ["plain+unsigned"]
memory = 64

[[workload]]
name    = "probe"
image   = "oci-archive:/dev/disk/by-id/virtio-app"
archive = %q
network = "none"
output  = "console"

[machine]
vcpus = [1]
`, root, tar))
			must(t, dir, "build", "./"+root+".toml")
			out := filepath.Join(dir, "out", root)
			img := machineIn(t, out)
			img.machine.Disks = []qemu.Disk{{Path: tar, Serial: "app"}}
			g := img.boot(t)
			g.mustReport(t)
			g.checkWorkloads(t, out, "probe")
			got := g.found(t)
			for name, id := range got.Namespaces {
				if id == "" {
					t.Errorf("no namespace %s", name)
				}
			}
			got.Namespaces = nil
			// What crun lays over the kernel's files depends on what the kernel has.
			got.Mounts = slices.DeleteFunc(got.Mounts, func(m string) bool {
				path, _, _ := strings.Cut(m, " ")
				return strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/") && path != "/sys/fs/cgroup"
			})
			if d := cmp.Diff(wantFound(), got); d != "" {
				t.Errorf("the container differs (-want +got):\n%s", d)
			}
		})
	}
}

// found waits for the container's words on the console.
func (g *guest) found(t *testing.T) (f found) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		_, text, ok := strings.Cut(g.vm.ConsoleTail(), `{"UID":`)
		if !ok {
			continue
		}
		text = `{"UID":` + strings.ReplaceAll(text, "\r\nprobe: ", "") // the agent cuts long lines
		if json.NewDecoder(bytes.NewReader([]byte(text))).Decode(&f) == nil {
			return f
		}
	}
	t.Fatalf("no report of the container\n%s", g.vm.ConsoleTail())
	return f
}
