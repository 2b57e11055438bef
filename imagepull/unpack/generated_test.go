package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// TestGeneratedTrees unpacks layers made by chance, here and by umoci. Names are
// few, so that entries meet. PLINTH_TREES says how many, PLINTH_SEED where to
// begin.
func TestGeneratedTrees(t *testing.T) {
	if testing.Short() {
		t.Skip("runs umoci")
	}
	testenv.Need(t, "umoci")
	needRoot(t)
	count := number(t, "PLINTH_TREES", 100)
	seed := number(t, "PLINTH_SEED", 1)
	var taken, refused atomic.Int64
	t.Run("trees", func(t *testing.T) {
		for worker := range runtime.NumCPU() {
			t.Run(strconv.Itoa(worker), func(t *testing.T) {
				t.Parallel()
				for n := worker; n < count; n += runtime.NumCPU() {
					switch ok, failed, describe := generated(t, seed+n); {
					case failed:
						t.Fatalf("seed %d:\n%s", seed+n, describe())
					case ok:
						taken.Add(1)
					default:
						refused.Add(1)
					}
				}
			})
		}
	})
	t.Logf("%d trees from seed %d: %d equal, %d refused by both", count, seed, taken.Load(), refused.Load())
	if count >= 100 && (int(taken.Load()) < count*3/4 || refused.Load() == 0) {
		t.Errorf("%d taken and %d refused of %d: the generator has lost its balance", taken.Load(), refused.Load(), count)
	}
}

func generated(t testing.TB, seed int) (ok, failed bool, describe func() string) {
	layers, describe := generate(t, seed)
	ok = sameAsUmoci(failer{t, &failed}, layers...) != nil
	return ok, failed, describe
}

// A failer is a test that notes that it failed.
type failer struct {
	testing.TB
	failed *bool
}

func (f failer) Error(args ...any)                 { *f.failed = true; f.TB.Error(args...) }
func (f failer) Errorf(format string, args ...any) { *f.failed = true; f.TB.Errorf(format, args...) }

func number(t testing.TB, name string, or int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return or
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s: %q is no number above 0", name, text)
	}
	return n
}

// generate makes the layers of one seed. Most entries that would be refused are
// left out, else hardly a tree would pass: which, the package under test says;
// one tree in ten keeps them.
func generate(t testing.TB, seed int) (layers [][]byte, describe func() string) {
	r := rand.New(rand.NewPCG(uint64(seed), 6))
	lenient := r.IntN(10) == 0
	var items [][]item
	for range 1 + r.IntN(4) {
		var layer []item
		for range 1 + r.IntN(24) {
			layer = append(layer, anyItem(r))
		}
		items = append(items, layer)
		if !lenient {
			items[len(items)-1] = withoutRefused(t, items)
		}
	}
	return packAll(t, items), func() string { return list(items) }
}

func packAll(t testing.TB, items [][]item) [][]byte {
	var layers [][]byte
	for _, layer := range items {
		layers = append(layers, pack(t, layer...))
	}
	return layers
}

// withoutRefused returns the last layer without the entries that are refused.
func withoutRefused(t testing.TB, items [][]item) []item {
	last := items[len(items)-1]
	for {
		_, err := apply(Limits{}, packAll(t, append(items[:len(items)-1:len(items)-1], last))...)
		var bad *EntryError
		if !errors.As(err, &bad) {
			return last
		}
		i := int(bad.Index) - 1
		last = append(last[:i:i], last[i+1:]...)
	}
}

func list(items [][]item) string {
	var b strings.Builder
	for n, layer := range items {
		fmt.Fprintf(&b, "layer %d\n", n+1)
		for _, i := range layer {
			fmt.Fprintf(&b, "  %c %-16s %-12s %04o %d:%d %q\n", i.Typeflag, i.Name, i.Linkname, i.Mode, i.Uid, i.Gid, i.PAXRecords)
		}
	}
	return b.String()
}

