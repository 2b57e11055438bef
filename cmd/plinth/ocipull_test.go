package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/store"
	"github.com/plinth-os/plinth/internal/testenv"
)

// writeImage writes an oci-archive of an image with one plain layer: its only file,
// motd, has the content. diffID is "" for the right one.
func writeImage(t *testing.T, path, content, diffID string) {
	t.Helper()
	layer := tarFiles(t, map[string]string{"motd": content})
	if diffID == "" {
		diffID = digest.FromBytes(layer).String()
	}
	config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + diffID + `"]}}`)
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: describeBlob(config, v1.MediaTypeImageConfig), Layers: []v1.Descriptor{describeBlob(layer, v1.MediaTypeImageLayer)}}
	m.SchemaVersion = 2
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []v1.Descriptor{describeBlob(manifest, v1.MediaTypeImageManifest)}})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": string(index)}
	for _, b := range [][]byte{layer, config, manifest} {
		files["blobs/sha256/"+digest.FromBytes(b).Encoded()] = string(b)
	}
	if err := os.WriteFile(path, tarFiles(t, files), 0o600); err != nil {
		t.Fatal(err)
	}
}

func describeBlob(b []byte, mediaType string) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func tarFiles(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// newImageCommands has policies, and images: good.tar, other.tar, and bad.tar with a
// wrong diff ID.
func newImageCommands(t *testing.T) (*exporter, string) {
	t.Helper()
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "any.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	writeFile(t, "none.json", `{"default":[{"type":"reject"}]}`)
	writeImage(t, "good.tar", "hello\n", "")
	writeImage(t, "other.tar", "other\n", "")
	writeImage(t, "bad.tar", "hello\n", digest.FromString("x").String())
	return &exporter{t, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), map[string]string{"PLINTH_CACHE": filepath.Join(dir, "cache")}}, "oci-archive:" + dir + "/"
}

func TestImageStoreCommands(t *testing.T) {
	x, at := newImageCommands(t)
	var got pulledImage
	if err := json.Unmarshal([]byte(x.must("image", "pull", at+"good.tar", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(got.Devices, got.Root) {
		if !strings.HasPrefix(path, x.env["PLINTH_CACHE"]+"/images/") {
			t.Errorf("%s: not in the cache directory", path)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if len(got.Devices) != 1 || got.ChainID != got.DiffIDs[0] || got.Kind != "plain+unsigned" {
		t.Errorf("%+v", got)
	}
	text := x.must("image", "pull", at+"good.tar", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64")
	if want := "mount -t erofs -o ro,loop,device=$(losetup -rf --show " + got.Devices[0] + ") " + got.Root + " DIR"; !strings.Contains(text, want) {
		t.Errorf("got\n%s\nwant %s", text, want)
	}
	x.must("image", "pull", at+"other.tar", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64")
	if out := x.must("image", "list"); strings.Count(out, "\n") != 2 || !strings.Contains(out, "good.tar") || !strings.Contains(out, "other.tar") {
		t.Errorf("list:\n%s", out)
	}
	if out := x.must("image", "rm", at+"good.tar"); !strings.Contains(out, "removed 1 images, 1 trees, 1 layers, 0 parts") {
		t.Errorf("rm: %s", out)
	}
	x.fails(2, "no such image in the store", "image", "rm", at+"good.tar")
	x.must("image", "pull", "oci-archive:good.tar", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64")
	x.must("image", "rm", "oci-archive:./good.tar")
	if out := x.must("image", "prune"); !strings.Contains(out, "removed 0 images, 0 trees, 0 layers, 0 parts") {
		t.Errorf("prune: %s", out)
	}
	var list []store.Image
	if err := json.Unmarshal([]byte(x.must("image", "list", "--json")), &list); err != nil || len(list) != 1 || list[0].Names[0] != at+"other.tar" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestImagePullRefused(t *testing.T) {
	x, at := newImageCommands(t)
	for _, command := range []string{"pull", "verify"} {
		flags := []string{"image", command, "--admit", "plain+unsigned", "--platform", "linux/amd64", "--policy"}
		x.fails(2, "--policy is needed", "image", command, at+"good.tar")
		x.fails(2, `admit: "signed"`, "image", command, at+"good.tar", "--policy", "any.json", "--admit", "signed")
		x.fails(7, "the image is plain+unsigned", "image", command, at+"good.tar", "--policy", "any.json", "--platform", "linux/amd64")
		x.fails(7, "rejected by the policy's default", append(flags, "none.json", at+"good.tar")...)
		x.fails(7, "diff ID is sha256:", append(flags, "any.json", at+"bad.tar")...)
		x.fails(6, "no such file", append(flags, "any.json", at+"none.tar")...)
		x.fails(5, "connection refused", append(flags, "any.json", "docker://127.0.0.1:1/app:1")...)
		x.fails(2, "--key", append(flags, "any.json", at+"good.tar", "--key", "one")...)
		x.fails(2, "47 bytes: want 32", append(flags, "any.json", at+"good.tar", "--key", "kbs:///a/b/c=any.json")...)
		x.fails(2, "no private key in PEM", append(flags, "any.json", at+"good.tar", "--decryption-key", "any.json")...)
	}
	if out := x.must("image", "verify", at+"good.tar", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64"); strings.Contains(out, "root ") {
		t.Errorf("verify:\n%s", out)
	}
	if out := x.must("image", "list"); out != "" {
		t.Errorf("list:\n%s", out)
	}
}

func TestImageUnpack(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "gives files owners")
	}
	x, at := newImageCommands(t)
	flags := []string{"image", "pull", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64"}
	x.fails(7, "diff ID is", append(flags, at+"bad.tar", "--unpack", "out")...)
	for _, name := range []string{"out", "out.partial"} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is there after a refusal", name)
		}
	}
	if err := os.MkdirAll("out.partial/rootfs/old", 0o700); err != nil { // of a process that died
		t.Fatal(err)
	}
	x.must(append(flags, at+"good.tar", "--unpack", "out")...)
	if b := string(x.read("out/rootfs/motd")); b != "hello\n" {
		t.Errorf("motd: %q", b)
	}
	if b := string(x.read("out/config.json")); !strings.Contains(b, "diff_ids") {
		t.Errorf("config.json: %q", b)
	}
	if list, err := os.ReadDir("out/rootfs"); err != nil || len(list) != 1 {
		t.Errorf("rootfs: %v, %v", list, err)
	}
	x.fails(2, "not empty", append(flags, at+"good.tar", "--unpack", "out")...)
}

// What somebody else may have put beside the directory is not taken over.
func TestImageUnpackForeign(t *testing.T) {
	x, at := newImageCommands(t)
	flags := []string{"image", "pull", at + "good.tar", "--policy", "any.json", "--admit", "plain+unsigned", "--platform", "linux/amd64", "--unpack", "out"}
	if err := os.Mkdir("elsewhere", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", "out.partial"); err != nil {
		t.Fatal(err)
	}
	x.fails(6, "not a directory", flags...)
	if err := os.Remove("out.partial"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("out.partial", 0o755); err != nil {
		t.Fatal(err)
	}
	x.fails(2, "mode 0755: want this user's alone", flags...)
	if os.Geteuid() != 0 {
		return
	}
	if err := errors.Join(os.Chmod("out.partial", 0o700), os.Chown("out.partial", 1, 1)); err != nil {
		t.Fatal(err)
	}
	x.fails(2, "user 1's", flags...)
}
