package eventlog

import "fmt"

// RegisterName is what people call a register: "pcr4", and in a CC log "mrtd" or
// "rtmr0". A measurement register index that no trust domain has is "mr7".
func (l *Log) RegisterName(r int) string {
	switch {
	case !l.CC:
		return fmt.Sprintf("pcr%d", r)
	case r == 0:
		return "mrtd"
	case 1 <= r && r <= maxCCIndex:
		return fmt.Sprintf("rtmr%d", r-1)
	}
	return fmt.Sprintf("mr%d", r)
}

// pcrHolds: TCG PC Client Platform Firmware Profile, section 3.3.4, and the Linux
// TPM PCR Registry of the UAPI group for those that the operating system uses.
var pcrHolds = [...]string{
	"firmware code",
	"firmware configuration: ACPI and SMBIOS tables, boot options",
	"drivers of devices",
	"configuration of these drivers",
	"boot loaders and kernels",
	"partition table; exit of boot services",
	"of the platform's maker",
	"Secure Boot: policy, keys, authorities",
	"commands of GRUB",
	"files that GRUB read; load options and initrd of Linux",
	"IMA of Linux",
	"sections of the UKI; phases of the boot",
	"command line, credentials and addons of the UKI",
	"system extensions of the initrd",
	"keys and hashes of shim",
	"identity of the system: its root, its machine ID",
	"for debugging",
}

// ccHolds follows from the PCRs that a register stands for: UEFI 2.10, section
// 38.4.1.
var ccHolds = [...]string{
	"what the VMM loaded before the guest ran; never extended",
	"firmware configuration (PCR 1 and 7): memory layout, variables, ACPI and SMBIOS tables, boot options",
	"what the firmware started (PCR 2 to 6): boot loaders, kernels; partition table; exit of boot services",
	"what these measured (PCR 8 to 15): command line, initrd, sections of the UKI",
	"what the guest measures while it runs",
}

// RegisterHolds says in a few words what a register stands for, "" for one that
// has no fixed use.
func (l *Log) RegisterHolds(r int) string {
	holds := pcrHolds[:]
	if l.CC {
		holds = ccHolds[:]
	}
	if r < 0 || r >= len(holds) {
		return ""
	}
	return holds[r]
}
