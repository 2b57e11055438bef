package eventlog

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/internal/gpt"
)

// Types of device path nodes: UEFI 2.10, section 10.3.
const (
	nodeHardware  = 1
	nodeACPI      = 2
	nodeMessaging = 3
	nodeMedia     = 4
	nodeEnd       = 0x7f
)

// malformed stands for the rest of a device path that cannot be read.
const malformed = "(malformed)"

// DevicePath writes a device path as text, as UEFI 2.10 section 10.6 has it. A
// node that is not known here is Path(type,subtype,hex). Text from a malformed
// path ends with "(malformed)".
func DevicePath(b []byte) string {
	var text []string
	for {
		kind, sub, data, rest, ok := splitNode(b)
		if !ok {
			text = append(text, malformed)
			break
		}
		if kind == nodeEnd {
			break
		}
		text = append(text, nodeText(kind, sub, data))
		b = rest
	}
	return strings.Join(text, "/")
}

// filePath returns the text of the file path nodes of a device path, "" when it
// has none.
func filePath(b []byte) string {
	path := ""
	for {
		kind, sub, data, rest, ok := splitNode(b)
		if !ok || kind == nodeEnd {
			return path
		}
		if kind == nodeMedia && sub == 4 {
			path += utf16Text(data)
		}
		b = rest
	}
}

// splitNode takes the first node off a device path. A node without an end after
// it is malformed, too.
func splitNode(b []byte) (kind, sub byte, data, rest []byte, ok bool) {
	if len(b) < 4 {
		return
	}
	n := int(binary.LittleEndian.Uint16(b[2:]))
	if n < 4 || n > len(b) {
		return
	}
	return b[0], b[1], b[4:n], b[n:], true
}

func nodeText(kind, sub byte, data []byte) string {
	c := &cursor{b: data}
	text := ""
	switch kind {
	case nodeHardware:
		text = hardwareText(sub, c)
	case nodeACPI:
		text = acpiText(sub, c)
	case nodeMessaging:
		text = messagingText(sub, c)
	case nodeMedia:
		text = mediaText(sub, c)
	}
	if text == "" || c.short {
		return fmt.Sprintf("Path(%d,%d,%X)", kind, sub, data)
	}
	return text
}

func hardwareText(sub byte, c *cursor) string {
	switch sub {
	case 1:
		function, device := c.u8(), c.u8()
		return fmt.Sprintf("Pci(0x%X,0x%X)", device, function)
	case 3:
		return fmt.Sprintf("MemoryMapped(0x%X,0x%X,0x%X)", c.u32(), c.u64(), c.u64())
	case 4:
		return "VenHw" + vendorText(c)
	}
	return ""
}

func acpiText(sub byte, c *cursor) string {
	if sub != 1 {
		return ""
	}
	hid, uid := c.u32(), c.u32()
	const eisaPNP = 0x41d0
	switch {
	case hid == 0x0a03<<16|eisaPNP:
		return fmt.Sprintf("PciRoot(0x%X)", uid)
	case hid == 0x0a08<<16|eisaPNP:
		return fmt.Sprintf("PcieRoot(0x%X)", uid)
	case hid&0xffff == eisaPNP:
		return fmt.Sprintf("Acpi(PNP%04X,0x%X)", hid>>16, uid)
	}
	return fmt.Sprintf("Acpi(0x%08X,0x%X)", hid, uid)
}

func messagingText(sub byte, c *cursor) string {
	switch sub {
	case 2:
		return fmt.Sprintf("Scsi(0x%X,0x%X)", c.u16(), c.u16())
	case 5:
		return fmt.Sprintf("USB(0x%X,0x%X)", c.u8(), c.u8())
	case 10:
		return "VenMsg" + vendorText(c)
	case 11:
		mac := c.take(32)
		kind := c.u8()
		if kind <= 1 && !c.short {
			mac = mac[:6] // Ethernet
		}
		return fmt.Sprintf("MAC(%X,0x%X)", mac, kind)
	case 12:
		return "IPv4(…)" // the addresses of a network boot do not name what was booted
	case 13:
		return "IPv6(…)"
	case 18:
		return fmt.Sprintf("Sata(0x%X,0x%X,0x%X)", c.u16(), c.u16(), c.u16())
	case 23:
		id := c.u32()
		eui := c.take(8)
		if c.short {
			return ""
		}
		return fmt.Sprintf("NVMe(0x%X,%X-%X-%X-%X-%X-%X-%X-%X)", id, eui[7], eui[6], eui[5], eui[4], eui[3], eui[2], eui[1], eui[0])
	case 24:
		return "Uri(" + printable(string(c.rest())) + ")"
	}
	return ""
}

func mediaText(sub byte, c *cursor) string {
	switch sub {
	case 1:
		return hardDriveText(c)
	case 2:
		return fmt.Sprintf("CDROM(0x%X,0x%X,0x%X)", c.u32(), c.u64(), c.u64())
	case 3:
		return "VenMedia" + vendorText(c)
	case 4:
		return printable(utf16Text(c.rest()))
	case 6:
		return "FvFile(" + guidText(c) + ")"
	case 7:
		return "Fv(" + guidText(c) + ")"
	case 8:
		c.u32() // reserved
		return fmt.Sprintf("Offset(0x%X,0x%X)", c.u64(), c.u64())
	}
	return ""
}

func hardDriveText(c *cursor) string {
	number, start, size := c.u32(), c.u64(), c.u64()
	signature := c.take(16)
	c.u8() // partition format, which follows from the signature's type
	id := "0"
	switch c.u8() {
	case 1:
		id = fmt.Sprintf("MBR,0x%08X", binary.LittleEndian.Uint32(signature))
	case 2:
		id = "GPT," + strings.ToUpper(gpt.GUID(signature).String())
	}
	return fmt.Sprintf("HD(%d,%s,0x%X,0x%X)", number, id, start, size)
}

func vendorText(c *cursor) string {
	guid, data := guidText(c), c.rest()
	if len(data) == 0 {
		return "(" + guid + ")"
	}
	return fmt.Sprintf("(%s,%X)", guid, data)
}

func guidText(c *cursor) string {
	var g gpt.GUID
	copy(g[:], c.take(16))
	return strings.ToUpper(g.String())
}
