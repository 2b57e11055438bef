package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/workload"
)

// A secret is a file that the container's user reads, and nobody writes.
func TestSecretFile(t *testing.T) {
	r := newRunner(t)
	const at, content = "/run/secrets/key", "canary\n"
	for _, tt := range []struct {
		name, want string
		p          workload.Process
	}{
		{"root reads it", content + "<nil>\n", args("cat", at)},
		{"a user reads it", content + "<nil>\n", with(args("cat", at), func(p *workload.Process) { p.User = "101:101" })},
		{"it is the user's", "key -r-------- 101 101\n\n", with(args("list", filepath.Dir(at)), func(p *workload.Process) { p.User = "101:101" })},
		{"nobody writes it", "read-only file system\n", args("open", at, "1")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.Mounts = []workload.Mount{{Path: at, Secret: "kbs:///a/b/c"}}
			s := spec(t, "secret", "base", tt.p)
			s.Secrets = map[string][]byte{at: []byte(content)}
			c := create(t, r, s)
			seen := filepath.Join(c.path(secretsDir), "1")
			var st unix.Stat_t
			if err := unix.Stat(seen, &st); err != nil || st.Mode&0o777 != 0o400 || int(st.Uid) < firstID {
				t.Errorf("the guest sees mode %o of %d, %v", st.Mode, st.Uid, err)
			}
			if err := c.Delete(patience(t)); err != nil {
				t.Fatal(err)
			}
			if out, _ := run(t, r, s); out != tt.want {
				t.Errorf("got %q, want %q", out, tt.want)
			}
		})
	}
	s := spec(t, "secret", "base", with(args("sleep"), func(p *workload.Process) { p.Mounts = []workload.Mount{{Path: at, Secret: "kbs:///a/b/c"}} }))
	if _, err := r.Create(patience(t), s); err == nil || !strings.Contains(err.Error(), "mount "+at+": nobody gave the secret") {
		t.Errorf("got %v", err)
	}
}

// What a container leaves on a volume is there for the next, whatever numbers the
// guest gives to both, and by the owners that they see.
func TestVolume(t *testing.T) {
	r := newRunner(t)
	dir := filepath.Join(place.run, "volume")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	volume := func(id string, p workload.Process) Spec {
		p.Mounts = []workload.Mount{{Path: "/data", Volume: "data"}}
		s := spec(t, id, "base", p)
		s.Volumes = map[string]string{"data": dir}
		return s
	}
	if c, err := r.Create(patience(t), volume("early", args("sleep"))); err != nil && strings.Contains(err.Error(), "invalid argument") {
		t.Skip("a tmpfs cannot be shown with other owners before Linux 6.3; what disks have can")
	} else if err != nil {
		t.Fatal(err)
	} else if err := c.Delete(patience(t)); err != nil {
		t.Fatal(err)
	}
	// The first takes a range of numbers, so that the others have another.
	first := create(t, r, spec(t, "first", "base", args("sleep")))
	defer first.Delete(patience(t))
	if out, _ := run(t, r, volume("second", args("open", "/data/new", "65"))); out != "\n" { // O_WRONLY|O_CREAT
		t.Errorf("got %q", out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("on the disk it is %d's, %v, want 0's", st.Uid, err)
	}
	if err := first.Delete(patience(t)); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, r, volume("third", args("list", "/data"))); !strings.HasPrefix(out, "new ---------- 0 0\n") {
		t.Errorf("got %q", out)
	}
	s := volume("third", args("sleep"))
	s.Volumes = nil
	if _, err := r.Create(patience(t), s); err == nil || !strings.Contains(err.Error(), `mount /data: volume "data": the guest has none`) {
		t.Errorf("got %v", err)
	}
}
