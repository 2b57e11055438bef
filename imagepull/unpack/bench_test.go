package unpack

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// BenchmarkApply unpacks a layer of the shape that packages have, 10,000 small
// files and 20 large ones, and has GNU tar do the same.
func BenchmarkApply(b *testing.B) {
	layer := benchLayer(b)
	b.Run("unpack", func(b *testing.B) {
		bench(b, layer, func(dir string) error { return apply(dir, Limits{}, layer) })
	})
	b.Run("tar", func(b *testing.B) {
		testenv.Need(b, "tar")
		bench(b, layer, func(dir string) error {
			cmd := exec.Command("tar", "-C", dir, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-")
			cmd.Stdin = bytes.NewReader(layer)
			return cmd.Run()
		})
	})
}

func bench(b *testing.B, layer []byte, f func(dir string) error) {
	b.SetBytes(int64(len(layer)))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		dir, err := os.MkdirTemp(scratch(), "unpack-")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := f(dir); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func benchLayer(b *testing.B) []byte {
	var items []item
	for d := range 200 {
		dir := fmt.Sprintf("usr/share/doc/package-%d", d)
		items = append(items, directory(dir))
		for f := range 50 {
			items = append(items, file(fmt.Sprintf("%s/file-%d", dir, f), strings.Repeat("text of a small file\n", 20*(f%30))))
		}
	}
	for f := range 20 {
		items = append(items, file(fmt.Sprintf("usr/lib/library-%d.so", f), strings.Repeat("machine code", 400<<10)))
	}
	return pack(b, items...)
}
