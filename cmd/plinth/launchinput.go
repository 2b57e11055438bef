package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
)

// launch is what the flags of measure snp, seves and sev name, read.
type launch struct {
	firmware   []byte      // nil with --ovmf-seed
	snp        *snp.Launch // of SNP alone
	hashes     *snp.Hashes // nil: no direct boot
	vmm        snp.VMM
	era        snp.Era
	features   uint64
	processors []processor // none for SEV

	inputs inputList
	keys   [2]*ecdsa.PrivateKey // of the ID block: its own, and the author's
}

// A processor is a type that values are asked for.
type processor struct {
	name      string // "" where the VMM has no types
	signature uint32
}

// load reads everything that the flags name. The larger of kernel and initrd
// decides how long that takes: it is digested beside all else.
func (f *launchFlags) load(withInputs bool) (*launch, error) {
	l := &launch{inputs: inputList{wanted: withInputs}}
	if err := f.numbers(l); err != nil {
		return nil, err
	}
	kernel, initrd := &digestedFile{path: f.kernel}, &digestedFile{path: f.initrd}
	large, small := kernel, initrd
	if initrd.stat() > kernel.stat() {
		large, small = initrd, kernel
	}
	var g errgroup.Group
	g.Go(large.read)
	err := f.readFirmware(l)
	if err == nil {
		err = small.read()
	}
	if err := errors.Join(err, g.Wait()); err != nil {
		return nil, err
	}
	if f.kernel != "" {
		if err := f.directBoot(l, kernel, initrd); err != nil {
			return nil, err
		}
	}
	return l, f.block.load(l)
}

// directBoot puts the digests of kernel, initrd and command line into the launch.
func (f *launchFlags) directBoot(l *launch, kernel, initrd *digestedFile) (err error) {
	var cmdline *string
	if f.given("append") {
		cmdline = &f.cmdline
	}
	if l.hashes, err = snp.HashDirectBoot(strings.NewReader(""), nil, cmdline); err != nil {
		return err
	}
	l.hashes.Kernel = kernel.sum
	l.inputs.digest("kernel", kernel)
	if f.initrd != "" {
		l.hashes.Initrd = initrd.sum
		l.inputs.digest("initrd", initrd)
	}
	if cmdline != nil {
		l.inputs.bytes("cmdline", []byte(*cmdline))
	}
	if l.snp != nil {
		if l.snp, err = l.snp.WithHashes(l.hashes); err != nil {
			return fmt.Errorf("%s: %w", cmp.Or(f.ovmf, f.seed), err)
		}
	}
	return nil
}

// numbers reads the flags that need no file.
func (f *launchFlags) numbers(l *launch) (err error) {
	if l.vmm, err = snp.FindVMM(f.vmm); err != nil {
		return usagef("--vmm-type: %w", err)
	}
	if l.era, err = f.hostEra(); err != nil {
		return err
	}
	if f.features != "" {
		if l.features, err = strconv.ParseUint(f.features, 0, 64); err != nil {
			return usagef("--guest-features is %q: want a number such as 0x1", f.features)
		}
	}
	if f.platform == measure.PlatformSEV {
		return nil
	}
	if len(f.vcpus) == 0 {
		return usagef("--vcpus is needed")
	}
	for i, n := range f.vcpus {
		if n < 1 {
			return usagef("--vcpus is %d: want at least 1", n)
		}
		for _, other := range f.vcpus[:i] {
			if n == other {
				return usagef("--vcpus has %d twice", n)
			}
		}
	}
	l.processors, err = f.processors(l.vmm)
	return err
}

// hostEra is the newest one unless the flag names another.
func (f *launchFlags) hostEra() (snp.Era, error) {
	if f.era == "" {
		return snp.Eras[0], nil
	}
	era, err := snp.FindEra(f.era)
	if err != nil {
		return era, usagef("--host-era: %w", err)
	}
	return era, nil
}

func defaultEra() string { return snp.Eras[0].Name }

func eraNames() string {
	var out []string
	for _, e := range snp.Eras {
		out = append(out, e.Name+" ("+e.Hosts+")")
	}
	return strings.Join(out, ", ")
}

