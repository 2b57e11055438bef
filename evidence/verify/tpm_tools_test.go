package verify

import (
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// tools runs tpm2-tools on a software TPM.
type tools struct {
	t    *testing.T
	dir  string
	tcti string
}

func newTools(t *testing.T) *tools {
	t.Helper()
	testenv.Need(t, "swtpm", "tpm2_pcrextend", "tpm2_createek", "tpm2_createak", "tpm2_quote")
	dir, err := os.MkdirTemp("", "plinth") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "tpm")
	cmd := exec.Command(testenv.Tool("swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		if c, err := net.Dial("unix", socket+".ctrl"); err == nil {
			c.Close()
			return &tools{t, dir, "swtpm:path=" + socket}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("swtpm does not listen")
	return nil
}

func (x *tools) run(tool string, args ...string) {
	x.t.Helper()
	cmd := exec.Command(testenv.Tool(tool), append([]string{"-T", x.tcti}, args...)...)
	cmd.Dir = x.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		x.t.Fatalf("%s: %v: %s", tool, err, out)
	}
	if err := exec.Command(testenv.Tool("tpm2_flushcontext"), "-T", x.tcti, "-t").Run(); err != nil {
		x.t.Fatalf("tpm2_flushcontext: %v", err)
	}
}

func (x *tools) read(name string) []byte {
	x.t.Helper()
	b, err := os.ReadFile(filepath.Join(x.dir, name))
	if err != nil {
		x.t.Fatal(err)
	}
	return b
}

// extend does what a log says, in bank sha256.
func (x *tools) extend(l *eventlog.Log) {
	x.t.Helper()
	var specs []string
	for _, e := range l.Events {
		if e.Type != eventlog.NoAction {
			specs = append(specs, fmt.Sprintf("%d:sha256=%x", e.Register, e.Digest(eventlog.SHA256)))
		}
	}
	for part := range slices.Chunk(specs, 8) {
		x.run("tpm2_pcrextend", part...)
	}
}

// TestTPMTools: quotes of a TPM, made by tpm2-tools, over the registers that a real log
// leads to.
func TestTPMTools(t *testing.T) {
	x := newTools(t)
	log := bootLog(t)
	l, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	x.extend(l)
	values, err := l.Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	x.run("tpm2_createek", "-c", "ek.ctx", "-G", "rsa")
	for _, k := range []struct{ alg, scheme string }{{"rsa", "rsassa"}, {"rsa", "rsapss"}, {"ecc", "ecdsa"}} {
		t.Run(k.scheme, func(t *testing.T) {
			x.t = t
			x.run("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", k.alg, "-g", "sha256", "-s", k.scheme, "-u", "ak.pem", "-f", "pem")
			x.run("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:all", "-q", hex.EncodeToString(nonce), "-m", "message", "-s", "signature", "-g", "sha256", "--scheme", k.scheme)
			block, _ := pem.Decode(x.read("ak.pem"))
			if block == nil {
				t.Fatal("no PEM")
			}
			e := &evidence.TPM{AKPublic: block.Bytes, EventLog: log, Quote: evidence.TPMQuote{Message: x.read("message"), Signature: x.read("signature")}}
			for i := range e.Quote.PCRs {
				e.Quote.PCRs[i] = [32]byte(resetPCR(i))
				if v := values[i]; v != nil {
					e.Quote.PCRs[i] = [32]byte(v)
				}
			}
			b, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if e, err = evidence.ParseTPM(b); err != nil {
				t.Fatal(err)
			}
			o := TPMOptions{ReportData: nonce, AKs: [][]byte{block.Bytes}}
			r, _, err := TPM(e, o)
			if err != nil || !r.OK {
				t.Fatalf("%v, refused by %q", err, r.Failures())
			}
			e.Quote.PCRs[0][0] ^= 1
			if r, _, err = TPM(e, o); err != nil || r.OK {
				t.Errorf("another PCR 0 is taken: %v", err)
			}
		})
	}
}
