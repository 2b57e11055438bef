package attester

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/plinth-os/plinth/internal/testenv"
)

// softTPM starts a TPM emulator and returns its socket and a connection.
func softTPM(t *testing.T) (string, transport.TPM) {
	t.Helper()
	dir, err := os.MkdirTemp("", "plinth-swtpm-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, c, stop := softTPMIn(t, dir)
	t.Cleanup(stop)
	return socket, c
}

// softTPMIn keeps its state in dir. tpm2-tools want a control channel besides.
func softTPMIn(t *testing.T, dir string) (socket string, c transport.TPM, stop func()) {
	t.Helper()
	testenv.Need(t, "swtpm")
	socket = filepath.Join(dir, "tpm")
	cmd := exec.Command(testenv.Tool("swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	// The socket is there before anybody listens on it.
	for range 1000 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	conn, err := linuxudstpm.Open(socket)
	if err != nil {
		stop()
		t.Fatal(err)
	}
	return socket, Shared(conn), stop
}

// tool runs one of the tpm2-tools on a TPM, in a folder for its files.
func tool(t *testing.T, socket, dir, name string, args ...string) string {
	t.Helper()
	testenv.Need(t, name)
	cmd := exec.Command(testenv.Tool(name), args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// command runs a program that needs no TPM.
func command(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	testenv.Need(t, name)
	out, err := exec.Command(testenv.Tool(name), args...).CombinedOutput()
	return string(out), err
}

// rawTPM answers every command with the same bytes.
type rawTPM []byte

func (r rawTPM) Send([]byte) ([]byte, error) { return r, nil }

// logged is the snapshot of a guest that has this log and measures nothing.
func logged(log string) Snapshot {
	return func(read func([]byte) error) error { return read([]byte(log)) }
}

func newTPM(t *testing.T, c transport.TPM, o TPMOptions) Attester {
	t.Helper()
	if o.Snapshot == nil {
		o.Snapshot = logged("log")
	}
	a, err := NewTPM(c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.(interface{ Close() error }).Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// tpmEvidence is what Trustee's verifier decodes, written again from its source:
// deps/verifier/src/tpm/mod.rs.
type tpmEvidence struct {
	Quote struct {
		Signature string   `json:"signature"`
		Message   string   `json:"message"`
		PCRs      []string `json:"pcrs"`
	} `json:"tpm_quote"`
	AK     string `json:"ak_public"`
	Log    string `json:"event_log"`
	EKCert string `json:"ek_certificate"`
	AKCert string `json:"ak_certificate"`
}

func decodeTPM(t *testing.T, b json.RawMessage) *tpmEvidence {
	t.Helper()
	e := new(tpmEvidence)
	if err := json.Unmarshal(b, e); err != nil {
		t.Fatal(err)
	}
	return e
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkSignature verifies a TPMT_SIGNATURE taken apart by hand: RSASSA, SHA-256, size,
// number.
func checkSignature(t *testing.T, e *tpmEvidence) {
	t.Helper()
	s := unbase64(t, e.Quote.Signature)
	if len(s) != 6+256 || s[0] != 0 || s[1] != 0x14 || s[2] != 0 || s[3] != 0x0b || s[4] != 1 || s[5] != 0 {
		t.Fatalf("signature starts with % x, %d bytes", s[:6], len(s))
	}
	pub, err := x509.ParsePKIXPublicKey(unbase64(t, e.AK))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(unbase64(t, e.Quote.Message))
	if err := rsa.VerifyPKCS1v15(pub.(*rsa.PublicKey), crypto.SHA256, digest[:], s[6:]); err != nil {
		t.Error(err)
	}
}

func checkPSS(t *testing.T, e *tpmEvidence) {
	t.Helper()
	pub, err := x509.ParsePKIXPublicKey(unbase64(t, e.AK))
	if err != nil {
		t.Fatal(err)
	}
	s := unbase64(t, e.Quote.Signature)
	if s[1] != 0x16 {
		t.Errorf("signature starts with % x, want RSAPSS", s[:4])
	}
	digest := sha256.Sum256(unbase64(t, e.Quote.Message))
	if err := rsa.VerifyPSS(pub.(*rsa.PublicKey), crypto.SHA256, digest[:], s[6:], nil); err != nil {
		t.Error(err)
	}
}

func extendPCR(t *testing.T, c transport.TPM, pcr int, word string) {
	t.Helper()
	d := sha256.Sum256([]byte(word))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]}}},
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("got error %q, want none", err)
	case want != "" && err == nil:
		t.Errorf("got no error, want %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("got error %q, want %q", err, want)
	}
}
