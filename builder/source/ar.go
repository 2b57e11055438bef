package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The common ar format of deb(5): a magic, then members of a 60-byte ASCII
// header and data padded to an even offset.
const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
	maxArMembers = 32 // a .deb has three; signed ones a few more
)

type arHeader [arHeaderSize]byte

func (h *arHeader) name() []byte { return h[0:16] }  // space padded, perhaps with a final slash
func (h *arHeader) size() []byte { return h[48:58] } // decimal, space padded
func (h *arHeader) end() []byte  { return h[58:60] } // "`\n"

type arMember struct {
	name string
	data *io.SectionReader
}

// readAr lists the members of an archive. It refuses long names, which a .deb
// does not have.
func readAr(r io.ReaderAt, size int64) ([]arMember, error) {
	magic := make([]byte, len(arMagic))
	if _, err := r.ReadAt(magic, 0); err != nil || string(magic) != arMagic {
		return nil, errors.New("not an ar archive")
	}
	var members []arMember
	for off := int64(len(arMagic)); off < size; {
		if len(members) == maxArMembers {
			return nil, fmt.Errorf("more than %d members", maxArMembers)
		}
		m, err := readArMember(r, off, size)
		if err != nil {
			return nil, fmt.Errorf("member at offset %#x: %w", off, err)
		}
		members = append(members, m)
		off += arHeaderSize + (m.data.Size()+1)&^1
	}
	return members, nil
}

func readArMember(r io.ReaderAt, off, size int64) (arMember, error) {
	var h arHeader
	if n, _ := r.ReadAt(h[:], off); n < len(h) {
		return arMember{}, errors.New("truncated header")
	}
	if !bytes.Equal(h.end(), []byte("`\n")) {
		return arMember{}, errors.New("bad header")
	}
	n, err := strconv.ParseUint(strings.TrimRight(string(h.size()), " "), 10, 63)
	if err != nil || int64(n) > size-off-arHeaderSize {
		return arMember{}, fmt.Errorf("size %q is out of bounds", h.size())
	}
	name := strings.TrimSuffix(strings.TrimRight(string(h.name()), " "), "/")
	return arMember{name, io.NewSectionReader(r, off+arHeaderSize, int64(n))}, nil
}
