package measure

import (
	"fmt"
	"slices"
)

// proven are the versions whose behaviour was compared with real boots. A
// component of another version is predicted by the nearest rows of the table,
// and the prediction says so.
var proven = map[Component][]string{
	Edk2:   {"2022.11", "2025.02", "2026.08"},
	Stub:   {"252", "257", "262"},
	Kernel: {"6.1", "6.12"},
	VMM:    {"7.2", "10.0", "11.1"},
}

// findVersions reads the versions of what measures, and notes those that no boot
// has proved.
func (p *predictor) findVersions() {
	p.versions = Versions{Edk2: p.Firmware.release(), Kernel: p.os.release, VMM: p.m.VMM}
	if p.os.stub != nil {
		p.versions.Stub = p.os.stub.Full
	}
	for _, v := range []struct {
		component Component
		version   string
	}{
		{Edk2, p.versions.Edk2},
		{Stub, p.versions.Stub},
		{Kernel, p.versions.Kernel},
		{VMM, p.vmmVersion()},
	} {
		if v.version != "" && !isProven(v.component, v.version) {
			p.notes = append(p.notes, fmt.Sprintf("%s %s: no boot of this version has proved the prediction", v.component, v.version))
		}
	}
	if p.TD != nil {
		p.notes = append(p.notes, "no trust domain has run what this predicts: its events are those that boots with a TPM measured, in the registers that TdTcg2Dxe has for them")
	}
	if p.versions.Edk2 == "" {
		p.notes = append(p.notes, "edk2: the firmware names no version")
	}
}

func isProven(c Component, version string) bool {
	have := numbers(version)
	return slices.ContainsFunc(proven[c], func(p string) bool {
		want := numbers(p)
		return len(have) >= len(want) && slices.Equal(have[:len(want)], want)
	})
}
