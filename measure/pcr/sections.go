package pcr

import (
	"fmt"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// kernelBoot is the register of a unified kernel image's sections and phases:
// TPM2_PCR_KERNEL_BOOT in systemd.
const kernelBoot = 11

// Sections returns the events by which systemd-stub measures f, two a section:
// its name with the NUL, and its VirtualSize bytes in memory. order is what
// uki.MeasuredOrder says of the stub's version; a section that f lacks, or
// that is empty, gives no event.
func Sections(algs []eventlog.Alg, order []string, f *pe.File) ([]eventlog.Event, error) {
	sections, err := selected(f)
	if err != nil {
		return nil, err
	}
	var events []eventlog.Event
	for _, name := range order {
		s, ok := sections[name]
		if !ok {
			continue
		}
		content, err := Digests(algs, f.Measured(s))
		if err != nil {
			return nil, fmt.Errorf("pcr: section %s: %w", name, err)
		}
		events = append(events,
			sectionEvent(name, "name of section "+name, ofBytes(algs, append([]byte(name), 0))),
			sectionEvent(name, "section "+name, content))
	}
	return events, nil
}

// sectionEvent makes an event as the stub logs it: its data is the section's
// name in both events.
func sectionEvent(section, name string, d []eventlog.Digest) eventlog.Event {
	return eventlog.Event{
		Register: kernelBoot,
		Type:     eventlog.IPL,
		Digests:  d,
		Data:     text(section),
		Name:     name,
		Source:   section,
	}
}

// selected returns the sections that the stub works with when no profile is
// asked for: those before the first .profile section, overridden by those from
// there to the second (src/boot/pe.c, pe_locate_profile_sections). Stubs
// before 257 know no profiles, but an image with one profile reads the same.
// Empty sections count as missing, as they do there.
//
// A section that is twice in one profile is refused, since the first counts
// for some versions and the last for others; so are sections of which the
// stub takes the one that fits the hardware.
func selected(f *pe.File) (map[string]pe.Section, error) {
	out := map[string]pe.Section{}
	profiles := 0
	seen := map[string]bool{} // in this profile
	for _, s := range f.Sections {
		if s.Name == ".profile" {
			if profiles++; profiles > 1 {
				break
			}
			clear(seen)
		}
		if s.Name == ".dtbauto" || s.Name == ".efifw" {
			return nil, fmt.Errorf("pcr: section %s: measured only on hardware that it fits: not supported", s.Name)
		}
		if seen[s.Name] {
			return nil, fmt.Errorf("pcr: section %s: twice in one profile", s.Name)
		}
		seen[s.Name] = true
		if s.VirtualSize > 0 {
			out[s.Name] = s
		}
	}
	return out, nil
}

// Phases returns the extends of PCR 11 that userspace makes as the boot goes
// on, one a phase: UTF-8, without NUL. systemd's own are enter-initrd,
// leave-initrd, sysinit, ready, shutdown and final. No firmware log has them.
func Phases(algs []eventlog.Alg, phases []string) []eventlog.Event {
	var events []eventlog.Event
	for _, p := range phases {
		events = append(events, eventlog.Event{
			Register: kernelBoot,
			Type:     eventlog.IPL,
			Digests:  ofBytes(algs, []byte(p)),
			Data:     []byte(p),
			Name:     "phase " + p,
			Source:   "userspace",
		})
	}
	return events
}
