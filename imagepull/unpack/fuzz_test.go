package unpack

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzApply unpacks anything as the second layer: no panic, nothing beside the
// root, no name of a whiteout in it, and the limits hold.
func FuzzApply(f *testing.F) {
	for seed := range 20 {
		layers, _ := generate(f, seed*100+7)
		f.Add(layers[0])
	}
	f.Add(rawTar(paxHeader("GNU.sparse.size=1049600", "GNU.sparse.numblocks=1", "GNU.sparse.map=1048576,512", "GNU.sparse.name=x"), rawHeader("0", '0', 512, nil), make([]byte, 512)))
	f.Add(rawTar(rawHeader("x", 'L', 300, nil), padded([]byte(strings.Repeat("n/", 150))), rawHeader("x", 'K', 3, nil), padded([]byte("a/b")), rawHeader("x", '2', 0, nil)))
	lower := pack(f, directory("a"), file("a/b", "1"), symlink("c", "/a"), symlink("d", "../.."), directory("b/c/d"), hardlink("e", "a/b"))
	limits := Limits{Bytes: 8 << 20, Entries: 200, Depth: 20, PathLen: 400}
	f.Fuzz(func(t *testing.T, layer []byte) {
		base, err := os.MkdirTemp(scratch(), "unpack-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		root := filepath.Join(base, "root")
		if err := os.Mkdir(root, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = apply(root, limits, lower, layer)
		if names, err := os.ReadDir(base); err != nil || len(names) != 1 {
			t.Fatalf("beside the root: %v, %v", names, err)
		}
		count := 0
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			count++
			rel, err := filepath.Rel(root, path)
			if strings.HasPrefix(d.Name(), whiteoutPrefix) || len(rel) > limits.PathLen || strings.Count(rel, "/") >= limits.Depth {
				t.Errorf("%q", rel)
			}
			return err
		})
		if err != nil || count > 200+1 {
			t.Errorf("%d names, %v", count, err)
		}
	})
}
