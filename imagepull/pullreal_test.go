package imagepull_test

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/internal/testenv"
	server "github.com/plinth-os/plinth/tests/registry"
)

// An image of files of this machine, by skopeo into a real registry that asks for a
// password, as gzip, as zstd and encrypted: its tree is the one that umoci unpacks.
func TestPullEqualsUmoci(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a registry")
	}
	testenv.Need(t, "skopeo", "umoci", "docker-registry")
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "gives files owners")
	}
	dir := t.TempDir()
	layers := []layer{
		{tar: tarOfHost(t, "/usr/share/zoneinfo/Europe", "/usr/share/zoneinfo/posix", "/etc/alternatives")},
		{tar: tarOfHost(t, "/usr/bin/umoci", "/usr/bin/skopeo", "/bin/su", "/usr/bin/passwd")},
		{tar: entries(t,
			&tar.Header{Typeflag: tar.TypeReg, Name: "etc/alternatives/.wh.awk"},
			&tar.Header{Typeflag: tar.TypeReg, Name: "usr/share/zoneinfo/Europe/.wh..wh..opq"},
			&tar.Header{Typeflag: tar.TypeReg, Name: "usr/share/zoneinfo/Europe/Nowhere", Size: 5, Mode: 0o640, Uid: 7, Gid: 9, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "x\x00y"}},
			&tar.Header{Typeflag: tar.TypeBlock, Name: "dev/disk", Devmajor: 8, Devminor: 1, Mode: 0o660},
		)},
		{tar: tarOfHost(t, "/usr/share/zoneinfo/Asia")},
		{tar: entries(t, &tar.Header{Typeflag: tar.TypeLink, Name: "su2", Linkname: "usr/bin/passwd"})},
	}
	layout := filepath.Join(dir, "layout")
	writeLayout(t, layout, newImage(t, layers...))
	for i := range layers {
		layers[i].mediaType = ociZstd // umoci knows none
	}
	writeLayout(t, layout+"-zstd", newImage(t, layers...))
	run(t, "umoci", "unpack", "--image", layout+":app", filepath.Join(dir, "bundle"))
	want := describe(t, filepath.Join(dir, "bundle/rootfs"))

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "public.pem"), publicKey(t, key))
	s := server.Start(t)
	for _, c := range []struct {
		name, layout string
		args         []string
		types        string
	}{
		{"gzip", layout, nil, ociGzip},
		{"zstd", layout + "-zstd", nil, ociZstd},
		{"encrypted", layout, []string{"--encryption-key", "jwe:" + filepath.Join(dir, "public.pem")}, ociGzip + crypt.MediaSuffix},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, "skopeo", append(append([]string{"copy", "--insecure-policy", "--dest-cert-dir", s.CertDir(), "--dest-creds", s.User + ":" + s.Password}, c.args...),
				"oci:"+c.layout+":app", "docker://"+s.Host()+"/app:"+c.name)...)
			p := puller(t, nil)
			p.Registry.Roots = x509.NewCertPool()
			p.Registry.Roots.AppendCertsFromPEM(s.CA)
			if p.Registry.Auth, err = registry.ParseAuthFile(s.AuthFile()); err != nil {
				t.Fatal(err)
			}
			p.Unwrappers = []crypt.Unwrapper{crypt.JWE(crypto.PrivateKey(key))}
			st := newStore(t)
			pulled, err := p.Pull(t.Context(), parseName(t, "docker://"+s.Host()+"/app:"+c.name), st)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range pulled.Image.Layers {
				if l.MediaType != c.types {
					t.Errorf("layer of type %s: the test wants %s", l.MediaType, c.types)
				}
			}
			root := filepath.Join(t.TempDir(), "rootfs")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := st.Extract(t.Context(), pulled, root, unpack.Limits{}); err != nil {
				t.Fatal(err)
			}
			got := describe(t, root)
			if len(got) < 100 {
				t.Errorf("only %d entries", len(got))
			}
			for name := range want {
				// umoci gives directories that no layer names the time of unpacking.
				if name != "." && name != "dev" && got[name] != want[name] {
					t.Errorf("%s: got %s, umoci has %s", name, got[name], want[name])
				}
			}
			for name := range got {
				if want[name] == "" {
					t.Errorf("%s: umoci has none", name)
				}
			}
		})
	}
}

func run(t *testing.T, tool string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), testenv.Tool(tool), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
}

func publicKey(t *testing.T, key *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// tarOfHost packs files and directories of this machine, with all that lies above
// them.
func tarOfHost(t *testing.T, paths ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	inodes, seen := map[uint64]string{}, map[string]bool{}
	add := func(path string) {
		if seen[path] || path == "/" {
			return
		}
		seen[path] = true
		addHostFile(t, w, path, inodes)
	}
	for _, p := range paths {
		for i := range p {
			if p[i] == '/' && i > 0 {
				add(p[:i])
			}
		}
		err := filepath.WalkDir(p, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				add(path)
			}
			return nil // a machine need not have all
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func addHostFile(t *testing.T, w *tar.Writer, path string, inodes map[uint64]string) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	target, _ := os.Readlink(path) // of no other kind
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		t.Fatal(err)
	}
	h.Name, h.Format = strings.TrimPrefix(path, "/"), tar.FormatPAX
	st := fi.Sys().(*syscall.Stat_t)
	if first := inodes[st.Ino]; first != "" && fi.Mode().IsRegular() {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	} else {
		inodes[st.Ino] = h.Name
	}
	var content []byte
	if h.Typeflag == tar.TypeReg {
		if content, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	writeEntry(t, w, h, content)
}

// writeLayout writes a layout with one image, called app.
func writeLayout(t *testing.T, dir string, im *image) {
	t.Helper()
	manifest := im.seal(t)
	d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)), Annotations: map[string]string{v1.AnnotationRefName: "app"}}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []v1.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	writeFile(t, filepath.Join(dir, "index.json"), index)
	writeFile(t, filepath.Join(dir, "blobs/sha256", d.Digest.Encoded()), manifest)
	for d, b := range im.blobs {
		writeFile(t, filepath.Join(dir, "blobs/sha256", d.Encoded()), b)
	}
}

// describe says all of every entry of a tree.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	out, inodes := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		out[name], err = describeEntry(path, name, inodes)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func describeEntry(path, name string, inodes map[uint64]string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	links, content := uint64(st.Nlink), ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		links = 0
	case unix.S_IFLNK:
		content, _ = os.Readlink(path)
	case unix.S_IFREG:
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		d, err := digest.FromReader(io.Reader(f))
		if err != nil {
			return "", err
		}
		content = d.String()
	}
	if inodes[st.Ino] == "" {
		inodes[st.Ino] = name
	}
	return fmt.Sprintf("%o %d:%d %d.%09d rdev %x links %d with %s %s %s", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev, links, inodes[st.Ino], content, attributes(path)), nil
}

func attributes(path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return ""
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(path, name, value)
		out = append(out, fmt.Sprintf("%s=%q %v", name, value[:max(k, 0)], err))
	}
	return strings.Join(out, " ")
}
