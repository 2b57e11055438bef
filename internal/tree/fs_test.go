package tree

import (
	"testing"
	"testing/fstest"
)

func TestFS(t *testing.T) {
	f := FS([]Entry{
		File("usr/lib/modules/6.12/kernel/dm-mod.ko", 0o644, Bytes([]byte("elf"))),
		File("a", 0o600, Bytes(nil)),
		Dir("usr/lib", 0o700),
	})
	if err := fstest.TestFS(f, "a", "usr/lib/modules/6.12/kernel/dm-mod.ko"); err != nil {
		t.Fatal(err)
	}
}
