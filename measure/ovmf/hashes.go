package ovmf

import "bytes"

// kernelHashGUID names the kernel's entry in the SEV hash table: QEMU,
// target/i386/sev.c.
var kernelHashGUID = mustGUID("4de79437-abd2-427f-b835-d5b172d2045b")

// checksHashes tells whether the loader of what the VMM passes knows the entries
// of the SEV hash table. That library (edk2, BlobVerifierLibSevHashes) is linked
// into the loader of some builds; the others have one that accepts everything.
func (im *image) checksHashes() bool {
	for _, m := range im.files {
		if m.Name == "QemuKernelLoaderFsDxe" && bytes.Contains(m.pe.body, kernelHashGUID[:]) {
			return true
		}
	}
	return false
}
