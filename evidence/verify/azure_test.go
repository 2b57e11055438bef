package verify

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
)

// azureEvidence is that of a guest of Azure: Trustee's tests.
func azureEvidence(t testing.TB, name string) *evidence.Azure {
	t.Helper()
	b, err := os.ReadFile(testenv.Vectors(t) + "/guest/trustee/evidence/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.ParseAzure(b)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What Trustee's tests say of each: the report data, and PCR 0.
var azureVectors = []struct {
	name, reportData, pcr0 string
	now                    time.Time
}{
	{"az-snp-vtpm/evidence-v1", hex.EncodeToString([]byte("challenge")), "e15c44796beabf46abcec7c57e590942041e47497e4ec27571c8b7664f48dced", time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC)},
	{"az-snp-vtpm/evidence-v2", "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef", "84275b2f4312cd4fc6cbe6b152ad3c3683e513d9f1e23c34fca160c8cca7a6a7", time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC)},
	{"az-tdx-vtpm/evidence-v1", hex.EncodeToString([]byte("challenge")), "782b20b10f55cc46e2142cc2145d548698073e5beb82752c8d7f9279f0d8a273", time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)},
}

// azureOptions expect what the evidence itself holds of the paravisor.
func azureOptions(t testing.TB, e *evidence.Azure, reportData string, now time.Time) AzureOptions {
	t.Helper()
	data, err := hex.DecodeString(reportData)
	if err != nil {
		t.Fatal(err)
	}
	o := AzureOptions{TPM: TPMOptions{ReportData: data}, SNP: SNPOptions{Now: now}, TDX: TDXOptions{Now: now}}
	if e.TDQuote == nil {
		r, err := parseReport(e.HCLReport[hclHeaderSize:])
		if err != nil {
			t.Fatal(err)
		}
		o.SNP.Measurement.Values = []Value{{Digest: r.Measurement[:]}}
		return o
	}
	q, err := parseQuote(e.TDQuote)
	if err != nil {
		t.Fatal(err)
	}
	o.TDX.MRTD.Values = []Value{{Digest: q.body.MRTD[:]}}
	return o
}

func TestAzure(t *testing.T) {
	for _, v := range azureVectors {
		t.Run(v.name, func(t *testing.T) {
			e := azureEvidence(t, v.name)
			r, st, err := Azure(e, azureOptions(t, e, v.reportData, v.now))
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Failures(); len(got) > 0 {
				t.Errorf("refused: %q", got)
				for _, c := range r.Checks {
					t.Log(c)
				}
			}
			if got := hex.EncodeToString(st.PCRs[0][:]); got != v.pcr0 {
				t.Errorf("PCR 0 is %s, want %s", got, v.pcr0)
			}
		})
	}
}

func TestAzureRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*evidence.Azure, *AzureOptions)
		want   string
	}{
		{"a bit of the signature", func(e *evidence.Azure, _ *AzureOptions) { e.Quote.Signature[9] ^= 1 }, "quote signature"},
		{"a register", func(e *evidence.Azure, _ *AzureOptions) { e.Quote.PCRs[11][9] ^= 1 }, "register digest"},
		{"report data", func(_ *evidence.Azure, o *AzureOptions) { o.TPM.ReportData[0] ^= 1 }, "qualifying data"},
		{"report data in the runtime data alone", func(_ *evidence.Azure, o *AzureOptions) { o.TPM.ReportData[0] ^= 1 }, "user data"},
		{"longer report data", func(_ *evidence.Azure, o *AzureOptions) { o.TPM.ReportData = append(o.TPM.ReportData, 0) }, "qualifying data"},
		{"runtime data", func(e *evidence.Azure, _ *AzureOptions) {
			i := bytes.Index(e.HCLReport, []byte(`"console-enabled":true`))
			copy(e.HCLReport[i:], `"console-enableD":true`)
		}, "runtime data"},
		{"hardware report", func(e *evidence.Azure, _ *AzureOptions) { e.HCLReport[hclHeaderSize+0xc0] ^= 1 }, "report signature"},
		{"paravisor", func(_ *evidence.Azure, o *AzureOptions) { o.SNP.Measurement.Values[0].Digest = make([]byte, 48) }, "measurement"},
		{"no paravisor", func(_ *evidence.Azure, o *AzureOptions) { o.SNP.Measurement = Register{} }, "measurement (not checked)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := azureVectors[1]
			e := azureEvidence(t, v.name)
			o := azureOptions(t, e, v.reportData, v.now)
			tt.change(e, &o)
			r, _, err := Azure(e, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Failures(); !slices.Contains(got, tt.want) {
				t.Errorf("refused by %q, want %q among them", got, tt.want)
			}
		})
	}
}

