package evidence

// What attests a guest: the names of confidential-containers/kbs-types.
const (
	TEETPM    = "tpm"
	TEESNP    = "snp"
	TEETDX    = "tdx"
	TEEAzSNP  = "az-snp-vtpm" // behind Azure's paravisor
	TEEAzTDX  = "az-tdx-vtpm"
	TEESample = "sample" // proves nothing

	DeviceSample = "sampledevice" // an additional one that proves nothing
)

// TEEs are those that a guest may be attested by.
var TEEs = []string{TEETPM, TEESNP, TEETDX, TEEAzSNP, TEEAzTDX, TEESample}
