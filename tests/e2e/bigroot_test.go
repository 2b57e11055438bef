package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// bigPackages are what a user would ask for, a web server and an interpreter with
// their like; what they need comes along.
var bigPackages = []string{
	"base-passwd", "coreutils", "curl", "dash", "dbus", "git", "gnupg", "iproute2", "jq", "less", "nginx-light", "openssh-server",
	"openssl", "perl", "procps", "python3", "python3-aiohttp", "python3-cryptography", "python3-flask", "python3-lxml", "python3-pytest",
	"python3-requests", "python3-sqlalchemy", "python3-yaml", "rsync", "sqlite3", "strace", "systemd", "tzdata", "udev", "util-linux",
}

// bigProfile has a root of them. nginx runs with its package's own configuration,
// which wants an account, directories and a link.
func bigProfile(packages []string) []byte {
	return fmt.Appendf(nil, bigTemplate, `"`+strings.Join(packages, `", "`)+`"`)
}

const bigTemplate = `schema  = 1
extends = "vtpm"
cmdline = { append = ["console=ttyS0"] }

[root]
overlay  = true
packages = [%s]

[[files]]
path = "/etc/nginx/conf.d/site.conf"
text = """
server {
	listen 127.0.0.1:443 ssl;
	ssl_certificate /etc/site.crt;
	ssl_certificate_key /etc/site.key;
	root /srv/site;
}
"""

[[files]]
path   = "/etc/site.crt"
source = "site.crt"

[[files]]
path   = "/etc/site.key"
source = "site.key"
mode   = "0600"

[[files]]
path = "/srv/site/page"
text = "a page\n"

[[files]]
path   = "/usr/bin/visit"
source = "visit.py"
mode   = "0755"

[[services]]
name = "nginx"
exec = ["/usr/sbin/nginx", "-g", "daemon off;"]

[[services]]
name = "visit"
exec = ["/usr/bin/visit"]

[machine]
vcpus = [1]
`

// A visit is what testdata/visit.py says of the guest.
type visit struct {
	SSL     int    // exit status of python3 -c 'import ssl'
	OpenSSL string // what openssl version prints
	Page    string // what nginx gives for /page, with TLS
	Default string // and for the site that its package brings
	User    string // that its workers run as
	Error   string
}

// TestBigRoot builds a root of more than 200 packages, boots it, and has its
// programs work with each other in the guest.
func TestBigRoot(t *testing.T) {
	needs(t, append([]string{"fsck.erofs", "go"}, bootTools...)...)
	t.Parallel() // a boot keeps one core busy
	dir := workdir(t)
	write(t, filepath.Join(dir, "big.toml"), bigProfile(bigPackages))
	write(t, filepath.Join(dir, "visit.py"), read(t, filepath.Join(testenv.Root(t), "tests/e2e/testdata/visit.py")))
	writeCertificate(t, filepath.Join(dir, "site.crt"), filepath.Join(dir, "site.key"))
	r := boots(t, dir, "boot", "./big.toml", "--record", "--check", "--json")
	allPredicted(t, r.stdout)
	out := filepath.Join(dir, "out/big")
	img := imageIn(t, out)
	checkBillOfMaterials(t, out, img)
	checkSameRoot(t, dir)

	g := img.boot(t)
	g.mustReport(t)
	for _, s := range g.report.Services {
		if s.State == "failed" {
			t.Errorf("service %+v", s)
		}
	}
	var v visit
	decode(t, g.line(t), &v)
	want := visit{Page: "a page\n", User: "www-data"}
	if !strings.HasPrefix(v.OpenSSL, "OpenSSL 3.") || !strings.Contains(v.Default, "Welcome to nginx") {
		t.Errorf("openssl version prints %q, the first site is %q", v.OpenSSL, v.Default)
	}
	if v.OpenSSL, v.Default = "", ""; v != want {
		t.Errorf("the guest says %+v, want %+v\n%s", v, want, g.vm.ConsoleTail())
	}
}

