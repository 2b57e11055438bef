package tests

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/plinth-os/plinth"

// lines is the picture in docs/architecture.md: a package imports only packages
// on lower lines. The longest matching prefix counts.
var lines = map[string]int{
	"cmd/plinth":             60,
	"cmd/plinth-agent":       30,
	"cmd/plinth-shell":       30,
	"builder/export":         50,
	"builder":                40,
	"measure/refvalue":       30,
	"measure":                20,
	"initrd":                 20,
	"builder/disk":           20,
	"builder/rootfs":         20,
	"agent":                  20,
	"agent/network":          18,
	"agent/runner":           18,
	"agent/storage":          18,
	"agent/attester":         16,
	"agent/kbs":              17,
	"agent/imageservice":     18,
	"agent/guestapi":         19,
	"agent/imageservice/api": 17,
	"uki":                    10,
	"measure/snp":            10,
	"measure/tdx":            10,
	"measure/pcr":            10,
	"builder/source":         10,
	"qemu":                   10,
	"imagepull":              10,
	"imagepull/store":        11,
	"imagepull/policy":       8,
	"imagepull/crypt":        8,
	"imagepull/registry":     8,
	"imagepull/unpack":       8,
	"evidence/verify":        10,
	"profiles":               5,
	"verity":                 5,
	"initdata":               5,
	"measure/ovmf":           5,
	"measure/eventlog":       5,
	"evidence":               5,
	"agent/config":           5,
	"workload":               4,
	"internal/cas":           1,
	"internal/newc":          1,
	"internal/fat":           1,
	"internal/erofs":         1,
	"internal/sign":          1,
	"internal":               0,
}

// denied lists imports that the lines alone would allow.
var denied = []struct{ from, to, why string }{
	{"agent", "profiles", "the guest holds no build code"},
	{"agent", "uki", "the guest holds no build code"},
	{"agent", "qemu", "the guest holds no build code"},
	{"agent", "builder", "the guest holds no build code"},
	{"agent", "evidence/verify", "endorsement chains are checked on the host"},
	{"agent", "internal/sign", "private keys are on the host"},
	{"imagepull", "agent", "imagepull serves the host as well"},
	{"imagepull", "builder", "the guest holds no build code"},
	{"qemu", "measure", "profiles.Machine runs, measure.Machine is predicted; builder maps one to the other"},
	{"uki", "measure", "a signed PCR policy is one more section that the builder adds"},
	{"measure", "builder", "an auditor imports measure alone"},
	{"measure", "profiles", "an auditor imports measure alone"},
	{"uki", "profiles", "an auditor imports uki alone"},
	{"verity", "profiles", "an auditor imports verity alone"},
	{"profiles", "", "profiles imports nothing of plinth"},
}

// pure packages are arithmetic: no files, network, processes, clock or randomness.
var pure = []string{"verity", "uki", "measure", "initrd", "initdata", "workload", "internal/pe", "internal/gpt", "internal/newc", "internal/fat", "internal/erofs", "internal/ident", "internal/tree", "internal/cbor", "internal/jcs", "internal/gunzip"}

var impure = map[string]bool{
	"os": true, "os/exec": true, "os/user": true, "os/signal": true, "net": true, "net/http": true, "syscall": true,
	"crypto/rand": true, "math/rand": true, "math/rand/v2": true, "golang.org/x/sys/unix": true, "time": true,
}

// impureAllowed names the exceptions, each with its reason.
var impureAllowed = map[string]string{
	"measure/refvalue time": "a set says until when it holds",
	"initrd time":           "a gzip header has a time.Time: the epoch",
	"internal/fat time":     "fs.FileInfo has a ModTime",
	"internal/tree time":    "fs.FileInfo has a ModTime",
}

func TestImportArrows(t *testing.T) {
	root := filepath.Join("..")
	for _, imp := range imports(t, root) {
		from, to := imp.from, strings.TrimPrefix(strings.TrimPrefix(imp.path, module), "/")
		if imp.path != module && !strings.HasPrefix(imp.path, module+"/") {
			if under(from, pure) && impure[imp.path] && impureAllowed[from+" "+imp.path] == "" {
				t.Errorf("%s imports %s: %s is arithmetic, bytes in and bytes out", imp.file, imp.path, from)
			}
			continue
		}
		lf, okf := line(from)
		lt, okt := line(to)
		switch {
		case !okf:
			t.Errorf("%s: package %s stands on no line; add it to the picture", imp.file, from)
		case !okt:
			t.Errorf("%s: package %s stands on no line; add it to the picture", imp.file, to)
		case lt >= lf:
			t.Errorf("%s: %s (line %d) imports %s (line %d)", imp.file, from, lf, to, lt)
		}
		for _, d := range denied {
			if within(from, d.from) && within(to, d.to) {
				t.Errorf("%s: %s imports %s: %s", imp.file, from, to, d.why)
			}
		}
	}
}

func line(pkg string) (int, bool) {
	for p := pkg; p != "."; p = filepath.Dir(p) {
		if l, ok := lines[p]; ok {
			return l, true
		}
	}
	return 0, false
}

func under(pkg string, list []string) bool {
	for _, p := range list {
		if within(pkg, p) {
			return true
		}
	}
	return false
}

func within(pkg, prefix string) bool {
	return prefix == "" || pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
}

type edge struct{ file, from, path string }

// imports parses every non-test file of the main module. It reads the sources
// itself: a test that asks the go command is cached and does not see a new import.
func imports(t *testing.T, root string) []edge {
	t.Helper()
	var out []edge
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if skipDir(root, rel, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, s := range f.Imports {
			p, err := strconv.Unquote(s.Path.Value)
			if err != nil {
				return err
			}
			out = append(out, edge{rel, filepath.ToSlash(filepath.Dir(rel)), p})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("only %d imports found under %s: the test looks in the wrong place", len(out), root)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].file < out[j].file })
	return out
}

func skipDir(root, rel, name string) bool {
	if rel == "." {
		return false
	}
	if strings.HasPrefix(name, ".") || name == "testdata" || name == "out" || name == "bin" || rel == "tests" || rel == filepath.Join("internal", "testenv") {
		return true
	}
	_, err := os.Stat(filepath.Join(root, rel, "go.mod"))
	return err == nil // a module of its own
}
