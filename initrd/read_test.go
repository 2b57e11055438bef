package initrd

import (
	"bytes"
	"io"
	"testing"

	"github.com/plinth-os/plinth/internal/newc"
	"github.com/plinth-os/plinth/internal/tree"
)

func TestReadGivesBackWhatWriteWrote(t *testing.T) {
	early := []tree.Entry{tree.Dir(".", 0o755), tree.Dir("kernel", 0o755)}
	main := []tree.Entry{tree.Dir(".", 0o755), tree.File("init", 0o755, tree.Bytes(bytes.Repeat([]byte("x"), 10000)))}
	for _, compression := range []string{"none", "gzip", "zstd", "xz"} {
		for _, e := range [][]tree.Entry{nil, early} {
			var b bytes.Buffer
			if err := Write(&b, e, main, Params{Compression: compression, Epoch: 1}); err != nil {
				t.Fatal(err)
			}
			got, err := Read(&b)
			if err != nil {
				t.Fatalf("%s: %v", compression, err)
			}
			if len(got) != len(e)+len(main) || got[len(got)-1].Path != "init" || got[len(got)-1].Content.Size != 10000 {
				t.Errorf("%s: %d early and %d main entries became %d", compression, len(e), len(main), len(got))
			}
		}
	}
	if _, err := Read(bytes.NewReader([]byte("no archive"))); err == nil {
		t.Error("Read of garbage succeeded")
	}
}

// TestReadBoundsAllArchivesTogether: many small archives are not a way round the limit.
func TestReadBoundsAllArchivesTogether(t *testing.T) {
	var one bytes.Buffer
	if err := Write(&one, nil, []tree.Entry{tree.File("f", 0o644, tree.Bytes([]byte("x")))}, Params{Compression: "none"}); err != nil {
		t.Fatal(err)
	}
	for _, lim := range []newc.Limits{{Entries: 10, Bytes: 1000}, {Entries: 1000, Bytes: 10}} {
		endless := io.LimitReader(&repeated{b: one.Bytes()}, int64(one.Len())*100)
		entries, err := read(endless, lim)
		if err == nil {
			t.Errorf("%+v: read %d archives", lim, len(entries))
		}
	}
}

type repeated struct {
	b   []byte
	off int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.off:])
	r.off = (r.off + n) % len(r.b)
	return n, nil
}

func FuzzRead(f *testing.F) {
	main := []tree.Entry{tree.Dir(".", 0o755), tree.File("init", 0o755, tree.Bytes([]byte("#!")))}
	for _, compression := range []string{"none", "gzip", "zstd", "xz"} {
		var b bytes.Buffer
		if err := Write(&b, main[:1], main, Params{Compression: compression, Epoch: 1}); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := Read(bytes.NewReader(b))
		if err == nil && len(entries) > len(b) && len(b) < 100 {
			t.Errorf("%d entries in %d bytes", len(entries), len(b))
		}
	})
}