func anyItem(r *rand.Rand) item {
	name := anyName(r)
	var i item
	switch n := r.IntN(100); {
	case n < 30:
		i = file(name, strings.Repeat("x", r.IntN(3)*r.IntN(2000)))
	case n < 52:
		i = directory(name + strings.Repeat("/", r.IntN(3)))
	case n < 66:
		i = symlink(name, anyTarget(r))
	case n < 78:
		i = hardlink(name, anyName(r))
	case n < 82:
		i = node([]byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo}[r.IntN(3)], name, int64(r.IntN(300)), int64(r.IntN(70000)))
	case n < 92:
		i = file(beside(name, ".wh."+anyPart(r)), "")
	case n < 97:
		i = file(beside(name, ".wh..wh..opq"), "")
	case n < 98:
		i = file(beside(name, ".wh..wh."+anyPart(r)), "")
	default:
		i = directory([]string{".", "./", "/", ""}[r.IntN(3)])
	}
	return anyMeta(r, i)
}

func anyPart(r *rand.Rand) string { return string("abcd"[r.IntN(4)]) }

func anyName(r *rand.Rand) string {
	parts := make([]string, 1+r.IntN(3))
	for i := range parts {
		parts[i] = anyPart(r)
	}
	name := strings.Join(parts, "/")
	switch r.IntN(20) {
	case 0:
		return "/" + name
	case 1:
		return "./" + name
	case 2:
		return "../../" + name
	case 3:
		return strings.ReplaceAll(name, "/", "//")
	case 4:
		return strings.ReplaceAll(name, "/", "/x/../")
	}
	return name
}

func beside(name, base string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i+1] + base
	}
	return base
}

func anyTarget(r *rand.Rand) string {
	name := anyName(r)
	switch r.IntN(6) {
	case 0:
		return "/" + name
	case 1:
		return "../" + name
	case 2:
		return "../../../../" + name
	case 3:
		return anyPart(r) + "/../" + name
	case 4:
		return "."
	}
	return name
}

// netRaw is "cap_net_raw+ep" as VFS_CAP_REVISION_2 has it; capability.h.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is a default access list, user::rwx group::r-x other::r-x user:1000:rwx
// mask::rwx, as posix_acl_xattr.h has it: what is made below inherits it.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"

func anyMeta(r *rand.Rand, i item) item {
	i.Mode = []int64{0o644, 0o755, 0o4755, 0o2755, 0o1777, 0, 0o7777, 0o40755}[r.IntN(8)]
	if i.Typeflag == tar.TypeChar || i.Typeflag == tar.TypeBlock || i.Typeflag == tar.TypeFifo {
		i.Mode &= permissions // umoci takes the type from here as well
	}
	i = i.owned([]int{0, 0, 0, 1000, 65534, 1 << 30}[r.IntN(6)], []int{0, 0, 0, 1000, 65534, 1 << 30}[r.IntN(6)])
	i = i.at(r.Int64N(1<<30)-1<<20+r.Int64N(2)<<31, r.Int64N(1e9)) // never now
	if r.IntN(4) == 0 && (i.Typeflag == tar.TypeReg || i.Typeflag == tar.TypeDir) {
		i = i.attr("user.a", string([]byte{byte(r.IntN(256)), byte(r.IntN(255)) + 1}))
	}
	switch {
	case r.IntN(10) == 0:
		i = i.attr("trusted.b", "b")
	case r.IntN(10) == 0 && i.Typeflag == tar.TypeReg:
		i = i.attr(capability, netRaw)
	case r.IntN(20) == 0:
		i = i.attr("trusted.overlay.opaque", "y")
	case r.IntN(25) == 0 && i.Typeflag == tar.TypeDir:
		i = i.attr(aclDefault, acl)
	case r.IntN(25) == 0 && (i.Typeflag == tar.TypeReg || i.Typeflag == tar.TypeDir):
		i = i.attr(aclAccess, acl)
	}
	if i.Typeflag == tar.TypeLink {
		i.PAXRecords = nil
	}
	if r.IntN(8) == 0 && i.PAXRecords == nil && i.Uid < 1<<20 && i.Gid < 1<<20 && i.ModTime.Unix() >= 0 {
		return i.format(tar.FormatGNU)
	}
	return i
}
