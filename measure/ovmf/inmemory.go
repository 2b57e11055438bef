package ovmf

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
)

// alteration is what the PEI phase writes into PEIFV before the volume is
// measured: some of its modules keep their variables there.
type alteration struct {
	volume  string // SHA-256 of PEIFV as in the file
	build   string
	offset  int
	written map[string][]byte // at offset, by machine type
}

// alterations has the builds whose PEIFV in memory follows from the file and the
// machine type alone. The rows were seen in boots with 1, 2 and 4 processors and
// 512, 1024 and 3072 MiB on q35, and one on pc. In builds that are not here PEI
// writes what varies: the memory's size, the number of processors, addresses
// that it allocates.
var alterations = []alteration{
	{
		volume:  "10e48f005bc9f46830c4596b9ab6f8d0b98427f08e17d6d0e6eef582a7b12512",
		build:   "edk2 2026.08+ds-2, OVMF_CODE_4M.fd and OVMF.fd",
		written: map[string][]byte{"q35": nil, "pc": nil},
	},
	{
		// One variable of PeiCore: the I/O port of the chipset's power
		// management timer, 0x608 and 0xb008.
		volume:  "acc7cc32f3e05161d1620022562909c284f700d73082cf7ac159451a3f7c7212",
		build:   "edk2 2025.02-8+deb13u1, OVMF_CODE_4M.fd and OVMF.fd",
		offset:  0x6e50,
		written: map[string][]byte{"q35": {0x08, 0x06}, "pc": {0x08, 0xb0}},
	},
}

// InMemory returns the volume as the firmware measures it on a machine of that
// type, "q35" or "pc". DXEFV is measured as it is in the file, in every build
// seen. PEIFV may have been written to by then; ok is false for a build of
// which that is not known, and its digest has to be recorded from a boot.
func (v Volume) InMemory(machine string) (data []byte, ok bool) {
	if v.Name == "DXEFV" {
		return v.Data, true
	}
	sum := sha256.Sum256(v.Data)
	for _, a := range alterations {
		if a.volume != hex.EncodeToString(sum[:]) {
			continue
		}
		written, known := a.written[machine]
		if !known {
			return nil, false
		}
		data = slices.Clone(v.Data)
		copy(data[a.offset:], written)
		return data, true
	}
	return nil, false
}
