package initdata

import (
	"encoding/hex"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// swtpm starts a software TPM and returns how tpm2-tools reach it.
func swtpm(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "swtpm", "tpm2_pcrextend", "tpm2_pcrread")
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
			return "swtpm:path=" + socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("swtpm does not listen")
	return ""
}

// TestTPM: a TPM that is extended as podvm images do it holds what Bind says.
func TestTPM(t *testing.T) {
	tcti := swtpm(t)
	raw, err := Build(SHA256, map[string]string{Policy: "package agent_policy\n"})
	if err != nil {
		t.Fatal(err)
	}
	d := parse(t, raw)
	extended, err := d.Extend()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool("tpm2_pcrextend"), "-T", tcti, "8:sha256="+hex.EncodeToString(extended)).CombinedOutput(); err != nil {
		t.Fatalf("tpm2_pcrextend: %v: %s", err, out)
	}
	out, err := exec.Command(testenv.Tool("tpm2_pcrread"), "-T", tcti, "sha256:8+sha1:8").Output()
	if err != nil {
		t.Fatalf("tpm2_pcrread: %v", err)
	}
	b, err := d.Bind(TPM)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.ToUpper(hex.EncodeToString(b.Value)); !strings.Contains(string(out), "8 : 0x"+want) {
		t.Errorf("the TPM says %swant 0x%s", out, want)
	}
	if zeros := "8 : 0x" + strings.Repeat("0", 40) + "\n"; !strings.Contains(string(out), zeros) {
		t.Errorf("the TPM says %swant bank sha1 as it was", out)
	}
}
