package rdseed

import "golang.org/x/sys/cpu"

// sources are the instructions that the processor says it has.
func sources() []source {
	var out []source
	if cpu.X86.HasRDSEED {
		out = append(out, source{"RDSEED", seed64, seedWords})
	}
	if cpu.X86.HasRDRAND {
		out = append(out, source{"RDRAND", rand64, randWords})
	}
	return out
}

// seed64 is one RDSEED. It is undefined where the processor lacks that.
func seed64() (v uint64, ok bool)

// rand64 is one RDRAND. It is undefined where the processor lacks that.
func rand64() (v uint64, ok bool)

// pause is one PAUSE, which lets the other thread of the core go on.
func pause()
