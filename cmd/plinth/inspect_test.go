package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// invoke runs one command line in this process.
func invoke(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &env{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, now: time.Now,
	})
	return code, out.String(), errs.String()
}

// fdFile writes b into a new folder.
func fdFile(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// oneSpace makes columns one space apart.
func oneSpace(s string) string {
	var lines []string
	for _, l := range strings.Split(s, "\n") {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	return strings.Join(lines, "\n")
}

func TestInspectFirmware(t *testing.T) {
	start := uint32(0x40)
	svsm := ovmftest.Tail{SVSM: &start, SEV: [][3]uint32{{0, 0x1000, 2}, {0x1000, 0x1000, 0x77}}}
	tail := ovmftest.AmdSevTail()
	tail.Others = []ovmftest.Entry{{GUID: ovmf.GUID{1}, Data: []byte{1, 2}}}
	tail.IGVM = [][3]uint32{{0x812000, 0x1000, 0x100}}
	strange := append(ovmftest.Volume(ovmf.GUID{7}, 0), tail.Bytes()...)
	for _, tt := range []struct {
		name string
		file []byte
		want []string
		not  string
	}{
		{"AmdSev build", ovmftest.AmdSev("2026.08-1"), []string{
			`firmware "2026.08-1" Secure Boot yes SMM no compares kernel hashes yes`,
			"flash variables offset 0x0 0x20000 bytes",
			"flash FVMAIN_COMPACT offset 0x20000 ",
			"DXEFV 0x821000 ",
			"table of 4 entries, file of 0x",
			" 00f771de-1a7e-4fcb-890e-68c77e2fb44e 04b08000",
			"SEV-ES: processors but the first begin at 0x80b004",
			"SEV kernel hashes at 0x810c00, 0x400 bytes",
			"SEV launch secret at 0x810000, 0xc00 bytes",
			"SEV 2 secrets 0x80d000 0x1000 bytes",
			"SEV 6 kernel hashes 0x810000 0x1000 bytes",
			"use snp kernel yes the launch digest covers",
			"use snp disk no it starts, but nothing but the firmware is measured",
			"use vtpm kernel no its loader takes only what the SEV hash table names",
			"use tdx disk no no driver for TDX (TdxDxe)",
			"Secure Boot keys: set-up mode",
		}, "TDX 0"},
		{"TDX build", ovmftest.IntelTDX("2026.08-1"), []string{
			"TDX 0 BFV 0xff", "MRTD covers the content",
			"TDX 1 CFV 0xff", " 0x20000 bytes content at 0x0, 0x20000 bytes MRTD covers that it is there",
			"TDX 4 TD HOB 0x809000 0x2000 bytes no content MRTD covers that it is there",
			"use tdx disk yes RTMR 1 and 2 cover the boot program",
			"use snp kernel no no driver for SEV (AmdSevDxe)",
		}, "SEV 0"},
		{"its code alone", ovmftest.IntelTDX("")[0x20000:], []string{
			"the end of a flash of 0x", "use tdx disk no the code alone: a trust domain gets code and variables in one file",
		}, "Secure Boot keys"},
		{"no code of OVMF", strange, []string{
			"flash 00000007-0000-0000-0000-000000000000 offset 0x0 0x1000 bytes",
			"entry unknown offset 0x", " 00000001-0000-0000-0000-000000000000 0102",
			"IGVM 0 parameter area 0x812000 0x1000 bytes",
			"use snp kernel yes the launch digest covers the digests of kernel, initrd and command line; that the firmware compares them its metadata does not say",
		}, `firmware "`},
		{"SVSM", svsm.Bytes(), []string{
			"SVSM: begins 0x40 bytes into the file", "SEV 0 secrets 0x0 0x1000 bytes", "SEV 1 type 0x77 0x1000 0x1000 bytes",
			"use snp kernel no an SVSM, which needs a firmware beside it",
		}, "flash "},
		{"variables", ovmftest.BlankVars(0x84000), []string{"flash variables offset 0x0 0x84000 bytes", "Secure Boot keys: set-up mode"}, "use "},
	} {
		code, stdout, stderr := invoke("inspect", fdFile(t, "file.fd", tt.file))
		if code != exitOK || stderr != "" {
			t.Errorf("%s: exit code %d, %s", tt.name, code, stderr)
		}
		got := oneSpace(stdout)
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", tt.name, want, got)
			}
		}
		if strings.Contains(got, tt.not) {
			t.Errorf("%s: %q in\n%s", tt.name, tt.not, got)
		}
	}
}

func TestInspectFirmwareJSON(t *testing.T) {
	code, stdout, stderr := invoke("inspect", "--json", fdFile(t, "file.fd", ovmftest.IntelTDX("2026.08-1")))
	var v struct {
		Version  string
		Metadata struct {
			Size      int
			Whole     int `json:"whole_size"`
			Base      uint64
			Table     []struct{ GUID, Name, Data string }
			Reset     uint32 `json:"reset_eip"`
			Hashes    any    `json:"kernel_hashes"`
			SEV, IGVM any
			TDX       []struct {
				Type       int
				Name       string
				GPA, Size  uint64
				Offset     int `json:"content_offset"`
				Data       int `json:"content_size"`
				Attributes int
			}
		}
		Uses []struct {
			Platform, Path, Why string
			OK                  bool
		}
		Keys string `json:"secure_boot_keys"`
	}
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v, %s", code, err, stderr)
	}
	m := v.Metadata
	if v.Version != "2026.08-1" || m.Reset != 0x80b004 || m.Base != 1<<32-uint64(m.Size) || m.Whole != m.Size || m.Hashes != nil || m.SEV != nil || m.IGVM != nil {
		t.Errorf("%+v", v)
	}
	if len(m.Table) != 4 || m.Table[0].Name != "SEV-ES reset block" || m.Table[0].Data != "04b08000" {
		t.Errorf("table %+v", m.Table)
	}
	if len(m.TDX) != 6 || m.TDX[0].Attributes != 1 || m.TDX[0].Offset != 0x20000 || m.TDX[1].Name != "CFV" || m.TDX[1].Data != 0x20000 || m.TDX[4].GPA != 0x809000 || m.TDX[4].Size != 0x2000 {
		t.Errorf("TDX %+v", m.TDX)
	}
	if len(v.Uses) != 10 || v.Keys != "set-up mode" {
		t.Errorf("uses %+v, keys %q", v.Uses, v.Keys)
	}
}

