package oracle

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	sevabi "github.com/google/go-sev-guest/abi"
	sevpb "github.com/google/go-sev-guest/proto/sevsnp"
	tdxabi "github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tpm-tools/client"
	attestpb "github.com/google/go-tpm-tools/proto/attest"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm-tools/server"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/tests/swtpm"
)

func vector(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{testenv.Vectors(t), "guest", "trustee"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What Trustee's verifier reads out of evidence is what go-sev-guest reads out of the
// report that it stands for.
func TestSNPEvidence(t *testing.T) {
	whole, err := evidence.NewSNP(vector(t, "evidence", "snp", "test-report.bin"), nil)
	if err != nil {
		t.Fatal(err)
	}
	made, err := whole.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"a report of Milan's": made, "evidence of Trustee's": vector(t, "attestation-service", "e2e", "evidence.json")} {
		e, err := evidence.ParseSNP(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		report, err := sevabi.ReportToProto(e.Report)
		if err != nil {
			t.Errorf("%s: go-sev-guest: %v", name, err)
			continue
		}
		if again, err := sevabi.ReportToAbiBytes(report); err != nil || !bytes.Equal(again, e.Report) {
			t.Errorf("%s: go-sev-guest writes another report: %v", name, err)
		}
		compareSNP(t, name, text, report)
	}
}

func compareSNP(t *testing.T, name string, text []byte, r *sevpb.Report) {
	t.Helper()
	type tcb struct{ Bootloader, TEE, SNP, Microcode byte }
	type version struct{ Major, Minor, Build uint32 }
	var w struct {
		R struct {
			Version         uint32
			GuestSVN        uint32 `json:"guest_svn"`
			Policy          uint64
			FamilyID        []uint16 `json:"family_id"`
			VMPL            uint32
			SigAlgo         uint32   `json:"sig_algo"`
			CurrentTCB      tcb      `json:"current_tcb"`
			PlatInfo        uint64   `json:"plat_info"`
			KeyInfo         uint32   `json:"key_info"`
			ReportData      []uint16 `json:"report_data"`
			Measurement     []uint16
			HostData        []uint16 `json:"host_data"`
			IDKeyDigest     []uint16 `json:"id_key_digest"`
			AuthorKeyDigest []uint16 `json:"author_key_digest"`
			ReportID        []uint16 `json:"report_id"`
			ReportIDMA      []uint16 `json:"report_id_ma"`
			ReportedTCB     tcb      `json:"reported_tcb"`
			ChipID          []uint16 `json:"chip_id"`
			CommittedTCB    tcb      `json:"committed_tcb"`
			Current         version
			Committed       version
			LaunchTCB       tcb `json:"launch_tcb"`
			Signature       struct{ R, S []uint16 }
		} `json:"attestation_report"`
	}
	if err := json.Unmarshal(text, &w); err != nil {
		t.Fatal(err)
	}
	numbers := func(b []byte) (out []uint16) {
		for _, c := range b {
			out = append(out, uint16(c))
		}
		return out
	}
	split := func(v uint64) tcb { // of Milan and Genoa: AMD 56860, TCB_VERSION
		return tcb{byte(v), byte(v >> 8), byte(v >> 48), byte(v >> 56)}
	}
	got := w.R
	for _, row := range []struct {
		field     string
		got, want any
	}{
		{"version", got.Version, r.GetVersion()}, {"guest_svn", got.GuestSVN, r.GetGuestSvn()}, {"policy", got.Policy, r.GetPolicy()},
		{"family_id", got.FamilyID, numbers(r.GetFamilyId())}, {"vmpl", got.VMPL, r.GetVmpl()}, {"sig_algo", got.SigAlgo, r.GetSignatureAlgo()},
		{"current_tcb", got.CurrentTCB, split(r.GetCurrentTcb())}, {"plat_info", got.PlatInfo, r.GetPlatformInfo()}, {"key_info", got.KeyInfo, r.GetSignerInfo()},
		{"report_data", got.ReportData, numbers(r.GetReportData())}, {"measurement", got.Measurement, numbers(r.GetMeasurement())},
		{"host_data", got.HostData, numbers(r.GetHostData())}, {"id_key_digest", got.IDKeyDigest, numbers(r.GetIdKeyDigest())},
		{"author_key_digest", got.AuthorKeyDigest, numbers(r.GetAuthorKeyDigest())}, {"report_id", got.ReportID, numbers(r.GetReportId())},
		{"report_id_ma", got.ReportIDMA, numbers(r.GetReportIdMa())}, {"reported_tcb", got.ReportedTCB, split(r.GetReportedTcb())},
		{"chip_id", got.ChipID, numbers(r.GetChipId())}, {"committed_tcb", got.CommittedTCB, split(r.GetCommittedTcb())},
		{"current", got.Current, version{r.GetCurrentMajor(), r.GetCurrentMinor(), r.GetCurrentBuild()}},
		{"committed", got.Committed, version{r.GetCommittedMajor(), r.GetCommittedMinor(), r.GetCommittedBuild()}},
		{"launch_tcb", got.LaunchTCB, split(r.GetLaunchTcb())},
		{"signature.r", got.Signature.R, numbers(r.GetSignature()[:72])}, {"signature.s", got.Signature.S, numbers(r.GetSignature()[72:144])},
	} {
		if !reflect.DeepEqual(row.got, row.want) {
			t.Errorf("%s: %s: got %v, want %v", name, row.field, row.got, row.want)
		}
	}
}

func TestTDXEvidence(t *testing.T) {
	for _, name := range []string{"tdx_quote_4.dat"} { // go-tdx-guest reads no later version
		quote := vector(t, "evidence", name)
		text, err := (&evidence.TDX{Quote: quote, CCEventLog: []byte{1, 2}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		e, err := evidence.ParseTDX(text)
		if err != nil || !bytes.Equal(e.CCEventLog, []byte{1, 2}) {
			t.Fatalf("%s: %v", name, err)
		}
		parsed, err := tdxabi.QuoteToProto(e.Quote)
		if err != nil {
			t.Errorf("%s: go-tdx-guest: %v", name, err)
			continue
		}
		if again, err := tdxabi.QuoteToAbiBytes(parsed); err != nil || !bytes.HasPrefix(e.Quote, again) {
			t.Errorf("%s: go-tdx-guest writes another quote: %v", name, err)
		}
	}
}

// The agent's quote, by go-tpm-tools' whole verification of an attestation: key,
// quote, and the log of boots that happened. tests/kbs takes its parts, to switch
// single checks off.
func TestTPMEvidence(t *testing.T) {
	for _, name := range []string{"bookworm-kernel", "bookworm-secure-boot", "trixie-disk-full", "trixie-uki", "sid-disk-qemu11", "sid-secure-boot"} {
		t.Run(name, func(t *testing.T) { verifyTPM(t, bootLog(t, name)) })
	}
}

func verifyTPM(t *testing.T, log []byte) {
	s := swtpm.Start(t, "")
	tpm := s.Open(t)
	if err := extendAll(tpm, log); err != nil {
		t.Fatal(err)
	}
	a, err := attester.NewTPM(attester.Shared(tpm), attester.TPMOptions{Snapshot: func(read func([]byte) error) error { return read(log) }})
	if err != nil {
		t.Fatal(err)
	}
	nonce := sha256.Sum256(log)
	text, err := a.Evidence(t.Context(), nonce[:])
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Quote struct {
			Signature, Message []byte
			PCRs               []string
		} `json:"tpm_quote"`
		AK  []byte `json:"ak_public"`
		Log []byte `json:"event_log"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(e.AK)
	if err != nil {
		t.Fatal(err)
	}
	pcrs := map[uint32][]byte{}
	for n, v := range e.Quote.PCRs {
		if pcrs[uint32(n)], err = hex.DecodeString(v); err != nil {
			t.Fatal(err)
		}
	}
	area := client.AKTemplateRSA()
	area.RSAParameters.ModulusRaw = key.(*rsa.PublicKey).N.Bytes()
	public, err := area.Encode()
	if err != nil {
		t.Fatal(err)
	}
	attestation := &attestpb.Attestation{AkPub: public, EventLog: e.Log, Quotes: []*tpmpb.Quote{{Quote: e.Quote.Message, RawSig: e.Quote.Signature,
		Pcrs: &tpmpb.PCRs{Hash: tpmpb.HashAlgo_SHA256, Pcrs: pcrs}}}}
	// An ordinary firmware sets no variable SecureBoot, and runs its own programs first.
	options := server.VerifyOpts{Nonce: nonce[:], TrustedAKs: []crypto.PublicKey{key}, HashAlgo: legacy.AlgSHA256, AllowEmptySBVar: true, AllowEFIAppBeforeCallingEvent: true}
	if _, err := server.VerifyAttestation(attestation, options); err != nil {
		t.Error(err)
	}
	options.Nonce = make([]byte, 32)
	if _, err := server.VerifyAttestation(attestation, options); err == nil {
		t.Error("for another nonce: accepted")
	}
	options.Nonce, attestation.EventLog = nonce[:], append(e.Log, e.Log[len(e.Log)-200:]...)
	if _, err := server.VerifyAttestation(attestation, options); err == nil {
		t.Error("with another log: accepted")
	}
}

func bootLog(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(testenv.Root(t), "measure", "testdata", "boots", name+".log.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// extendAll extends bank sha256 of a TPM as a log says.
func extendAll(t transport.TPM, log []byte) error {
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		return err
	}
	for _, e := range parsed.Events(register.HashSHA256) {
		if e.Type == tcg.NoAction {
			continue
		}
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.Index), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.Digest}}},
		}.Execute(t)
		if err != nil {
			return err
		}
	}
	return nil
}
