package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// What is for a policy of one's own: attestation keys as evidence has them, registers
// that the default policy does not read, and both points at which a guest with a broker
// asks.
func exportOwn(x *exporter) {
	const release = "6.12.98"
	dir := "usr/lib/modules/" + release + "/"
	writeFile(x.T, "debs/linux-image-net_1_amd64.deb", string(synthetic.Deb("linux-image-net", "1", "", map[string][]byte{
		"boot/vmlinuz-" + release: synthetic.Kernel(release), dir + "modules.builtin": []byte("kernel/virtio_net.ko\n"), dir + "modules.builtin.modinfo": {},
		dir + "kernel/leaf.ko": synthetic.Module("depends="),
	})))
	public, der := x.attestationKey()
	writeFile(x.T, "ca.pem", public) // as good as another
	writeFile(x.T, "broker.toml", strings.Replace(synthetic.Profile, "linux-image-synthetic", "linux-image-net", 1)+"[network]\ndhcp = true\n[attestation]\nbrokers = [{ url = \"https://kbs.example.com\", cas = \"ca.pem\" }]\n")
	x.must("build", "./broker.toml", "--agent", "agent", "--progress", "none", "-o", "out/broker")
	at := x.phases("out/broker", "pcr11")
	left := at[""] // as systemd-pcrphase goes on from there
	for _, phase := range []string{"enter-initrd", "leave-initrd"} {
		v, err := hex.DecodeString(left)
		if err != nil {
			x.Fatal(err)
		}
		d := sha256.Sum256([]byte(phase))
		left = hexDigest(append(v, d[:]...))
	}
	if got, want := x.sample("--to", "sample", "out/broker")["tpm_pcr11"], []any{left, at["enter-initrd:leave-initrd:sysinit:ready"]}; !sameValues(got, want) {
		x.Errorf("of a guest with a broker: got %v, want %v", got, want)
	}
	if got, want := x.sample("--to", "sample", "--phase", "enter-initrd:leave-initrd", "out/broker")["tpm_pcr11"], []any{left}; !sameValues(got, want) {
		x.Errorf("at one phase: got %v, want %v", got, want)
	}

	writeFile(x.T, "ak.pem", public)
	writeFile(x.T, "ak.der", string(der))
	values := x.sample("--to", "sample", "--ak", "ak.pem", "--ak", "ak.der", "--pcrs", "4,11,12", "out/vt")
	if got, want := values["trusted_aks"], []any{base64.StdEncoding.EncodeToString(der)}; !sameValues(got, want) {
		x.Errorf("attestation keys: %v, want %v", got, want)
	}
	four := x.phases("out/vt", "pcr4")[""]
	if !sameValues(values["tpm_pcr04"], []any{four}) || !sameValues(values["tpm_pcr12"], []any{strings.Repeat("0", 64)}) || values["tpm_pcr11"] == nil || len(values) != 4 {
		x.Errorf("got %v", values)
	}
	_, errs, _ := x.run("export", "--to", "sample", "--pcrs", "4", "-o", "-", "out/vt")
	for _, want := range []string{
		"plinth: tpm_pcr04: the default policy does not read it; one's own does by\n",
		"  in an attestation policy: input.tpm.pcr04 in query_reference_value(\"tpm_pcr04\")\n",
		"  in a resource policy, which has no reference values: input.submods.cpu0[\"ear.veraison.annotated-evidence\"].tpm.pcr04 in {\"" + four + "\"}\n",
	} {
		if !strings.Contains(errs, want) {
			x.Errorf("no %q in\n%s", want, errs)
		}
	}
	if out := x.must("export", "--check", "--ak", "ak.pem", "--pcrs", "4", "out/vt"); !strings.Contains(out, "your own: tpm_pcr04: ") || strings.Contains(out, "unknown: ") {
		x.Errorf("--check:\n%s", out)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		x.Fatal(err)
	}
	der, err = x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		x.Fatal(err)
	}
	writeFile(x.T, "ec.der", string(der))
	writeFile(x.T, "two.pem", public+public)
	writeFile(x.T, "none", "none")
	x.fails(2, "--ak ec.der: *ecdsa.PublicKey: want an RSA key", "export", "--check", "--ak", "ec.der", "out/vt")
	x.fails(2, "--ak two.pem: PEM of \"CERTIFICATE\": want one", "export", "--check", "--ak", "two.pem", "out/vt")
	x.fails(2, "--ak none: neither a public key nor a certificate", "export", "--check", "--ak", "none", "out/vt")
	x.fails(2, "--ak: the policy wants no attestation key of snp", "export", "--check", "--ak", "ak.pem", "out/sev")
	x.fails(3, "PCR 4 of a guest of TEE \"snp\"", "export", "--check", "--pcrs", "4", "out/sev")
	x.fails(3, "PCR 24 of a guest of TEE \"tpm\"", "export", "--check", "--pcrs", "24", "out/vt")
	x.fails(3, "PCR 4: Azure's firmware fills it", "export", "--check", "--tee", "az-snp-vtpm", "--pcrs", "4", "out/vt")
	x.fails(2, "--pcrs does not apply to --to intoto", "export", "--to", "intoto", "--pcrs", "4", "out/vt")
}

// attestationKey is a certificate of one in PEM, and its SubjectPublicKeyInfo.
func (x *exporter) attestationKey() (cert string, spki []byte) {
	x.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		x.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	b, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		x.Fatal(err)
	}
	if spki, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		x.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b})), spki
}

// phases are the values of a register in bank sha256, by phase, of the first shape.
func (x *exporter) phases(dir, register string) map[string]string {
	x.Helper()
	m, err := measure.ParseMeasurements(x.read(filepath.Join(dir, builder.MeasurementsName)))
	if err != nil {
		x.Fatal(err)
	}
	out := map[string]string{}
	for _, v := range m.Values {
		if v.Register == register && v.Bank == "sha256" && out[v.Phase] == "" {
			out[v.Phase] = v.Value
		}
	}
	return out
}

// sample are the values that export writes.
func (x *exporter) sample(args ...string) (out map[string]any) {
	x.Helper()
	if err := json.Unmarshal([]byte(x.must(append([]string{"export", "-o", "-"}, args...)...)), &out); err != nil {
		x.Fatal(err)
	}
	return out
}

// sameValues compares lists of texts whatever their order.
func sameValues(a any, b []any) bool {
	list, ok := a.([]any)
	for _, v := range list {
		ok = ok && slices.Contains(b, v)
	}
	return ok && len(list) == len(b)
}
