package unpack

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// FuzzApply takes anything as the second layer: no panic, no name of a whiteout in
// the tree, the limits hold, and the image can be written.
func FuzzApply(f *testing.F) {
	for seed := range 20 {
		layers, _ := generate(f, seed*100+7)
		f.Add(layers[0])
	}
	f.Add(rawTar(sparseFile("x", 1049600, [2]int{1048576, 512})))
	f.Add(rawTar(rawHeader("x", 'L', 300, nil), padded([]byte(strings.Repeat("n/", 150))), rawHeader("x", 'K', 3, nil), padded([]byte("a/b")), rawHeader("x", '2', 0, nil)))
	lower := pack(f, directory("a"), file("a/b", "1"), symlink("c", "/a"), symlink("d", "../.."), directory("b/c/d"), hardlink("e", "a/b"))
	limits := Limits{Bytes: 8 << 20, Entries: 200, Depth: 20, PathLen: 400}
	f.Fuzz(func(t *testing.T, layer []byte) {
		m, err := apply(limits, lower, layer)
		if err != nil {
			if strings.Contains(err.Error(), "of its own making") {
				t.Fatal(err)
			}
			return
		}
		checkTree(t, m, limits)
	})
}

func checkTree(t *testing.T, m *made, l Limits) {
	inodes := m.inodes()
	for path, n := range inodes {
		if strings.HasPrefix(path[strings.LastIndexByte(path, '/')+1:], whiteoutPrefix) || len(path) > l.PathLen || strings.Count(path, "/") >= l.Depth {
			t.Errorf("%q", path)
		}
		if n.from > 0 && len(m.content) >= int(n.from) {
			m.read(n)
		}
	}
	if len(inodes) > int(l.Entries)+1 {
		t.Errorf("%d names", len(inodes))
	}
	m.image(t)
}

// FuzzUnmarshal takes anything for a layer that was kept: what is taken is written
// back as it was, and can be applied or is refused.
func FuzzUnmarshal(f *testing.F) {
	for seed := range 20 {
		layers, _ := generate(f, seed*100+3)
		for _, layer := range append(layers, rawTar(sparseFile("x", 1<<20, [2]int{5000, 512}))) {
			l, err := Read(f.Context(), bytes.NewReader(layer), io.Discard, NewBudget(Limits{}))
			if err != nil {
				continue
			}
			b, err := l.MarshalBinary()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var l Layer
		if err := l.UnmarshalBinary(b); err != nil {
			return
		}
		if back, err := l.MarshalBinary(); err != nil || !bytes.Equal(back, b) {
			t.Errorf("written back: %x, %v", back, err)
		}
		limits := Limits{}.defaults()
		m := &made{tree: NewTree(NewBudget(limits))}
		if m.tree.Apply(&l) == nil && l.blocks < 1<<20 && l.stats.Bytes < 1<<20 {
			m.content = [][]byte{make([]byte, int(l.blocks)*BlockSize)}
			checkTree(t, m, limits)
		}
	})
}
