package snp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// part is a run of pages of one section of the metadata.
type part struct {
	kind      pageType
	gpa, size uint64
	source    string
	digest    [48]byte // running, after it
}

// metadataParts folds the metadata into the seed, in the order of the VMM.
func metadataParts(p *Params, seed *Seed) ([]part, error) {
	if p.Hashes != nil {
		if err := seed.checkHashes(); err != nil {
			return nil, err
		}
	}
	c := chain{seed.Digest()}
	var parts []part
	for _, i := range sectionOrder(p.VMM, seed.Sections) {
		s := seed.Sections[i]
		if s.Size == 0 {
			continue
		}
		part := part{kind: sectionPages(p, s.Type), gpa: uint64(s.GPA), size: uint64(s.Size), source: fmt.Sprintf("SEV metadata %d: %v", i, s.Type)}
		if part.kind == pageNormal {
			c.addHashes(part, p.Hashes.page(seed.Hashes.Base%pageSize))
		} else {
			c.addEmpty(part.kind, part.gpa, part.size)
		}
		part.digest = c.digest
		parts = append(parts, part)
	}
	return parts, nil
}

// addHashes appends the pages of a kernel-hashes section: page, then empty ones.
func (c *chain) addHashes(p part, page []byte) {
	digest := pageDigest(page)
	for at := uint64(0); at < p.size; at += pageSize {
		c.add(pageNormal, p.gpa+at, digest)
		if at == 0 {
			digest = pageDigest(make([]byte, pageSize))
		}
	}
}

// sectionOrder lists sections by number as the VMM takes them: in file order,
// but EC2 has the CPUID page last.
func sectionOrder(v VMM, sections []ovmf.SEVSection) []int {
	var order, last []int
	for i, s := range sections {
		if v.isEC2() && s.Type == ovmf.SEVCPUID {
			last = append(last, i)
			continue
		}
		order = append(order, i)
	}
	return append(order, last...)
}

// sectionPages is how the VMM measures a section of a known type.
func sectionPages(p *Params, t ovmf.SEVType) pageType {
	switch {
	case t == ovmf.SEVMemory && p.VMM == GCE:
		return pageUnmeasured
	case t == ovmf.SEVSecrets:
		return pageSecrets
	case t == ovmf.SEVCPUID:
		return pageCPUID
	case t == ovmf.SEVKernelHashes && p.Hashes != nil:
		return pageNormal
	}
	return pageZero // memory, SVSM calling area, the page of hashes that are off
}

// maxSections bounds the memory that metadata names, in bytes: each of its pages
// costs a hash. Real firmware has less than 1 MiB.
const maxSections = 256 << 20

// checkSections refuses what no VMM would measure, or which ones differ about.
func checkSections(sections []ovmf.SEVSection) error {
	total := uint64(0)
	for i, s := range sections {
		switch s.Type {
		case ovmf.SEVMemory, ovmf.SEVSVSMCAA, ovmf.SEVKernelHashes:
		case ovmf.SEVSecrets, ovmf.SEVCPUID:
			if s.Size != pageSize {
				return sectionError(i, s, "%#x bytes: want one page", s.Size)
			}
		default:
			return sectionError(i, s, "unknown: it is not known how a VMM measures it")
		}
		switch {
		case s.GPA%pageSize != 0 || s.Size%pageSize != 0:
			return sectionError(i, s, "%#x bytes: want whole pages", s.Size)
		case uint64(s.GPA)+uint64(s.Size) > fourGiB:
			return sectionError(i, s, "%#x bytes: want them below 4 GiB", s.Size)
		}
		if total += uint64(s.Size); total > maxSections {
			return sectionError(i, s, "%#x bytes with those before it: want at most %#x", total, maxSections)
		}
	}
	return checkOverlap(sections)
}

const fourGiB = 1 << 32

func sectionError(i int, s ovmf.SEVSection, format string, a ...any) error {
	return fmt.Errorf("snp: SEV metadata %d (%v) at %#x: %w", i, s.Type, s.GPA, fmt.Errorf(format, a...))
}

// checkOverlap: a page is handed over once, a second time the processor refuses.
func checkOverlap(sections []ovmf.SEVSection) error {
	order := make([]int, 0, len(sections))
	for i, s := range sections {
		if s.Size > 0 {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sections[a].GPA, sections[b].GPA) })
	for n := 1; n < len(order); n++ {
		a, b := sections[order[n-1]], sections[order[n]]
		if uint64(a.GPA)+uint64(a.Size) > uint64(b.GPA) {
			return sectionError(order[n], b, "overlaps section %d (%v), %#x bytes at %#x", order[n-1], a.Type, a.Size, a.GPA)
		}
	}
	return nil
}

// checkHashes tells whether a kernel can be measured by the firmware's metadata.
func (s *Seed) checkHashes() error {
	if s.svsm() {
		return errors.New("snp: kernel hashes: an SVSM does not measure them")
	}
	i := slices.IndexFunc(s.Sections, func(x ovmf.SEVSection) bool { return x.Type == ovmf.SEVKernelHashes && x.Size > 0 })
	if i < 0 {
		return errors.New("snp: kernel hashes: the SEV metadata has no section for them: a kernel would not be measured; take a build that has it, as OVMF's AmdSev")
	}
	if err := checkArea(s.Hashes); err != nil {
		return err
	}
	for j, x := range s.Sections[i+1:] {
		if x.Type == ovmf.SEVKernelHashes && x.Size > 0 {
			return sectionError(i+1+j, x, "a second one: the first is section %d", i)
		}
	}
	if x := s.Sections[i]; x.GPA != s.Hashes.Base&^(pageSize-1) {
		return sectionError(i, x, "the firmware looks for the table at %#x", s.Hashes.Base)
	}
	return nil
}
