package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/qemu"
	"github.com/plinth-os/plinth/tests/kbs"
	"github.com/plinth-os/plinth/tests/registry"
)

// TestKBSSecrets: everything that a guest gets of a broker, besides the key of layers:
// credentials for the registry and the policy of images before it is measured what runs;
// then the key of a volume, a file, a sealed variable, and what a program asks for. The
// volume has on the second boot what was written on the first.
func TestKBSSecrets(t *testing.T) {
	t.Parallel()
	d := deploy(t, registry.Start(t))
	volume := make([]byte, 48)
	rand.Read(volume)
	for name, value := range map[string]string{
		"default/credential/registry": string(d.registry.AuthFile()), "default/security-policy/app": string(read(t, d.path("policy.json"))),
		"default/key/data": string(volume), "default/web/password": secret(t, "password"), "default/web/file": secret(t, "file"),
	} {
		d.secrets[name] = value
		d.give(name, value)
	}
	// The policy is no secret, and of the credentials the password is.
	delete(d.secrets, "default/security-policy/app")
	d.secrets["default/credential/registry"] = d.registry.Password

	signing, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signing)
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.path("seal.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	d.give("default/seal/public", must(t, d.dir, "secret", "key", "seal.pem").stdout)
	sealed := strings.TrimSpace(must(t, d.dir, "secret", "seal", "--type", "vault", "kbs:///default/web/password", "--sign", "seal.pem", "--kid", "kbs:///default/seal/public").stdout)

	note := secret(t, "note")
	d.secrets["note"] = note // it is on the volume alone
	v := stock()
	v.policy = "kbs:///default/security-policy/app"
	v.auth = "kbs:///default/credential/registry"
	v.args = append([]string{"file /data/note", "write /data/note " + note, "file /run/file", "env PASSWORD"}, asks...)
	v.process = fmt.Sprintf(`env    = { PASSWORD = %q }
mounts = [{ path = "/data", volume = "data" }, { path = "/run/file", secret = "kbs:///default/web/file" }]
`, sealed)
	v.api = `{ resources = ["kbs:///default/web/"], token = true, measure = true }`
	v.more = `
[[volume]]
name      = "data"
disk      = "data"
key       = "kbs:///default/key/data"
integrity = true
format    = true
`
	out := d.build(t, "base", v)
	d.trust(t, out)
	disk := d.path("data.disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 96<<20); err != nil {
		t.Fatal(err)
	}
	d.disks = []qemu.Disk{{Path: disk, Serial: "data", Writable: true}}

	for boot, found := range []string{"open /data/note: no such file or directory", hexOf([]byte(note))} {
		g := d.start(t, out)
		if g.report == nil {
			t.Fatalf("boot %d: %v\n%s\n%s", boot, g.why, g.vm.ConsoleTail(), strings.Join(d.said(), "\n"))
		}
		got := g.answers(t)
		for ask, want := range map[string]string{
			"file /data/note": found, "write /data/note " + note: hexOf([]byte(note)),
			"file /run/file": hexOf([]byte(d.secrets["default/web/file"])), "env PASSWORD": hexOf([]byte(d.secrets["default/web/password"])),
			asks[0]: "200 " + hexOf([]byte(d.secrets["default/web/secret"])),
		} {
			if got[ask] != want {
				t.Errorf("boot %d: %s: %q, want %q", boot, ask, got[ask], want)
			}
		}
		for i, status := range []string{"200 ", "403 ", "200 ", "403 ", "200 "} {
			if !strings.HasPrefix(got[asks[i]], status) {
				t.Errorf("boot %d: %s: %q, want %s", boot, asks[i], got[asks[i]], status)
			}
		}
		if t.Failed() {
			t.Log(g.vm.ConsoleTail())
		}
		g.close(t)
		delete(d.secrets, "note") // the arguments are in the image, and so on the console
		d.leaks(t, out, g)
		d.secrets["note"] = note
		absent(t, disk, spellings(volume)...)
		absent(t, disk, note)
	}
}

// give puts a resource into the broker.
func (d *deployment) give(name, value string) {
	d.broker.Change(func(b *kbs.Broker) { b.Resources[name] = kbs.Resource{Value: []byte(value)} })
}
