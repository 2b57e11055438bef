package snp

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// readVector reads a file of the published vectors of a project.
func readVector(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{testenv.Vectors(t), "measure"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readJSON(t testing.TB, v any, path ...string) {
	t.Helper()
	if err := json.Unmarshal(readVector(t, path...), v); err != nil {
		t.Fatal(err)
	}
}

func unhex48(t testing.TB, s string) [48]byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 48 {
		t.Fatalf("%q: want 48 bytes in hexadecimal", s)
	}
	return [48]byte(b)
}

// ssmVector is a row of sev-snp-measure's tests.
type ssmVector struct {
	Test  string
	Args  ssmArgs
	Want  string `json:"expected_hex"`
	Error string `json:"expected_error"`
	Hash  string `json:"expected_ovmf_hash_hex"`
}

type ssmArgs struct {
	Mode, Kernel, Initrd, Append string
	VCPUs                        int
	Signature                    string `json:"vcpu_sig"`
	OVMF                         string `json:"ovmf_file"`
	Features                     uint64 `json:"guest_features"`
	Hash                         string `json:"snp_ovmf_hash_str"`
	VMM                          string `json:"vmm_type"`
	SVSM                         string `json:"svsm_file"`
	VarsSize                     int    `json:"ovmf_vars_size"`
}

func TestSEVSNPMeasure(t *testing.T) {
	var file struct{ Vectors []ssmVector }
	readJSON(t, &file, "sev-snp-measure", "vectors.json")
	kinds := map[string]int{}
	for _, v := range file.Vectors {
		t.Run(v.Test, func(t *testing.T) {
			got, err := v.Args.measure(t)
			switch {
			case v.Error != "" && err == nil:
				t.Errorf("no error; theirs is %q", v.Error)
			case v.Error == "" && err != nil:
				t.Error(err)
			case v.Error == "" && got != v.Want:
				t.Errorf("digest %s, want %s", got, v.Want)
			}
		})
		kind := v.Args.Mode
		if v.Error != "" {
			kind = "must fail"
		}
		kinds[kind]++
	}
	want := map[string]int{"SevMode.SEV_SNP": 16, "SevMode.SEV_ES": 2, "SevMode.SEV": 3, "SevMode.SEV_SNP_SVSM": 2, "must fail": 3}
	for kind, n := range want {
		if kinds[kind] != n {
			t.Errorf("%d vectors of %s, want %d", kinds[kind], kind, n)
		}
	}
}

func (a ssmArgs) file(t *testing.T, path string) []byte {
	t.Helper()
	return readVector(t, "sev-snp-measure", "fixtures", filepath.Base(path))
}

func (a ssmArgs) measure(t *testing.T) (string, error) {
	t.Helper()
	firmware := a.file(t, a.OVMF)
	var h *Hashes
	if a.Kernel != "" { // /dev/null in all
		var err error
		if h, err = HashDirectBoot(strings.NewReader(""), nil, &a.Append); err != nil {
			t.Fatal(err)
		}
	}
	v := VCPUs{Count: a.VCPUs, Features: a.Features}
	if a.Signature != "" { // EPYC-v4 in all
		v.Signature = 0x800f12
	}
	switch a.Mode {
	case "SevMode.SEV":
		d, err := SEV(firmware, h)
		return hex.EncodeToString(d[:]), err
	case "SevMode.SEV_ES":
		v.Features = 0 // they pass features and do not use them
		d, err := SEVES(firmware, h, v)
		return hex.EncodeToString(d[:]), err
	}
	return a.launch(t, firmware, h, v)
}

// launch measures SNP, with an SVSM or without.
func (a ssmArgs) launch(t *testing.T, firmware []byte, h *Hashes, v VCPUs) (string, error) {
	t.Helper()
	p := Params{VMM: QEMU, Hashes: h, Firmware: firmware}
	if a.VMM != "" {
		var err error
		if p.VMM, err = FindVMM(a.VMM[strings.LastIndex(a.VMM, ".")+1:]); err != nil {
			t.Fatal(err)
		}
	}
	if a.Mode == "SevMode.SEV_SNP_SVSM" {
		p.SVSM, p.VarsSize = a.file(t, a.SVSM), a.VarsSize
		v.Features = 1 // they pass features and do not use them
	}
	if strings.HasPrefix(a.Hash, "<") { // of this firmware
		l, err := NewLaunch(Params{Firmware: firmware})
		if err != nil {
			t.Fatal(err)
		}
		p.Seed, p.Firmware = l.Seed(), nil
	} else if a.Hash != "" {
		seed, err := NewSeed(firmware, unhex48(t, a.Hash))
		if err != nil {
			t.Fatal(err)
		}
		p.Seed, p.Firmware = seed, nil
	}
	l, err := NewLaunch(p)
	if err != nil {
		return "", err
	}
	d, err := l.Digest(v)
	return hex.EncodeToString(d[:]), err
}

// TestOVMFHash: the running digest after the firmware is their OVMF hash.
func TestOVMFHash(t *testing.T) {
	var file struct{ Vectors []ssmVector }
	readJSON(t, &file, "sev-snp-measure", "vectors.json")
	checked := 0
	for _, v := range file.Vectors {
		if v.Hash == "" {
			continue
		}
		checked++
		firmware := v.Args.file(t, v.Args.OVMF)
		l, err := NewLaunch(Params{Firmware: firmware})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := l.Seed().Digest(), unhex48(t, v.Hash); got != want {
			t.Errorf("%s: %x, want %x", v.Test, got, want)
		}
		firmware[0] ^= 1
		if l, err = NewLaunch(Params{Firmware: firmware}); err != nil {
			t.Fatal(err)
		}
		if l.Seed().Digest() == unhex48(t, v.Hash) {
			t.Errorf("%s: a byte of the firmware does not move it", v.Test)
		}
	}
	if checked != 2 {
		t.Errorf("%d OVMF hashes, want 2", checked)
	}
}

// virteeVector is a row of the tests of virtee's Rust library.
type virteeVector struct {
	Test string
	Args struct {
		Mode, OVMF             string
		VCPUs                  int
		Features               string `json:"guest_features"`
		Kernel, Initrd, Append *string
		VMM                    string `json:"vmm_type"`
		Hash                   string `json:"ovmf_hash_seed"`
	}
	Want  string `json:"expected"`
	Note  string
	Error bool `json:"expected_error"`
}

func TestVirteeSEV(t *testing.T) {
	var file struct{ Vectors []virteeVector }
	readJSON(t, &file, "virtee-sev", "vectors.json")
	passed, refused, old := 0, 0, 0
	for _, v := range file.Vectors {
		t.Run(v.Test, func(t *testing.T) {
			got, err := v.measure(t)
			switch {
			case v.Error && err == nil:
				t.Error("no error, they have one")
			case !v.Error && err != nil:
				t.Error(err)
			case !v.Error && got != v.Want:
				t.Errorf("digest %s, want %s", got, v.Want)
			}
		})
		switch {
		case v.Error:
			refused++
		default:
			passed++
		}
		if v.oldEC2() {
			old++
		}
	}
	if passed != 19 || refused != 3 || old != 2 {
		t.Errorf("%d digests, %d refusals, %d of the older EC2; want 19, 3, 2", passed, refused, old)
	}
}

// oldEC2: the two rows of EC2 have RDX as it was before.
func (v *virteeVector) oldEC2() bool { return strings.Contains(v.Note, "RDX=0 ") }

func (v *virteeVector) measure(t *testing.T) (string, error) {
	t.Helper()
	firmware := readVector(t, "virtee-sev", "measurement", v.Args.OVMF)
	var h *Hashes
	if v.Args.Kernel != nil { // an empty file in all
		var err error
		if h, err = HashDirectBoot(strings.NewReader(""), nil, v.Args.Append); err != nil {
			t.Fatal(err)
		}
	}
	cpus := VCPUs{Count: v.Args.VCPUs, Signature: 0x800f12}
	switch v.Args.Mode {
	case "sev":
		d, err := SEV(firmware, h)
		return hex.EncodeToString(d[:]), err
	case "seves":
		d, err := SEVES(firmware, h, cpus)
		return hex.EncodeToString(d[:]), err
	}
	p := Params{Firmware: firmware, Hashes: h}
	var err error
	if cpus.Features, err = strconv.ParseUint(v.Args.Features, 0, 64); err != nil {
		t.Fatal(err)
	}
	if p.VMM, err = FindVMM(v.Args.VMM); err != nil {
		t.Fatal(err)
	}
	if v.oldEC2() {
		p.VMM = EC2RDX0
	}
	if v.Args.Hash != "" {
		if p.Seed, err = NewSeed(firmware, unhex48(t, v.Args.Hash)); err != nil {
			t.Fatal(err)
		}
		p.Firmware = nil
	}
	l, err := NewLaunch(p)
	if err != nil {
		return "", err
	}
	d, err := l.Digest(cpus)
	return hex.EncodeToString(d[:]), err
}

// TestSEVSNPMeasureGo: their metadata stands for a firmware that is not there.
func TestSEVSNPMeasureGo(t *testing.T) {
	var file struct {
		Vectors []struct{ Input, OVMFHash, Expected string }
	}
	readJSON(t, &file, "sev-snp-measure-go", "vectors.json")
	if len(file.Vectors) != 2 {
		t.Errorf("%d vectors, want 2", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		var meta struct {
			MetadataItems []struct {
				GPA, Size      string
				SectionTypeInt uint32
			}
			ResetEIP, OVMFHash string
		}
		readJSON(t, &meta, "sev-snp-measure-go", v.Input)
		word := func(s string) uint32 {
			n, err := strconv.ParseUint(s, 0, 32)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(n)
		}
		reset := word(meta.ResetEIP)
		const size = 4 << 20 // of the firmware; it does not enter
		seed := &Seed{Files: []SeedFile{{"firmware", 1<<32 - size, size, unhex48(t, meta.OVMFHash)}}, Reset: &reset}
		for _, x := range meta.MetadataItems {
			seed.Sections = append(seed.Sections, ovmf.SEVSection{GPA: word(x.GPA), Size: word(x.Size), Type: ovmf.SEVType(x.SectionTypeInt)})
		}
		l, err := NewLaunch(Params{VMM: EC2RDX0, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Digest(VCPUs{Count: 2, Features: 1})
		if err != nil {
			t.Fatal(err)
		}
		if want := unhex48(t, v.Expected); got != want {
			t.Errorf("%s: %x, want %x", v.Input, got, want)
		}
	}
}

// TestPageChains: values of Google's verifier, made by a few lines of Python
// beside them.
func TestPageChains(t *testing.T) {
	var file struct {
		Vectors []struct {
			Test string
			Want string `json:"expected_digest"`
		}
	}
	readJSON(t, &file, "gce-tcb-verifier", "vectors.json")
	const bumper = "LGTMLGTMLGTMLGTM"
	data := make([]byte, 3*pageSize)
	copy(data, bumper)
	copy(data[len(data)-len(bumper):], bumper)
	for _, v := range file.Vectors {
		var c chain
		switch v.Test {
		case "TestUpdateData":
			c.addPages(0, data)
		case "TestZeroContentUpdateData":
			c.addEmpty(pageZero, 0x9000, 0x3000)
		default:
			t.Errorf("%s: unknown", v.Test)
		}
		if want := unhex48(t, v.Want); c.digest != want {
			t.Errorf("%s: %x, want %x", v.Test, c.digest, want)
		}
	}
}
