package measure

import (
	"slices"
	"strconv"
	"strings"
)

// Component is what a behaviour belongs to.
type Component string

const (
	Edk2   Component = "edk2"
	Stub   Component = "stub" // systemd-stub
	Kernel Component = "kernel"
	VMM    Component = "vmm" // QEMU
)

// Behaviour is one thing that is measured differently from some version on, or
// by some builds only.
type Behaviour struct {
	Key       string // its name in the code
	What      string
	Component Component
	TD        bool   // in trust domains only
	Since     string // first version, "" when all known ones do it
	Until     string // first version that does it no more, "" when the newest known does
	Content   string // edk2 only: what a build that does it contains; decides instead of the version
	Registers []int  // PCRs; in a trust domain what stands for them, see package tdx
	Source    string // where it was read
	Boot      string // a boot that proved it, in testdata; "" when none did
}

// Proof is how a reader is told what stands behind a row: the boot, or "source"
// for what was only read.
func (b *Behaviour) Proof() string {
	if b.Boot == "" {
		return "source"
	}
	return b.Boot
}

// The rows that code asks for by name.
const (
	secureBootVariable = "secure-boot-variable"
	acpiTables         = "acpi-tables"
	smbiosTables       = "smbios-tables"
	smbiosLate         = "smbios-late"
	peifvAltered       = "peifv-altered"
	bootMenu           = "boot-menu"
	setupOption        = "setup-option"
	shellOption        = "shell-option"
	shellApp           = "shell-app"
	kernelFirst        = "kernel-first"
	initrdPrefix       = "initrd-prefix"
	exitRetry          = "exit-retry"
	sectionsUnameSBAT  = "sections-uname-sbat"
	extraPolicy        = "extra-policy"
	extraOSRelease     = "extra-os-release"
	innerKernel        = "inner-kernel"
	smbiosTags         = "smbios-tags"
	consoleAppended    = "console-appended"
	bootSecret         = "boot-secret"
	kernelLoadOptions  = "kernel-load-options"
	imaAggregate       = "ima-aggregate"
	imaModules         = "ima-modules"
	setupHeader        = "setup-header"
	unpatchedKernel    = "unpatched-kernel"
	namedKernel        = "named-kernel"
	setupFile          = "setup-file"
	tdFirmware         = "td-firmware"
	fwcfgItems         = "fw-cfg-items"
	separatorMoved     = "separator-rtmr1"
	plainKernel        = "plain-kernel"
	stubCC             = "stub-cc"
	kernelCC           = "kernel-cc"
)

