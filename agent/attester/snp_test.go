package attester

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-sev-guest/abi"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"golang.org/x/sys/unix"
)

// snpVector is a report of a processor, and the data that it is about.
func snpVector(t *testing.T) (report, data, cert []byte) {
	t.Helper()
	dir := filepath.Join(testenv.Vectors(t), "guest/trustee/evidence/snp")
	report, err := os.ReadFile(filepath.Join(dir, "test-report.bin"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err = os.ReadFile(filepath.Join(dir, "test-vcek.der"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := abi.ReportToProto(report) // where the data is, by another implementation
	if err != nil {
		t.Fatal(err)
	}
	return report, p.ReportData, cert
}

// certTable is a table with one VCEK: AMD 56421, guest request.
func certTable(t *testing.T, cert []byte) []byte {
	t.Helper()
	b := []byte{0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd}
	b = binary.LittleEndian.AppendUint32(b, 48)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(cert)))
	b = append(append(b, make([]byte, 24)...), cert...)
	var table abi.CertTable
	if err := table.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	if got, err := table.GetByGUIDString(abi.VcekGUID); err != nil || !bytes.Equal(got, cert) {
		t.Fatalf("go-sev-guest reads another certificate: %v", err)
	}
	return b
}

// sevResponse is what the processor answers: AMD 56860, MSG_REPORT_RSP.
func sevResponse(status, size uint32, report []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, status)
	b = binary.LittleEndian.AppendUint32(b, size)
	return append(append(append(b, make([]byte, 24)...), report...), make([]byte, 4000-32-len(report))...)
}

func TestSNP(t *testing.T) {
	report, data, cert := snpVector(t)
	table := certTable(t, cert)
	other := slices.Concat(data[:63], []byte{data[63] ^ 1})
	reports := func(in []byte) []byte {
		r := bytes.Clone(report)
		copy(r[0x50:], in)
		return r
	}
	noTSM := fs.ErrNotExist
	for _, tt := range []struct {
		name   string
		tsm    *fakeReports // nil: none
		err    error        // of configfs, where there is none
		device func([reportData]byte) ([]byte, []byte, error)
		certs  int
		want   string
	}{
		{"configfs", &fakeReports{provider: "sev_guest", make: reports, aux: table}, nil, nil, 1, ""},
		{"configfs without certificates", &fakeReports{provider: "sev_guest", make: reports, aux: []byte{}}, nil, nil, 0, ""},
		{"configfs of TDX", &fakeReports{provider: "tdx_guest", make: reports}, nil, nil, 0, `by "tdx_guest"`},
		{"other data", &fakeReports{provider: "sev_guest", make: func([]byte) []byte { return reports(other) }}, nil, nil, 0, "other data"},
		{"short report", &fakeReports{provider: "sev_guest", make: func([]byte) []byte { return report[:100] }}, nil, nil, 0, "report of 100 bytes"},
		{"long report", &fakeReports{provider: "sev_guest", make: func(in []byte) []byte { return append(reports(in), 0) }}, nil, nil, 0, "want 1184"},
		{"broken certificates", &fakeReports{provider: "sev_guest", make: reports, aux: table[:60]}, nil, nil, 0, "certificate table"},
		{"device", nil, noTSM, func(d [reportData]byte) ([]byte, []byte, error) {
			return sevResponse(0, 1184, reports(d[:])), append(table, make([]byte, 16<<10-len(table))...), nil
		}, 1, ""},
		{"no provider", nil, unix.ENXIO, func(d [reportData]byte) ([]byte, []byte, error) {
			return sevResponse(0, 1184, reports(d[:])), make([]byte, 16<<10), nil
		}, 0, ""},
		{"configfs refuses", nil, fs.ErrPermission, nil, 0, "permission"},
		{"device refuses", nil, noTSM, func([reportData]byte) ([]byte, []byte, error) { return nil, nil, unix.EIO }, 0, "input/output"},
		{"device: status", nil, noTSM, func(d [reportData]byte) ([]byte, []byte, error) {
			return sevResponse(0x16, 1184, reports(d[:])), nil, nil
		}, 0, "status 0x16"},
		{"device: size", nil, noTSM, func(d [reportData]byte) ([]byte, []byte, error) {
			return sevResponse(0, 4000, reports(d[:])), nil, nil
		}, 0, "report of 4000 bytes in 3968"},
		{"device: truncated", nil, noTSM, func(d [reportData]byte) ([]byte, []byte, error) { return make([]byte, 31), nil, nil }, 0, "response of 31 bytes"},
		{"device: other data", nil, noTSM, func(d [reportData]byte) ([]byte, []byte, error) {
			return sevResponse(0, 1184, reports(other)), nil, nil
		}, 0, "other data"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &snp{tsm: tsm{noFiles{tt.err}, "/"}, device: "/dev/sev-guest", ask: func(_ string, d [reportData]byte) ([]byte, []byte, error) {
				if tt.device == nil {
					t.Error("the device was asked")
					return nil, nil, unix.EIO
				}
				return tt.device(d)
			}}
			if tt.tsm != nil {
				a.tsm = tt.tsm.client()
			}
			b, err := a.Evidence(t.Context(), data)
			wantError(t, err, tt.want)
			if err != nil {
				return
			}
			e, err := evidence.ParseSNP(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(e.Report, report) {
				t.Error("the report is another one")
			}
			if len(e.Certs) != tt.certs || (tt.certs == 1 && !bytes.Equal(e.Certs[0].Data, cert)) {
				t.Errorf("%d certificates", len(e.Certs))
			}
		})
	}
}

// noFiles is configfs that is not there.
type noFiles struct{ err error }

func (n noFiles) MkdirTemp(string, string) (string, error) { return "", n.err }
func (n noFiles) ReadFile(string) ([]byte, error)          { return nil, n.err }
func (n noFiles) WriteFile(string, []byte) error           { return n.err }
func (n noFiles) RemoveAll(string) error                   { return n.err }

// TestSNPForm: the fields of the evidence that Trustee looks at first, and the fit of
// report data that is shorter or longer than its field.
func TestSNPForm(t *testing.T) {
	report, _, _ := snpVector(t)
	a := &snp{tsm: (&fakeReports{provider: "sev_guest", make: func(in []byte) []byte {
		r := bytes.Clone(report)
		copy(r[0x50:], in)
		return r
	}}).client()}
	for _, size := range []int{0, 48, 64, 80} {
		b, err := a.Evidence(t.Context(), bytes.Repeat([]byte{9}, size))
		if err != nil {
			t.Fatal(err)
		}
		var e struct {
			Report struct {
				ReportData  []int `json:"report_data"`
				Measurement []int `json:"measurement"`
			} `json:"attestation_report"`
			Certs *[]any `json:"cert_chain"`
		}
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatal(err)
		}
		want := append(slices.Repeat([]int{9}, min(size, 64)), make([]int, 64-min(size, 64))...)
		if !slices.Equal(e.Report.ReportData, want) || len(e.Report.Measurement) != 48 || e.Certs != nil {
			t.Errorf("%d bytes: report data %v, certificates %v", size, e.Report.ReportData, e.Certs)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Evidence(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestNewSNP(t *testing.T) {
	root := t.TempDir()
	_, err := NewSNP(root)
	wantError(t, err, "attester: snp: stat")
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, sevGuest), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := NewSNP(root)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Evidence(t.Context(), nil) // a plain file knows no such request
	wantError(t, err, "SNP_GET_EXT_REPORT")
	if !errors.Is(err, unix.ENOTTY) {
		t.Errorf("got %v, want %v", err, unix.ENOTTY)
	}
	if a.TEE() != "snp" {
		t.Errorf("TEE %q", a.TEE())
	}
}

// TestSEVGuest compares with include/uapi/linux/sev-guest.h, as go-sev-guest has it.
func TestSEVGuest(t *testing.T) {
	var ext snpExtReportReq
	var req snpRequest
	for _, tt := range []struct {
		what      string
		got, want uintptr
	}{
		{"snp_ext_report_req", unsafe.Sizeof(ext), 112},
		{"vmpl", unsafe.Offsetof(ext.vmpl), 64},
		{"certs_address", unsafe.Offsetof(ext.certs), 96},
		{"certs_len", unsafe.Offsetof(ext.certsSize), 104},
		{"snp_report_resp", unsafe.Sizeof(snpReportResp{}), 4000},
		{"snp_guest_request_ioctl", unsafe.Sizeof(req), 32},
		{"req_data", unsafe.Offsetof(req.request), 8},
		{"resp_data", unsafe.Offsetof(req.response), 16},
		{"fw_error", unsafe.Offsetof(req.fwError), 24},
		{"SNP_GET_EXT_REPORT", snpGetExtReport, 0xc0205302},
		{"pages of certificates", snpCertsSize % 4096, 0},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.what, tt.got, tt.want)
		}
	}
}

// FuzzSEVGuest: whatever the device answers, what is accepted is the report asked for.
func FuzzSEVGuest(f *testing.F) {
	f.Add(sevResponse(0, 1184, make([]byte, 1184)), make([]byte, 4096))
	f.Add(sevResponse(0, 0, nil), []byte(nil))
	f.Add([]byte{}, []byte{1})
	f.Fuzz(func(t *testing.T, response, certs []byte) {
		a := &snp{tsm: tsm{noFiles{fs.ErrNotExist}, "/"}, ask: func(string, [reportData]byte) ([]byte, []byte, error) { return response, certs, nil }}
		b, err := a.Evidence(t.Context(), sum384)
		if err != nil {
			return
		}
		e, err := evidence.ParseSNP(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(e.Report[0x50:][:48], sum384) {
			t.Fatal("a report without the report data")
		}
	})
}
