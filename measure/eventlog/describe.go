package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/internal/gpt"
)

// Describe fills the Name of every event from its type and data: what a person
// would call the thing that was measured. It trusts the log; see Inconsistent.
func (l *Log) Describe() {
	for i := range l.Events {
		e := &l.Events[i]
		if l.CC {
			e.Name = describeCC(e)
		} else {
			e.Name = describe(e)
		}
		if e.Name == "" {
			e.Name = e.Type.String()
		}
	}
}

// describeCC names what only a trust domain has: edk2, OvmfPkg, TdxHelperLib and
// PeilessStartupLib; td-shim, td-shim/src/event_log.rs.
func describeCC(e *Event) string {
	name := describe(e)
	switch {
	case e.Type == HandoffTables2 && name == "TdxTable", e.Type == PlatformConfig && name == "td_hob":
		return "TD hand-off blocks"
	case e.Type == FirmwareBlob2 && strings.HasPrefix(name, edk2Volume):
		// The text is a placeholder, or an identifier of the volume; the only
		// one that is measured so is that of the variables.
		_, place, _ := strings.Cut(name, ") ")
		return "configuration firmware volume " + place
	}
	return name
}

// edk2Volume begins the name that blobName gives to an edk2 volume.
const edk2Volume = "firmware blob Fv("

// describe returns "" for data that does not have the form of its type.
func describe(e *Event) string {
	switch e.Type {
	case NoAction:
		return noActionName(e)
	case Separator:
		return separatorName(e)
	case SCRTMVersion:
		return fmt.Sprintf("firmware version %q", printable(anyText(e.Data)))
	case FirmwareBlob, FirmwareBlob2, PostCode:
		return blobName(e)
	case HandoffTables, HandoffTables2:
		return tablesName(e)
	case PlatformConfig:
		return configName(e.Data)
	case VariableDriver, VariableBoot, VariableBoot2, VariableAuthority:
		return variableName(e)
	case GPTEvent, GPTEvent2:
		return gptName(e.Data)
	case BootApplication, BootDriver, RuntimeDriver:
		return imageName(e.Data)
	case EventTag:
		return tagName(e.Data)
	case IPL:
		return iplName(e)
	}
	return printable(anyText(e.Data))
}

func noActionName(e *Event) string {
	if loc, ok := locality(e); ok {
		return fmt.Sprintf("startup locality %d", loc)
	}
	// The other NO_ACTION structures begin with a signature in ASCII.
	return printable(anyText(e.Data[:min(len(e.Data), 16)]))
}

// separatorName tells an error separator by its digest, which is over the number
// 1, while the data says what went wrong: Profile, section 10.4.1.
func separatorName(e *Event) string {
	for _, d := range e.Digests {
		if d.Alg.Hash() != 0 && bytes.Equal(d.Value, d.Alg.Sum(errorSeparator)) {
			return "error separator " + fmt.Sprintf("%x", e.Data[:min(len(e.Data), 16)])
		}
	}
	return "separator"
}

// blobName reads a UEFI_PLATFORM_FIRMWARE_BLOB or, with a description in front,
// its second form: Profile, section 10.2.3.
func blobName(e *Event) string {
	c, what := &cursor{b: e.Data}, "firmware volume"
	if text := printable(anyText(e.Data)); e.Type == PostCode && text != "" {
		return text // "POST CODE", "SMM CODE", ...
	}
	if e.Type == FirmwareBlob2 {
		what = "firmware blob " + printable(anyText(c.take(uint64(c.u8()))))
	}
	base, size := c.u64(), c.u64()
	if !c.done() {
		return ""
	}
	return fmt.Sprintf("%s at %#x, %d bytes", what, base, size)
}

var tableNames = map[string]string{
	"eb9d2d31-2d88-11d3-9a16-0090273fc14d": "SMBIOS tables",
	"f2fd1544-9794-4a2c-992e-e5bbcf20e394": "SMBIOS tables",
	"eb9d2d30-2d88-11d3-9a16-0090273fc14d": "ACPI tables",
	"8868e871-e4f1-11d3-bc22-0080c73c8881": "ACPI tables",
}

