package builder

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/profiles"
)

// Real kernels have what containers need, as modules or built in. PLINTH_MODULES
// lists their module directories, separated by colons.
func TestContainerModulesOfRealKernels(t *testing.T) {
	dirs := filepath.SplitList(os.Getenv("PLINTH_MODULES"))
	if len(dirs) == 0 {
		testenv.Missing(t, "modules", "PLINTH_MODULES names no module directory of a kernel")
	}
	for _, dir := range dirs {
		index, err := initrd.IndexModules(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, disk := range []string{"", "images"} {
			p := &profiles.Profile{Network: profiles.Network{DHCP: true}, Workloads: profiles.Workloads{From: profiles.FromImage, Disk: disk}}
			mods, err := index.Closure(containerModules(p))
			if err != nil {
				t.Errorf("%s: %v", dir, err)
				continue
			}
			var names []string
			for _, m := range mods {
				names = append(names, m.Name)
			}
			t.Log(filepath.Base(dir), names)
			wanted := []string{"virtio_net", "erofs", "nft_masq", "nf_nat", "veth", "loop"}
			if disk != "" {
				wanted = []string{"dm_crypt", "dm_integrity", "xts"}
			}
			for _, name := range wanted { // of Debian's kernels, and dependencies of what is asked for
				if !slices.Contains(names, name) {
					t.Errorf("%s, disk %q: no %s among %q", filepath.Base(dir), disk, name, names)
				}
			}
		}
	}
}