// Behaviours is the table. Rows are in the order of the log.
var Behaviours = []Behaviour{
	{
		Key: tdFirmware, Component: Edk2, TD: true, Content: "TdTcg2Dxe", Registers: []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		What:   "a firmware that can start a trust domain extends the RTMRs: first by the hand-off blocks of the VMM and by the variables in its file, then by what it would measure with a TPM, but for PCR 0, in the order of its time",
		Source: "OvmfPkg, TdTcg2Dxe.c, SecTdxHelper.c; UEFI 2.10, section 38.4.1",
	},
	{
		Key: fwcfgItems, Component: Edk2, TD: true, Since: "2025.05", Content: earlyPrefix + "QEMU FW CFG\x00", Registers: []int{1},
		What:   "after those, items of fw_cfg that decide how the firmware boots; of a machine without options for that only BootMenu, and bootorder with -kernel",
		Source: "OvmfPkg, QemuFwCfgCacheInit.c",
	},
	{
		Key: peifvAltered, Component: Edk2, Registers: []int{0},
		What:   "PEI modules alter the volume PEIFV in memory before it is measured; package ovmf knows the builds where this follows from the file and the machine type",
		Source: "OvmfPkg, PlatformPei and PeiCore as built: variables in modules that run in place",
		Boot:   "bookworm-disk-full",
	},
	{
		Key: secureBootVariable, Component: Edk2, Content: "SecureBootConfigDxe", Registers: []int{7},
		What:   "the variable SecureBoot is measured with one byte; a build without Secure Boot has no such variable and measures it with no data",
		Source: "SecurityPkg, Tcg2Dxe.c, MeasureAllSecureVariables",
		Boot:   "sid-secboot-disk",
	},
	{
		Key: acpiTables, Component: Edk2, Since: "2023.02", Content: textPrefix + acpiData, Registers: []int{1},
		What:   "the ACPI tables that QEMU makes are measured as they are loaded, and room for the TPM's log, 64 KiB of zeros, with them",
		Source: "OvmfPkg, AcpiPlatformDxe, QemuFwCfgAcpi.c",
		Boot:   "trixie-disk-full",
	},
	{
		Key: kernelFirst, Component: Edk2, Registers: []int{4},
		What:   "an image given by -kernel is measured before the boot variables and before \"Calling EFI Application\", one from a disk after",
		Source: "OvmfPkg, PlatformBootManagerLib, BdsPlatform.c, TryRunningQemuKernel",
		Boot:   "trixie-kernel",
	},
	{
		Key: smbiosTables, Component: Edk2, Since: "2025.05", Content: "SmbiosMeasurementDxe", Registers: []int{1},
		What:   "the SMBIOS tables are measured, without serial numbers and the like",
		Source: "MdeModulePkg, SmbiosMeasurementDxe.c",
		Boot:   "sid-disk-full",
	},
	{
		Key: smbiosLate, Component: Edk2, Since: "2025.05", Registers: []int{1},
		What:   "a build with SMM measures the SMBIOS tables after the separators, one without before the boot variables",
		Source: "the order of drivers in the build",
		Boot:   "sid-secboot-disk",
	},
	{
		Key: bootMenu, Component: Edk2, Since: "2025.05", Content: "BootManagerMenuApp", Registers: []int{1},
		What:   "Boot0000 is BootManagerMenuApp, not UiApp",
		Source: "OvmfPkg, PlatformBootManagerLib",
		Boot:   "sid-disk-full",
	},
	{
		Key: setupOption, Component: Edk2, Since: "2025.05", Content: "BootManagerMenuApp", Registers: []int{1},
		What:   "UiApp has a boot option of its own, EFI Firmware Setup",
		Source: "OvmfPkg, PlatformBootManagerLib",
		Boot:   "sid-disk-full",
	},
	{
		Key: setupFile, Component: Edk2, Content: "UiApp", Registers: []int{1},
		What:   "UiApp has its boot options where it is in DXEFV; builds for TDX keep it in NCCFV since 2026.05, which a trust domain does not load",
		Source: "OvmfPkg, IntelTdxX64.fdf; PlatformBootManagerCommonLib, PlatformRegisterFvBootOption",
		Boot:   "trixie-disk-full",
	},
	{
		Key: shellOption, Component: Edk2, Content: "Shell", Registers: []int{1},
		What:   "the last boot option is the EFI shell, where the build has it and the boot is not by -kernel",
		Source: "OvmfPkg, PlatformBootManagerLib; QemuBootOrderLib, SetBootOrderFromQemu",
		Boot:   "trixie-disk-full",
	},
	{
		Key: shellApp, Component: Edk2, Since: "2025.05", Content: "BootManagerMenuApp", Registers: []int{1},
		What:   "the EFI shell's boot option has the attribute of an application",
		Source: "OvmfPkg, PlatformBootManagerLib",
		Boot:   "sid-disk-full",
	},
	{
		Key: separatorMoved, Component: Edk2, TD: true, Since: "2024.11", Registers: []int{1, 4},
		What:   "the separator at the end of the firmware's part goes to RTMR 1; before it went to RTMR 0, which had two",
		Source: "OvmfPkg, TdTcg2Dxe.c, OnReadyToBoot; commit efaf8931bb",
	},
	{
		Key: setupHeader, Component: VMM, Registers: []int{4},
		What:   "QEMU writes to the setup header of a bzImage given by -kernel; addresses in it depend on the machine's memory and on the initrd's size",
		Source: "QEMU, hw/i386/x86-common.c, x86_load_linux",
		Boot:   "trixie-kernel",
	},
	{
		Key: unpatchedKernel, Component: VMM, Since: "10.0", Registers: []int{4},
		What:   "QEMU offers the kernel unchanged, too, as the file etc/boot/kernel",
		Source: "QEMU, hw/i386/x86-common.c",
		Boot:   "trixie-kernel-qemu10",
	},
	{
		Key: plainKernel, Component: VMM, TD: true, Since: "10.2", Registers: []int{4},
		What:   "QEMU does not write to the setup header of a confidential guest's kernel; Canonical's 8.2 and 9.x, and 10.1, do",
		Source: "QEMU, hw/i386/x86-common.c, x86_load_linux; commit a7542a38f3",
	},
	{
		Key: namedKernel, Component: Edk2, Since: "2025.02", Content: textPrefix + "etc/boot/\x00", Registers: []int{4},
		What:   "the firmware takes the kernel from there when it is",
		Source: "OvmfPkg, QemuKernelLoaderFsDxe.c",
		Boot:   "trixie-kernel-qemu10",
	},
	{
		Key: initrdPrefix, Component: Edk2, Since: "2025.08", Content: textPrefix + "initrd=initrd ", Registers: []int{9},
		What:   "with -initrd, \"initrd=initrd\" goes before the command line, not after it",
		Source: "OvmfPkg, GenericQemuLoadImageLib.c",
		Boot:   "sid-kernel",
	},
	{
		Key: stubCC, Component: Stub, TD: true, Since: "256", Registers: []int{11, 12, 13},
		What:   "the stub measures through the CC measurement protocol, too; its tagged events since 261",
		Source: "systemd, src/boot/measure.c; pull requests 30996, 41099",
	},
	{
		Key: sectionsUnameSBAT, Component: Stub, Since: "254", Registers: []int{11},
		What:   "the sections .uname and .sbat are measured",
		Source: "systemd, src/fundamental/uki.h",
		Boot:   "trixie-disk-full",
	},
	{
		Key: extraPolicy, Component: Stub, Registers: []int{9},
		What:   "the sections .pcrsig and .pcrpkey reach the kernel as files in /.extra, in archives that the stub adds to the initrd",
		Source: "systemd, src/boot/stub.c, src/boot/cpio.c",
		Boot:   "bookworm-disk-full",
	},
	{
		Key: extraOSRelease, Component: Stub, Since: "257", Registers: []int{9},
		What:   "the sections .osrel and .profile do, too",
		Source: "systemd, src/boot/stub.c",
		Boot:   "trixie-disk-full",
	},
	{
		Key: innerKernel, Component: Stub, Until: "258", Registers: []int{4},
		What:   "the stub starts the kernel through the firmware's LoadImage, which measures it, unless Secure Boot is on",
		Source: "systemd, src/boot/linux.c",
		Boot:   "trixie-disk-full",
	},
	{
		Key: smbiosTags, Component: Stub, Since: "261", Registers: []int{1},
		What:   "the stub measures the SMBIOS tables of type 1, 2 and 11, after the separator; QEMU makes only type 1",
		Source: "systemd, src/boot/measure.c",
		Boot:   "sid-disk-full",
	},
	{
		Key: consoleAppended, Component: Stub, Since: "262", Registers: []int{9},
		What:   "the stub appends console= to a command line that names none",
		Source: "systemd, src/boot/console.c",
		Boot:   "sid-disk-no-console",
	},
	{
		Key: bootSecret, Component: Stub, Since: "261", Registers: []int{9},
		What:   "the stub adds a boot secret to the initrd when it can write to the EFI system partition",
		Source: "systemd, src/boot/boot-secret.c",
		Boot:   "sid-disk-writable",
	},
	{
		Key: exitRetry, Component: Edk2, Registers: []int{5},
		What:   "ExitBootServices may have to be called twice when the guest can write to the disk",
		Source: "Linux, drivers/firmware/efi/libstub/efi-stub-helper.c, efi_exit_boot_services",
		Boot:   "sid-disk-writable",
	},
	{
		Key: kernelLoadOptions, Component: Kernel, Registers: []int{9},
		What:   "the kernel's EFI stub measures its load options and its initrd",
		Source: "Linux, drivers/firmware/efi/libstub/efi-stub-helper.c",
		Boot:   "bookworm-disk-kernel61",
	},
	{
		Key: kernelCC, Component: Kernel, TD: true, Since: "6.9", Registers: []int{9},
		What:   "the kernel's EFI stub does that through the CC measurement protocol where there is no TPM; before, nothing stands for PCR 9 in RTMR 2",
		Source: "Linux, drivers/firmware/efi/libstub/efi-stub-helper.c; commit ac93cbfc2a",
	},
	{
		Key: imaAggregate, Component: Kernel, Registers: []int{10},
		What:   "a kernel with IMA extends boot_aggregate, a digest over PCR 0 to 9",
		Source: "Linux, security/integrity/ima/ima_init.c",
		Boot:   "bookworm-disk-kernel61",
	},
	{
		Key: imaModules, Component: Kernel, Registers: []int{10},
		What:   "with Secure Boot on, a kernel with IMA measures every module that it loads",
		Source: "Linux, security/integrity/ima/ima_efi.c, sb_arch_rules",
		Boot:   "trixie-secure-boot-modules",
	},
}

// behaviour returns a row.
func behaviour(key string) *Behaviour {
	i := slices.IndexFunc(Behaviours, func(b Behaviour) bool { return b.Key == key })
	if i < 0 {
		panic("measure: no behaviour " + key) // the keys are constants of this file
	}
	return &Behaviours[i]
}

// holds tells whether a component of that version does it.
func (b *Behaviour) holds(version string) bool {
	return (b.Since == "" || compareVersions(version, b.Since) >= 0) &&
		(b.Until == "" || compareVersions(version, b.Until) < 0)
}

// compareVersions compares two versions by their leading numbers:
// "257.13-1~deb13u1" is 257.13. A missing number counts as zero.
func compareVersions(a, b string) int { return slices.Compare(numbers(a), numbers(b)) }

func numbers(version string) []int {
	var out []int
	for part := range strings.SplitSeq(version, ".") {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		out = append(out, n)
		if len(digits) < len(part) {
			break
		}
	}
	return out
}
