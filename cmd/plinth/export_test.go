package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/tests/kbs"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// An exporter runs plinth in a folder with synthetic images: out/sev, out/td and
// out/vt, and out/sev2, another version of the first.
type exporter struct {
	*testing.T
	now time.Time
	env map[string]string
}

func newExporter(t *testing.T) *exporter {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := synthetic.Write("debs"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "agent", "the guest's first program\n")
	x := &exporter{t, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), map[string]string{"PLINTH_CACHE": filepath.Join(t.TempDir(), "cache")}}
	for _, image := range []struct{ profile, text, out, cmdline string }{
		{"sev", synthetic.SNPProfile, "out/sev", "panic=-1"}, {"sev", synthetic.SNPProfile, "out/sev2", "quiet"},
		{"td", synthetic.TDXProfile, "out/td", "panic=-1"}, {"vt", synthetic.Profile, "out/vt", "panic=-1"},
	} {
		writeFile(t, image.profile+".toml", image.text)
		x.must("build", "./"+image.profile+".toml", "--agent", "agent", "--progress", "none", "-o", image.out, "--set", "cmdline="+image.cmdline)
	}
	return x
}

// TestExport shares the images between its parts, which take a second to build.
func TestExport(t *testing.T) {
	x := newExporter(t)
	for name, part := range map[string]func(*exporter){
		"Forms":          exportForms,
		"TDX":            exportTDX,
		"Defaults":       exportDefaults,
		"RollOver":       exportRollOver,
		"Check":          exportCheck,
		"Expiry":         exportExpiry,
		"Report":         exportReport,
		"Damage":         exportDamage,
		"Signed":         exportSigned,
		"Trustee":        exportTrustee,
		"TrusteeRefused": exportTrusteeRefused,
		"TrusteeChecked": exportTrusteeChecked,
		"Kata":           exportKata,
		"Own":            exportOwn,
	} {
		t.Run(name, func(t *testing.T) { part(&exporter{t, x.now, maps.Clone(x.env)}) })
	}
}

func (x *exporter) run(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(k string) string { return x.env[k] }, now: func() time.Time { return x.now }}
	code = run(context.Background(), args, e)
	return out.String(), errs.String(), code
}

