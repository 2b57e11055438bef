package unpack

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// aclOf writes an access list: tag:permissions, and an ID where one belongs.
func aclOf(text string) string {
	b := []byte{2, 0, 0, 0}
	tags := map[string]uint16{"owner": 1, "user": 2, "ownergroup": 4, "group": 8, "mask": 16, "other": 32, "odd": 64}
	for _, f := range strings.Fields(text) {
		var tag string
		var perm uint16
		id := uint32(undefinedID)
		parts := strings.Split(f, ":")
		tag = parts[0]
		_, _ = fmt.Sscan(parts[1], &perm)
		if len(parts) > 2 {
			_, _ = fmt.Sscan(parts[2], &id)
		}
		b = binary.LittleEndian.AppendUint16(b, tags[tag])
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return string(b)
}

// TestAccessLists has lists that the kernel takes, changes or refuses where they
// are set: the tree is the one that umoci has it make.
func TestAccessLists(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("runs umoci")
	}
	testenv.Need(t, "umoci")
	const plain, extended = "owner:7 ownergroup:5 other:1", "owner:6 user:7:1000 ownergroup:5 group:3:50 mask:6 other:4"
	in := func(name, text string, more ...item) []item {
		return append([]item{directory("d").perm(0o2775).owned(3, 4).attr(name, aclOf(text)), file("d/x/y", "1").perm(0o666), directory("d/z"), symlink("d/l", "z"), file("d/f", "2")}, more...)
	}
	for _, row := range []struct {
		name   string
		layers [][]item
		taken  bool
	}{
		{"of a file", layers([]item{file("f", "1").perm(0o4751).attr(aclAccess, aclOf(extended))}), true},
		{"of a file, no more than its mode", layers([]item{file("f", "1").perm(0o4644).attr(aclAccess, aclOf(plain))}), true},
		{"of a file, IDs where none belong", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7:5 user:1:5 ownergroup:5:0 mask:7:9 other:1:8"))}), true},
		{"of a file, empty", layers([]item{file("f", "1").attr(aclAccess, aclOf(""))}), true},
		{"of a file, defaults", layers([]item{file("f", "1").attr(aclDefault, aclOf(extended))}), false},
		{"of a directory", layers(in(aclAccess, extended)), true},
		{"of a directory, then without", layers(in(aclAccess, extended), []item{directory("d").perm(0o711)}), true},
		{"defaults", layers(in(aclDefault, extended)), true},
		{"defaults, narrow", layers(in(aclDefault, "owner:5 user:7:1000 ownergroup:7 mask:1 other:0")), true},
		{"defaults, no more than a mode", layers(in(aclDefault, "owner:7 ownergroup:1 other:0")), true},
		{"defaults, empty", layers(in(aclDefault, "")), true},
		{"defaults in a lower layer", layers(in(aclDefault, extended), []item{file("d/n/m/o", "1"), file("d/x/p/q", "1")}), true},
		{"defaults taken away", layers(in(aclDefault, extended), []item{directory("d"), file("d/n/m/o", "1")}), true},
		{"mask is missing", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7 user:7:1000 ownergroup:5 other:1"))}), false},
		{"out of order", layers([]item{file("f", "1").attr(aclAccess, aclOf("ownergroup:5 owner:7 other:1"))}), false},
		{"owner twice", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7 owner:7 ownergroup:5 other:1"))}), false},
		{"others are missing", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7 ownergroup:5"))}), false},
		{"group is missing", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7 mask:5 other:5"))}), false},
		{"permission 8", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:8 ownergroup:5 other:1"))}), false},
		{"odd tag", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7 ownergroup:5 other:1 odd:1"))}), false},
		{"user -1", layers([]item{file("f", "1").attr(aclAccess, aclOf("owner:7 user:1:4294967295 ownergroup:5 mask:7 other:1"))}), false},
		{"cut off", layers([]item{file("f", "1").attr(aclAccess, aclOf(plain)[:27])}), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := sameAsUmoci(t, packAll(t, row.layers)...) != nil; got != row.taken {
				t.Errorf("taken: %v, want %v", got, row.taken)
			}
		})
	}
}