// checkSameRoot builds the image again with the packages named in the opposite
// order, and with all else that must not matter changed.
func checkSameRoot(t *testing.T, dir string) {
	t.Helper()
	other := filepath.Join(t.TempDir(), "other", "place")
	reversed := slices.Clone(bigPackages)
	slices.Reverse(reversed)
	write(t, filepath.Join(other, "big.toml"), bigProfile(reversed))
	for _, name := range []string{"big.lock", "visit.py", "site.crt", "site.key"} {
		write(t, filepath.Join(other, name), read(t, filepath.Join(dir, name)))
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	env := []string{"TZ=Asia/Kathmandu", "LANG=tr_TR.UTF-8", "GOMAXPROCS=1", "HOME=/nonexistent", "PLINTH_CACHE=" + borrowed(t)}
	if r := command(t, other, env, "build", "./big.toml", "--locked", "--offline", "--jobs", "1"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	for _, name := range []string{"roothash", "image.raw", "sbom.spdx.json"} {
		if a, b := read(t, filepath.Join(dir, "out/big", name)), read(t, filepath.Join(other, "out/big", name)); !bytes.Equal(a, b) {
			t.Errorf("%s differs from build to build", name)
		}
	}
}

// line waits for a line that the guest writes to the test's port.
func (g *guest) line(t *testing.T) string {
	t.Helper()
	if err := g.port.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(g.port).ReadString('\n')
	if err != nil {
		t.Fatalf("%v\n%s", err, g.vm.ConsoleTail())
	}
	return line
}

// writeCertificate makes one that signs itself, for localhost.
func writeCertificate(t *testing.T, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// spdx is what the test reads of the bill of materials.
type spdx struct {
	Packages []struct {
		Name         string
		ExternalRefs []struct{ ReferenceLocator string }
	}
	Files []struct {
		FileName  string
		Checksums []struct{ Algorithm, ChecksumValue string }
	}
}

// checkBillOfMaterials counts the packages, and compares the files with what
// fsck.erofs takes out of the root partition: neither list has more than the other.
func checkBillOfMaterials(t *testing.T, out string, img *verityImage) {
	t.Helper()
	var s spdx
	if err := json.Unmarshal(read(t, filepath.Join(out, "sbom.spdx.json")), &s); err != nil {
		t.Fatal(err)
	}
	packages := 0
	for _, p := range s.Packages {
		if len(p.ExternalRefs) > 0 && strings.HasPrefix(p.ExternalRefs[0].ReferenceLocator, "pkg:deb/debian/"+strings.ReplaceAll(p.Name, "+", "%2B")+"@") {
			packages++
		}
	}
	if packages < 200 {
		t.Errorf("%d packages in the root, want 200", packages)
	}
	listed := map[string]string{}
	for _, f := range s.Files {
		for _, c := range f.Checksums {
			if c.Algorithm == "SHA256" {
				listed[filepath.Clean(f.FileName)] = c.ChecksumValue
			}
		}
	}
	found := extract(t, img)
	for name, digest := range found {
		if listed[name] != digest {
			t.Errorf("/%s is %s, the bill of materials says %q", name, digest, listed[name])
		}
	}
	if len(listed) != len(found) || len(found) < 5000 {
		t.Errorf("%d files, the bill of materials has %d", len(found), len(listed))
	}
	// The libraries and schemas of those who define the formats are in a module of
	// their own.
	check := exec.Command("go", "test", "-count=1", "-v", "-run", "TestGivenBillsOfMaterials", ".")
	check.Dir = filepath.Join(testenv.Root(t), "internal/oracle")
	check.Env = append(os.Environ(), "PLINTH_SBOM="+out)
	if text, err := check.CombinedOutput(); err != nil || !strings.Contains(string(text), "--- PASS") {
		t.Errorf("%v\n%s", err, text)
	}
	t.Logf("%d packages, %d files, root of %d MiB", packages, len(found), img.root.DataSize()>>20)
}

// extract returns the digests of the files in the root partition, by path.
func extract(t *testing.T, img *verityImage) map[string]string {
	t.Helper()
	dir := t.TempDir()
	partition, root := filepath.Join(dir, "partition"), filepath.Join(dir, "root")
	writeTo(t, partition, func(f *os.File) error {
		d, err := os.Open(img.machine.Disk)
		if err != nil {
			return err
		}
		defer d.Close()
		_, err = io.Copy(f, io.NewSectionReader(d, img.data, img.root.DataSize()))
		return err
	})
	if text, err := exec.Command(testenv.Tool("fsck.erofs"), "--extract="+root, partition).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, text)
	}
	digests := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		digests[strings.TrimPrefix(path, root+"/")] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return digests
}
