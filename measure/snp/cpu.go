package snp

import (
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/internal/levenshtein"
)

// CPU is a processor model of QEMU. Versions of a model differ in features, not
// in the signature, which alone is measured.
type CPU struct {
	Name      string
	Signature uint32 // CPUID Fn0000_0001 EAX
	Product   string
}

// CPUs are the EPYC models of QEMU, target/i386/cpu.c, builtin_x86_defs, up to
// version 10.1. sev-snp-measure 0.0.13 has those up to EPYC-Turin, without the
// last version of each.
var CPUs = cpus()

func cpus() []CPU {
	var out []CPU
	for _, m := range []struct {
		name, product           string
		family, model, stepping uint32
		versions                int
	}{
		{"EPYC", "Naples", 23, 1, 2, 5},
		{"EPYC-Rome", "Rome", 23, 49, 0, 5},
		{"EPYC-Milan", "Milan", 25, 1, 1, 3},
		{"EPYC-Genoa", "Genoa", 25, 17, 0, 2},
		{"EPYC-Turin", "Turin", 26, 0, 0, 1},
	} {
		sig := signature(m.family, m.model, m.stepping)
		out = append(out, CPU{m.name, sig, m.product})
		for v := 1; v <= m.versions; v++ {
			out = append(out, CPU{fmt.Sprintf("%s-v%d", m.name, v), sig, m.product})
			if m.name == "EPYC" && v == 2 {
				out = append(out, CPU{"EPYC-IBPB", sig, m.product}) // another name of EPYC-v2
			}
		}
	}
	return out
}

// FindCPU takes the name of a model in any case. A miss names the models nearest.
func FindCPU(name string) (CPU, error) {
	for _, c := range CPUs {
		if strings.EqualFold(c.Name, name) {
			return c, nil
		}
	}
	const longest = 32 // of a name that is worth a guess
	name = name[:min(len(name), longest)]
	return CPU{}, fmt.Errorf("snp: vCPU type %q: unknown: did you mean %s? For others give the signature, or family, model and stepping", name, strings.Join(nearest(name), ", "))
}

// nearest lists the models that differ from name by the fewest letters.
func nearest(name string) []string {
	best, names := -1, []string(nil)
	for _, c := range CPUs {
		d := levenshtein.Distance(strings.ToLower(name), strings.ToLower(c.Name))
		if best < 0 || d < best {
			best, names = d, nil
		}
		if d == best {
			names = append(names, c.Name)
		}
	}
	return names
}

// Signature packs family, model and stepping as CPUID Fn0000_0001 EAX has them:
// APM volume 3, appendix E.3.2. The family is that which people say, 25 for
// Milan: base and extended family added up.
func Signature(family, model, stepping int) (uint32, error) {
	const maxFamily = 15 + 255
	switch {
	case family < 0 || family > maxFamily:
		return 0, fmt.Errorf("snp: CPU family %d: want 0 to %d", family, maxFamily)
	case model < 0 || model > 255:
		return 0, fmt.Errorf("snp: CPU model %d: want 0 to 255", model)
	case stepping < 0 || stepping > 15:
		return 0, fmt.Errorf("snp: CPU stepping %d: want 0 to 15", stepping)
	}
	return signature(uint32(family), uint32(model), uint32(stepping)), nil
}

func signature(family, model, stepping uint32) uint32 {
	base, extended := family, uint32(0)
	if family > 15 {
		base, extended = 15, family-15
	}
	return extended<<20 | model>>4<<16 | base<<8 | model&15<<4 | stepping
}
