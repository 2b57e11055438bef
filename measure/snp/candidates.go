package snp

import (
	"cmp"
	"slices"
)

// Candidate is a set of inputs that gives a digest.
type Candidate struct {
	VMM       VMM
	Era       Era    // of QEMU; zero for others
	Product   string // of GCE
	Features  uint64
	Count     int    // vCPUs
	Signature uint32 // of QEMU
	Hashes    bool   // the firmware checks the kernel

	// Changed says which differ from the inputs at hand, in words: "host-kernel
	// era", "features", "vCPUs", "vCPU type", "kernel hashes", "VMM", "product".
	// Features that follow from another era are not named. Empty: the inputs at
	// hand give the digest.
	Changed []string
}

// maxCandidateVCPUs is how far Candidates counts, unless it is given more.
const maxCandidateVCPUs = 512

// Candidates searches for inputs that give the digest want: what l and v say, and
// what differs from them in the host's kernel, the features, the number and type
// of vCPUs, the rules for EC2, the product of GCE, or in that kernel hashes are
// off. Those with the fewest changes come first. None at all means that a file
// differs: firmware, kernel, initrd or command line.
func (l *Launch) Candidates(want [48]byte, v VCPUs) ([]Candidate, error) {
	asked, err := l.complete(v)
	if err != nil {
		return nil, err
	}
	var out []Candidate
	for _, other := range l.variants() {
		for _, features := range candidateFeatures(asked.Features) {
			if other.p.VMM == QEMU && !namesEra(other.p.Era, features) {
				continue
			}
			for _, signature := range l.candidateSignatures(v.Signature) {
				count, err := other.countFor(want, VCPUs{max(v.Count, maxCandidateVCPUs), signature, features})
				if err != nil {
					return nil, err
				}
				if count > 0 {
					out = append(out, l.candidate(other, v, VCPUs{count, signature, features}))
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Candidate) int { return cmp.Compare(len(a.Changed), len(b.Changed)) })
	return out, nil
}

// variants are l and the launches by other hosts with the same files.
func (l *Launch) variants() []*Launch {
	var out []*Launch
	hashes := []*Hashes{l.p.Hashes}
	if l.p.Hashes != nil {
		hashes = append(hashes, nil)
	}
	for _, h := range hashes {
		for _, p := range l.p.variants() {
			p.Hashes = h
			if other, err := newLaunch(p, l.seed); err == nil {
				out = append(out, other)
			}
		}
	}
	return out
}

func (p Params) variants() (out []Params) {
	switch {
	case p.VMM == QEMU:
		for _, p.Era = range Eras {
			out = append(out, p)
		}
	case p.VMM.isEC2():
		for _, p.VMM = range []VMM{EC2, EC2RDX0} {
			out = append(out, p)
		}
	case p.VMM == GCE:
		for _, p.Product = range gceProducts {
			out = append(out, p)
		}
	}
	return out
}

func candidateFeatures(asked uint64) []uint64 {
	out := []uint64{asked}
	for _, f := range []uint64{featureSNP, featureSNP | featureDebugSwap, featureSNP | featureSecureTSC, featureSNP | featureDebugSwap | featureSecureTSC} {
		if f != asked {
			out = append(out, f)
		}
	}
	return out
}

// namesEra tells whether e is the era to name for register pages with features:
// of those that fill the pages alike it is the one that has them by default, or
// else the newest.
func namesEra(e Era, features uint64) bool {
	var best *Era
	for i, x := range Eras {
		if x.MXCSR == e.MXCSR && x.FCW == e.FCW && (best == nil || x.Features == features) {
			best = &Eras[i]
		}
	}
	return best == nil || best.Name == e.Name
}

func (l *Launch) candidateSignatures(asked uint32) []uint32 {
	out := []uint32{asked}
	if l.p.VMM != QEMU {
		return out
	}
	for _, c := range CPUs {
		if !slices.Contains(out, c.Signature) {
			out = append(out, c.Signature)
		}
	}
	return out
}

// countFor returns with how many vCPUs, at most v.Count, the digest is want, and
// 0 if with none.
func (l *Launch) countFor(want [48]byte, v VCPUs) (int, error) {
	r, err := l.newRun(v)
	if err != nil {
		return 0, err
	}
	c := chain{r.after(1)}
	for count := 1; ; count++ {
		if c.digest == want {
			return count, nil
		}
		if count == v.Count || l.seed.Reset == nil {
			return 0, nil
		}
		c.add(pageVMSA, r.gpa, r.other)
	}
}

// candidate describes the launch other of processors got, where l and v were
// asked for.
func (l *Launch) candidate(other *Launch, v, got VCPUs) Candidate {
	c := Candidate{
		VMM: other.p.VMM, Era: other.p.Era, Product: other.p.Product, Hashes: other.p.Hashes != nil,
		Features: got.Features, Count: got.Count, Signature: got.Signature,
	}
	usual := uint64(featureSNP)
	if c.VMM == QEMU {
		usual = c.Era.Features
	} else {
		c.Era = Era{}
	}
	for _, row := range []struct {
		what    string
		changed bool
	}{
		{"host-kernel era", c.VMM == QEMU && c.Era != l.p.Era},
		{"features", c.Features != cmp.Or(v.Features, usual)},
		{"vCPUs", c.Count != v.Count},
		{"vCPU type", c.Signature != v.Signature},
		{"kernel hashes", c.Hashes != (l.p.Hashes != nil)},
		{"VMM", c.VMM != l.p.VMM},
		{"product", !sameProduct(c.Product, l.p.Product)},
	} {
		if row.changed {
			c.Changed = append(c.Changed, row.what)
		}
	}
	return c
}
