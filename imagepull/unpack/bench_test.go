package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

// BenchmarkRead takes a layer of the shape that packages have apart, 10,000 small
// files and 20 large ones, into a file of memory. The other rows are what it cannot
// be faster than: reading the tar into nothing, and writing as much as it writes.
func BenchmarkRead(b *testing.B) {
	layer := benchLayer(b)
	var content bytes.Buffer
	if _, err := Read(b.Context(), bytes.NewReader(layer), &content, NewBudget(Limits{})); err != nil {
		b.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.CreateTemp(scratch(), "unpack-")
		if err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(f.Name())
		return f
	}
	run := func(name string, f func(w io.Writer) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			b.ReportAllocs()
			for b.Loop() {
				w := open()
				if err := f(w); err != nil {
					b.Fatal(err)
				}
				_ = w.Close()
			}
		})
	}
	read := func(w io.Writer) error {
		_, err := Read(b.Context(), bytes.NewReader(layer), w, NewBudget(Limits{}))
		return err
	}
	run("read", read)
	run("read into nothing", func(io.Writer) error { return read(io.Discard) })
	run("tar into nothing", func(io.Writer) error { return drainTar(layer) })
	run("content alone", func(w io.Writer) error {
		for rest := content.Bytes(); len(rest) > 0; rest = rest[min(len(rest), contentSize):] {
			if _, err := w.Write(rest[:min(len(rest), contentSize)]); err != nil {
				return err
			}
		}
		return nil
	})
}

func drainTar(layer []byte) error {
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		if _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
}

// BenchmarkTree lays five layers of 10,000 files each over one another and writes
// the image.
func BenchmarkTree(b *testing.B) {
	budget := NewBudget(Limits{})
	l, err := Read(b.Context(), bytes.NewReader(benchLayer(b)), io.Discard, budget)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		t := NewTree(budget)
		for range 5 {
			if err := t.Apply(l); err != nil {
				b.Fatal(err)
			}
		}
		if err := t.Write(io.Discard, [16]byte{1}, []string{"x"}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchLayer(b *testing.B) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return string(p)
	}
	var items []item
	for d := range 200 {
		dir := fmt.Sprintf("usr/share/doc/package-%d", d)
		items = append(items, directory(dir))
		for f := range 50 {
			items = append(items, file(fmt.Sprintf("%s/file-%d", dir, f), text(420*(f%30))))
		}
	}
	for f := range 20 {
		items = append(items, file(fmt.Sprintf("usr/lib/library-%d.so", f), text(5<<20)))
	}
	return pack(b, items...)
}
