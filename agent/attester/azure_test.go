package attester

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
)

// hclVector is an HCL report of a machine of Azure.
func hclVector(t *testing.T, tee string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/trustee/evidence", tee, "hcl-report.bin"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// userData puts data into the runtime data of an HCL report, as the paravisor does:
// upper-case hexadecimal, zeros behind.
func userData(t *testing.T, report, data []byte) []byte {
	t.Helper()
	out := bytes.Clone(report)
	at := bytes.Index(out, []byte(`"user-data":"`))
	if at < 0 {
		t.Fatal("the report has no user data")
	}
	copy(out[at+len(`"user-data":"`):], strings.ToUpper(hex.EncodeToString(fit(data, 64))))
	return out
}

// paravisor is a vTPM whose report shows the user data after some reads.
func paravisor(t *testing.T, tee string, reads int) *fakeTPM {
	t.Helper()
	f := newFakeTPM()
	f.keys[azureAK] = f.public()
	stale := hclVector(t, tee)
	f.nv[nvHCLReport] = &nvIndex{attributes: nvOwnerRead, size: uint16(len(stale)), data: stale}
	left := reads
	f.wrote = func(uint32) { left = reads }
	f.answer = func(command uint32, honest []byte) []byte {
		if command == ccNVReadPublic && left > 0 {
			if left--; left == 0 {
				f.nv[nvHCLReport].data = userData(t, stale, f.nv[nvHCLUserData].data)
			}
		}
		return honest
	}
	return f
}

// service is Azure's metadata service.
type service func(r *http.Request) (status int, body string)

func (s service) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := s(r)
	if status == 0 {
		return nil, errors.New("no route to host")
	}
	return &http.Response{StatusCode: status, Header: http.Header{"Location": {"http://elsewhere.example/"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// answers is the honest one.
func answers(t *testing.T, cert, quote []byte, report *[]byte) service {
	return func(r *http.Request) (int, string) {
		if r.Header.Get("Metadata") != "true" || r.URL.Host != "169.254.169.254" {
			t.Errorf("asked %s with %v", r.URL, r.Header)
		}
		switch r.Method + " " + r.URL.Path {
		case "GET /metadata/THIM/amd/certification":
			b, _ := json.Marshal(map[string]string{"vcekCert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})), "tcbm": "03000000000008115", "certificateChain": "x"})
			return 200, string(b)
		case "POST /acc/tdquote":
			var in struct{ Report string }
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			*report, _ = base64.RawURLEncoding.DecodeString(in.Report)
			return 200, fmt.Sprintf(`{"quote": %q}`, base64.URLEncoding.EncodeToString(quote))
		}
		t.Errorf("asked %s %s", r.Method, r.URL)
		return 404, ""
	}
}

func newAzure(t *testing.T, tee string, f *fakeTPM, s service) *azure {
	t.Helper()
	a, err := NewAzure(tee, f, &http.Client{Transport: s}, logged("log"))
	if err != nil {
		t.Fatal(err)
	}
	z := a.(*azure)
	z.pause, z.wait, z.imds.pause = time.Millisecond, 50*time.Millisecond, time.Millisecond
	return z
}

func TestAzure(t *testing.T) {
	cert, quote := []byte("certificate"), []byte{4, 0, 2, 0, 0xff, 0xfe, 0xfd}
	for _, tee := range []string{evidence.TEEAzSNP, evidence.TEEAzTDX} {
		for _, reads := range []int{1, 3} { // of the report's index
			t.Run(fmt.Sprint(tee, reads), func(t *testing.T) {
				f := paravisor(t, tee, reads)
				var asked []byte
				a := newAzure(t, tee, f, answers(t, cert, quote, &asked))
				b, err := a.Evidence(t.Context(), sum384)
				if err != nil {
					t.Fatal(err)
				}
				var e struct {
					Version int
					Quote   struct {
						Signature, Message string
						PCRs               []string
					} `json:"tpm_quote"`
					Report string `json:"hcl_report"`
					VCEK   string `json:"vcek"`
					TD     string `json:"td_quote"`
				}
				if err := json.Unmarshal(b, &e); err != nil {
					t.Fatal(err)
				}
				want := userData(t, hclVector(t, tee), sum384)
				if report, err := base64.URLEncoding.DecodeString(e.Report); err != nil || !bytes.Equal(report, want) || e.Version != 2 {
					t.Errorf("version %d, %v, or another report", e.Version, err)
				}
				// Trustee wants the report data as it is, 48 bytes here.
				message, err := hex.DecodeString(e.Quote.Message)
				if err != nil || !bytes.Contains(message, append([]byte{0, 48}, sum384...)) {
					t.Errorf("quote about other data: %s, %v", e.Quote.Message, err)
				}
				signature, err := hex.DecodeString(e.Quote.Signature)
				if err != nil || len(signature) != 256 || len(e.Quote.PCRs) != 24 || e.Quote.PCRs[8][:2] != "09" {
					t.Errorf("signature of %d bytes, %v, registers %s", len(signature), err, e.Quote.PCRs)
				}
				if tee == evidence.TEEAzSNP {
					if got, err := base64.URLEncoding.DecodeString(e.VCEK); err != nil || !bytes.Equal(got, cert) || e.TD != "" {
						t.Errorf("certificate %q, %v", got, err)
					}
					return
				}
				if got, err := base64.URLEncoding.DecodeString(e.TD); err != nil || !bytes.Equal(got, quote) || e.VCEK != "" {
					t.Errorf("quote %q, %v", got, err)
				}
				if !bytes.Equal(asked, want[32:][:1024]) || asked[0] != 0x81 { // REPORTTYPE of a TD
					t.Errorf("a report of %d bytes was to be signed", len(asked))
				}
			})
		}
	}
}

// TestAzureFixture: the form is that of recorded evidence.
func TestAzureFixture(t *testing.T) {
	recorded, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/trustee/evidence/az-snp-vtpm/evidence-v2.json"))
	if err != nil {
		t.Fatal(err)
	}
	var asked []byte
	b, err := newAzure(t, evidence.TEEAzSNP, paravisor(t, evidence.TEEAzSNP, 1), answers(t, []byte("x"), nil, &asked)).Evidence(t.Context(), sum384)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := keys(t, b), keys(t, recorded); !slices.Equal(got, want) {
		t.Errorf("keys %q, want %q", got, want)
	}
}

func keys(t *testing.T, b []byte) (out []string) {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	var quote map[string]json.RawMessage
	if err := json.Unmarshal(m["tpm_quote"], &quote); err != nil {
		t.Fatal(err)
	}
	for k := range m {
		out = append(out, k)
	}
	for k := range quote {
		out = append(out, "tpm_quote."+k)
	}
	slices.Sort(out)
	return out
}

func TestAzureRefuses(t *testing.T) {
	if _, err := NewAzure("snp", newFakeTPM(), nil, logged("")); err == nil {
		t.Error("another kind: no error")
	}
	if _, err := NewAzure(evidence.TEEAzSNP, nil, nil, logged("")); err == nil {
		t.Error("without a TPM: no error")
	}
	change := func(at int, to byte) func(*fakeTPM) {
		return func(f *fakeTPM) {
			f.wrote = nil
			f.answer = nil
			f.nv[nvHCLReport].data = bytes.Clone(f.nv[nvHCLReport].data)
			f.nv[nvHCLReport].data[at] = to
		}
	}
	for _, tt := range []struct {
		name, want string
		tee        string
		change     func(*fakeTPM)
		service    service
	}{
		{"no key", "attestation key: 0x81000003", evidence.TEEAzSNP, func(f *fakeTPM) { delete(f.keys, azureAK) }, nil},
		{"no report", "0 bytes at 0x1400001", evidence.TEEAzSNP, func(f *fakeTPM) { f.answer = nil; delete(f.nv, nvHCLReport) }, nil},
		{"no such report", "no report", evidence.TEEAzSNP, change(0, 'X'), nil},
		{"other hardware", "type 4, want 2", evidence.TEEAzSNP, change(1216+8, 4), nil},
		{"hardware that is TDX's", "type 2, want 4", evidence.TEEAzTDX, change(1216+8, 2), nil},
		{"more runtime data than there is", "runtime data of", evidence.TEEAzSNP, change(1216+17, 0xff), nil},
		{"runtime data that is no JSON", "runtime data: invalid", evidence.TEEAzSNP, change(1236, '!'), nil},
		{"user data that is no hexadecimal", "user-data", evidence.TEEAzSNP, func(f *fakeTPM) {
			b := bytes.Clone(f.nv[nvHCLReport].data)
			b[bytes.Index(b, []byte(`"user-data":"`))+13] = 'x'
			f.answer, f.nv[nvHCLReport].data = nil, b
		}, nil},
		{"the same report for ever", "does not show the user data", evidence.TEEAzSNP, func(f *fakeTPM) { f.answer = nil }, nil},
		{"network", "metadata service", evidence.TEEAzSNP, nil, func(*http.Request) (int, string) { return 0, "" }},
		{"not found", "status 404", evidence.TEEAzSNP, nil, func(*http.Request) (int, string) { return 404, "" }},
		{"sent elsewhere", "status 302", evidence.TEEAzSNP, nil, func(r *http.Request) (int, string) {
			if r.URL.Host != "169.254.169.254" {
				t.Errorf("%s was asked", r.URL)
			}
			return 302, ""
		}},
		{"always busy", "status 429", evidence.TEEAzSNP, nil, func(*http.Request) (int, string) { return 429, "" }},
		{"endless", "more than 65536 bytes", evidence.TEEAzSNP, nil, func(*http.Request) (int, string) { return 200, strings.Repeat(" ", 1<<20) }},
		{"no JSON", "invalid character", evidence.TEEAzSNP, nil, func(*http.Request) (int, string) { return 200, "<html>" }},
		{"no certificate", "vcekCert: no certificate", evidence.TEEAzSNP, nil, func(*http.Request) (int, string) {
			return 200, `{"vcekCert":"-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----\n"}`
		}},
		{"no quote", "quote: empty", evidence.TEEAzTDX, nil, func(*http.Request) (int, string) { return 200, `{}` }},
		{"quote that is no base64", "quote: illegal", evidence.TEEAzTDX, nil, func(*http.Request) (int, string) { return 200, `{"quote":"*"}` }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := paravisor(t, tt.tee, 1)
			var asked []byte
			s := answers(t, []byte("x"), []byte("y"), &asked)
			if _, err := newAzure(t, tt.tee, f, s).Evidence(t.Context(), sum384); err != nil {
				t.Fatalf("an honest one: %v", err)
			}
			f = paravisor(t, tt.tee, 1)
			if tt.change != nil {
				tt.change(f)
			}
			if tt.service != nil {
				s = tt.service
			}
			_, err := newAzure(t, tt.tee, f, s).Evidence(t.Context(), sum384)
			wantError(t, err, tt.want)
		})
	}
}

// TestAzureBusy: the service may be asked again, a few times.
func TestAzureBusy(t *testing.T) {
	for _, status := range []int{0, 410, 429, 500, 503} {
		var asked []byte
		n, honest := 0, answers(t, []byte("x"), nil, &asked)
		a := newAzure(t, evidence.TEEAzSNP, paravisor(t, evidence.TEEAzSNP, 1), func(r *http.Request) (int, string) {
			if n++; n < imdsAttempts {
				return status, ""
			}
			return honest(r)
		})
		if _, err := a.Evidence(t.Context(), sum384); err != nil || n != imdsAttempts {
			t.Errorf("status %d: %v after %d attempts", status, err, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	a := newAzure(t, evidence.TEEAzSNP, paravisor(t, evidence.TEEAzSNP, 1), func(*http.Request) (int, string) {
		n++
		cancel()
		return 503, ""
	})
	a.imds.pause = time.Hour
	if _, err := a.Evidence(ctx, sum384); !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("got %v after %d attempts, want %v", err, n, context.Canceled)
	}
}

// TestAzureProxy: the service is asked directly, whatever the environment says.
func TestAzureProxy(t *testing.T) {
	if newMetadata(nil).client.Transport.(*http.Transport).Proxy != nil {
		t.Error("a proxy is asked")
	}
}

// TestUserData writes it into a real TPM, over what others left there.
func TestUserData(t *testing.T) {
	socket, c := softTPM(t)
	dir := t.TempDir()
	const index = "0x1400002"
	for _, tt := range []struct {
		name, attributes string // "": the index is not there
		size             int
	}{
		{"none", "", 0},
		{"ours", "ownerwrite|ownerread", 64},
		{"another size", "ownerwrite|ownerread", 48},
		{"not the owner's", "authwrite|authread", 64},
		{"Microsoft's", "ownerwrite|ownerread|authwrite|authread", 64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.attributes != "" {
				tool(t, socket, dir, "tpm2_nvdefine", index, "-C", "o", "-s", fmt.Sprint(tt.size), "-a", tt.attributes)
			}
			for i := range 2 {
				data := bytes.Repeat([]byte{byte(i + 'a')}, 64)
				if err := writeUserData(c, data); err != nil {
					t.Fatal(err)
				}
				got := tool(t, socket, dir, "tpm2_nvread", index, "-C", "o", "-s", "64")
				if got != string(data) {
					t.Errorf("got %q, want %q", got, data)
				}
			}
			tool(t, socket, dir, "tpm2_nvundefine", index, "-C", "o")
		})
	}
}

// TestReadNV reads more than a TPM gives at once.
func TestReadNV(t *testing.T) {
	socket, c := softTPM(t)
	dir := t.TempDir()
	want := bytes.Repeat([]byte("0123456"), 200) // 1400 bytes
	if err := os.WriteFile(filepath.Join(dir, "in"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, socket, dir, "tpm2_nvdefine", "0x1500001", "-C", "o", "-s", "1400", "-a", "ownerwrite|ownerread")
	tool(t, socket, dir, "tpm2_nvwrite", "0x1500001", "-C", "o", "-i", "in")
	got, err := readNV(c, tpm2.TPMHandle(0x1500001))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// FuzzHCL: whatever a report says, nothing outside of it is read.
func FuzzHCL(f *testing.F) {
	b := make([]byte, hclRuntime)
	copy(b, "HCLA")
	b[1216+8] = 4
	f.Add(append(b, `{"user-data":"00ff"}`...), true)
	b = bytes.Clone(b)
	b[1216+8], b[1216+16] = 2, 20
	f.Add(append(b, `{"user-data":"00ff"}`...), false)
	f.Fuzz(func(t *testing.T, b []byte, tdx bool) {
		tee := evidence.TEEAzSNP
		if tdx {
			tee = evidence.TEEAzTDX
		}
		r, err := parseHCL(b, tee)
		if err == nil && (len(r.hardware) != hclHardware || len(r.userData) > len(b)) {
			t.Fatal("more than the report has")
		}
	})
}
