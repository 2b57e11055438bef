package ovmf

import "fmt"

// FlashVolume is a firmware volume as it lies in a flash file.
type FlashVolume struct {
	Name         string // "variables", "FVMAIN_COMPACT", "SECFV", else its GUID or, without one, its file system's
	Offset, Size int    // bytes
}

// FlashVolumes lists the volumes of a flash file, also of one that is not OVMF's.
// On a volume that cannot be read it returns those before it and an error.
func FlashVolumes(flash []byte) ([]FlashVolume, error) {
	if len(flash) > maxFlash {
		return nil, fmt.Errorf("ovmf: %d bytes: want at most %d", len(flash), maxFlash)
	}
	var out []FlashVolume
	for off := 0; off < len(flash); {
		if !isVolume(flash[off:]) {
			off += flashBlock
			continue
		}
		v, err := parseVolume(flash[off:], fmt.Sprintf("offset %#x", off))
		if err != nil {
			return out, err
		}
		out = append(out, FlashVolume{flashName(v), off, len(v.data)})
		off += len(v.data)
	}
	return out, nil
}

func flashName(v *volume) string {
	switch {
	case v.name == compactGUID:
		return "FVMAIN_COMPACT"
	case v.name == secGUID:
		return "SECFV"
	case v.fileSystem == nvVolumeGUID:
		return "variables"
	case v.name == GUID{}:
		return v.fileSystem.String()
	}
	return volumeName(v)
}
