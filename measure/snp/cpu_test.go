package snp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// TestSignature: the published values, and the edges of each field.
func TestSignature(t *testing.T) {
	for _, row := range []struct {
		family, model, stepping int
		want                    uint32
	}{
		{23, 1, 2, 0x800f12}, {23, 49, 0, 0x830f10}, {25, 1, 1, 0xa00f11}, {25, 17, 0, 0xa10f10}, {26, 0, 0, 0xb00f00},
		{0, 0, 0, 0}, {6, 15, 11, 0x6fb}, {15, 0, 0, 0xf00}, {16, 0, 0, 0x100f00}, {270, 255, 15, 0x0fff0fff},
	} {
		if got, err := Signature(row.family, row.model, row.stepping); err != nil || got != row.want {
			t.Errorf("%d, %d, %d: %#x, %v, want %#x", row.family, row.model, row.stepping, got, err, row.want)
		}
	}
	for want, row := range map[string][3]int{
		"family 271": {271, 0, 0}, "family -1": {-1, 0, 0}, "model 256": {0, 256, 0}, "model -1": {0, -1, 0}, "stepping 16": {0, 0, 16}, "stepping -1": {0, 0, -1},
	} {
		_, err := Signature(row[0], row[1], row[2])
		wantError(t, want, err, want)
	}
}

// TestCPUs: the names and signatures that sev-snp-measure 0.0.13 publishes, and
// the versions that QEMU has had since.
func TestCPUs(t *testing.T) {
	published := map[string]uint32{
		"EPYC": 0x800f12, "EPYC-v1": 0x800f12, "EPYC-v2": 0x800f12, "EPYC-IBPB": 0x800f12, "EPYC-v3": 0x800f12, "EPYC-v4": 0x800f12,
		"EPYC-Rome": 0x830f10, "EPYC-Rome-v1": 0x830f10, "EPYC-Rome-v2": 0x830f10, "EPYC-Rome-v3": 0x830f10,
		"EPYC-Milan": 0xa00f11, "EPYC-Milan-v1": 0xa00f11, "EPYC-Milan-v2": 0xa00f11,
		"EPYC-Genoa": 0xa10f10, "EPYC-Genoa-v1": 0xa10f10, "EPYC-Turin": 0xb00f00,
		"EPYC-v5": 0x800f12, "EPYC-Rome-v4": 0x830f10, "EPYC-Rome-v5": 0x830f10, "EPYC-Milan-v3": 0xa00f11, "EPYC-Genoa-v2": 0xa10f10, "EPYC-Turin-v1": 0xb00f00,
	}
	for name, want := range published {
		if c, err := FindCPU(strings.ToLower(name)); err != nil || c.Name != name || c.Signature != want {
			t.Errorf("%s: %+v, %v, want %#x", name, c, err, want)
		}
	}
	if len(CPUs) != len(published) {
		t.Errorf("%d CPUs, want %d", len(CPUs), len(published))
	}
	for name, want := range map[string]string{
		"EPYC-Milan-v9": "did you mean EPYC-Milan-v1, EPYC-Milan-v2, EPYC-Milan-v3?", "EPYCv4": "did you mean EPYC-v4?", "epyc-geona": "did you mean EPYC-Genoa?",
		"": "did you mean EPYC?", strings.Repeat("x", 1<<20): "did you mean ",
	} {
		_, err := FindCPU(name)
		wantError(t, name[:min(len(name), 20)], err, want)
		if n := len(err.Error()); n > 500 {
			t.Errorf("an error of %d bytes", n)
		}
	}
}

// TestCPUsOfQEMU asks the QEMU that is installed for the models that it has.
func TestCPUsOfQEMU(t *testing.T) {
	testenv.Need(t, "qemu-system-x86_64")
	var ask strings.Builder
	ask.WriteString(`{"execute":"qmp_capabilities"}` + "\n")
	for _, c := range CPUs {
		fmt.Fprintf(&ask, `{"execute":"query-cpu-model-expansion","arguments":{"type":"full","model":{"name":%q}}}`+"\n", c.Name)
	}
	ask.WriteString(`{"execute":"quit"}` + "\n")
	cmd := exec.CommandContext(t.Context(), "timeout", "60", testenv.Tool("qemu-system-x86_64"), "-M", "q35", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-qmp", "stdio")
	cmd.Stdin = strings.NewReader(ask.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		var answer struct {
			Return struct {
				Model struct {
					Name  string
					Props struct{ Family, Model, Stepping int }
				}
			}
		}
		// Answers of another shape, and errors for models that this QEMU does not
		// have, give no name.
		if json.Unmarshal(s.Bytes(), &answer) != nil || answer.Return.Model.Name == "" {
			continue
		}
		m := answer.Return.Model
		want, err := Signature(m.Props.Family, m.Props.Model, m.Props.Stepping)
		if err != nil {
			t.Fatal(err)
		}
		c, err := FindCPU(m.Name)
		if err != nil || c.Signature != want {
			t.Errorf("%s: %#x, %v, QEMU has %#x", m.Name, c.Signature, err, want)
		}
		seen++
	}
	if seen < 8 { // QEMU 7.2 has 10
		t.Errorf("QEMU knows %d of the models", seen)
	}
}
