package eventlog

import "fmt"

// Type says what an event's digest stands for: TCG_EVENTTYPE, TCG PC Client
// Platform Firmware Profile, section 10.4.1.
type Type uint32

// The event types that firmware, boot loaders and kernels log.
const (
	PrebootCert       Type = 0x00
	PostCode          Type = 0x01
	NoAction          Type = 0x03 // never extended
	Separator         Type = 0x04
	Action            Type = 0x05
	EventTag          Type = 0x06
	SCRTMContents     Type = 0x07
	SCRTMVersion      Type = 0x08
	CPUMicrocode      Type = 0x09
	PlatformConfig    Type = 0x0a
	TableOfDevices    Type = 0x0b
	CompactHash       Type = 0x0c
	IPL               Type = 0x0d
	IPLPartitionData  Type = 0x0e
	NonhostCode       Type = 0x0f
	NonhostConfig     Type = 0x10
	NonhostInfo       Type = 0x11
	OmitBootDevices   Type = 0x12
	PostCode2         Type = 0x13
	VariableDriver    Type = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	VariableBoot      Type = 0x80000002
	BootApplication   Type = 0x80000003 // EV_EFI_BOOT_SERVICES_APPLICATION
	BootDriver        Type = 0x80000004
	RuntimeDriver     Type = 0x80000005
	GPTEvent          Type = 0x80000006
	EFIAction         Type = 0x80000007
	FirmwareBlob      Type = 0x80000008 // EV_EFI_PLATFORM_FIRMWARE_BLOB
	HandoffTables     Type = 0x80000009
	FirmwareBlob2     Type = 0x8000000a
	HandoffTables2    Type = 0x8000000b
	VariableBoot2     Type = 0x8000000c
	GPTEvent2         Type = 0x8000000d
	HCRTM             Type = 0x80000010
	VariableAuthority Type = 0x800000e0
	SPDMBlob          Type = 0x800000e1
	SPDMConfig        Type = 0x800000e2
)

var typeNames = map[Type]string{
	PrebootCert:       "EV_PREBOOT_CERT",
	PostCode:          "EV_POST_CODE",
	NoAction:          "EV_NO_ACTION",
	Separator:         "EV_SEPARATOR",
	Action:            "EV_ACTION",
	EventTag:          "EV_EVENT_TAG",
	SCRTMContents:     "EV_S_CRTM_CONTENTS",
	SCRTMVersion:      "EV_S_CRTM_VERSION",
	CPUMicrocode:      "EV_CPU_MICROCODE",
	PlatformConfig:    "EV_PLATFORM_CONFIG_FLAGS",
	TableOfDevices:    "EV_TABLE_OF_DEVICES",
	CompactHash:       "EV_COMPACT_HASH",
	IPL:               "EV_IPL",
	IPLPartitionData:  "EV_IPL_PARTITION_DATA",
	NonhostCode:       "EV_NONHOST_CODE",
	NonhostConfig:     "EV_NONHOST_CONFIG",
	NonhostInfo:       "EV_NONHOST_INFO",
	OmitBootDevices:   "EV_OMIT_BOOT_DEVICE_EVENTS",
	PostCode2:         "EV_POST_CODE2",
	VariableDriver:    "EV_EFI_VARIABLE_DRIVER_CONFIG",
	VariableBoot:      "EV_EFI_VARIABLE_BOOT",
	BootApplication:   "EV_EFI_BOOT_SERVICES_APPLICATION",
	BootDriver:        "EV_EFI_BOOT_SERVICES_DRIVER",
	RuntimeDriver:     "EV_EFI_RUNTIME_SERVICES_DRIVER",
	GPTEvent:          "EV_EFI_GPT_EVENT",
	EFIAction:         "EV_EFI_ACTION",
	FirmwareBlob:      "EV_EFI_PLATFORM_FIRMWARE_BLOB",
	HandoffTables:     "EV_EFI_HANDOFF_TABLES",
	FirmwareBlob2:     "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
	HandoffTables2:    "EV_EFI_HANDOFF_TABLES2",
	VariableBoot2:     "EV_EFI_VARIABLE_BOOT2",
	GPTEvent2:         "EV_EFI_GPT_EVENT2",
	HCRTM:             "EV_EFI_HCRTM_EVENT",
	VariableAuthority: "EV_EFI_VARIABLE_AUTHORITY",
	SPDMBlob:          "EV_EFI_SPDM_FIRMWARE_BLOB",
	SPDMConfig:        "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

// String is the type's name in the specification, or its number.
func (t Type) String() string {
	if n, ok := typeNames[t]; ok {
		return n
	}
	return fmt.Sprintf("EV_%#08x", uint32(t))
}
