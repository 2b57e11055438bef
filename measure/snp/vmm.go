package snp

import (
	"fmt"
	"strings"
)

// VMM is what starts the guest and fills its registers.
type VMM string

const (
	QEMU VMM = "qemu" // QEMU with KVM
	GCE  VMM = "gce"  // Google Compute Engine
	EC2  VMM = "ec2"  // Amazon EC2, as sev-snp-measure 0.0.13 knows it

	// EC2RDX0 is EC2 as the tools before sev-snp-measure 0.0.13 knew it: RDX is 0
	// where it now is 0x600.
	EC2RDX0 VMM = "ec2-rdx0"
)

// VMMs are all of them.
var VMMs = []VMM{QEMU, GCE, EC2, EC2RDX0}

// NotConfirmable is why a launch digest for EC2 may be off.
const NotConfirmable = "not confirmable: the published source of the firmware does not reproduce the digests of EC2 in production"

// FindVMM takes any case, since sev-snp-measure spells them QEMU, ec2 and gce.
func FindVMM(name string) (VMM, error) {
	for _, v := range VMMs {
		if strings.EqualFold(name, string(v)) {
			return v, nil
		}
	}
	return "", fmt.Errorf("snp: VMM %q: want one of %s", name, join(VMMs))
}

func (v VMM) isEC2() bool { return v == EC2 || v == EC2RDX0 }

func join[T ~string](names []T) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}

// Era is a span of host kernels whose KVM fills the register pages of QEMU's
// guests alike.
type Era struct {
	Name     string // the Linux version with which it begins
	MXCSR    uint32
	FCW      uint16 // x87 control word
	Features uint64 // SEV_FEATURES of an SNP guest that asks for none
	Hosts    string // for people
}

// Eras begins with the newest. Sources: Linux arch/x86/kvm/svm/sev.c, commit
// 5abf6dceb066 (DebugSwap is off again by default) and version 6.10 (the FPU
// state enters the page); sev-snp-measure, CHANGELOG of 0.0.9 and 0.0.10.
var Eras = []Era{
	{Name: "linux-6.10", MXCSR: 0x1f80, FCW: 0x37f, Features: featureSNP, Hosts: "Linux 6.10 and later"},
	{Name: "linux-6.6", Features: featureSNP | featureDebugSwap, Hosts: "Linux 6.6 to 6.8 with DebugSwap on by default"},
	{Name: "linux-5.19", Features: featureSNP, Hosts: "Linux before 6.6, and 6.8 and 6.9 with DebugSwap off by default"},
}

// FindEra takes the name with or without "linux-".
func FindEra(name string) (Era, error) {
	names := make([]string, len(Eras))
	for i, e := range Eras {
		if name == e.Name || "linux-"+name == e.Name {
			return e, nil
		}
		names[i] = e.Name
	}
	return Era{}, fmt.Errorf("snp: host-kernel era %q: want one of %s", name, join(names))
}

// Bits of SEV_FEATURES: APM volume 2, table B-4, offset 0x3b0.
const (
	featureSNP       = 1 << 0
	featureDebugSwap = 1 << 5
	featureSecureTSC = 1 << 9
)

var featureNames = []string{
	"SNPActive", "vTOM", "ReflectVC", "RestrictedInjection", "AlternateInjection", "DebugSwap", "PreventHostIBS",
	"BTBIsolation", "VmplSSS", "SecureTSC", "VmgexitParameter", "", "IbsVirtualization", "", "VmsaRegProt", "SmtProtection",
}

// FeatureNames lists the bits of SEV_FEATURES that are set, lowest first.
func FeatureNames(features uint64) []string {
	var out []string
	for bit := range 64 {
		switch {
		case features>>bit&1 == 0:
		case bit < len(featureNames) && featureNames[bit] != "":
			out = append(out, featureNames[bit])
		default:
			out = append(out, fmt.Sprintf("bit %d", bit))
		}
	}
	return out
}

// gceProducts are those whose hosts differ: Turin's are as Genoa's.
var gceProducts = []string{"Milan", "Genoa"}

// vmsaGPA is the address under which register pages are measured. KVM gives all
// of them the same one; GCE's is the highest page that the product can address:
// gce-tcb-verifier, sev/measurement.go.
func (p *Params) vmsaGPA() (uint64, error) {
	const bits48, bits52 = 0xfffffffff000, 0xffffffffff000
	switch p.Product {
	case "", "Milan":
		return bits48, nil
	case "Genoa", "Turin":
		return bits52, nil
	}
	return 0, fmt.Errorf("snp: product %q: want Milan, Genoa or Turin", p.Product)
}

// sameProduct tells whether register pages have the same address.
func sameProduct(a, b string) bool {
	x, _ := (&Params{Product: a}).vmsaGPA()
	y, _ := (&Params{Product: b}).vmsaGPA()
	return x == y
}
