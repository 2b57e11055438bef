package ovmf

import (
	"cmp"
	"fmt"
	"slices"
)

// place is where a section is in guest memory.
type place struct {
	section   int // its number, or theFirmware
	gpa, size uint64
}

const theFirmware = -1

func (p place) String() string {
	if p.section == theFirmware {
		return "the firmware itself"
	}
	return fmt.Sprintf("section %d", p.section)
}

// checkPlaces wants whole pages of memory below 4 GiB, where the firmware ends,
// and none in two sections: who walks them page by page is bounded by that. The
// sections are in the file from at on, each bytes long.
func checkPlaces(e *TableEntry, places []place, at, each int) error {
	for _, p := range places {
		switch {
		case p.section == theFirmware:
		case p.gpa%pageSize != 0 || p.size%pageSize != 0:
			return e.errorf("section %d at %#x: %#x bytes at %#x: want whole pages of 4 KiB", p.section, at+p.section*each, p.size, p.gpa)
		case p.size > fourGiB || p.gpa > fourGiB-p.size:
			return e.errorf("section %d at %#x: %#x bytes at %#x: want them below 4 GiB", p.section, at+p.section*each, p.size, p.gpa)
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.gpa, b.gpa) })
	var last place // of those that are not empty
	for _, p := range places {
		if p.size == 0 {
			continue
		}
		if last.size > 0 && p.gpa < last.gpa+last.size {
			second := p
			if second.section < last.section { // name the later one as the culprit
				second, last = last, second
			}
			return e.errorf("section %d at %#x: %#x bytes at %#x overlap %v", second.section, at+second.section*each, second.size, second.gpa, last)
		}
		last = p
	}
	return nil
}