func TestAzureTDXRuntimeData(t *testing.T) {
	v := azureVectors[2]
	e := azureEvidence(t, v.name)
	o := azureOptions(t, e, v.reportData, v.now)
	i := bytes.Index(e.HCLReport, []byte(`"console-enabled":true`))
	copy(e.HCLReport[i:], `"console-enableD":true`)
	r, _, err := Azure(e, o)
	if err != nil || !slices.Contains(r.Failures(), "runtime data") {
		t.Errorf("%v, %q", err, r.Failures())
	}
}

// A key beside the one that the report vouches for, and other forms.
func TestHCLForms(t *testing.T) {
	whole := azureEvidence(t, "az-snp-vtpm/evidence-v2").HCLReport
	for _, tt := range []struct {
		name, want string
		change     func([]byte) []byte
	}{
		{"nothing", "0 bytes: want 1236", func(b []byte) []byte { return nil }},
		{"other signature", `signature "hCLA"`, func(b []byte) []byte { b[0] = 'h'; return b }},
		{"unknown hardware", "report of type 3", func(b []byte) []byte { b[1216+8] = 3; return b }},
		{"another hash", "hash of type 2", func(b []byte) []byte { b[1216+12] = 2; return b }},
		{"more runtime data than there is", "runtime data of 66646 bytes in 1130", func(b []byte) []byte { b[1216+18] = 1; return b }},
		{"another size", "runtime data of", func(b []byte) []byte { b[8]++; return b }},
		{"bytes behind it", "bytes behind it", func(b []byte) []byte { b[len(b)-1] = 1; return b }},
		{"no key of that name", "no HCLAkPub", func(b []byte) []byte { return bytes.Replace(b, []byte("HCLAkPub"), []byte("HCLakPub"), 1) }},
		{"two keys of that name", "HCLAkPub: twice", func(b []byte) []byte { return bytes.Replace(b, []byte("HCLEkPub"), []byte("HCLAkPub"), 1) }},
		{"key twice", "duplicate key", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"vm-configuration":`), []byte(`"keys":1,"padpadp":`), 1)
		}},
		{"no RSA", "want an RSA key", func(b []byte) []byte { return bytes.Replace(b, []byte(`"kty":"RSA"`), []byte(`"kty":"RSB"`), 1) }},
		{"no JSON", "runtime data", func(b []byte) []byte { b[1236] = '!'; return b }},
		{"user data that is no hex", "user-data", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"user-data":"98`), []byte(`"user-data":"zz`), 1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseHCL(tt.change(bytes.Clone(whole)))
			var bad *MalformedError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for i := range whole[:2346] { // what follows is zeros
		if _, err := parseHCL(whole[:i]); err == nil {
			t.Fatalf("the first %d bytes are taken", i)
		}
	}
	e := azureEvidence(t, "az-snp-vtpm/evidence-v2")
	e.HCLReport = azureEvidence(t, "az-tdx-vtpm/evidence-v1").HCLReport
	if _, _, err := Azure(e, AzureOptions{}); err == nil || !strings.Contains(err.Error(), "report of type 4: want 2") {
		t.Errorf("a trust domain's report with a VCEK: %v", err)
	}
}

func FuzzHCL(f *testing.F) {
	f.Add(azureEvidence(f, "az-snp-vtpm/evidence-v2").HCLReport)
	f.Add(azureEvidence(f, "az-tdx-vtpm/evidence-v1").HCLReport)
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := parseHCL(in)
		if err == nil && (h.ak == nil || len(h.report) != hclReportSize || !bytes.Contains(in, h.data)) {
			t.Fatalf("%x: read as %+v", in, h)
		}
	})
}
