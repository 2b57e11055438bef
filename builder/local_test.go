package builder

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
)

func TestImport(t *testing.T) {
	s := newSite(t)
	s.keyPair("sb")
	s.keyPair("pcr")
	s.write("a.bin", []byte("aaa"))
	p := s.profile(`
[[files]]
path = "/z"
text = "inline"
[[files]]
path   = "/a"
source = "a.bin"
[secure_boot]
key    = "sb.key"
cert   = "sb.pem"
enroll = true
kek    = ["a.bin", "sb.pem"]
[pcr_policy]
key = "pcr.key"
`)
	got, err := Import(context.Background(), s.Client, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(s.dir, "sb.pem"))
	if err != nil {
		t.Fatal(err)
	}
	entry := func(path string, b []byte) source.File {
		return source.File{Path: path, Size: int64(len(b)), SHA256: cas.Sum(b)}
	}
	want := []source.File{
		entry("files /a", []byte("aaa")),
		entry("files /z", []byte("inline")),
		got[2], // the public key, below
		entry("secure_boot.cert", pem),
		entry("secure_boot.kek[0]", []byte("aaa")),
		entry("secure_boot.kek[1]", pem),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	public, err := s.Store.ReadFile(got[2].SHA256)
	if got[2].Path != "pcr_policy.key" || err != nil || !bytes.HasPrefix(public, []byte("-----BEGIN PUBLIC KEY-----\n")) {
		t.Errorf("%s: %q, %v", got[2].Path, public, err)
	}
	for _, f := range got {
		if !s.Store.Holds(cas.Ref{Digest: f.SHA256, Size: f.Size}) {
			t.Errorf("%s is not in the store", f.Path)
		}
	}
	if s.inStore([]byte("PRIVATE KEY")) {
		t.Error("a private key is in the store")
	}
}

func TestImportRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[[files]]\npath = \"/a\"\nsource = \"none\"\n", "files /a: open "},
		{"[[files]]\npath = \"/a\"\nsource = \"debs\"\n", "debs: not a regular file"},
		{"[pcr_policy]\nkey = \"tiny.toml\"\n", "pcr_policy.key: "},
		{"[pcr_policy]\nkey = \"sb.pem\"\n", "pcr_policy.key: "},
	} {
		s := newSite(t)
		s.keyPair("sb")
		_, err := Import(context.Background(), s.Client, s.profile(c.text), nil)
		wantError(t, err, c.want)
	}
	s := newSite(t)
	if _, err := Import(context.Background(), s.Client, s.profile("[[files]]\npath = \"/a\"\nsource = \"none\"\n"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want one that says that there is no file", err)
	}
}

// A directory of modules is one line of the lock, and neither its place nor its
// times nor the links out of it count.
func TestImportDirectory(t *testing.T) {
	var digests []cas.Digest
	for _, name := range []string{"here", "there"} {
		s := newSite(t)
		s.write("bzImage", []byte("kernel"))
		a := s.write(name+"/kernel/a.ko", []byte("module"))
		s.write(name+"/modules.builtin", nil)
		if err := os.Symlink("/usr/src", filepath.Join(s.dir, name, "build")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(a, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "there" {
			if err := os.Chtimes(a, time.Time{}, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
		p := s.profile("")
		p.Kernel.Package, p.Kernel.File = "", filepath.Join(s.dir, "bzImage")
		p.Kernel.ModulesDir = filepath.Join(s.dir, name)
		files, err := Import(context.Background(), s.Client, p, nil)
		if err != nil || len(files) != 2 || files[1].Path != "kernel.modules_dir" {
			t.Fatalf("%v, %v", files, err)
		}
		digests = append(digests, files[1].SHA256)
	}
	if digests[0] != digests[1] {
		t.Errorf("%s is not %s", digests[0], digests[1])
	}
}
