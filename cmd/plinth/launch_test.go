package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
)

// plinth runs the command in this process.
func plinth(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
	code = run(context.Background(), args, e)
	return out.String(), errs.String(), code
}

// ssmVector is a row of sev-snp-measure's tests.
type ssmVector struct {
	Test string
	Args struct {
		Mode     string
		VCPUs    int     `json:"vcpus"`
		Sig      *string `json:"vcpu_sig"`
		OVMF     string  `json:"ovmf_file"`
		Kernel   *string
		Initrd   *string
		Append   *string
		Features uint64 `json:"guest_features"`
		Hash     string `json:"snp_ovmf_hash_str"`
		VMM      string `json:"vmm_type"`
		SVSM     string `json:"svsm_file"`
		VarsSize int    `json:"ovmf_vars_size"`
	}
	Want   string `json:"expected_hex"`
	Hash   string `json:"expected_ovmf_hash_hex"`
	Refuse string `json:"expected_error"`
}

// flags are the row as its author would type it.
func (v *ssmVector) flags(dir string) []string {
	a := v.Args
	file := func(p string) string { return filepath.Join(dir, "fixtures", filepath.Base(p)) }
	out := []string{"measure", map[string]string{"SevMode.SEV": "sev", "SevMode.SEV_ES": "seves"}[a.Mode], "--ovmf", file(a.OVMF)}
	snp := strings.HasPrefix(a.Mode, "SevMode.SEV_SNP")
	if snp {
		out[1] = "snp"
	}
	if snp && a.SVSM == "" { // with an SVSM their tool does not look at the features
		out = append(out, "--guest-features", strconv.FormatUint(a.Features, 10))
	}
	if a.Mode != "SevMode.SEV" {
		out = append(out, "--vcpus", strconv.Itoa(a.VCPUs))
	}
	_, vmm, _ := strings.Cut(a.VMM, "VMMType.")
	if vmm != "" && snp {
		out = append(out, "--vmm-type", vmm)
	}
	if a.Mode != "SevMode.SEV" && (vmm == "" || vmm == "QEMU") {
		out = append(out, "--vcpu-type", "EPYC-v4") // the only one in these rows
	}
	for flag, value := range map[string]*string{"--kernel": a.Kernel, "--initrd": a.Initrd, "--append": a.Append} {
		if value != nil {
			out = append(out, flag, *value)
		}
	}
	if a.SVSM != "" {
		out = append(out, "--svsm", file(a.SVSM), "--vars-size", strconv.Itoa(a.VarsSize))
	}
	if a.Hash != "" {
		hash := a.Hash
		if v.Hash != "" {
			hash = v.Hash
		}
		out = append(out, "--snp-ovmf-hash", hash)
	}
	return out
}

// TestLaunchVectors types every published row of sev-snp-measure.
func TestLaunchVectors(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testenv.Vectors(t), "measure", "sev-snp-measure")
	b, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rows struct{ Vectors []ssmVector }
	if err := json.Unmarshal(b, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows.Vectors) < 26 {
		t.Fatalf("%d rows: want 26", len(rows.Vectors))
	}
	for _, v := range rows.Vectors {
		t.Run(v.Test, func(t *testing.T) {
			flags := v.flags(dir)
			out, errs, code := plinth(t, flags...)
			if v.Refuse != "" {
				if code == 0 || !strings.Contains(errs, "would not be measured") {
					t.Errorf("%q: exit %d, %s%s: want a refusal", flags, code, out, errs)
				}
				return
			}
			if out != v.Want+"\n" || code != 0 {
				t.Errorf("%q: exit %d\ngot  %s%s\nwant %s", flags, code, out, errs, v.Want)
			}
			raw, _ := hex.DecodeString(v.Want)
			if out, _, _ := plinth(t, append(flags, "--output-format", "base64")...); out != base64.StdEncoding.EncodeToString(raw)+"\n" {
				t.Errorf("base64: got %s", out)
			}
			if _, errs, code := plinth(t, append(flags, "--expect", v.Want)...); code != 0 {
				t.Errorf("--expect: exit %d: %s", code, errs)
			}
			out, _, _ = plinth(t, append(flags, "--json")...)
			m, err := measure.ParseMeasurements([]byte(out))
			if err != nil {
				t.Fatalf("--json: %v", err)
			}
			if len(m.Values) != 1 || m.Values[0].Value != v.Want || len(m.Inputs) == 0 {
				t.Errorf("--json: got %+v", m)
			}
		})
	}
}

