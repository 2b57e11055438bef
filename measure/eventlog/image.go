package eventlog

import (
	"fmt"
	"strings"
)

// Image is a UEFI_IMAGE_LOAD_EVENT: Profile, section 10.2.4. The event's digest
// is the image's Authenticode digest, not one over this.
type Image struct {
	Location   uint64 // guest physical address
	Size       uint64 // bytes, of the file
	LinkTime   uint64 // address that the image was linked for
	DevicePath []byte
}

// ParseImage reads the data of an image event. What follows the device path is
// ignored: boot loaders have logged a few bytes more.
func ParseImage(b []byte) (Image, error) {
	c := &cursor{b: b}
	i := Image{Location: c.u64(), Size: c.u64(), LinkTime: c.u64()}
	size := c.u64()
	if i.DevicePath = c.take(size); c.short {
		return i, fmt.Errorf("eventlog: image: %d bytes, with a device path of %d", len(b), size)
	}
	return i, nil
}

// knownPaths are device paths that say more to their maker than to a reader.
var knownPaths = map[string]string{
	"VenMedia(55C5D1F8-04CD-46B5-8A20-E56CBB3052D0)":                                        "kernel inside the UKI",
	"Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)/FvFile(7C04A583-9E3E-4F1C-AD65-E05268D0B4D1)": "EFI shell of the firmware",
	"Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)/FvFile(462CAA21-7614-4503-836E-8AB6F4662331)": "setup of the firmware",
	"VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7)/kernel":                                 "image from -kernel",
}

func imageName(b []byte) string {
	i, err := ParseImage(b)
	if err != nil {
		return ""
	}
	text := DevicePath(i.DevicePath)
	if name, ok := knownPaths[text]; ok {
		return name
	}
	if file := printable(filePath(i.DevicePath)); file != "" {
		return "image " + strings.ReplaceAll(file, `\`, "/")
	}
	if text == "" || text == malformed {
		return "image without a device path" // loaded from memory, as shim does
	}
	return printable("image " + text)
}