// processors reads the types that the flags name.
func (f *launchFlags) processors(vmm snp.VMM) ([]processor, error) {
	if vmm != snp.QEMU {
		for _, name := range []string{"vcpu-type", "vcpu-sig", "vcpu-family", "vcpu-model", "vcpu-stepping"} {
			if f.given(name) {
				return nil, usagef("--%s does not apply to --vmm-type %s: no CPU signature is in what it measures", name, f.vmm)
			}
		}
		return []processor{{}}, nil
	}
	switch {
	case len(f.types) > 0 && (f.sig != "" || f.given("vcpu-family")), f.sig != "" && f.given("vcpu-family"):
		return nil, usagef("one of --vcpu-type, --vcpu-sig and --vcpu-family is wanted, not two")
	case len(f.types) > 0:
		return typesNamed(f.types)
	case f.sig != "":
		sig, err := strconv.ParseUint(f.sig, 0, 32)
		if err != nil {
			return nil, usagef("--vcpu-sig is %q: want 32 bits, such as 0x800f12", f.sig)
		}
		return []processor{signed(uint32(sig))}, nil
	case !f.given("vcpu-family") || !f.given("vcpu-model") || !f.given("vcpu-stepping"):
		return nil, usagef("the processors' type is needed: --vcpu-type, --vcpu-sig, or --vcpu-family, --vcpu-model and --vcpu-stepping")
	}
	sig, err := snp.Signature(f.family, f.model, f.stepping)
	if err != nil {
		return nil, usageError{err}
	}
	return []processor{signed(sig)}, nil
}

// signed is a processor that has no name but its signature.
func signed(sig uint32) processor { return processor{fmt.Sprintf("signature %#x", sig), sig} }

func typesNamed(names []string) (out []processor, err error) {
	for _, name := range names {
		cpu, err := snp.FindCPU(name)
		if err != nil {
			return nil, usagef("--vcpu-type: %w", err)
		}
		for _, other := range out {
			if other.name == cpu.Name {
				return nil, usagef("--vcpu-type has %s twice", cpu.Name)
			}
		}
		out = append(out, processor{cpu.Name, cpu.Signature})
	}
	return out, nil
}

// readFirmware reads the files that are taken whole, and digests their pages.
func (f *launchFlags) readFirmware(l *launch) (err error) {
	p := snp.Params{VMM: l.vmm, Era: l.era, Product: f.product}
	name := f.ovmf
	if f.seed != "" {
		name = f.seed
		p.Seed, err = l.readSeed(f.seed)
	} else {
		l.firmware, err = l.read("firmware", f.ovmf)
		p.Firmware = l.firmware
	}
	if err != nil || f.platform != measure.PlatformSNP {
		return err
	}
	if f.svsm != "" {
		if err := f.readSVSM(l, &p); err != nil {
			return err
		}
	}
	if f.hash != "" {
		if err := f.takeHash(&p); err != nil {
			return err
		}
	}
	if l.snp, err = snp.NewLaunch(p); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (l *launch) readSeed(path string) (*snp.Seed, error) {
	b, err := l.read("ovmf-seed", path)
	if err != nil {
		return nil, err
	}
	s, err := snp.ParseSeed(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// takeHash puts --snp-ovmf-hash in the place of the firmware's pages.
func (f *launchFlags) takeHash(p *snp.Params) error {
	b, err := hex.DecodeString(f.hash)
	if err != nil || len(b) != sha512.Size384 {
		return usagef("--snp-ovmf-hash is %q: want %d bytes in hex", f.hash, sha512.Size384)
	}
	if p.Seed, err = snp.NewSeed(p.Firmware, [48]byte(b)); err != nil {
		return fmt.Errorf("%s: %w", f.ovmf, err)
	}
	p.Firmware = nil
	return nil
}

func (f *launchFlags) readSVSM(l *launch, p *snp.Params) (err error) {
	if p.SVSM, err = l.read("svsm", f.svsm); err != nil {
		return err
	}
	if f.varsFile != "" {
		fi, err := os.Stat(f.varsFile)
		if err != nil {
			return err
		}
		p.VarsSize = int(fi.Size())
		return nil
	}
	if p.VarsSize, err = strconv.Atoi(f.varsSize); err != nil || p.VarsSize < 0 {
		return usagef("--vars-size is %q: want bytes", f.varsSize)
	}
	return nil
}

// read reads a file and notes it as an input.
func (l *launch) read(name, path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		l.inputs.bytes(name, b)
	}
	return b, err
}
