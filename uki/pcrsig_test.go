package uki

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

func TestPCRSignature(t *testing.T) {
	key := testSigner(t).Key.(*rsa.PrivateKey)
	values := map[string][][]byte{
		"sha256": {bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)},
		"sha1":   {bytes.Repeat([]byte{3}, 20)},
		"sha384": {bytes.Repeat([]byte{4}, 48)},
		"sha512": {bytes.Repeat([]byte{5}, 64)},
	}
	got, err := PCRSignature(key, values)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := PCRSignature(key, values); !bytes.Equal(got, again) {
		t.Error("two runs differ")
	}
	var doc map[string][]pcrPolicy
	if err := json.Unmarshal(got, &doc); err != nil {
		t.Fatal(err)
	}
	for bank, list := range values {
		if len(doc[bank]) != len(list) {
			t.Errorf("bank %s: %d policies: want %d", bank, len(doc[bank]), len(list))
		}
		for _, p := range doc[bank] {
			policy, _ := hex.DecodeString(p.Policy)
			h := banks[bank].hash.New()
			h.Write(policy)
			if err := rsa.VerifyPKCS1v15(&key.PublicKey, banks[bank].hash, h.Sum(nil), p.Signature); err != nil {
				t.Errorf("bank %s: %v", bank, err)
			}
		}
	}
}

func TestPCRSignatureRefused(t *testing.T) {
	key := testSigner(t).Key.(*rsa.PrivateKey)
	for _, row := range []struct {
		bank  string
		value []byte
		want  string
	}{
		{"sm3_256", make([]byte, 32), "bank \"sm3_256\""},
		{"SHA256", make([]byte, 32), "bank \"SHA256\""},
		{"sha256", make([]byte, 20), "20 bytes: want 32"},
	} {
		if _, err := PCRSignature(key, map[string][][]byte{row.bank: {row.value}}); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v: want %q", row.bank, err, row.want)
		}
	}
}

// swtpm starts a software TPM and returns how tpm2-tss reaches it.
func swtpm(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "swtpm")
	// A socket's path has at most 107 bytes, which t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "plinth")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sock := filepath.Join(dir, "tpm")
	cmd := exec.Command(testenv.Tool("swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+sock, "--ctrl", "type=unixio,path="+sock+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 100 {
		if c, err := net.Dial("unix", sock+".ctrl"); err == nil {
			c.Close()
			return "swtpm:path=" + sock
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("swtpm does not listen")
	return ""
}

// TestSystemdMeasureSign compares with systemd-measure. The PCR values are
// worked out here step by step: .linux, .initrd, then each phase.
func TestSystemdMeasureSign(t *testing.T) {
	testenv.Need(t, "systemd-measure")
	tcti := swtpm(t)
	key := testSigner(t).Key.(*rsa.PrivateKey)
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"key":    rsaPair().key,
		"public": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		"linux":  []byte("HALLO\n"),
		"initrd": []byte("foobar\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := func(flag, name string) string { return "--" + flag + "=" + filepath.Join(dir, name) }
	cmd := exec.Command(testenv.Tool("systemd-measure"), "sign", file("linux", "linux"), file("initrd", "initrd"),
		file("private-key", "key"), file("public-key", "public"), "--tpm2-device="+tcti, "--bank=sha256", "--bank=sha1",
		"--phase=enter-initrd", "--phase=enter-initrd:leave-initrd", "--json=short")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	values := map[string][][]byte{}
	for bank, hash := range map[string]crypto.Hash{"sha256": crypto.SHA256, "sha1": crypto.SHA1} {
		value := make([]byte, hash.Size())
		extend := func(measured string) {
			inner, outer := hash.New(), hash.New()
			inner.Write([]byte(measured))
			outer.Write(value)
			outer.Write(inner.Sum(nil))
			value = outer.Sum(nil)
		}
		for _, measured := range []string{".linux\x00", "HALLO\n", ".initrd\x00", "foobar\n"} {
			extend(measured)
		}
		for _, phase := range []string{"enter-initrd", "leave-initrd"} {
			extend(phase)
			values[bank] = append(values[bank], bytes.Clone(value))
		}
	}
	got, err := PCRSignature(key, values)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := json.Unmarshal(got, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &b); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("got %s\nsystemd-measure %s", got, out)
	}
	if !bytes.Equal(bytes.TrimSpace(got), bytes.TrimSpace(out)) {
		t.Errorf("equal values, other bytes:\n%s\n%s", got, out)
	}
}

// TestPolicyTPM compares the policy digest with the one that a TPM computes in
// a trial session.
func TestPolicyTPM(t *testing.T) {
	testenv.Need(t, "tpm2_createpolicy")
	tcti := swtpm(t)
	dir := t.TempDir()
	sum256, sum1 := sha256.Sum256([]byte("value")), sha1.Sum([]byte("value"))
	for bank, value := range map[string][]byte{"sha256": sum256[:], "sha1": sum1[:]} {
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		if err := os.WriteFile(in, value, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(testenv.Tool("tpm2_createpolicy"), "-T", tcti, "--policy-pcr", "-l", bank+":11", "-f", in, "-L", out)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		want, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if got := policyPCR11(banks[bank].alg, value); !bytes.Equal(got[:], want) {
			t.Errorf("bank %s: policy %x: TPM says %x", bank, got, want)
		}
	}
}