// tablesName reads a UEFI_HANDOFF_TABLE_POINTERS: Profile, section 10.2.5.
func tablesName(e *Event) string {
	c, what := &cursor{b: e.Data}, ""
	if e.Type == HandoffTables2 {
		what = printable(anyText(c.take(uint64(c.u8()))))
	}
	n := c.u64()
	if c.short || n > uint64(len(e.Data))/24 {
		return ""
	}
	var names []string
	for range n {
		var g gpt.GUID
		copy(g[:], c.take(16))
		c.u64() // where the table lies
		name, ok := tableNames[g.String()]
		if !ok {
			name = "table " + g.String()
		}
		names = append(names, name)
	}
	switch {
	case !c.done():
		return ""
	case what != "":
		return what
	case n == 1:
		return names[0]
	}
	return printable(fmt.Sprintf("%d tables: %s", n, strings.Join(names, ", ")))
}

// configName reads what edk2 puts into EV_PLATFORM_CONFIG_FLAGS under QEMU:
// "ACPI DATA", or "QEMU FW CFG", a zero and the 56-byte name of the file.
func configName(data []byte) string {
	if file, ok := bytes.CutPrefix(data, []byte("QEMU FW CFG\x00")); ok {
		return "fw_cfg file " + printable(anyText(file))
	}
	return printable(anyText(data))
}

func variableName(e *Event) string {
	v, err := ParseVariable(e.Data)
	if err != nil {
		return ""
	}
	name := printable(v.Name)
	boot := e.Type == VariableBoot || e.Type == VariableBoot2
	switch {
	case e.Type == VariableAuthority:
		return "authority in " + name
	case boot && v.Name == "BootOrder":
		return "boot order" + bootOrder(v.Data)
	case boot && len(v.Name) == len("Boot0000") && strings.HasPrefix(v.Name, "Boot"):
		return fmt.Sprintf("boot option %s %q", name, loadOption(v.Data))
	}
	return "variable " + name
}

func bootOrder(b []byte) string {
	var s strings.Builder
	for ; len(b) >= 2 && s.Len() < maxText; b = b[2:] {
		fmt.Fprintf(&s, " %04X", binary.LittleEndian.Uint16(b))
	}
	return s.String()
}

// loadOption returns the description of an EFI_LOAD_OPTION: UEFI 2.10, section
// 3.1.3.
func loadOption(b []byte) string {
	c := &cursor{b: b}
	c.u32() // attributes
	c.u16() // size of the device path
	return printable(utf16Text(c.rest()))
}

// gptName reads a UEFI_GPT_DATA: a partition table header, the number of
// partitions and their entries.
func gptName(b []byte) string {
	c := &cursor{b: b}
	header := c.take(92)
	n := c.u64()
	if c.short {
		return ""
	}
	return fmt.Sprintf("partition table of disk %v, %d in use", gpt.GUID(header[56:72]), n)
}

// tagNames are the tags of EV_EVENT_TAG in use: Linux, efistub.h; systemd,
// tpm2-pcr.h.
var tagNames = map[uint32]string{
	0x8f3b22ed: "load options",
	0x8f3b22ec: "initrd",
	0xf5bc582a: "loader.conf",
	0x6c46f751: "device tree",
	0x49dffe0f: "initrd addon",
	0xdac08e1a: "microcode addon",
	0x13aed6db: "UKI profile",
	0xd5cb7cbc: "SMBIOS type 1",
	0xe0d47bc8: "SMBIOS type 2",
	0xc0b3bd23: "SMBIOS type 11",
}

// tagName reads a TCG_PCClientTaggedEvent: Profile, section 10.4.2.1.
func tagName(b []byte) string {
	c := &cursor{b: b}
	id := c.u32()
	text := printable(anyText(c.take(uint64(c.u32()))))
	if c.short {
		return untagged[anyText(b)]
	}
	if name, ok := tagNames[id]; ok {
		return name
	}
	if id == agentTag {
		return fmt.Sprintf("attestation agent %q", text)
	}
	return fmt.Sprintf("tag %#08x %q", id, text)
}

// agentTag, "AAEL", marks events of the attestation agent of confidential
// containers: domain, operation and content.
const agentTag = 0x4141454c

// untagged are texts that early Linux kernels for trust domains logged without
// their tag.
var untagged = map[string]string{"LOADED_IMAGE::LoadOptions": "load options", "Linux initrd": "initrd"}

// iplName tells systemd-stub's two events a section apart: the data of both is
// the section's name, the digest of the first is over the name in ASCII.
func iplName(e *Event) string {
	text := anyText(e.Data)
	if text == "" || !strings.HasPrefix(text, ".") || strings.ContainsAny(text, " /\n") {
		return printable(text)
	}
	for _, d := range e.Digests {
		if d.Alg.Hash() != 0 && bytes.Equal(d.Value, d.Alg.Sum([]byte(text), []byte{0})) {
			return "name of section " + printable(text)
		}
	}
	return "section " + printable(text)
}
