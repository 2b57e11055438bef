// Package snp computes what an AMD processor measures of a guest at its launch:
// the launch digest of SEV-SNP, and that of SEV-ES and SEV. It also writes, signs
// and reads the ID block, by which an owner tells the processor which digest to
// accept.
//
// The SNP digest is a fold over pages in the order in which the VMM hands them
// over: the firmware, then what the firmware's SEV metadata names, then one
// register page (VMSA) of each vCPU. It knows the VMM by its register pages and
// the order of its metadata, the host's kernel by how it fills the pages (Era),
// and the command line, kernel and initrd only if the firmware has a page for
// their hashes. Disks, the policy and the host data are not in it.
//
// Sources: AMD SEV Secure Nested Paging Firmware ABI (56860), SNP_LAUNCH_UPDATE
// and SNP_LAUNCH_FINISH; AMD64 Architecture Programmer's Manual (APM) volume 2,
// table B-4; QEMU's target/i386/sev.c; edk2's OvmfPkg/ResetVector. The values
// that QEMU, EC2 and GCE put into the registers are those of sev-snp-measure
// 0.0.13.
package snp

import (
	"errors"
	"fmt"
	"sync"
)

// Params decide everything but the vCPUs.
type Params struct {
	VMM      VMM     // "": QEMU
	Firmware []byte  // the whole file that ends at 4 GiB
	Seed     *Seed   // stands for Firmware and SVSM, which are nil then
	SVSM     []byte  // an SVSM that runs below the firmware: QEMU alone
	VarsSize int     // with SVSM: bytes of the variable store between the two
	Hashes   *Hashes // nil: the firmware is to check no kernel
	Era      Era     // zero: Eras[0]; what EC2 and GCE do does not depend on it
	Product  string  // GCE alone: "Milan" (also if empty), "Genoa" or "Turin"
}

// VCPUs are the processors of a guest.
type VCPUs struct {
	Count     int    // 1 to MaxVCPUs
	Signature uint32 // CPUID Fn0000_0001 EAX; QEMU alone shows it, EC2 and GCE are the same for all
	Features  uint64 // SEV_FEATURES; 0: the default of the era
}

// MaxVCPUs is more than any VMM starts, and bounds the work.
const MaxVCPUs = 1 << 16

// Launch holds what launches with the same Params have in common. It may be
// used by several goroutines.
type Launch struct {
	p     Params // without Firmware and SVSM
	seed  *Seed
	parts []part // of the metadata, measured between the firmware and the vCPUs

	mu   sync.Mutex
	runs map[VCPUs]*run // by processors without their count
}

// NewLaunch hashes the firmware, on all processors that Go may use, and what is
// measured before the vCPUs.
func NewLaunch(p Params) (*Launch, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	seed, err := p.seed()
	if err != nil {
		return nil, err
	}
	p.Firmware, p.SVSM, p.Seed = nil, nil, nil
	return newLaunch(p, seed)
}

// seed is the one that was given, or that of the files.
func (p *Params) seed() (*Seed, error) {
	if p.Seed == nil {
		return measureFiles(p)
	}
	if err := p.Seed.check(); err != nil {
		return nil, err
	}
	return p.Seed.clone(), nil
}

func newLaunch(p Params, seed *Seed) (*Launch, error) {
	if seed.svsm() && p.VMM != QEMU {
		return nil, fmt.Errorf("snp: SVSM: VMM %s: want %s", p.VMM, QEMU)
	}
	parts, err := metadataParts(&p, seed)
	if err != nil {
		return nil, err
	}
	return &Launch{p: p, seed: seed, parts: parts, runs: map[VCPUs]*run{}}, nil
}

// WithHashes is a launch of the same firmware with another kernel, or without
// one if h is nil. It hashes a few pages: who has the firmware and the kernel to
// hash can do both at once and join them here.
func (l *Launch) WithHashes(h *Hashes) (*Launch, error) {
	p := l.p
	p.Hashes = h
	return newLaunch(p, l.seed)
}

// Seed stands for the firmware in later launches.
func (l *Launch) Seed() *Seed { return l.seed.clone() }

