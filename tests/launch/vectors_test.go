package launch

import (
	"encoding/hex"
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// published is a row of a vectors.json, sev-snp-measure's or virtee/sev's. One
// without a value must fail.
type published struct {
	Test    string `json:"test"`
	Want    string `json:"expected_hex"`
	WantSEV string `json:"expected"` // virtee/sev
	OVMF    string `json:"expected_ovmf_hash_hex"`
	Args    struct {
		Mode        string  `json:"mode"`
		VCPUs       int     `json:"vcpus"`
		Firmware    string  `json:"ovmf_file"`
		FirmwareSEV string  `json:"ovmf"`
		Kernel      *string `json:"kernel"`
		Append      *string `json:"append"`
		Features    any     `json:"guest_features"`
		VMM         string  `json:"vmm_type"`
		SVSM        string  `json:"svsm_file"`
	} `json:"args"`
}

func (p *published) want() string { return p.Want + p.WantSEV }

// guest returns what the row describes; ok is false for what this package does
// not encode: other VMMs than QEMU, and SVSM.
func (p *published) guest(t *testing.T, dir string) (g *Guest, ok bool) {
	t.Helper()
	if p.Args.SVSM != "" || strings.Contains(p.Args.VMM, "ec2") || strings.Contains(p.Args.VMM, "EC2") || strings.Contains(p.Args.VMM, "gce") {
		return nil, false
	}
	name := filepath.Base(p.Args.Firmware + p.Args.FirmwareSEV)
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	g = &Guest{Firmware: b, VCPUs: p.Args.VCPUs, Signature: 0x800f12, MXCSR: 0x1f80, FCW: 0x37f}
	switch f := p.Args.Features.(type) {
	case float64:
		g.Features = uint64(f)
	case string:
		if g.Features, err = strconv.ParseUint(f, 0, 64); err != nil {
			t.Fatalf("%s: %v", p.Test, err)
		}
	}
	if p.Args.Kernel != nil { // always an empty file
		g.Direct = &Direct{}
		if p.Args.Append != nil {
			g.Direct.Cmdline = *p.Args.Append
		}
	}
	return g, true
}

func (p *published) digest(g *Guest) ([]byte, error) {
	switch strings.ToUpper(strings.NewReplacer("SevMode.", "", "_", "", "-", "").Replace(p.Args.Mode)) {
	case "SEV":
		d, err := g.SEV()
		return d[:], err
	case "SEVES":
		d, err := g.SEVES()
		return d[:], err
	}
	pages, err := g.SNP()
	if err != nil {
		return nil, err
	}
	return pages[len(pages)-1].Digest[:], nil
}

// TestPublished: the values that sev-snp-measure and virtee/sev publish.
func TestPublished(t *testing.T) {
	for _, source := range []struct {
		name, fixtures string
		rows           int // that this package encodes
	}{
		{"sev-snp-measure", "fixtures", 20},
		{"virtee-sev", "measurement", 20},
	} {
		dir := filepath.Join(testenv.Vectors(t), "measure", source.name)
		b, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Vectors []published `json:"vectors"`
		}
		if err := json.Unmarshal(b, &file); err != nil {
			t.Fatal(err)
		}
		rows := 0
		for _, p := range file.Vectors {
			g, ok := p.guest(t, filepath.Join(dir, source.fixtures))
			if !ok {
				continue
			}
			rows++
			got, err := p.digest(g)
			switch {
			case p.want() == "":
				if err == nil {
					t.Errorf("%s: %s: digest %x, want an error", source.name, p.Test, got)
				}
			case err != nil || hex.EncodeToString(got) != p.want():
				t.Errorf("%s: %s: %x, %v, want %s", source.name, p.Test, got, err, p.want())
			case p.OVMF != "":
				pages, _ := g.SNP()
				if d := pages[len(g.Firmware)/pageSize-1].Digest; hex.EncodeToString(d[:]) != p.OVMF {
					t.Errorf("%s: %s: firmware alone %x, want %s", source.name, p.Test, d, p.OVMF)
				}
			}
		}
		if rows != source.rows {
			t.Errorf("%s: %d rows, want %d", source.name, rows, source.rows)
		}
	}
}

// TestStandsAlone: a second encoder that borrows from the first proves nothing.
func TestStandsAlone(t *testing.T) {
	for _, name := range []string{"encoder.go", "vmsa.go", "firmware.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if strings.Contains(i.Path.Value, ".") {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := func(name string) bool { return strings.HasSuffix(name, "_test.go") }
	if rest := slices.DeleteFunc(files, tests); len(rest) != 3 {
		t.Errorf("files of the encoder: %v", rest)
	}
}

// TestLayout: sizes that the documents give.
func TestLayout(t *testing.T) {
	for name, row := range map[string]struct {
		v    any
		want int
	}{
		"PAGE_INFO": {pageInfo{}, 0x70},
		"VMSA":      {saveArea{}, 4096},
		"hashes":    {hashTable{}, 176},
	} {
		if got := len(encode(row.v)); got != row.want {
			t.Errorf("%s: %d bytes, want %d", name, got, row.want)
		}
	}
}
