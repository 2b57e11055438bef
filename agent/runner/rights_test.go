package runner

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Sockets are made of the listed families alone, by a comparison of the 32 bits that
// the kernel takes, and by no other call.
func TestSocketFilter(t *testing.T) {
	f, err := filter(&specs.Process{Capabilities: capabilities(0, nil)})
	if err != nil {
		t.Fatal(err)
	}
	admitted := map[uint64]bool{}
	for _, s := range f.Syscalls {
		if len(s.Names) == 0 {
			t.Error("a rule for no call")
		}
		if slices.Contains(s.Names, "socketcall") {
			t.Error("socketcall is admitted")
		}
		if !slices.Contains(s.Names, "socket") {
			continue
		}
		if len(s.Names) != 1 || len(s.Args) != 1 || s.Args[0].Index != 0 || s.Args[0].Op != specs.OpMaskedEqual || s.Args[0].Value != 0xffffffff {
			t.Errorf("got %+v", s)
			continue
		}
		admitted[s.Args[0].ValueTwo] = true
	}
	for family := range uint64(50) {
		want := slices.Contains([]uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET}, family)
		if admitted[family] != want {
			t.Errorf("family %d: %v, want %v", family, admitted[family], want)
		}
	}
}
