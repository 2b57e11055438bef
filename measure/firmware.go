package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// Firmware is what a firmware file contributes to a prediction. Making it
// unpacks the file, which takes longer than the rest of a prediction; its JSON
// form is small, so that it can be kept.
type Firmware struct {
	Schema     int      `json:"schema"`
	SHA256     string   `json:"sha256"`  // of the file
	Version    string   `json:"version"` // as EV_S_CRTM_VERSION has it; "" in some builds
	SecureBoot bool     `json:"secure_boot"`
	SMM        bool     `json:"smm"`
	Behaviours []string `json:"behaviours"` // of the table, those that its content tells
	Volumes    []Volume `json:"volumes"`    // in the order in which they are measured; none in a build without PEI phase, for trust domains
}

// Volume is an unpacked firmware volume.
type Volume struct {
	Name string `json:"name"` // "PEIFV", "DXEFV"
	Base uint64 `json:"base"` // guest physical address
	Size uint64 `json:"size"` // bytes

	// Measured holds the digests of the volume as the firmware finds it in
	// memory: chipset -> bank -> hex. A chipset is missing where PEI modules
	// alter the volume in a way that has to be recorded.
	Measured map[string]map[string]string `json:"measured"`
}

// firmwareSchema goes up, too, when a row of the table gets another Content, so
// that what was kept is made anew.
const firmwareSchema = 2

// volumes are those that are measured, in their order. The first is the one that
// PEI modules may alter.
var volumes = []string{peifv, "DXEFV"}

const peifv = "PEIFV"

// chipsets are those that package ovmf can tell about.
var chipsets = []string{"q35", "pc"}

// chipset returns the chipset of a machine type, "q35" or "pc-q35-7.2".
func chipset(machine string) string {
	if machine == "q35" || strings.HasPrefix(machine, "pc-q35-") {
		return "q35"
	}
	return machine
}

// DigestFirmware reads a firmware file: a code flash, or a whole one. The result
// is for predictions in banks; sha256 is always among them.
func DigestFirmware(code []byte, banks []eventlog.Alg) (*Firmware, error) {
	o, err := ovmf.Parse(code)
	if err != nil {
		return nil, fmt.Errorf("measure: firmware: %w", err)
	}
	sum := sha256.Sum256(code)
	f := &Firmware{
		Schema:     firmwareSchema,
		SHA256:     hex.EncodeToString(sum[:]),
		Version:    o.Version,
		SecureBoot: o.SecureBoot,
		SMM:        o.SMM,
		Behaviours: behavioursIn(o, code),
		Volumes:    []Volume{},
	}
	if _, ok := o.Volume(peifv); !ok && slices.Contains(f.Behaviours, tdFirmware) {
		return f, nil // nothing stands for PCR 0 at run time
	}
	// NCCFV of AMD SEV builds is unpacked, too, and not measured.
	for _, name := range volumes {
		v, ok := o.Volume(name)
		if !ok {
			return nil, fmt.Errorf("measure: firmware: no volume %s", name)
		}
		f.Volumes = append(f.Volumes, digestVolume(v, withSHA256(banks)))
	}
	return f, nil
}

func digestVolume(v ovmf.Volume, banks []eventlog.Alg) Volume {
	out := Volume{Name: v.Name, Base: v.Base, Size: uint64(len(v.Data)), Measured: map[string]map[string]string{}}
	var last []byte
	for _, c := range chipsets {
		data, ok := v.InMemory(c)
		if !ok {
			continue
		}
		digests := map[string]string{}
		if prev := out.Measured[chipsets[0]]; prev != nil && bytes.Equal(data, last) {
			digests = prev // DXEFV is 15 MiB; hash it once
		} else {
			for _, d := range digestsOf(banks, data) {
				digests[d.Alg.String()] = hex.EncodeToString(d.Value)
			}
		}
		out.Measured[c], last = digests, data
	}
	return out
}

// behavioursIn lists the rows of the table that the firmware's content decides.
func behavioursIn(o *ovmf.Firmware, code []byte) []string {
	out := []string{}
	for _, b := range Behaviours {
		if b.Component == Edk2 && b.Content != "" && contains(o, code, b.Content) {
			out = append(out, b.Key)
		}
	}
	return out
}

// Content is the name of a module, or with one of these before it a text: in
// DXEFV, or in what runs before that, PEIFV or a SEC phase that is not packed.
const (
	textPrefix  = "text:"
	earlyPrefix = "early:"
)

func contains(o *ovmf.Firmware, code []byte, content string) bool {
	if text, ok := strings.CutPrefix(content, textPrefix); ok {
		dxe, _ := o.Volume("DXEFV")
		return bytes.Contains(dxe.Data, []byte(text))
	}
	if text, ok := strings.CutPrefix(content, earlyPrefix); ok {
		pei, _ := o.Volume(peifv)
		return bytes.Contains(pei.Data, []byte(text)) || bytes.Contains(code, []byte(text))
	}
	// A confidential guest does not load NCCFV, and boot options name DXEFV.
	return slices.ContainsFunc(o.Modules, func(m ovmf.Module) bool { return m.Name == content && m.Volume != "NCCFV" })
}

// does tells whether the firmware shows a behaviour.
func (f *Firmware) does(key string) bool {
	if b := behaviour(key); b.Content == "" {
		return b.holds(f.release())
	}
	return slices.Contains(f.Behaviours, key)
}

// release returns edk2's version, "2025.02-8+deb13u1". Debian 12's build, and
// others that set no version, measure an empty one: ACPI tables tell them from
// newer ones.
func (f *Firmware) release() string {
	switch {
	case f.Version != "":
		return f.Version
	case !slices.Contains(f.Behaviours, acpiTables):
		return "2022.11"
	}
	return ""
}

// measured returns the digests of a volume on a machine type, in the order of
// banks: none when they have to be recorded. It fails when a bank is missing.
func (v *Volume) measured(machine string, banks []eventlog.Alg) (out []eventlog.Digest, err error) {
	digests, ok := v.Measured[chipset(machine)]
	if !ok {
		return nil, nil
	}
	for _, bank := range banks {
		b, err := hex.DecodeString(digests[bank.String()])
		if err != nil || len(b) != bank.Size() {
			return nil, fmt.Errorf("measure: firmware digests: volume %s: no digest in bank %v", v.Name, bank)
		}
		out = append(out, eventlog.Digest{Alg: bank, Value: b})
	}
	return out, nil
}

// ParseFirmware reads what Marshal wrote.
func ParseFirmware(b []byte) (*Firmware, error) {
	var f Firmware
	if err := decodeStrict(b, &f); err != nil {
		return nil, fmt.Errorf("measure: firmware digests: %w", err)
	}
	if f.Schema != firmwareSchema {
		return nil, fmt.Errorf("measure: firmware digests: schema %d: want %d", f.Schema, firmwareSchema)
	}
	if f.Volumes != nil && len(f.Volumes) == 0 && f.does(tdFirmware) {
		return &f, nil
	}
	if len(f.Volumes) != len(volumes) {
		return nil, fmt.Errorf("measure: firmware digests: %d volumes: want %q", len(f.Volumes), volumes)
	}
	for i, v := range f.Volumes {
		if v.Name != volumes[i] || v.Name != peifv && v.Measured["q35"] == nil {
			return nil, fmt.Errorf("measure: firmware digests: volume %q, with digests for %d chipsets: want %s", v.Name, len(v.Measured), volumes[i])
		}
	}
	return &f, nil
}

// Marshal writes the JSON form.
func (f *Firmware) Marshal() ([]byte, error) { return strictjson.Marshal(f) }
