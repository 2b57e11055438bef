package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// TestDiskIsWellFormed asks the tools that others use.
func TestDiskIsWellFormed(t *testing.T) {
	needs(t, "sgdisk", "fsck.vfat", "mcopy")
	dir := workdir(t)
	must(t, dir, "build", "vtpm")
	image := filepath.Join(dir, "out/vtpm/image.raw")
	out, err := exec.Command(testenv.Tool("sgdisk"), "-v", image).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("No problems found")) {
		t.Errorf("sgdisk -v: %v\n%s", err, out)
	}
	esp := filepath.Join(dir, "esp")
	raw := read(t, image)
	if err := os.WriteFile(esp, raw[1<<20:len(raw)-1<<20], 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool("fsck.vfat"), "-n", esp).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat -n: %v\n%s", err, out)
	}
	efi := filepath.Join(dir, "BOOTX64.EFI")
	if out, err := exec.Command("mcopy", "-i", esp, "::EFI/BOOT/BOOTX64.EFI", efi).CombinedOutput(); err != nil {
		t.Fatalf("mcopy: %v\n%s", err, out)
	}
	if !bytes.Equal(read(t, efi), read(t, filepath.Join(dir, "out/vtpm/image.efi"))) {
		t.Error("mcopy reads another UKI out of the ESP than image.efi")
	}
}

// TestSameBytes builds in two surroundings that differ in all that must not matter.
func TestSameBytes(t *testing.T) {
	needs(t)
	sums := func(env []string, umask int, dir string, args ...string) string {
		old := syscall.Umask(umask)
		defer syscall.Umask(old)
		r := command(t, dir, env, append([]string{"build", "vtpm", "--locked"}, args...)...)
		if r.code != 0 {
			t.Fatalf("exit %d\n%s", r.code, r.stderr)
		}
		return string(read(t, filepath.Join(dir, "out/vtpm/SHA256SUMS")))
	}
	a, b := workdir(t), filepath.Join(workdir(t), "other", "place")
	if err := os.MkdirAll(b, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(b, "vtpm.lock"), read(t, filepath.Join(a, "vtpm.lock")))
	first := sums([]string{"TZ=UTC", "LANG=C", "GOMAXPROCS=1", "PLINTH_CACHE=" + borrowed(t)}, 0o022, a)
	second := sums([]string{"TZ=Asia/Kathmandu", "LANG=tr_TR.UTF-8", "GOMAXPROCS=4", "HOME=/nonexistent", "PLINTH_CACHE=" + borrowed(t)}, 0o077, b, "--jobs", "1")
	if first != second {
		t.Errorf("two builds differ:\n%s\n%s", first, second)
	}
}

// borrowed returns a store with the fetched packages of the shared one and
// nothing else: no step has run there. Its files share their blocks with those of
// that store where the file system can do so, or are hard links of them.
func borrowed(t *testing.T) string {
	t.Helper()
	must(t, workdir(t), "build", "vtpm") // fetches
	dir := t.TempDir()
	from := filepath.Join(shared.cache, "blobs")
	to := filepath.Join(dir, "blobs")
	out, err := exec.Command("sh", "-c", `for how in --reflink=always --link ""; do rm -rf "$1"; cp -a $how "$0" "$1" && exit; done; exit 1`, from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	return dir
}

// TestNobodyWithoutTools builds as uid 65534 with an empty PATH and HOME.
func TestNobodyWithoutTools(t *testing.T) {
	needs(t)
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "only root can become nobody")
	}
	dir, err := os.MkdirTemp("/tmp", "plinth-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "plinth")
	if out, err := exec.Command("cp", plinthBinary(t), bin).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "vtpm.lock"), read(t, filepath.Join(workdir(t), "vtpm.lock")))
	for _, p := range []string{dir, bin} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "build", "vtpm", "--locked", "--cache-dir", filepath.Join(dir, "cache"))
	cmd.Dir = dir
	cmd.Env = []string{"PATH=", "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	own := workdir(t)
	must(t, own, "build", "vtpm", "--locked")
	if a, b := read(t, filepath.Join(dir, "out/vtpm/SHA256SUMS")), read(t, filepath.Join(own, "out/vtpm/SHA256SUMS")); !bytes.Equal(a, b) {
		t.Errorf("nobody's build differs:\n%s\n%s", a, b)
	}
}

// TestVerify: an untouched directory is ok, also by building it again; a changed one is not.
func TestVerify(t *testing.T) {
	needs(t)
	dir := workdir(t)
	must(t, dir, "build", "vtpm")
	must(t, dir, "verify", "out/vtpm", "--rebuild", "--offline")
	path := filepath.Join(dir, "out/vtpm/initrd")
	b := read(t, path)
	b[len(b)/2] ^= 1
	write(t, path, b)
	r := plinth(t, dir, "verify", "out/vtpm")
	if r.code != 7 || !strings.Contains(r.stderr, "out/vtpm/initrd: sha256 is") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

// TestOfflineAndLocked: with a full store nothing is fetched; without a lock
// --locked refuses; a vanished version is named.
func TestOfflineAndLocked(t *testing.T) {
	needs(t)
	dir := workdir(t)
	must(t, dir, "build", "vtpm")
	must(t, dir, "build", "vtpm", "--offline", "--locked")
	empty := t.TempDir()
	if r := plinth(t, empty, "build", "vtpm", "--locked"); r.code != 9 {
		t.Errorf("--locked without a lock: exit %d\n%s", r.code, r.stderr)
	}
	if r := command(t, dir, []string{"PLINTH_CACHE=" + t.TempDir()}, "build", "vtpm", "--offline"); r.code != 5 {
		t.Errorf("--offline with an empty store: exit %d\n%s", r.code, r.stderr)
	}
	lock := bytes.ReplaceAll(read(t, filepath.Join(dir, "vtpm.lock")), []byte("systemd-boot-efi_"), []byte("systemd-boot-gone_"))
	write(t, filepath.Join(dir, "gone.lock"), lock)
	r := command(t, dir, []string{"PLINTH_CACHE=" + t.TempDir()}, "build", "vtpm", "--lock", "gone.lock")
	if r.code != 9 || !strings.Contains(r.stderr, "lock --update") {
		t.Errorf("vanished version: exit %d\n%s", r.code, r.stderr)
	}
}
