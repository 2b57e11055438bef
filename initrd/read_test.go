package initrd

import (
	"bytes"
	"testing"

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
