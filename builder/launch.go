package builder

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/profiles"
)

// predictLaunch computes the SNP launch digest of every combination of number
// and model of vCPUs that the profile names.
func (i *Image) predictLaunch() (*measure.Measurements, error) {
	g, err := i.snpGuest()
	if err != nil {
		return nil, err
	}
	if g.Params.Firmware, err = i.read(FirmwareName); err != nil {
		return nil, err
	}
	if err := i.directBoot(g); err != nil {
		return nil, err
	}
	if f, err := CachedFirmware(i.Store, g.Params.Firmware); err == nil {
		g.Versions.Edk2 = f.Version
	} // else a firmware that is built otherwise, whose pages are measured all the same
	return measure.NewSNPMeasurements(i.Profile.Name, g)
}

// directBoot adds what is started, and the digests of it that the firmware will
// ask for.
func (i *Image) directBoot(g *measure.SNPGuest) (err error) {
	names := [][2]string{{"firmware", FirmwareName}}
	switch i.Machine.BootPath() {
	case profiles.PathUKI:
		names = append(names, [2]string{"kernel", UKIName})
		uki, err := i.Open(UKIName)
		if err != nil {
			return err
		}
		if g.Params.Hashes, err = snp.HashDirectBoot(uki, nil, nil); err != nil {
			return err
		}
	case profiles.PathKernel:
		names = append(names, [2]string{"kernel", KernelName}, [2]string{"initrd", InitrdName}, [2]string{"cmdline", CmdlineName})
		kernel, err := i.Open(KernelName)
		if err != nil {
			return err
		}
		if g.Versions.Kernel, err = measure.KernelRelease(kernel, kernel.Size()); err != nil {
			return err
		}
		initrd, err := i.Open(InitrdName)
		if err != nil {
			return err
		}
		b, err := i.read(CmdlineName)
		if err != nil {
			return err
		}
		cmdline := string(b)
		if g.Params.Hashes, err = snp.HashDirectBoot(kernel, initrd, &cmdline); err != nil {
			return err
		}
	}
	g.Inputs, err = i.inputs(names...)
	return err
}

// snpGuest is what the profile says of the guest.
func (i *Image) snpGuest() (*measure.SNPGuest, error) {
	p := i.Profile.SNP
	g := &measure.SNPGuest{
		Params:   snp.Params{VMM: snp.QEMU, Era: snp.Eras[0]},
		Machines: i.Machine.shapes(), Explain: true, GuestSVN: uint32(p.GuestSVN),
	}
	for _, name := range p.VCPUTypes {
		c, err := snp.FindCPU(name)
		if err != nil {
			return nil, &ValueError{"snp.vcpu_types", err}
		}
		g.CPUs = append(g.CPUs, c)
	}
	if p.HostEra != "" {
		era, err := snp.FindEra(p.HostEra)
		if err != nil {
			return nil, &ValueError{"snp.host_era", err}
		}
		g.Params.Era = era
	}
	var err error
	if g.Policy, err = snp.ParsePolicy(cmp.Or(p.Policy, snp.DefaultPolicy.String())); err != nil {
		return nil, &ValueError{"snp.policy", err}
	}
	if p.GuestFeatures != "" {
		if g.Features, err = measure.ParseBits(p.GuestFeatures); err != nil {
			return nil, &ValueError{"snp.guest_features", err}
		}
	}
	return g, errors.Join(identifier("snp.family_id", p.FamilyID, &g.FamilyID), identifier("snp.image_id", p.ImageID, &g.ImageID))
}

func identifier(key, text string, into *[16]byte) error {
	b, err := hex.DecodeString(text)
	if err != nil || text != "" && len(b) != len(into) {
		return &ValueError{key, fmt.Errorf("%q: want %d bytes in hex", text, len(into))}
	}
	copy(into[:], b)
	return nil
}

// A ValueError is a value of a profile that only the packages which use it could
// judge.
type ValueError struct {
	Key string // or the path of the file that a key names
	Err error
}

func (e *ValueError) Error() string { return e.Key + ": " + strings.TrimSpace(e.Err.Error()) }
func (e *ValueError) Unwrap() error { return e.Err }

// checkValues judges those values before anything is built.
func checkValues(p *profiles.Profile) error {
	if p.Platform != profiles.PlatformSNP {
		return nil
	}
	_, err := (&Image{Profile: p, Machine: shape(p.Machine)}).snpGuest()
	return err
}
