package disk

import "github.com/plinth-os/plinth/internal/gpt"

// Partition types, which say what a partition is for without an fstab: UAPI
// Group, UAPI.2 Discoverable Partitions Specification.
var (
	TypeESP          = gpt.MustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b") // EFI system partition
	TypeXBOOTLDR     = gpt.MustGUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")
	TypeRoot         = gpt.MustGUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709") // x86-64, as are the next five
	TypeRootVerity   = gpt.MustGUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
	TypeRootSig      = gpt.MustGUID("41092b05-9fc8-4523-994f-2def0408b176")
	TypeUsr          = gpt.MustGUID("8484680c-9521-48c6-9c11-b0720656f69e")
	TypeUsrVerity    = gpt.MustGUID("77ff5f63-e7b6-4633-acf4-1565b864c0e6")
	TypeUsrSig       = gpt.MustGUID("e7bb33fb-06cf-4e81-8273-e543b413e2e2")
	TypeVar          = gpt.MustGUID("4d21b016-b534-45c2-a9fb-5c16e091fd2d")
	TypeLinuxGeneric = gpt.MustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
)

// typeNames are what the specification calls the types.
var typeNames = map[gpt.GUID]string{
	TypeESP: "EFI system partition", TypeXBOOTLDR: "extended boot loader",
	TypeRoot: "x86-64 root", TypeRootVerity: "x86-64 root verity", TypeRootSig: "x86-64 root verity signature",
	TypeUsr: "x86-64 /usr", TypeUsrVerity: "x86-64 /usr verity", TypeUsrSig: "x86-64 /usr verity signature",
	TypeVar: "/var", TypeLinuxGeneric: "Linux data",
}

// TypeName names a partition type, "" for one that is not above.
func TypeName(t gpt.GUID) string { return typeNames[t] }

// Attributes of a partition, from the same document and UEFI 2.10, table 5.8.
const (
	AttrRequired = 1 << 0
	AttrGrowFS   = 1 << 59
	AttrReadOnly = 1 << 60
	AttrNoAuto   = 1 << 63
)
