package initrd

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// moduleDirs returns the module directories of real kernels, which
// PLINTH_MODULES lists, separated by colons; each is named after its release.
func moduleDirs(t *testing.T) []string {
	t.Helper()
	dirs := filepath.SplitList(os.Getenv("PLINTH_MODULES"))
	if len(dirs) == 0 {
		testenv.Missing(t, "modules", "PLINTH_MODULES names no module directory of a kernel")
	}
	return dirs
}

// A second opinion: depmod and modprobe on the same files.
func TestModprobeAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("runs depmod over a kernel")
	}
	dirs := moduleDirs(t)
	testenv.Need(t, "depmod", "modprobe")
	for _, dir := range dirs {
		release := filepath.Base(dir)
		t.Run(release, func(t *testing.T) {
			base := linkModules(t, dir, release)
			if out, err := exec.Command(testenv.Tool("depmod"), "-b", base, release).CombinedOutput(); err != nil {
				t.Fatalf("depmod: %v\n%s", err, out)
			}
			m := index(t, os.DirFS(dir))
			compared := 0
			for _, name := range []string{
				"virtio_blk", "virtio_net", "virtio_pci", "virtio_console", "virtio_rng", "dm-verity", "dm_crypt", "dm_integrity",
				"erofs", "overlay", "squashfs", "vsock", "vmw_vsock_virtio_transport", "nf_tables", "xfs", "btrfs", "nvme", "fuse",
				"tun", "wireguard", "loop", "configfs", "tsm", "tdx_guest", "sev-guest", "vfio",
			} {
				mods, err := m.Closure([]string{"?" + name})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if len(mods) > 0 {
					compared++
					compare(t, m, name, names(mods), showDepends(t, base, release, name))
				}
			}
			if compared < 20 {
				t.Errorf("%d modules were compared, want 20 or more", compared)
			}
		})
	}
}

// linkModules returns a directory in which depmod may write.
func linkModules(t *testing.T, dir, release string) string {
	t.Helper()
	base := t.TempDir()
	to := filepath.Join(base, "lib", "modules", release)
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kernel", "modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		if err := os.Symlink(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
	}
	return base
}

// showDepends returns what modprobe would load.
func showDepends(t *testing.T, base, release, name string) []string {
	t.Helper()
	out, err := exec.Command(testenv.Tool("modprobe"), "-d", base, "-S", release, "-C", os.DevNull, "--show-depends", name).CombinedOutput()
	if err != nil {
		t.Fatalf("modprobe %s: %v\n%s", name, err, out)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "insmod" {
			name, _ := moduleName(f[1])
			list = append(list, name)
		}
	}
	return list
}

// compare allows two differences. modprobe also loads modules that carry an alias
// of something built in: crc32c_intel, where crc32c is. And of the four softdep
// lines of btrfs modprobe 30 obeys the first alone.
func compare(t *testing.T, m *Modules, name string, got, want []string) {
	t.Helper()
	for _, g := range got {
		if !slices.Contains(want, g) && (name != "btrfs" || g != "xxhash_generic") {
			t.Errorf("%s: modprobe does not load %s:\n got %s\nwant %s", name, g, got, want)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) && (w != "crc32c_intel" || !m.builtin["crc32c_generic"]) {
			t.Errorf("%s: modprobe also loads %s:\n got %s\nwant %s", name, w, got, want)
		}
	}
	// Whatever a module needs comes before it.
	for i, g := range got {
		_, info, err := m.load(m.files[g][0])
		if err != nil {
			t.Fatal(err)
		}
		for _, dep := range info.depends {
			if len(m.files[dep]) > 0 && !slices.Contains(got[:i], dep) {
				t.Errorf("%s: %s comes before %s", name, g, dep)
			}
		}
	}
}

// Few modules are unpacked to find what a machine needs.
func TestClosureIsFast(t *testing.T) {
	if testing.Short() {
		t.Skip("measures time")
	}
	for _, dir := range moduleDirs(t) {
		start := time.Now()
		mods, err := index(t, os.DirFS(dir)).Closure([]string{
			"?virtio_blk", "?virtio_pci", "?virtio_net", "?virtio_console", "dm_verity", "erofs", "overlay", "vsock",
		})
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		t.Logf("%s: %d modules in %v", filepath.Base(dir), len(mods), took)
		if took > 2*time.Second { // 0.05 s on an idle machine
			t.Errorf("%s: took %v", filepath.Base(dir), took)
		}
	}
}
