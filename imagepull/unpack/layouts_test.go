package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"golang.org/x/sys/unix"
)

// TestPackers unpacks one tree as other programs pack it: equal to umoci's and,
// where the format keeps all, to the tree itself.
func TestPackers(t *testing.T) {
	if testing.Short() {
		t.Skip("runs tar, bsdtar and umoci")
	}
	testenv.Need(t, "umoci", "tar", "bsdtar")
	needRoot(t)
	source := sampleTree(t)
	for _, row := range []struct {
		name  string
		cmd   []string
		whole bool // the format keeps times to the nanosecond and attributes
	}{
		{"GNU tar, v7", []string{"tar", "--format=v7", "--exclude=./long*", "--exclude=./dev*", "--exclude=./fifo"}, false},
		{"GNU tar, ustar", []string{"tar", "--format=ustar", "--exclude=./longlink"}, false},
		{"GNU tar, gnu", []string{"tar", "--format=gnu"}, false},
		{"GNU tar, posix", []string{"tar", "--format=posix", "--xattrs", "--xattrs-include=*"}, true},
		{"GNU tar, posix, sparse 0.0", []string{"tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"}, true},
		{"GNU tar, posix, sparse 0.1", []string{"tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"}, true},
		{"GNU tar, posix, sparse 1.0", []string{"tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=1.0"}, true},
		{"bsdtar, pax", []string{"bsdtar", "--format=pax", "--xattrs", "--no-read-sparse"}, false},
		{"bsdtar, gnutar", []string{"bsdtar", "--format=gnutar", "--no-read-sparse"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			layer := output(t, append(row.cmd, "--numeric-owner", "-C", source, "-cf", "-", ".")...)
			if len(sameAsUmoci(t, layer)) < 8 {
				t.Error("refused, or too little packed")
			}
			if row.whole {
				same(t, mustApply(t, layer).show(), source)
			}
		})
	}
	// umoci takes no sparse files of old GNU tar: GNU tar itself is the second opinion.
	t.Run("GNU tar, gnu, sparse", func(t *testing.T) {
		layer := output(t, "tar", "--format=gnu", "--sparse", "--numeric-owner", "-C", source, "-cf", "-", ".")
		cmd := exec.Command("tar", "-C", t.TempDir(), "--numeric-owner", "-xpf", "-")
		cmd.Stdin = bytes.NewReader(layer)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		m, mine := mustApply(t, layer), t.TempDir()
		if err := m.extract(mine); err != nil {
			t.Fatal(err)
		}
		same(t, m.show(), cmd.Args[2])
		same(t, snapshot(t, mine), cmd.Args[2])
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(mine, "holes"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > 1<<20 {
			t.Errorf("%d bytes on disk", st.Blocks*512)
		}
	})
}

func same(t *testing.T, got map[string]shown, want string) {
	t.Helper()
	for _, d := range compare(got, snapshot(t, want), func(string) bool { return false }, nil) {
		t.Error(d)
	}
}

func output(t testing.TB, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// sampleTree is a tree with one of everything, made by system calls alone.
func sampleTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("n", 70) + "/" + strings.Repeat("m", 70)
	for _, d := range []string{"a/b", "long/" + long, "dev", "empty"} {
		try(os.MkdirAll(at(d), 0o755))
	}
	try(os.WriteFile(at("a/b/file"), []byte("content"), 0o644))
	try(os.WriteFile(at("long/"+long+"/"+strings.Repeat("o", 90)), []byte("deep"), 0o600))
	try(os.Link(at("a/b/file"), at("a/second")))
	try(os.Symlink("b/file", at("a/link")))
	try(os.Link(at("a/link"), at("a/linked link")))
	try(os.Symlink(strings.Repeat("t/", 100), at("longlink")))
	try(os.WriteFile(at("setuid"), []byte("x"), 0o755))
	try(os.Chown(at("setuid"), 1000, 1001))
	try(os.Chmod(at("setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	try(unix.Setxattr(at("a"), "user.a", []byte("directory"), 0))
	try(unix.Setxattr(at("a/b/file"), "user.b", []byte{0, 1, 2, '=', '\n'}, 0))
	try(unix.Setxattr(at("setuid"), capability, []byte(netRaw), 0))
	try(unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	try(unix.Mknod(at("dev/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 17))))
	try(unix.Mkfifo(at("fifo"), 0o640))
	f, err := os.Create(at("holes"))
	try(err)
	for _, offset := range []int64{0, 1 << 20, 5<<20 + 77} {
		_, err := f.WriteAt(bytes.Repeat([]byte("data"), 3000), offset)
		try(err)
	}
	try(f.Truncate(9<<20 + 5))
	try(f.Close())
	var names []string
	try(filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		names = append(names, path)
		return err
	}))
	slices.Reverse(names) // what is below first
	for i, name := range names {
		ts := []unix.Timespec{{Sec: 1600000000}, {Sec: 1600000000 + int64(i), Nsec: 100000007 * int64(i%9)}}
		if strings.Contains(name, "a/link") { // one inode
			ts[1] = unix.Timespec{Sec: 1600000000, Nsec: 5}
		}
		try(unix.UtimesNanoAt(unix.AT_FDCWD, name, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

// TestDebianLayouts makes images of Debian packages as image builders lay them
// out.
func TestDebianLayouts(t *testing.T) {
	if testing.Short() {
		t.Skip("runs apt-get, dpkg-deb and umoci")
	}
	testenv.Need(t, "umoci", "dpkg-deb")
	needRoot(t)
	p := packages(t, "base-files", "base-passwd", "bash", "coreutils", "dash", "git", "iputils-ping", "libc6", "passwd", "perl", "perl-base", "systemd", "tzdata")
	merged := []item{directory("usr"), directory("usr/bin"), directory("usr/sbin"), directory("usr/lib"), directory("usr/lib64"),
		symlink("bin", "usr/bin"), symlink("sbin", "usr/sbin"), symlink("lib", "usr/lib"), symlink("lib64", "usr/lib64")}
	top := func(h *tar.Header) bool { return strings.Count(clean(h.Name), "/") > 0 || h.Typeflag != tar.TypeDir }
	within := func(dir string) func(*tar.Header) bool {
		return func(h *tar.Header) bool { return strings.HasPrefix(clean(h.Name), dir+"/") }
	}
	for _, row := range []struct {
		name   string
		layers [][]byte

		linked, attributed int // at least
	}{
		{"one package a layer", [][]byte{p["base-files"], p["base-passwd"], p["libc6"], p["bash"], p["coreutils"]}, 0, 0},
		{"merged /usr", [][]byte{pack(t, merged...), edit(t, p["libc6"], top), edit(t, p["bash"], top), edit(t, p["coreutils"], top), edit(t, p["dash"], top)}, 0, 0},
		{"merged /usr by absolute links", [][]byte{pack(t, append(slices.Clone(merged), symlink("bin", "/usr/bin"), symlink("lib", "//usr/./lib"))...), edit(t, p["libc6"], top), edit(t, p["coreutils"], top)}, 0, 0},
		{"merged /usr undone by directories", [][]byte{pack(t, merged...), p["libc6"], p["coreutils"]}, 0, 0},
		{"merged /usr in the top layer", [][]byte{p["libc6"], p["coreutils"], pack(t, merged...)}, 0, 0},
		{"hard links of packages", [][]byte{p["perl-base"], p["perl"], p["git"]}, 1, 0},
		{"hard links to lower layers", [][]byte{p["perl-base"], p["coreutils"], relink(t, p["perl-base"], "links"), relink(t, p["coreutils"], "usr/share/links")}, 50, 0},
		{"hard links broken by the next version", [][]byte{p["git"], relink(t, p["git"], "kept"), edit(t, p["git"], within("usr/lib/git-core"))}, 50, 0},
		{"capabilities", [][]byte{p["iputils-ping"], capable(t, p["iputils-ping"]), pack(t, directory("bin").attr("user.a", "b"))}, 0, 2},
		{"capabilities taken away", [][]byte{capable(t, p["iputils-ping"]), capable(t, p["systemd"]), p["iputils-ping"]}, 0, 1},
		{"opaque directory before its files", [][]byte{p["git"], slices.Concat(unended(pack(t, file("usr/lib/git-core/.wh..wh..opq", ""))), edit(t, p["git"], within("usr/lib/git-core/mergetools")))}, 0, 0},
		{"opaque directory behind its files", [][]byte{p["git"], slices.Concat(unended(edit(t, p["git"], within("usr/lib/git-core/mergetools"))), pack(t, file("usr/lib/git-core/.wh..wh..opq", "")))}, 0, 0},
		{"whiteouts of every third name", [][]byte{p["tzdata"], whiteouts(t, p["tzdata"], 3), p["base-files"]}, 0, 0},
		{"removed and installed again", [][]byte{p["tzdata"], whiteouts(t, p["tzdata"], 1), p["tzdata"], pack(t, file("usr/share/zoneinfo/.wh..wh..opq", ""), file("usr/share/zoneinfo/UTC", "TZif2"))}, 0, 0},
		{"setuid and groups", [][]byte{p["passwd"], pack(t, directory("usr/bin").perm(0o2775).owned(0, 50)), pack(t, file("usr/bin/new/x", "").perm(0o6755).owned(3, 4)), p["passwd"]}, 0, 0},
		{"directory replaced by a link and filled through it", [][]byte{p["perl-base"], pack(t, symlink("usr/share/doc", "../../var/doc")), p["coreutils"], pack(t, symlink("usr/share/doc", "man")), edit(t, p["bash"], top)}, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			var linked, attributed int
			tree := sameAsUmoci(t, row.layers...)
			for name, n := range tree {
				if n.First != "" && n.First != name {
					linked++
				}
				if len(n.Attrs) > 0 {
					attributed++
				}
			}
			t.Logf("%d names, %d of them hard links, %d with attributes", len(tree), linked, attributed)
			if tree == nil || linked < row.linked || attributed < row.attributed {
				t.Error("not what the layout is for")
			}
		})
	}
}

// packages downloads packages and returns what they hold, as dpkg-deb shows it:
// a tar.
func packages(t *testing.T, names ...string) map[string][]byte {
	t.Helper()
	dir := os.Getenv("PLINTH_DEBS")
	if dir == "" {
		testenv.Network(t)
		testenv.Need(t, "apt-get")
		dir = t.TempDir()
		download(t, dir, names)
	}
	out := map[string][]byte{}
	for _, name := range names {
		debs, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil || len(debs) != 1 {
			t.Fatalf("%s: %d packages in %s: %v", name, len(debs), dir, err)
		}
		out[name] = output(t, "dpkg-deb", "--fsys-tarfile", debs[0])
	}
	return out
}

// download has apt fetch packages without a look at what is installed here and
// without a trace of it.
func download(t *testing.T, dir string, names []string) {
	t.Helper()
	state := t.TempDir()
	if err := os.MkdirAll(filepath.Join(state, "lists", "partial"), 0o755); err != nil {
		t.Fatal(err)
	}
	options := []string{"-o", "Dir::State=" + state, "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + state,
		"-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=", "-qq"}
	for _, args := range [][]string{{"update"}, append([]string{"download"}, names...)} {
		cmd := exec.Command("apt-get", append(options[:len(options):len(options)], args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apt-get %s: %v\n%s", args[0], err, out)
		}
	}
}

// rewrite copies a tar; f changes the header and says whether the entry stays.
func rewrite(t testing.TB, layer []byte, f func(*tar.Header) bool) []byte {
	t.Helper()
	var buf bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(layer)), tar.NewWriter(&buf)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !f(h) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			if _, err := io.Copy(w, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if buf.Len() == 1024 {
		t.Fatal("the layer is empty")
	}
	return buf.Bytes()
}

func edit(t testing.TB, layer []byte, keep func(*tar.Header) bool) []byte {
	return rewrite(t, layer, keep)
}

// unended is a tar without its end mark.
func unended(layer []byte) []byte { return layer[:len(layer)-1024] }

// relink has a hard link in dir to every second file of a layer.
func relink(t testing.TB, layer []byte, dir string) []byte {
	n := 0
	return rewrite(t, layer, func(h *tar.Header) bool {
		if h.Typeflag != tar.TypeReg {
			return false
		}
		n++
		h.Typeflag, h.Linkname, h.Size, h.Name = tar.TypeLink, h.Name, 0, fmt.Sprintf("%s/%d/%d", dir, n%7, n)
		return n%2 == 0
	})
}

// capable gives every program of a layer a capability.
func capable(t testing.TB, layer []byte) []byte {
	return rewrite(t, layer, func(h *tar.Header) bool {
		if h.Typeflag == tar.TypeReg && h.Mode&0o111 != 0 {
			h.Format = tar.FormatPAX
			h.PAXRecords = map[string]string{xattrRecord + capability: netRaw}
		}
		return true
	})
}

// whiteouts hides every nth file and link of a layer.
func whiteouts(t testing.TB, layer []byte, nth int) []byte {
	n := 0
	return rewrite(t, layer, func(h *tar.Header) bool {
		if h.Typeflag == tar.TypeDir {
			return false
		}
		dir, base := split(clean(h.Name))
		*h = tar.Header{Typeflag: tar.TypeReg, Name: dir + "/" + whiteoutPrefix + base, Mode: 0o644}
		n++
		return n%nth == 0
	})
}