func (x *exporter) must(args ...string) string {
	x.Helper()
	out, errs, code := x.run(args...)
	if code != 0 {
		x.Fatalf("plinth %s: exit %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

// fails wants an exit code and a text on stderr.
func (x *exporter) fails(code int, want string, args ...string) {
	x.Helper()
	if _, errs, got := x.run(args...); got != code || !strings.Contains(errs, want) {
		x.Errorf("plinth %s: exit %d, want %d and %q\n%s", strings.Join(args, " "), got, code, want, errs)
	}
}

func (x *exporter) read(path string) []byte {
	x.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		x.Fatal(err)
	}
	return b
}

// predicted are the digests of a register in measurements.json, sorted.
func (x *exporter) predicted(dir, register, bank string) (out []any) {
	x.Helper()
	m, err := measure.ParseMeasurements(x.read(filepath.Join(dir, builder.MeasurementsName)))
	if err != nil {
		x.Fatal(err)
	}
	var texts []string
	phase := ""
	for _, v := range m.Values {
		if v.Register == register && v.Bank == bank && v.Phase > phase {
			phase = v.Phase // of the synthetic profile: the last
		}
	}
	for _, v := range m.Values {
		if v.Register == register && v.Bank == bank && v.Phase == phase {
			texts = append(append(texts, v.OneOf...), v.Value)
		}
	}
	slices.Sort(texts)
	for _, s := range slices.Compact(texts) {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// What each image gives for each kind of guest, in every form, is what its
// measurements have under the names of the policy.
func exportForms(x *exporter) {
	for _, image := range []struct {
		dir, tee string
		want     map[string]any
		corim    map[string]any
	}{
		{"out/sev", "snp", map[string]any{
			"snp_launch_measurement": x.predicted("out/sev", "launch_digest", "sha384"),
			"snp_guest_abi_major":    0.0, "snp_guest_abi_minor": 0.0, "snp_single_socket": false, "snp_smt_allowed": true,
		}, map[string]any{"AMD/SEV-SNP/MEASUREMENT/digests": x.predicted("out/sev", "launch_digest", "sha384")}},
		{"out/vt", "tpm", map[string]any{"tpm_pcr11": x.predicted("out/vt", "pcr11", "sha256")},
			map[string]any{"TCG/TPM/PCR11/digests": x.predicted("out/vt", "pcr11", "sha256")}},
		{"out/vt", "az-snp-vtpm", map[string]any{"snp_pcr11": x.predicted("out/vt", "pcr11", "sha256")},
			map[string]any{"Microsoft/az-snp-vtpm/PCR11/digests": x.predicted("out/vt", "pcr11", "sha256")}},
		{"out/vt", "az-tdx-vtpm", map[string]any{"tdx_pcr11": x.predicted("out/vt", "pcr11", "sha256")},
			map[string]any{"Microsoft/az-tdx-vtpm/PCR11/digests": x.predicted("out/vt", "pcr11", "sha256")}},
	} {
		for form, want := range map[string]map[string]any{"rvps": image.want, "sample": image.want, "k8s": image.want, "corim": image.corim} {
			args := []string{"export", image.dir, "--to", form, "--tee", image.tee, "-o"}
			if form == "k8s" {
				args = slices.Insert(args, 4, "--expires", "+90d")
			}
			x.must(append(args, "one")...)
			b := &kbs.Broker{}
			if err := b.Load(form, x.read("one")); err != nil {
				x.Errorf("%s, %s as %s: %v", image.dir, image.tee, form, err)
			}
			if got := b.Values(); !reflect.DeepEqual(got, want) {
				x.Errorf("%s, %s as %s:\n%v\nwant\n%v", image.dir, image.tee, form, got, want)
			}
			if again := x.must(append(args, "-")...); again != string(x.read("one")) {
				x.Errorf("%s, %s as %s: other bytes on stdout", image.dir, image.tee, form)
			}
		}
	}
}

// A trust domain: registers one by one, and a list where MRTD is one of two.
func exportTDX(x *exporter) {
	got, err := kbs.Read("rvps", []byte(x.must("export", "out/td", "--to", "rvps", "--platform-value", "xfam=0xe702060000000000", "-o", "-")))
	if err != nil {
		x.Fatal(err)
	}
	for name, register := range map[string]string{"mr_td": "mrtd", "rtmr_1": "rtmr1", "rtmr_2": "rtmr2"} {
		if want := x.predicted("out/td", register, "sha384"); !reflect.DeepEqual(got[name], any(want)) {
			x.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
	if !reflect.DeepEqual(got["xfam"], []any{"e702060000000000"}) || len(got["mr_td"].([]any)) != 2 {
		x.Errorf("%v", got)
	}
}

// Default names lie beside the image, which stays as it was built.
func exportDefaults(x *exporter) {
	for form, files := range map[string][]string{
		"rvps": {"reference-values.json"}, "sample": {"reference-values.sample.json"}, "corim": {"reference-values.corim"},
		"intoto": {"measurements.intoto.json", "provenance.intoto.json"}, "kata": {"kata.toml"},
	} {
		out := x.must("export", "out/sev", "--to", form)
		if form == "intoto" {
			for _, file := range files {
				if _, err := kbs.ReadStatement(x.read(filepath.Join("out/sev", file))); err != nil {
					x.Errorf("%s: %v", file, err)
				}
			}
		}
		for _, file := range files {
			path := filepath.Join("out/sev", file)
			if want := hexDigest(x.read(path)) + "  " + path + "\n"; !strings.Contains(out, want) {
				x.Errorf("%s prints %q, want %q", form, out, want)
			}
		}
	}
	x.must("verify", "out/sev")
}

// Two versions of a profile make one set; --diff says what came.
func exportRollOver(x *exporter) {
	old, both := x.predicted("out/sev", "launch_digest", "sha384"), []any{}
	both = append(append(both, old...), x.predicted("out/sev2", "launch_digest", "sha384")...)
	slices.SortFunc(both, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	got, err := kbs.Read("sample", []byte(x.must("export", "out/sev", "out/sev2", "--to", "sample", "-o", "-")))
	if err != nil || !reflect.DeepEqual(got["snp_launch_measurement"], any(both)) {
		x.Errorf("%v, %v", got, err)
	}
	x.must("export", "out/sev", "--to", "rvps", "-o", "old.json")
	if out := x.must("export", "out/sev", "--diff", "old.json"); out != "the same values\n" {
		x.Errorf("against itself: %s", out)
	}
	out := x.must("export", "out/sev2", "--diff", "old.json")
	if strings.Count(out, "\n  - ") != len(old) || strings.Count(out, "\n  + ") != len(both)-len(old) || !strings.HasPrefix(out, "snp_launch_measurement: changed\n") {
		x.Errorf("against the other:\n%s", out)
	}
	x.must("export", "out/sev", "out/sev2", "--diff", "old.json", "--label", "now", "--label", "next")
	x.fails(2, "one for each of the 2 images", "export", "out/sev", "out/sev2", "--diff", "old.json", "--label", "now")
	x.fails(2, "the same image, or label, as another", "export", "out/sev", "out/sev", "--diff", "old.json")
	x.fails(2, "the same image, or label, as another", "export", "out/sev", "out/sev2", "--diff", "old.json", "--label", "a", "--label", "a")
	x.fails(2, "make a set of each", "export", "out/sev", "out/td", "--diff", "old.json")
	x.fails(2, "-o has to say where", "export", "out/sev", "out/sev2", "--to", "rvps")
	x.fails(2, "takes one DIR", "export", "out/sev", "out/sev2", "--to", "qcow2")
}

// platform is what the policy asks of an SNP host.
const platform = `{"snp_bootloader": [9], "snp_microcode": 72, "snp_snp_svn": [21], "snp_tee_svn": [0], "snp_smt_enabled": true, "snp_tsme_enabled": false}`

func exportCheck(x *exporter) {
	writeFile(x.T, "platform.json", platform)
	out := x.must("export", "out/sev", "--check", "--platform-values", "platform.json")
	if !strings.Contains(out, "trust vector at best: hardware 2, executables 3, configuration 2") || strings.Contains(out, "missing") {
		x.Errorf("%s", out)
	}
	// Each value left out is named, and nothing is written.
	var values map[string]any
	if err := json.Unmarshal([]byte(platform), &values); err != nil {
		x.Fatal(err)
	}
	for name := range values {
		part := map[string]any{}
		for n, v := range values {
			if n != name {
				part[n] = v
			}
		}
		b, _ := json.Marshal(part)
		writeFile(x.T, "part.json", string(b))
		args := []string{"export", "out/sev", "--check", "--platform-values", "part.json", "--to", "rvps", "-o", "not-written"}
		_, errs, code := x.run(args...)
		// Without SMT and TSME the policy still affirms the configuration, by its second rule.
		if weaker := strings.HasSuffix(name, "_enabled"); weaker && code != 0 || !weaker && (code != 7 || !strings.Contains(errs, "no value for "+name+"\n")) {
			x.Errorf("without %s: exit %d\n%s", name, code, errs)
		}
		if _, err := os.Stat("not-written"); code != 0 && err == nil {
			x.Errorf("without %s: written all the same", name)
		}
		os.Remove("not-written")
	}
	x.fails(7, "nobody reads snp_bootlaoder", "export", "out/sev", "--check", "--platform-values", "platform.json", "--platform-value", "snp_bootlaoder=9")
	x.fails(2, "snp_bootloader", "export", "out/sev", "--check", "--platform-value", "snp_bootloader=nine")
	x.fails(2, "want NAME=VALUE", "export", "out/sev", "--check", "--platform-value", "9")
	x.fails(7, "no value for trusted_aks", "export", "out/vt", "--check")
	x.fails(3, "no such measurements", "export", "out/vt", "--check", "--tee", "snp")
	x.fails(2, "want one of snp, tdx", "export", "out/vt", "--check", "--tee", "sgx")
	x.fails(3, "no such measurements", "export", "out/vt", "--check", "--phase", "lunch")
	out = x.must("export", "out/sev", "--check", "--platform-values", "platform.json", "--json")
	var j struct {
		Check struct{ Vector map[string]int }
	}
	if err := json.Unmarshal([]byte(out), &j); err != nil || j.Check.Vector["executables"] != 3 {
		x.Errorf("%v\n%s", err, out)
	}
}

func exportExpiry(x *exporter) {
	for text, want := range map[string]time.Time{
		"+90d": x.now.AddDate(0, 0, 90), "+36h": x.now.Add(36 * time.Hour), "2027-01-31T02:00:00+02:00": time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC),
	} {
		_, expires, err := kbs.Object([]byte(x.must("export", "out/sev", "--to", "k8s", "--expires", text, "-o", "-")))
		if err != nil || !expires.Equal(want) {
			x.Errorf("%s: %v, %v, want %v", text, expires, err, want)
		}
	}
	for _, text := range []string{"2026-11-21T11:59:59Z", "2026-11-21T12:00:00Z", "+0d", "+-1h", "+-3d"} {
		x.fails(2, "it is over already", "export", "out/sev", "--to", "rvps", "--expires", text)
	}
	for _, text := range []string{"tomorrow", "+", "+d", "+1y", "2027-01-31"} {
		x.fails(2, "want a time as", "export", "out/sev", "--to", "rvps", "--expires", text)
	}
	x.fails(2, "needs --expires", "export", "out/sev", "--to", "k8s")
	x.fails(2, "export: name", "export", "out/sev", "--to", "k8s", "--expires", "+1d", "--name", "A")
}

// bootReport is a report of a guest that ran the image.
func (x *exporter) bootReport(dir string) *evidence.Report {
	x.Helper()
	m, err := readMeasurements(dir)
	if err != nil {
		x.Fatal(err)
	}
	r := &evidence.Report{Schema: evidence.ReportSchema, Cmdline: "panic=-1", Root: evidence.RootInitrd, Before: evidence.PCRs{}, After: evidence.PCRs{}}
	for _, bank := range []string{"sha1", "sha256", "sha384"} {
		r.Banks = append(r.Banks, bank)
		r.Before[bank], r.After[bank] = map[int]string{}, map[int]string{}
		for i := range evidence.Registers {
			zero := strings.Repeat("00", map[string]int{"sha1": 20, "sha256": 32, "sha384": 48}[bank])
			r.Before[bank][i], r.After[bank][i] = zero, zero
		}
	}
	phase := ""
	for _, v := range m.Values {
		if v.Register == "pcr11" && v.Value != "" {
			if v.Phase == "" {
				r.Before[v.Bank][11] = v.Value
			} else if len(v.Phase) >= len(phase) {
				phase = v.Phase
				r.After[v.Bank][11] = v.Value
			}
		}
	}
	return r
}

// Values of another image than the one whose report is named are not written.
func exportReport(x *exporter) {
	write := func(change func(*evidence.Report)) {
		r := x.bootReport("out/vt")
		change(r)
		b, err := json.Marshal(r)
		if err != nil {
			x.Fatal(err)
		}
		writeFile(x.T, "report.json", string(b))
	}
	args := []string{"export", "out/vt", "--to", "rvps", "--report", "report.json", "-o", "values.json"}
	write(func(*evidence.Report) {})
	x.must(args...)
	os.Remove("values.json")
	for name, c := range map[string]struct {
		change func(*evidence.Report)
		want   string
	}{
		"before":       {func(r *evidence.Report) { r.Before["sha256"][11] = r.Before["sha256"][0] }, "of another image: PCR 11 of bank sha256 is 00"},
		"another bank": {func(r *evidence.Report) { r.Before["sha384"][11] = r.Before["sha384"][0] }, "of another image: PCR 11 of bank sha384"},
		"after":        {func(r *evidence.Report) { r.After["sha256"][11] = r.After["sha256"][0] }, "of another image: PCR 11"},
		"command line": {func(r *evidence.Report) { r.Cmdline = "quiet" }, "of another image: command line"},
		"root":         {func(r *evidence.Report) { r.Root = evidence.RootVerity }, "of another image: root"},
		"none at all":  {func(r *evidence.Report) { r.Schema = 9 }, "report"},
	} {
		write(c.change)
		x.fails(7, c.want, args...)
		if _, err := os.Stat("values.json"); err == nil {
			x.Errorf("%s: written all the same", name)
		}
	}
	x.fails(6, "nowhere", "export", "out/vt", "--to", "rvps", "--report", "nowhere")
	x.fails(7, "report.json", "export", "out/vt", "--to", "intoto", "--report", "report.json")
}

// Measurements that are not those of the manifest are not exported.
func exportDamage(x *exporter) {
	path := "out/sev/measurements.json"
	b := x.read(path)
	defer writeFile(x.T, path, string(b))
	digest := x.predicted("out/sev", "launch_digest", "sha384")[0].(string)
	writeFile(x.T, path, strings.Replace(string(b), digest, strings.Repeat("ab", 48), 1))
	for _, form := range []string{"rvps", "corim", "intoto", "kata"} {
		x.fails(7, "measurements.json: sha256 is", "export", "out/sev", "--to", form)
	}
	x.fails(7, "measurements.json: sha256 is", "export", "out/sev", "--check")
}

// pemKeys writes keys and returns their public halves, by file.
func (x *exporter) pemKeys() map[string]crypto.PublicKey {
	x.Helper()
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	ec, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, err3 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	r, err4 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		x.Fatal(err)
	}
	out := map[string]crypto.PublicKey{}
	for name, key := range map[string]crypto.Signer{"ed.pem": ed, "ec.pem": ec, "p384.pem": p384, "rsa.pem": r} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			x.Fatal(err)
		}
		writeFile(x.T, name, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
		out[name] = key.Public()
	}
	return out
}

func exportSigned(x *exporter) {
	keys := x.pemKeys()
	plain := x.must("export", "out/sev", "--to", "corim", "-o", "-")
	for name, public := range keys {
		x.must("export", "out/sev", "--to", "corim", "--sign", name, "-o", "values.corim")
		signed := x.read("values.corim.cose")
		payload, err := kbs.Sign1(signed, public)
		if err != nil || string(payload) != plain || string(x.read("values.corim")) != plain {
			x.Errorf("%s: %v", name, err)
		}
		if other := keys[map[bool]string{true: "ec.pem", false: "ed.pem"}[name == "ed.pem"]]; name != "ec.pem" || !reflect.DeepEqual(other, public) {
			if _, err := kbs.Sign1(signed, other); err == nil {
				x.Errorf("%s: another key verifies", name)
			}
		}
		again := x.must("export", "out/sev", "--to", "corim", "--sign", name, "-o", "-")
		if same := again == string(signed); same != (name != "rsa.pem") {
			x.Errorf("%s: the same bytes again: %t", name, same)
		}
		x.must("export", "out/sev", "--to", "intoto", "--sign", name)
		statements, err := kbs.Envelopes(x.read("out/sev/attestations.intoto.jsonl"), public)
		if err != nil || len(statements) != 2 || statements[1].PredicateType != "https://slsa.dev/provenance/v1" {
			x.Errorf("%s: %v, %v", name, statements, err)
			continue
		}
		x.sameStatement(statements[0])
	}
	x.badKeys()
}

// sameStatement wants the artefacts as subjects and the measurements as predicate.
func (x *exporter) sameStatement(s *kbs.Statement) {
	x.Helper()
	sums, err := readSums("out/sev")
	if err != nil {
		x.Fatal(err)
	}
	delete(sums, "manifest.json")
	for _, subject := range s.Subject {
		if sums[subject.Name] != subject.Digest["sha256"] {
			x.Errorf("subject %+v, SHA256SUMS has %s", subject, sums[subject.Name])
		}
		delete(sums, subject.Name)
	}
	var got, want bytes.Buffer
	if err := errors.Join(json.Compact(&got, s.Predicate), json.Compact(&want, x.read("out/sev/measurements.json"))); err != nil {
		x.Fatal(err)
	}
	if len(sums) > 0 || got.String() != want.String() {
		x.Errorf("no subjects: %v; the predicate is the measurements: %t", sums, got.String() == want.String())
	}
}

func (x *exporter) badKeys() {
	x.Helper()
	writeFile(x.T, "public.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
	writeFile(x.T, "encrypted.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
	writeFile(x.T, "text.pem", "hello\n")
	for name, want := range map[string]string{"public.pem": "PUBLIC KEY", "encrypted.pem": "encrypted", "text.pem": "no PEM block"} {
		for _, form := range []string{"corim", "intoto"} {
			x.fails(2, want, "export", "out/sev", "--to", form, "--sign", name)
		}
	}
	x.fails(6, "nowhere.pem", "export", "out/sev", "--to", "corim", "--sign", "nowhere.pem")
	x.fails(2, "no PIN", "export", "out/sev", "--to", "corim", "--sign", "pkcs11:token=a;object=b")
	x.env["PLINTH_PKCS11_PIN"] = "1234"
	path := os.Getenv("PATH")
	x.Setenv("PATH", "")
	x.fails(4, "hint: install opensc", "export", "out/sev", "--to", "corim", "--sign", "pkcs11:token=a;object=b")
	x.Setenv("PATH", path)
	x.fails(2, "give --sign", "export", "out/sev", "--to", "corim", "--signer", "me")
	x.fails(2, "--cert ed.pem", "export", "out/sev", "--to", "corim", "--sign", "ed.pem", "--cert", "ed.pem")
}

// secureBroker is a broker behind TLS whose authority is in ca.pem, and whose
// admin has the key in ed.pem.
func (x *exporter) secureBroker(admin crypto.PublicKey) (*kbs.Broker, string) {
	x.Helper()
	b := &kbs.Broker{Admin: &kbs.Admin{Key: admin, Issuer: "ops", Now: func() time.Time { return x.now }, ACL: []kbs.ACL{{Role: "kbs-admin", Paths: "^/kbs/.+$"}}}}
	s := httptest.NewUnstartedServer(b)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	x.Cleanup(s.Close)
	writeFile(x.T, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return b, s.URL
}

func exportTrustee(x *exporter) {
	b, url := x.secureBroker(x.pemKeys()["ed.pem"])
	args := []string{"export", "out/sev", "--to", "trustee", "--url", url, "--ca", "ca.pem", "--admin-key", "ed.pem", "--admin-issuer", "ops"}
	shown := x.must(append(args, "--dry-run")...)
	if !strings.Contains(shown, "POST "+url+"/kbs/v0/reference-value\n") || strings.Contains(shown, "eyJhbGci") || len(b.Requests()) > 0 {
		x.Errorf("%s\n%d requests", shown, len(b.Requests()))
	}
	if out := x.must(args...); strings.Count(out, ": set\n") != 5 {
		x.Errorf("%s", out)
	}
	want, err := kbs.Read("rvps", []byte(x.must("export", "out/sev", "--to", "rvps", "-o", "-")))
	if err != nil || !reflect.DeepEqual(b.Values(), want) {
		x.Errorf("the broker has %v, want %v; %v", b.Values(), want, err)
	}
	before := len(b.Requests())
	if out := x.must(args...); strings.Count(out, ": has it already\n") != 5 {
		x.Errorf("%s", out)
	}
	for _, r := range b.Requests()[before:] {
		if r.Method != "GET" {
			x.Errorf("%s of what is there already", r.Method)
		}
	}
	args[1] = "out/sev2"
	if out := x.must(args...); !strings.Contains(out, "snp_launch_measurement: replaced\n  - [") {
		x.Errorf("%s", out)
	}
}

func exportTrusteeRefused(x *exporter) {
	b, url := x.secureBroker(x.pemKeys()["ed.pem"])
	to := func(more ...string) []string {
		return append([]string{"export", "out/sev", "--to", "trustee"}, more...)
	}
	secure := func(more ...string) []string { return to(append([]string{"--url", url, "--ca", "ca.pem"}, more...)...) }
	writeFile(x.T, "token", "abc.def.ghi\n")
	writeFile(x.T, "junk", "two words")
	x.fails(7, "admin access denied", secure()...)
	x.fails(7, "admin access denied", secure("--token-file", "token")...)
	x.fails(7, "admin access denied", secure("--admin-key", "ec.pem", "--admin-issuer", "ops")...)
	x.fails(7, "admin access denied", secure("--admin-key", "ed.pem", "--admin-issuer", "others")...)
	x.fails(7, "hint: the token has to be", secure("--admin-key", "ed.pem", "--admin-issuer", "ops", "--admin-role", "guest")...)
	x.fails(5, "--ca FILE", to("--url", url, "--token-file", "token")...)
	x.fails(5, "broker", to("--url", "http://127.0.0.1:1")...)
	x.fails(2, "--url is needed", to()...)
	x.fails(2, "want https://HOST:PORT", to("--url", "kbs")...)
	x.fails(2, "exclude each other", secure("--token-file", "token", "--admin-key", "ed.pem")...)
	x.fails(2, "junk: no token", secure("--token-file", "junk")...)
	x.fails(2, "give --admin-key", secure("--admin-role", "x")...)
	x.fails(2, "no certificate", to("--url", url, "--ca", "token")...)
	x.fails(2, "not sent without TLS", to("--url", "http://kbs.example.com", "--token-file", "token")...)
	x.fails(2, "--timeout", secure("--timeout", "0s")...)
	x.fails(2, "PEM", secure("--admin-key", "token")...)
	x.fails(6, "nowhere", secure("--token-file", "nowhere")...)
	x.fails(2, "-o does not apply", secure("-o", "x")...)
	if len(b.Values()) > 0 {
		x.Errorf("the broker has %v", b.Values())
	}
	x.env["PLINTH_KBS_TOKEN"], x.env["PLINTH_KBS_URL"] = "not one", url
	x.fails(2, "PLINTH_KBS_TOKEN: no token", to("--ca", "ca.pem")...)
	x.env["PLINTH_KBS_TOKEN"] = "abc.def.ghi"
	x.fails(7, "admin access denied", to("--ca", "ca.pem")...)
}

// A set is not sent when the policy would not accept it.
func exportTrusteeChecked(x *exporter) {
	b, url := x.secureBroker(x.pemKeys()["ed.pem"])
	writeFile(x.T, "platform.json", platform)
	args := []string{"export", "out/sev", "--to", "trustee", "--url", url, "--ca", "ca.pem", "--admin-key", "ed.pem", "--admin-issuer", "ops", "--check"}
	x.fails(7, "no value for snp_bootloader", args...)
	if len(b.Requests()) > 0 {
		x.Errorf("%d requests", len(b.Requests()))
	}
	x.must(append(args, "--platform-values", "platform.json")...)
	if v := b.Values(); len(v) != 11 || !reflect.DeepEqual(v["snp_microcode"], []any{72.0}) || v["snp_smt_enabled"] != true {
		x.Errorf("%v", v)
	}
}

func exportKata(x *exporter) {
	x.must("export", "out/sev", "--to", "kata", "--node-dir", "/srv/x")
	text := string(x.read("out/sev/kata.toml"))
	if !strings.Contains(text, `initrd = "/srv/x/initrd"`) || !strings.Contains(text, `kernel = "/srv/x/vmlinuz"`) {
		x.Errorf("%s", text)
	}
	got, err := kbs.Read("sample", []byte(x.must("export", "out/sev", "--to", "sample", "--launch", "kata", "-o", "-")))
	if err != nil {
		x.Fatal(err)
	}
	digests, _ := got["snp_launch_measurement"].([]any)
	if len(digests) != 2 { // one CPU model, two numbers of vCPUs
		x.Errorf("%v", got)
	}
	for _, d := range digests {
		if !strings.Contains(text, fmt.Sprint("  ", d, "\n")) {
			x.Errorf("%v is not in\n%s", d, text)
		}
		if slices.Contains(x.predicted("out/sev", "launch_digest", "sha384"), d) {
			x.Errorf("%v is that of the image's own command line", d)
		}
	}
	// The same by the command that takes files.
	_, cmdline, _ := strings.Cut(text, "it is\n#\n#   ")
	cmdline, _, _ = strings.Cut(cmdline, "\n")
	out := x.must("measure", "snp", "--vcpus", "1,2", "--vcpu-type", "EPYC-v4", "--ovmf", "out/sev/firmware.fd", "--kernel", "out/sev/vmlinuz", "--initrd", "out/sev/initrd", "--append", cmdline)
	for _, d := range digests {
		if !strings.Contains(out, d.(string)) {
			x.Errorf("plinth measure snp:\n%s\nwant %v in it", out, d)
		}
	}
	x.fails(3, "Kata gives a guest no TPM", "export", "out/vt", "--to", "kata")
	x.fails(3, "not predicted", "export", "out/td", "--to", "rvps", "--launch", "kata", "-o", "x")
	x.fails(2, "--launch is", "export", "out/td", "--to", "rvps", "--launch", "moon", "-o", "x")
	x.fails(2, "clean absolute path", "export", "out/sev", "--to", "kata", "--node-dir", "opt/../x")
}
