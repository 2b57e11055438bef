package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/plinth-os/plinth/internal/erofs"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/internal/xz"
)

// realPackages are what the tests on real packages want, with all that they need.
const realPackages = "base-files base-passwd ca-certificates openssl libc-bin dash mawk bash coreutils python3 nginx-light procps iproute2 openssh-server dbus systemd udev git perl tzdata"

// debs returns a folder of real packages: PLINTH_DEBS, or what apt gives for the
// suite of this machine.
func debs(t *testing.T) []string {
	t.Helper()
	dir := os.Getenv("PLINTH_DEBS")
	if dir == "" {
		testenv.Network(t)
		testenv.Need(t, "apt-get")
		dir = t.TempDir()
		download(t, dir)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no packages in %s: %v", dir, err)
	}
	return names
}

// download has apt resolve and fetch packages without a look at what is installed
// here and without a trace of it.
func download(t *testing.T, dir string) {
	t.Helper()
	state := t.TempDir()
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := []string{"-o", "Dir::State=" + state, "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + state,
		"-o", "Debug::NoLocking=1", "-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User="}
	for _, args := range [][]string{{"-qq", "update"}, append([]string{"-qq", "-y", "--download-only", "install"}, strings.Fields(realPackages)...)} {
		cmd := exec.Command("apt-get", append(options[:len(options):len(options)], args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apt-get %s: %v\n%s", args[len(args)-1], err, out)
		}
	}
	names, err := filepath.Glob(filepath.Join(state, "archives", "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Rename(name, filepath.Join(dir, filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
}

// readDeb reads a .deb, deb(5), on its own: the reader in builder/source is not
// what is tested here.
func readDeb(t *testing.T, name string) Package {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	p := Package{SHA256: sha256.Sum256(b), Control: map[string][]byte{}}
	for at := 8; at+60 <= len(b); {
		member := strings.TrimRight(string(b[at:][:16]), " /")
		size, err := strconv.Atoi(strings.TrimSpace(string(b[at+48:][:10])))
		if err != nil {
			t.Fatal(err)
		}
		body := b[at+60:][:size]
		at += 60 + size + size%2
		switch {
		case strings.HasPrefix(member, "control.tar"):
			for _, e := range readTar(t, expand(t, member, body)) {
				if e.Type() == tree.TypeFile {
					p.Control[e.Path] = contentOf(t, e)
				}
			}
		case strings.HasPrefix(member, "data.tar"):
			p.Entries = readTar(t, expand(t, member, body))
		}
	}
	for s, err := range stanzas(p.Control["control"]) {
		if err != nil {
			t.Fatal(err)
		}
		p.Name, p.Version, p.Arch = s["package"], s["version"], s["architecture"]
	}
	return p
}

func expand(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	var r io.Reader
	switch filepath.Ext(name) {
	case ".xz":
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := xz.Decode(t.Context(), f, bytes.NewReader(b), int64(len(b)), xz.Limits{Size: 1 << 30, Jobs: 2}); err != nil {
			t.Fatal(err)
		}
		r = f
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	case ".gz":
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	default:
		r = bytes.NewReader(b)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readTar(t *testing.T, b []byte) []tree.Entry {
	t.Helper()
	var out []tree.Entry
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		e := tree.Entry{Path: filepath.Clean(h.Name), UID: uint32(h.Uid), GID: uint32(h.Gid)}
		switch h.Typeflag {
		case tar.TypeDir:
			e.Mode = tree.TypeDir
		case tar.TypeReg:
			body, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			e.Mode, e.Content = tree.TypeFile, tree.Bytes(body)
		case tar.TypeSymlink:
			e.Mode, e.Target = tree.TypeSymlink, h.Linkname
		case tar.TypeLink:
			e.Link = filepath.Clean(h.Linkname)
		default:
			t.Fatalf("%s: type %q", h.Name, h.Typeflag)
		}
		e.Mode |= uint32(h.Mode & 0o7777)
		out = append(out, e)
	}
}

func contentOf(t *testing.T, e tree.Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := e.Content.Copy(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unpack writes the tree below dir, without owners.
func unpack(t *testing.T, dir string, entries []tree.Entry) {
	t.Helper()
	for _, e := range entries {
		name := filepath.Join(dir, e.Path)
		var err error
		switch {
		case e.Link != "":
			err = os.Link(filepath.Join(dir, e.Link), name)
		case e.Type() == tree.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case e.Type() == tree.TypeSymlink:
			err = os.Symlink(e.Target, name)
		case e.Type() == tree.TypeFile:
			err = os.WriteFile(name, contentOf(t, e), os.FileMode(e.Mode&0o777)|0o600)
		default:
			err = fmt.Errorf("type %#o", e.Type())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func entry(t *testing.T, entries []tree.Entry, name string) tree.Entry {
	t.Helper()
	for _, e := range entries {
		if e.Path == name {
			return e
		}
	}
	t.Fatalf("no %s in the tree", name)
	return tree.Entry{}
}

// TestRealPackages makes a root of real packages and asks the tools of those
// packages, or of this machine, what they think of it.
func TestRealPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("unpacks many packages")
	}
	pkgs := realSet(t)
	agent := tree.File(Agent, 0o755, tree.Bytes([]byte("agent")))
	p := Params{Epoch: 1767225600, Alternatives: map[string]string{"/usr/bin/awk": "/usr/bin/mawk"}}
	got := mustBuild(t, pkgs, []tree.Entry{agent}, p)
	for _, n := range got.Notes {
		t.Log(n.Package+":", n.Text)
	}
	t.Run("order", func(t *testing.T) {
		slices.Reverse(pkgs)
		again := mustBuild(t, pkgs, []tree.Entry{agent}, p)
		sameTree(t, got, again)
	})
	dir := t.TempDir()
	unpack(t, dir, got.Entries)
	t.Run("ldconfig", func(t *testing.T) { compareLdconfig(t, dir, contentOf(t, entry(t, got.Entries, linkerCacheFile))) })
	t.Run("rehash", func(t *testing.T) { compareRehash(t, filepath.Join(dir, certsDir)) })
	t.Run("tmpfiles", func(t *testing.T) { compareTmpfiles(t, dir) })
	t.Run("run", func(t *testing.T) { runInside(t, dir) })
	t.Run("erofs", func(t *testing.T) {
		if err := erofs.Write(io.Discard, got.Entries, erofs.Params{UUID: [16]byte{1}, Epoch: p.Epoch}); err != nil {
			t.Error(err)
		}
	})
}

func realSet(t *testing.T) []Package {
	t.Helper()
	var pkgs []Package
	for _, name := range debs(t) {
		pkgs = append(pkgs, readDeb(t, name))
	}
	return pkgs
}

// sameTree compares everything, content by digest.
func sameTree(t *testing.T, x, y *Tree) {
	t.Helper()
	if len(x.Entries) != len(y.Entries) {
		t.Fatalf("%d entries and %d", len(x.Entries), len(y.Entries))
	}
	for i := range x.Entries {
		a, b := x.Entries[i], y.Entries[i]
		a.Content.Open, b.Content.Open = nil, nil
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%+v and %+v", a, b)
		}
	}
	if !reflect.DeepEqual(x.Notes, y.Notes) || !reflect.DeepEqual(x.Inventory, y.Inventory) {
		t.Error("notes or inventories differ")
	}
}

// compareLdconfig has ldconfig write the cache of the tree below dir. Byte for
// byte it is ours up to the extension that names the writer; ldconfig -p reads
// the same of both.
func compareLdconfig(t *testing.T, dir string, ours []byte) {
	testenv.Need(t, "ldconfig")
	ldconfig := testenv.Tool("ldconfig")
	theirs := filepath.Join(dir, "theirs")
	if out, err := exec.Command(ldconfig, "-r", dir, "-C", "/theirs").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	at := int(binary.LittleEndian.Uint32(ours[32:])) // the extensions
	if !bytes.Equal(ours[:at], want[:at]) {
		t.Error("the cache is not what ldconfig writes")
	}
	mine := filepath.Join(dir, "ours")
	if err := os.WriteFile(mine, ours, 0o644); err != nil {
		t.Fatal(err)
	}
	var lists [2]string
	for i, name := range []string{mine, theirs} {
		out, err := exec.Command(ldconfig, "-p", "-C", name).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		_, list, _ := strings.Cut(string(out), "\n") // the first line has the file's name
		lists[i], _, _ = strings.Cut(list, "Cache generated by:")
	}
	if lists[0] != lists[1] || lists[0] == "" {
		t.Errorf("ldconfig -p says\n%sof ours, of its own\n%s", lists[0], lists[1])
	}
}

// compareRehash has openssl make the links in a copy of the directory.
func compareRehash(t *testing.T, dir string) {
	testenv.Need(t, "openssl")
	copied := t.TempDir()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]string{}
	for _, n := range names {
		target, err := os.Readlink(filepath.Join(dir, n.Name()))
		switch {
		case err != nil: // the bundle
		case !strings.HasSuffix(n.Name(), ".pem"):
			ours[n.Name()] = target
		default:
			root := strings.TrimSuffix(dir, certsDir)
			if err := os.Symlink(filepath.Join(root, target), filepath.Join(copied, n.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := exec.Command("openssl", "rehash", copied).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	theirs := map[string]string{}
	if names, err = os.ReadDir(copied); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if target, err := os.Readlink(filepath.Join(copied, n.Name())); err == nil && !strings.HasSuffix(n.Name(), ".pem") {
			theirs[n.Name()] = target
		}
	}
	if len(ours) < 50 || !maps.Equal(ours, theirs) {
		t.Errorf("%d links, openssl makes %d:\n%v\n%v", len(ours), len(theirs), ours, theirs)
	}
}

// runInside runs programs of the packages in the tree.
func runInside(t *testing.T, dir string) {
	testenv.Need(t, "chroot")
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "chroot needs it")
	}
	for _, tt := range []struct{ command, want string }{
		{"id -un", "root"},
		{"/bin/awk 'BEGIN { print 6*7 }'", "42"},
		{"getent passwd nobody", "nobody:x:65534:65534:"},
		{"python3 -c 'import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 100)'", "True"},
		// By the hash of its name alone: the directory, not the bundle.
		{"for f in /etc/ssl/certs/ISRG_Root_X1.pem; do openssl verify -no-CAfile -no-CAstore -CApath /etc/ssl/certs $f; done", "OK"},
	} {
		out, err := exec.Command(testenv.Tool("chroot"), dir, "/bin/sh", "-c", tt.command).CombinedOutput()
		if err != nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s: %v\n%s", tt.command, err, out)
		}
	}
}
