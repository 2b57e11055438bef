package erofs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// file is a file with known digest.
func file(path string, b []byte) tree.Entry {
	e := tree.File(path, 0o644, tree.Bytes(b))
	e.Content.Digest = sha256.Sum256(b)
	return e
}

var params = Params{UUID: [16]byte{1, 2, 3}, Epoch: 1767225600, Label: "root"}

// odd has something of everything that the format treats in its own way.
func odd() []tree.Entry {
	entries := []tree.Entry{
		tree.Dir(".", 0o755), tree.Dir("empty", 0o700), tree.Dir("sticky", 0o1777), tree.Dir("many", 0o755),
		tree.Symlink("link", "empty/../many"), tree.Symlink("long-link", strings.Repeat("x/", 1500)),
		tree.CharDev("null", 0o666, 1, 3), tree.CharDev("big-device", 0o600, 4095, 1048575),
		{Path: "disk", Mode: tree.TypeBlkDev | 0o660, Major: 259, Minor: 300},
		{Path: "fifo", Mode: tree.TypeFIFO | 0o600}, {Path: "socket", Mode: tree.TypeSocket | 0o600},
		file("suid", []byte("#!")), {Path: "hard", Link: "suid"}, {Path: "a-hard", Link: "suid"},
		file("big-owner", []byte("x")), file("capable", []byte("binary")), file("attributes-and-tail", bytes.Repeat([]byte("y"), 3000)),
		file("twin", bytes.Repeat([]byte("same"), 5000)), file("twin2", bytes.Repeat([]byte("same"), 5000)),
		tree.Symlink("link-with-attributes", strings.Repeat("t", 3000)),
	}
	for i := range entries {
		switch e := &entries[i]; e.Path {
		case "suid":
			e.Mode |= 0o4000
		case "big-owner":
			e.UID, e.GID = 70000, 4_000_000_000
		case "capable":
			e.Xattrs = map[string][]byte{"security.capability": {1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "user.name": []byte("value"), "user.empty": {}}
		case "attributes-and-tail":
			e.Xattrs = map[string][]byte{"trusted.overlay.opaque": []byte("y"), "user.long": bytes.Repeat([]byte("z"), 2000)}
		case "link-with-attributes":
			e.Xattrs = map[string][]byte{"trusted.long": bytes.Repeat([]byte("z"), 2000)}
		}
	}
	for _, n := range []int{0, 1, 4064, 4065, 4095, 4096, 4097, 8191, 8192, 8193, 1 << 20, 1<<20 + 5} {
		entries = append(entries, file(fmt.Sprintf("size-%d", n), bytes.Repeat([]byte{byte(n), 7, byte(n >> 8)}, n/3+1)[:n]))
	}
	for i := range 3000 {
		entries = append(entries, file(fmt.Sprintf("many/%d-%s", i, strings.Repeat("n", i%240)), []byte(fmt.Sprint(i))))
	}
	return entries
}

func imageFile(t *testing.T, entries []tree.Entry, p Params) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, entries, p); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFsckIsClean asks erofs-utils.
func TestFsckIsClean(t *testing.T) {
	testenv.Need(t, "fsck.erofs", "dump.erofs")
	for name, entries := range map[string][]tree.Entry{"odd": odd(), "empty": nil, "one": {file("a", []byte("b"))}} {
		path := imageFile(t, entries, params)
		out, err := exec.Command(testenv.Tool("fsck.erofs"), "--extract", "-d9", path).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("No errors found")) {
			if len(out) > 3000 {
				out = out[len(out)-3000:]
			}
			t.Errorf("%s: fsck.erofs: %v\n%s", name, err, out)
		}
	}
	out, err := exec.Command(testenv.Tool("dump.erofs"), "-s", imageFile(t, odd(), params)).CombinedOutput()
	if err != nil {
		t.Fatalf("dump.erofs: %v\n%s", err, out)
	}
	for _, want := range []string{"Filesystem created:                           Thu Jan  1 00:00:00 2026", "UUID"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("dump.erofs does not say %q:\n%s", want, out)
		}
	}
}
