package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// fixture reads a file of Trustee's tests.
func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/trustee", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sameJSON compares documents, numbers to the last digit.
func sameJSON(t *testing.T, got, want []byte) {
	t.Helper()
	var g, w any
	for _, x := range []struct {
		b []byte
		v *any
	}{{got, &g}, {want, &w}} {
		d := json.NewDecoder(bytes.NewReader(x.b))
		d.UseNumber()
		if err := d.Decode(x.v); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// Evidence of Trustee's tests is read, written as the same document, and known by its
// keys.
func TestFixtures(t *testing.T) {
	for _, tt := range []struct {
		name, tee string
		again     func([]byte) ([]byte, error)
	}{
		{"evidence/tpm_evidence.json", TEETPM, reparse(ParseTPM, (*TPM).Marshal)},
		{"evidence/az-snp-vtpm/evidence-v1.json", TEEAzSNP, reparse(ParseAzure, (*Azure).Marshal)},
		{"evidence/az-snp-vtpm/evidence-v2.json", TEEAzSNP, reparse(ParseAzure, (*Azure).Marshal)},
		{"evidence/az-tdx-vtpm/evidence-v1.json", TEEAzTDX, reparse(ParseAzure, (*Azure).Marshal)},
		{"attestation-service/e2e/evidence.json", TEESNP, reparse(ParseSNP, (*SNP).Marshal)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := fixture(t, tt.name)
			if got, err := Detect(in); got != tt.tee || err != nil {
				t.Errorf("Detect: %q, %v: want %q", got, err, tt.tee)
			}
			out, err := tt.again(in)
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, unpadded(out), unpadded(in))
			again, err := tt.again(out)
			if err != nil || !bytes.Equal(again, out) {
				t.Errorf("written twice: %v\n%s\n%s", err, again, out)
			}
		})
	}
}

// unpadded drops what base64 may end in: one of the files has none.
func unpadded(b []byte) []byte { return bytes.ReplaceAll(b, []byte("="), nil) }

func reparse[T any](parse func([]byte) (*T, error), marshal func(*T) ([]byte, error)) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		e, err := parse(b)
		if err != nil {
			return nil, err
		}
		return marshal(e)
	}
}