// What is damaged fails the command, after the rest has been printed.
func TestInspectDamagedFirmware(t *testing.T) {
	damage := func(at int) []byte {
		b := ovmftest.AmdSev("2026.08-1")
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 0xff
		return b
	}
	for _, tt := range []struct {
		name           string
		file           []byte
		printed, fault string
	}{
		{"table", damage(-50), "Secure Boot keys", "ovmf: table entry ending at 0x"},
		{"metadata", damage(-0x1000 + 0x100), "flash SECFV", "ovmf: SEV metadata: entry at 0x"},
		{"code", damage(0x20020), "flash variables", "ovmf: offset 0x20000: "},
		{"store", damage(0x5c), "use snp", "ovmf: variable store: state"},
	} {
		code, stdout, stderr := invoke("inspect", fdFile(t, "file.fd", tt.file))
		if code != exitOther || !strings.Contains(stdout, tt.printed) || !strings.Contains(stderr, tt.fault) {
			t.Errorf("%s: exit code %d, %s\n%s", tt.name, code, stderr, stdout)
		}
	}
	whole := ovmftest.Tail{}.Bytes()
	whole[len(whole)-50]++
	if code, stdout, stderr := invoke("inspect", fdFile(t, "file.fd", whole)); code != exitOther || stdout != "" || !strings.Contains(stderr, "table entry ending at 0xf84: 1 bytes: want at least 18") {
		t.Errorf("nothing but a damaged table: exit code %d, %s%s", code, stdout, stderr)
	}
}

// The published SVSM has neither volumes nor a name.
func TestInspectSVSM(t *testing.T) {
	code, stdout, stderr := invoke("inspect", filepath.Join(testenv.Vectors(t), "measure", "sev-snp-measure", "fixtures", "svsm.bin"))
	if code != exitOK || !strings.Contains(oneSpace(stdout), "SEV 0 memory 0x0 0x9e000 bytes") {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
}

// certificate makes a self-signed one, in DER.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEnrollIntoCombinedFirmware(t *testing.T) {
	original := ovmftest.IntelTDX("2026.08-1")
	in, cert := fdFile(t, "in.fd", original), fdFile(t, "cert.der", certificate(t))
	out := filepath.Join(t.TempDir(), "out.fd")
	rewrite := func(in string, flags ...string) []byte {
		t.Helper()
		code, _, stderr := invoke(append([]string{"keys", "enroll", in, "-o", out}, flags...)...)
		if code != exitOK {
			t.Fatalf("exit code %d, %s", code, stderr)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	enrolled := rewrite(in, "--pk", cert)
	if !bytes.Equal(enrolled[0x20000:], original[0x20000:]) || bytes.Equal(enrolled, original) {
		t.Error("the code changed, or the variables did not")
	}
	if _, stdout, _ := invoke("inspect", out); !strings.Contains(stdout, "Secure Boot keys: enrolled") || !strings.Contains(stdout, "variable PK ") {
		t.Errorf("with keys:\n%s", stdout)
	}
	if !bytes.Equal(rewrite(out, "--setup-mode"), original) {
		t.Error("set-up mode does not give the blank variables back")
	}
}

func TestEnrollFlags(t *testing.T) {
	in, out := fdFile(t, "in.fd", ovmftest.BlankVars(0x84000)), filepath.Join(t.TempDir(), "out.fd")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--pk", in}, "--out is needed"},
		{[]string{"-o", out}, "either --pk or --setup-mode"},
		{[]string{"-o", out, "--pk", in, "--setup-mode"}, "either --pk or --setup-mode"},
		{[]string{"-o", out, "--setup-mode", "--kek", in}, "--kek has no meaning with --setup-mode"},
		{[]string{"-o", out, "--setup-mode", "--db", in}, "--db has no meaning"},
		{[]string{"-o", out, "--setup-mode", "--epoch", "0"}, "--epoch has no meaning"},
		{[]string{"-o", out, "--setup-mode", "--owner", "x"}, "--owner has no meaning"},
	} {
		if code, _, stderr := invoke(append([]string{"keys", "enroll", in}, tt.args...)...); code != exitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit code %d, %s", tt.args, code, stderr)
		}
	}
	code, _, stderr := invoke("keys", "enroll", fdFile(t, "code.fd", ovmftest.Code(ovmftest.Volumes(""))), "--setup-mode", "-o", out)
	if _, err := os.Stat(out); code != exitOther || !strings.Contains(stderr, "code.fd: ovmf: volume of") || err == nil {
		t.Errorf("code alone: exit code %d, %s", code, stderr)
	}
}