// check completes p and refuses what contradicts itself.
func (p *Params) check() error {
	if p.VMM == "" {
		p.VMM = QEMU
	}
	if _, err := FindVMM(string(p.VMM)); err != nil {
		return err
	}
	if p.Era == (Era{}) {
		p.Era = Eras[0]
	}
	switch {
	case p.Seed == nil && len(p.Firmware) == 0:
		return errors.New("snp: no firmware")
	case p.Seed != nil && (p.Firmware != nil || p.SVSM != nil):
		return errors.New("snp: a seed and a file: want one of them")
	case p.SVSM == nil && p.VarsSize != 0:
		return errors.New("snp: size of the variables: it counts with an SVSM only")
	case p.Product != "" && p.VMM != GCE:
		return fmt.Errorf("snp: product %q: it counts with %s only", p.Product, GCE)
	}
	_, err := p.vmsaGPA()
	return err
}

// Digest returns the launch digest for v. After the first, further digests of
// the same processors cost only the vCPUs that are more than before.
func (l *Launch) Digest(v VCPUs) ([48]byte, error) {
	v, err := l.complete(v)
	if err != nil {
		return [48]byte{}, err
	}
	r, err := l.run(v)
	if err != nil {
		return [48]byte{}, err
	}
	return r.after(v.Count), nil
}

// complete checks v and puts defaults in.
func (l *Launch) complete(v VCPUs) (VCPUs, error) {
	if err := v.checkCount(); err != nil {
		return v, err
	}
	if v.Features == 0 {
		v.Features = featureSNP
		if l.p.VMM == QEMU {
			v.Features = l.p.Era.Features
		}
	}
	if v.Features&featureSNP == 0 {
		return v, fmt.Errorf("snp: features %#x: bit 0, SNPActive, is not set", v.Features)
	}
	if v.Count > 1 && l.seed.Reset == nil {
		return v, errNoReset(v.Count)
	}
	return v, nil
}

func errNoReset(count int) error {
	return fmt.Errorf("snp: %d vCPUs: the firmware has no SEV-ES reset block, which says where a second begins", count)
}

func (v VCPUs) checkCount() error {
	if v.Count < 1 || v.Count > MaxVCPUs {
		return fmt.Errorf("snp: %d vCPUs: want 1 to %d", v.Count, MaxVCPUs)
	}
	return nil
}

// VMSA returns the register pages that differ: that of the boot processor and,
// if there are more and they are not the same, that of all others.
func (l *Launch) VMSA(v VCPUs) (pages [][]byte, err error) {
	if v, err = l.complete(v); err != nil {
		return nil, err
	}
	boot, other := l.vmsas(v)
	pages = [][]byte{boot}
	if v.Count > 1 && !l.seed.svsm() {
		pages = append(pages, other)
	}
	return pages, nil
}

// before is the digest before the vCPUs.
func (l *Launch) before() [48]byte {
	if n := len(l.parts); n > 0 {
		return l.parts[n-1].digest
	}
	return l.seed.Digest()
}

// run is the digest by number of processors, as far as it was wanted.
type run struct {
	boot, other [48]byte // SHA-384 of the register pages
	gpa         uint64
	digests     [][48]byte // after the first vCPU, the second, ...
	mu          sync.Mutex
}

// run returns that of v without its count.
func (l *Launch) run(v VCPUs) (*run, error) {
	v.Count = 0
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := l.runs[v]; ok {
		return r, nil
	}
	r, err := l.newRun(v)
	if err != nil {
		return nil, err
	}
	if len(l.runs) >= maxRuns {
		clear(l.runs)
	}
	l.runs[v] = r
	return r, nil
}

// maxRuns bounds what a Launch remembers; a run is one SHA-384 state a vCPU.
const maxRuns = 1024

func (l *Launch) newRun(v VCPUs) (*run, error) {
	gpa, err := l.p.vmsaGPA()
	if err != nil {
		return nil, err
	}
	boot, other := l.vmsas(v)
	r := &run{boot: pageDigest(boot), other: pageDigest(other), gpa: gpa}
	first := chain{l.before()}
	first.add(pageVMSA, gpa, r.boot)
	r.digests = [][48]byte{first.digest}
	return r, nil
}

// after returns the digest with count vCPUs.
func (r *run) after(count int) [48]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.digests) < count {
		c := chain{r.digests[len(r.digests)-1]}
		c.add(pageVMSA, r.gpa, r.other)
		r.digests = append(r.digests, c.digest)
	}
	return r.digests[count-1]
}