// The fixture's quote and registers are where they are said to be.
func TestParseTPM(t *testing.T) {
	e, err := ParseTPM(fixture(t, "evidence/tpm_evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := binary.BigEndian.Uint32(e.Quote.Message); got != 0xff544347 {
		t.Errorf("message begins with %#x, want TPM_GENERATED", got)
	}
	if got := binary.BigEndian.Uint16(e.Quote.Signature); got != 0x14 {
		t.Errorf("signature begins with %#x, want RSASSA", got)
	}
	if got := e.Quote.PCRs[17]; got != [32]byte(bytes.Repeat([]byte{0xff}, 32)) {
		t.Errorf("PCR 17 is %x, want what it is reset to", got)
	}
}

// reports returns real reports, and of each version one made of them.
func reports(t testing.TB) map[string][]byte {
	v2 := fixture(t, "evidence/snp/test-report.bin")
	e, err := ParseSNP(fixture(t, "attestation-service/e2e/evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	v5 := bytes.Clone(e.Report)
	v5[0] = 5
	v5[0x1f8], v5[0x207] = 3, 0xff // a number that no double holds
	turin := bytes.Clone(e.Report)
	turin[0x188], turin[0x189] = 0x1a, 0x02
	for _, tcb := range []int{0x38, 0x180, 0x1e0, 0x1f0} {
		copy(turin[tcb:], []byte{1, 2, 3, 4, 0, 0, 0, 5})
	}
	return map[string][]byte{"version 2": v2, "VLEK": fixture(t, "evidence/snp/test-vlek-report.bin"), "version 3": e.Report, "version 5": v5, "Turin": turin}
}

// A report comes back byte for byte, for a signature is over its bytes.
func TestSNPReport(t *testing.T) {
	for name, report := range reports(t) {
		t.Run(name, func(t *testing.T) {
			e, err := NewSNP(report, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseSNP(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Report, report) {
				t.Errorf("got %x\nwant %x", got.Report, report)
			}
		})
	}
}

// What stands where, by the offsets of AMD's document.
func TestSNPFields(t *testing.T) {
	report := reports(t)["Turin"]
	e := &SNP{Report: report}
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		R struct {
			Policy  uint64  `json:"policy"`
			Chip    []int   `json:"chip_id"`
			TCB     tcbWire `json:"reported_tcb"`
			Current fwWire  `json:"current"`
		} `json:"attestation_report"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if want := binary.LittleEndian.Uint64(report[8:]); got.R.Policy != want {
		t.Errorf("policy %#x, want %#x", got.R.Policy, want)
	}
	if len(got.R.Chip) != 64 || byte(got.R.Chip[0]) != report[0x1a0] {
		t.Errorf("chip ID %v, want that at 0x1a0", got.R.Chip)
	}
	if tcb := got.R.TCB; tcb.FMC == nil || *tcb.FMC != 1 || tcb.Bootloader != 2 || tcb.TEE != 3 || tcb.SNP != 4 || tcb.Microcode != 5 {
		t.Errorf("TCB %+v, want 1 to 5", tcb)
	}
	if want := (fwWire{Build: report[0x1e8], Minor: report[0x1e9], Major: report[0x1ea]}); got.R.Current != want {
		t.Errorf("firmware %+v, want %+v", got.R.Current, want)
	}
}

// A byte that the form has no place for is not dropped in silence.
func TestSNPReserved(t *testing.T) {
	for name, offset := range map[string]int{"behind key info": 0x4c, "in a TCB": 0x182, "behind the stepping": 0x18b, "behind the firmware": 0x1eb,
		"a later version's field": 0x1f8, "before the signature": 0x29f, "behind the signature": 0x330, "at the end": 0x49f} {
		t.Run(name, func(t *testing.T) {
			report := bytes.Clone(reports(t)["version 3"])
			report[offset] = 1
			_, err := (&SNP{Report: report}).Marshal()
			wantError(t, err, "is reserved")
		})
	}
}

func TestSNPTable(t *testing.T) {
	in := []SNPCert{{"VCEK", []byte("one")}, {"ASK", []byte("second")}, {"01020304-0506-0708-090a-0b0c0d0e0f10", []byte("other")}}
	report := reports(t)["version 3"]
	table, err := (&SNP{Certs: in}).Table()
	if err != nil {
		t.Fatal(err)
	}
	// GUID of the VCEK: AMD 56421.
	if want := []byte("\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd"); !bytes.HasPrefix(table, want) {
		t.Errorf("table begins with %x, want %x", table[:16], want)
	}
	e, err := NewSNP(report, append(table, make([]byte, 4096)...))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(e.Certs, in) {
		t.Errorf("got %v, want %v", e.Certs, in)
	}
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseSNP(b)
	if err != nil || !reflect.DeepEqual(got.Certs, in) {
		t.Errorf("got %v, %v: want %v", got.Certs, err, in)
	}
	if !strings.Contains(string(b), `{"cert_type":{"OTHER":"01020304-0506-0708-090a-0b0c0d0e0f10"},"data":[111,116,104,101,114]}`) {
		t.Errorf("not as serde writes it: %s", b)
	}
	for i := range table[:len(table)-len("other")] {
		if _, err := NewSNP(report, table[:i]); err == nil && i > 0 {
			t.Errorf("the first %d bytes of a table are taken", i)
		}
	}
}

func TestFormsRefuse(t *testing.T) {
	tpm := func(old, new string) []byte { return swap(t, fixture(t, "evidence/tpm_evidence.json"), old, new) }
	snp := func(old, new string) []byte {
		return swap(t, compact(t, fixture(t, "attestation-service/e2e/evidence.json")), old, new)
	}
	azure := func(old, new string) []byte {
		return swap(t, compact(t, fixture(t, "evidence/az-snp-vtpm/evidence-v2.json")), old, new)
	}
	discard := func(parse func([]byte) error) func([]byte) error { return parse }
	asTPM := discard(func(b []byte) error { _, err := ParseTPM(b); return err })
	asSNP := discard(func(b []byte) error { _, err := ParseSNP(b); return err })
	asAzure := discard(func(b []byte) error { _, err := ParseAzure(b); return err })
	asTDX := discard(func(b []byte) error { _, err := ParseTDX(b); return err })
	for _, tt := range []struct {
		name, want string
		parse      func([]byte) error
		in         []byte
	}{
		{"no object", "want a JSON object", asTPM, []byte(`[]`)},
		{"unknown key", "unknown key", asTPM, tpm(`"ak_public"`, `"more":1,"ak_public"`)},
		{"key twice", "duplicate key", asTPM, tpm(`"ak_public"`, `"ak_public":"","ak_public"`)},
		{"no key", "no ak_public", asTPM, []byte(`{"tpm_quote":{"message":"AA==","signature":"AA==","pcrs":[` + strings.Repeat(`"`+strings.Repeat("00", 32)+`",`, 23) + `"` + strings.Repeat("00", 32) + `"]}}`)},
		{"23 registers", "23 PCRs", asTPM, tpm(`"`+strings.Repeat("0", 64)+`",`, ``)},
		{"short register", "PCR 0: 31 bytes", asTPM, tpm(strings.Repeat("0", 64), strings.Repeat("0", 62))},
		{"capitals", "lower-case", asTPM, tpm(strings.Repeat("0", 64), strings.Repeat("F", 64))},
		{"not base64", "illegal base64", asTPM, tpm(`"/1RD`, `"?1RD`)},
		{"line break in base64", "line break", asTPM, tpm(`"/1RD`, `"\n/1RD`)},
		{"number over a byte", "cannot unmarshal", asSNP, snp(`"family_id":[0,`, `"family_id":[256,`)},
		{"null in an array", "null", asSNP, snp(`"family_id":[0,`, `"family_id":[null,`)},
		{"short array", "15 numbers, want 16", asSNP, snp(`"family_id":[0,`, `"family_id":[`)},
		{"field left out", "no sig_algo", asSNP, snp(`"sig_algo":1,`, ``)},
		{"null field", "no sig_algo", asSNP, snp(`"sig_algo":1`, `"sig_algo":null`)},
		{"version 6", "report of version 6", asSNP, snp(`"version":3`, `"version":6`)},
		{"no processor", "cpuid", asSNP, snp(`"cpuid_step":2`, `"cpuid_step":null`)},
		{"unknown processor", "family 0x18", asSNP, snp(`"cpuid_fam_id":25`, `"cpuid_fam_id":24`)},
		{"FMC of a Genoa", "fmc", asSNP, snp(`"fmc":null`, `"fmc":0`)},
		{"mitigations in version 3", "mitigation", asSNP, snp(`"signature":{`, `"launch_mit_vector":0,"signature":{`)},
		{"unknown certificate", "certificate of type", asSNP, snp(`"VCEK"`, `"vcek"`)},
		{"no evidence version", "unknown key", asAzure, fixture(t, "evidence/az-snp-vtpm/evidence-v0.json")},
		{"version 3 of the evidence", "version 3", asAzure, azure(`"version":2`, `"version":3`)},
		{"two platforms", "vcek or td_quote", asAzure, azure(`"version":2`, `"td_quote":"AA","version":2`)},
		{"no platform", "vcek or td_quote", asAzure, azure(`,"vcek":`, `}`)},
		{"no quote", "no quote", asTDX, []byte(`{"cc_eventlog":null}`)},
	} {
		t.Run(tt.name, func(t *testing.T) { wantError(t, tt.parse(tt.in), tt.want) })
	}
}

// swap replaces the first old of a document. A "}" at the end of new ends the document.
func swap(t *testing.T, doc []byte, old, new string) []byte {
	t.Helper()
	before, after, ok := strings.Cut(string(compact(t, doc)), old)
	if !ok {
		t.Fatalf("no %s in the document", old)
	}
	if strings.HasSuffix(new, "}") {
		return []byte(before + new)
	}
	return []byte(before + new + after)
}

func compact(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestTDX(t *testing.T) {
	for _, e := range []*TDX{{Quote: []byte{1, 2}}, {Quote: []byte{1}, CCEventLog: []byte{3}}} {
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		want := `{"cc_eventlog":null,"quote":"AQI="}`
		if e.CCEventLog != nil {
			want = `{"cc_eventlog":"Aw==","quote":"AQ=="}`
		}
		if string(b) != want {
			t.Errorf("got %s, want %s", b, want)
		}
		got, err := ParseTDX(b)
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("got %+v, %v: want %+v", got, err, e)
		}
		if tee, err := Detect(b); tee != TEETDX {
			t.Errorf("Detect: %q, %v", tee, err)
		}
	}
}

// The form of Trustee's verifier for samples.
func TestSample(t *testing.T) {
	e := &Sample{SVN: "1", ReportData: []byte("data")}
	b, err := e.Marshal()
	if want := `{"svn":"1","report_data":"` + base64.StdEncoding.EncodeToString([]byte("data")) + `"}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v: want %s", b, err, want)
	}
	got, err := ParseSample(b)
	if err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("got %+v, %v", got, err)
	}
	if tee, err := Detect(b); tee != TEESample {
		t.Errorf("Detect: %q, %v", tee, err)
	}
}

// FuzzEvidence: evidence of any kind that is taken is written back and read as the same.
func FuzzEvidence(f *testing.F) {
	for _, name := range []string{"evidence/tpm_evidence.json", "evidence/az-snp-vtpm/evidence-v2.json", "evidence/az-tdx-vtpm/evidence-v1.json", "attestation-service/e2e/evidence.json"} {
		f.Add(fixture(f, name))
	}
	f.Add([]byte(`{"cc_eventlog":null,"quote":"AQI="}`))
	f.Add([]byte(`{"svn":"1","report_data":"AQI="}`))
	again := map[string]func([]byte) ([]byte, error){
		TEETPM: reparse(ParseTPM, (*TPM).Marshal), TEESNP: reparse(ParseSNP, (*SNP).Marshal), TEETDX: reparse(ParseTDX, (*TDX).Marshal),
		TEEAzSNP: reparse(ParseAzure, (*Azure).Marshal), TEEAzTDX: reparse(ParseAzure, (*Azure).Marshal), TEESample: reparse(ParseSample, (*Sample).Marshal),
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		tee, err := Detect(in)
		if err != nil {
			return
		}
		out, err := again[tee](in)
		if err != nil {
			return
		}
		if got, err := Detect(out); got != tee {
			t.Fatalf("%s is read as %q, %v: want %s", out, got, err, tee)
		}
		if twice, err := again[tee](out); err != nil || !bytes.Equal(twice, out) {
			t.Fatalf("%s\nis written as\n%s\n%v", out, twice, err)
		}
	})
}

// FuzzCertTable: a table that is taken leads to one with the same certificates.
func FuzzCertTable(f *testing.F) {
	table, err := (&SNP{Certs: []SNPCert{{"VCEK", []byte("one")}, {"01020304-0506-0708-090a-0b0c0d0e0f10", []byte("other")}}}).Table()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(table)
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, in []byte) {
		certs, err := parseCertTable(in)
		if err != nil {
			return
		}
		out, err := (&SNP{Certs: certs}).Table()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseCertTable(out)
		if err != nil && len(out) <= maxCertTable || err == nil && !reflect.DeepEqual(again, certs) {
			t.Fatalf("got %v, %v: want %v", again, err, certs)
		}
	})
}
