package snp

import "fmt"

// PageRange is a run of pages that were measured one after the other.
type PageRange struct {
	Type   string // "normal", "vmsa", "zero", "unmeasured", "secrets" or "cpuid"
	GPA    uint64 // of the first; all register pages have the same
	Pages  int
	Source string   // "firmware", "SEV metadata 3: CPUID", "vCPU 0 (BSP)", ...
	Digest [48]byte // running, after the range
}

// Explain lists what the digest for v is made of, in order. The last running
// digest is the launch digest.
func (l *Launch) Explain(v VCPUs) ([]PageRange, error) {
	v, err := l.complete(v)
	if err != nil {
		return nil, err
	}
	r, err := l.run(v)
	if err != nil {
		return nil, err
	}
	var out []PageRange
	for _, f := range l.seed.Files {
		out = append(out, PageRange{pageNormal.String(), f.GPA, f.Size / pageSize, f.Name, f.Digest})
	}
	for _, p := range l.parts {
		out = append(out, PageRange{p.kind.String(), p.gpa, int(p.size / pageSize), p.source, p.digest})
	}
	first, others := "vCPU 0 (BSP)", "vCPU 1 (AP)"
	if v.Count > 2 {
		others = fmt.Sprintf("vCPUs 1-%d (AP)", v.Count-1)
	}
	out = append(out, PageRange{pageVMSA.String(), r.gpa, 1, first, r.after(1)})
	if v.Count > 1 {
		out = append(out, PageRange{pageVMSA.String(), r.gpa, v.Count - 1, others, r.after(v.Count)})
	}
	return out, nil
}