// TestLaunchHash gives the published digest of a firmware's pages.
func TestLaunchHash(t *testing.T) {
	t.Parallel()
	const want = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
	out, errs, code := plinth(t, "measure", "ovmf-hash", filepath.Join(testenv.Vectors(t), "measure", "sev-snp-measure", "fixtures", "ovmf_AmdSev_suffix.bin"))
	if out != want+"\n" || code != 0 {
		t.Errorf("exit %d, got %s%s, want %s", code, out, errs, want)
	}
}

// TestTDVectors compares MRTD with the published values of three machines.
func TestTDVectors(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testenv.Vectors(t), "measure", "tdx-measure")
	b, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	mrtds := mrtdsIn(t, b)
	if len(mrtds) == 0 {
		t.Fatal("no MRTD in vectors.json")
	}
	for mrtd := range mrtds {
		flags := []string{"measure", "tdx", "--ovmf", filepath.Join(dir, "OVMF.fd")}
		for _, more := range [][]string{{"--order", "single-pass"}, {"--vmm", "qemu 10.1.0"}, {"--vmm", "gce"}} {
			out, errs, code := plinth(t, append(append(flags, more...), "--json")...)
			m, err := measure.ParseMeasurements([]byte(out))
			if err != nil || code != 0 {
				t.Fatalf("%q: exit %d: %s%v", more, code, errs, err)
			}
			if m.Values[0].Value != mrtd {
				t.Errorf("%q: got %s, want %s", more, m.Values[0].Value, mrtd)
			}
		}
		// Without a hint of the VMM both orders are possible, and either is good.
		out, _, _ := plinth(t, append(flags, "--expect", "mrtd="+mrtd, "--json")...)
		m, err := measure.ParseMeasurements([]byte(out))
		if err != nil || m.Values[0].Provenance != measure.OneOf || len(m.Values[0].OneOf) != 2 {
			t.Errorf("no VMM: got %+v, %v", m, err)
		}
		_, errs, code := plinth(t, append(flags, "--order", "two-pass", "--expect", "mrtd="+mrtd)...)
		if code != exitMismatch || !strings.Contains(errs, "it is that of --order single-pass") {
			t.Errorf("the other order: exit %d: %s", code, errs)
		}
	}
}

// mrtdsIn finds the values of the key mrtd, wherever it is.
func mrtdsIn(t *testing.T, b []byte) map[string]bool {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if s, ok := x.(string); ok && strings.EqualFold(k, "mrtd") {
					found[s] = true
				}
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(v)
	return found
}

// TestSignatureParts is the inverse of packing, for every type.
func TestSignatureParts(t *testing.T) {
	for sig, want := range map[uint32]string{0x800f12: "23 1 2", 0x830f10: "23 49 0", 0xa00f11: "25 1 1", 0xa10f10: "25 17 0", 0xb00f00: "26 0 0", 0x663: "6 6 3"} {
		family, model, stepping := signatureParts(sig)
		if got := fmt.Sprint(family, model, stepping); got != want {
			t.Errorf("%#x: got %s, want %s", sig, got, want)
		}
	}
}

// TestDigestedFile: a file, an empty one, one that is no regular file, and one
// that somebody cuts off while it is mapped.
func TestDigestedFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for _, size := range []int{0, 1, 4096, 300_001} {
		content := bytes.Repeat([]byte{7}, size)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		d := &digestedFile{path: name}
		if err := d.read(); err != nil || d.sum != sha256.Sum256(content) || d.size != int64(size) {
			t.Errorf("%d bytes: got %x of %d, %v", size, d.sum, d.size, err)
		}
	}
	d := &digestedFile{path: "/dev/null"}
	if err := d.read(); err != nil || d.sum != sha256.Sum256(nil) || d.size != 0 {
		t.Errorf("/dev/null: got %x of %d, %v", d.sum, d.size, err)
	}
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	m, err := unix.Mmap(int(file.Fd()), 0, 300_001, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := file.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	d = &digestedFile{path: name}
	if err := d.readMapped(m); err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("cut off: got %v", err)
	}
}
