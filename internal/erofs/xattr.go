package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// xattrHeader is the length of what precedes an inode's attributes.
const xattrHeader = 12

// xattrPrefixes are the beginnings of names that stand as a number.
var xattrPrefixes = []struct {
	prefix string
	index  uint8
	whole  bool
}{
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"user.", 1, false},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// xattrs returns extended attributes as they lie behind an inode.
func xattrs(x map[string][]byte) ([]byte, error) {
	if len(x) == 0 {
		return nil, nil
	}
	b := make([]byte, xattrHeader)
	for _, name := range slices.Sorted(maps.Keys(x)) {
		index, rest, err := splitXattr(name)
		if err != nil {
			return nil, err
		}
		value := x[name]
		if len(rest) > math.MaxUint8 || len(value) > math.MaxUint16 {
			return nil, fmt.Errorf("attribute %s of %d bytes: too long", name, len(value))
		}
		b = append(b, uint8(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	if (len(b)-xattrHeader)/4+1 > math.MaxUint16 {
		return nil, fmt.Errorf("%d bytes of attributes: too many", len(b))
	}
	return b, nil
}

func splitXattr(name string) (index uint8, rest string, err error) {
	for _, p := range xattrPrefixes {
		rest, ok := strings.CutPrefix(name, p.prefix)
		if ok && p.whole == (rest == "") {
			return p.index, rest, nil
		}
	}
	return 0, "", fmt.Errorf("attribute %q: no name that EROFS can hold", name)
}
