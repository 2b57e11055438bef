package builder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/measure/tdx"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// guest reads a synthetic profile of another platform.
func (s *site) guest(text string, set ...string) *profiles.Profile {
	s.t.Helper()
	path := s.write("tiny.toml", []byte(text))
	p, err := profiles.Load(profiles.Host, path, profiles.Options{Set: set})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *site) mustBuild(p *profiles.Profile) (*Manifest, map[string]Outputs, *measure.Measurements) {
	s.t.Helper()
	results, err := s.run(p, Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := measure.ParseMeasurements(s.output(results, "measure", "measurements.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	return NewManifest(s.spec(p), results, nil, nil), results, m
}

func names(m *Manifest) (out []string) {
	for _, a := range m.Artefacts {
		out = append(out, a.Name)
	}
	return out
}

// The launch digest of every number and model of vCPUs, over the files that
// QEMU is given.
func TestSNP(t *testing.T) {
	s := newSite(t)
	m, results, doc := s.mustBuild(s.guest(synthetic.SNPProfile))
	want := []string{"image.raw", "image.efi", "initrd", "vmlinuz", "cmdline", "firmware.fd", "firmware.generic.fd", "firmware.generic.vars.fd", "measurements.json", "sbom.spdx.json", "sbom.cdx.json"}
	if got := names(m); !slices.Equal(got, want) {
		t.Errorf("artefacts %q, want %q", got, want)
	}
	cmdline := "panic=-1"
	hashes, err := snp.HashDirectBoot(bytes.NewReader(s.output(results, "kernel", "vmlinuz")), bytes.NewReader(s.output(results, "initrd", "initrd")), &cmdline)
	if err != nil {
		t.Fatal(err)
	}
	launch, err := snp.NewLaunch(snp.Params{VMM: snp.QEMU, Firmware: ovmftest.AmdSev("2026.08-1"), Hashes: hashes})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range doc.Values {
		got = append(got, fmt.Sprintf("%d %s", v.Shape.VCPUs, v.CPU))
		cpu, err := snp.FindCPU(v.CPU)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := launch.Digest(snp.VCPUs{Count: v.Shape.VCPUs, Signature: cpu.Signature})
		if err != nil {
			t.Fatal(err)
		}
		if v.Value != hex.EncodeToString(digest[:]) || v.Register != "launch_digest" || v.Provenance != measure.Predicted {
			t.Errorf("%+v", v)
		}
	}
	if want := []string{"1 EPYC-v4", "1 EPYC-Milan", "2 EPYC-v4", "2 EPYC-Milan"}; !slices.Equal(got, want) {
		t.Errorf("values for %q, want %q", got, want)
	}
	if doc.SNP == nil || doc.SNP.Policy != "0x30000" || doc.SNP.KernelHashes == nil || doc.SNP.KernelHashes.Kernel != hex.EncodeToString(hashes.Kernel[:]) {
		t.Errorf("%+v", doc.SNP)
	}
	if doc.Versions.Edk2 != "2026.08-1" || !strings.HasPrefix(doc.Versions.Kernel, "6.12.99") {
		t.Errorf("%+v", doc.Versions)
	}
	for _, in := range doc.Inputs {
		at := slices.IndexFunc(m.Artefacts, func(a Artefact) bool { return a.Digest.String() == in.SHA256 && a.Size == in.Size })
		if at < 0 {
			t.Errorf("input %s is no artefact", in.Name)
		}
	}
	if c := s.image(results).config; c.TPM != config.TPMOptional || len(c.Phases) != 0 {
		t.Errorf("%+v", c)
	}
}

// A UKI is hashed as the kernel, and brings its own initrd and command line.
func TestSNPPaths(t *testing.T) {
	s := newSite(t)
	_, results, doc := s.mustBuild(s.guest(synthetic.SNPProfile, "machine.path=uki"))
	uki := sha256.Sum256(s.output(results, "uki", "image.efi"))
	none, nul := sha256.Sum256(nil), sha256.Sum256([]byte{0})
	want := measure.KernelHashes{Kernel: hex.EncodeToString(uki[:]), Initrd: hex.EncodeToString(none[:]), Cmdline: hex.EncodeToString(nul[:])}
	if got := doc.SNP.KernelHashes; got == nil || *got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	_, _, fromDisk := s.mustBuild(s.guest(synthetic.SNPProfile, "machine.path=disk"))
	if fromDisk.SNP.KernelHashes != nil || len(fromDisk.Inputs) != 1 || fromDisk.Values[0].Value == doc.Values[0].Value {
		t.Errorf("from a disk: %+v, %+v", fromDisk.SNP, fromDisk.Inputs)
	}
}

// Every value that the profile gives is in the document.
func TestSNPFacts(t *testing.T) {
	s := newSite(t)
	id := strings.Repeat("ab", 16)
	_, _, doc := s.mustBuild(s.guest(synthetic.SNPProfile, "snp.policy=0xb0000", "snp.guest_features=0x21", "snp.host_era="+snp.Eras[1].Name,
		"snp.family_id="+id, "snp.image_id="+id, "snp.guest_svn=3", "snp.vcpu_types=EPYC-Genoa", "machine.vcpus=4"))
	f := doc.SNP
	if f.Policy != "0xb0000" || f.GuestFeatures != "0x21" || f.Era != snp.Eras[1].Name || f.FamilyID != id || f.ImageID != id || f.GuestSVN != 3 || f.VMM != "qemu" {
		t.Errorf("%+v", f)
	}
	if len(doc.Values) != 1 || !strings.Contains(doc.Values[0].Reason, snp.Eras[1].Hosts) {
		t.Errorf("%+v", doc.Values)
	}
}

// What only measure/snp can judge is refused before anything is fetched.
func TestSNPRefuses(t *testing.T) {
	s := newSite(t)
	for set, want := range map[string]string{
		"snp.vcpu_types=EPIC-v4": "snp.vcpu_types: ",
		"snp.policy=0x10000":     "snp.policy: ", // bit 17 must be one
		"snp.host_era=linux-1":   "snp.host_era: ",
	} {
		spec := s.spec(s.guest(synthetic.SNPProfile, set))
		_, err := Build(t.Context(), spec, Options{Store: s.Store, Workplace: s.Workplace})
		var value *ValueError
		if !errors.As(err, &value) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", set, err, want)
		}
	}
	s = newSite(t)
	_, err := s.run(s.guest(synthetic.SNPProfile, "firmware.package=ovmf", "firmware.code=usr/share/OVMF/OVMF_CODE_4M.fd"), Options{})
	wantError(t, err, "measure: ")
}

// MRTD and the RTMRs, and a log that replays to them.
func TestTDX(t *testing.T) {
	s := newSite(t)
	owner := strings.Repeat("0d", 48)
	p := s.guest(synthetic.TDXProfile, "tdx.attributes=0x10000000", "tdx.mr_owner="+owner)
	m, results, doc := s.mustBuild(p)
	want := []string{"image.raw", "image.efi", "initrd", "vmlinuz", "cmdline", "firmware.fd", "firmware.generic.fd", "firmware.generic.vars.fd", "measurements.json", "eventlog.json", "sbom.spdx.json", "sbom.cdx.json"}
	if got := names(m); !slices.Equal(got, want) {
		t.Errorf("artefacts %q, want %q", got, want)
	}
	values := map[string]measure.Value{}
	for _, v := range doc.Values {
		if v.Platform != measure.PlatformTDX {
			t.Errorf("%+v", v)
		}
		values[v.Register] = v
	}
	var orders []string
	for _, o := range tdx.Orders {
		d, err := tdx.MRTD(s.output(results, "firmware", "code"), o)
		if err != nil {
			t.Fatal(err)
		}
		orders = append(orders, hex.EncodeToString(d[:]))
	}
	if v := values["mrtd"]; v.Provenance != measure.OneOf || !slices.Equal(v.OneOf, orders) {
		t.Errorf("%+v", v)
	}
	if v := values["rtmr0"]; len(v.Events) < 2 || v.Events[0].Source != "hand-off blocks for the memory" || v.Events[1].Source != "variables in the firmware file" {
		t.Errorf("%+v", v)
	}
	for r, name := range []string{"rtmr1", "rtmr2", "rtmr3"} {
		value := make([]byte, 48)
		for _, e := range values[name].Events {
			d, err := hex.DecodeString(e.Digest)
			if err != nil {
				t.Fatal(err)
			}
			value = eventlog.Extend(eventlog.SHA384, value, d)
		}
		if v := values[name]; v.Value != hex.EncodeToString(value) || (r == 2) != (len(v.Events) == 0) {
			t.Errorf("%+v", v)
		}
	}
	if f := doc.TDX; f == nil || f.Attributes != "0x10000000" || f.MROwner != owner || f.XFAM != "" {
		t.Errorf("%+v", f)
	}
	if len(doc.Inputs) != 2 || doc.Inputs[0].Name != "firmware" || doc.Inputs[1].Name != "disk" {
		t.Errorf("%+v", doc.Inputs)
	}
}

// Keys move RTMR 0 and not MRTD: the variables are in the firmware file, which
// the profile's own keys, or none, are written to.
func TestTDXKeys(t *testing.T) {
	s := newSite(t)
	cert := s.keyPair("sb")
	_, _, plain := s.mustBuild(s.guest(synthetic.TDXProfile))
	keys := "\n[secure_boot]\nkey = \"sb.key\"\ncert = \"sb.pem\"\nenroll = true\n"
	_, results, enrolled := s.mustBuild(s.guest(synthetic.TDXProfile + keys))
	for _, output := range []string{"code", "generic.vars"} {
		vars, err := ovmf.ParseVars(s.output(results, "firmware", output))
		if err != nil {
			t.Fatal(err)
		}
		db, _, ok := vars.Get("db", ovmf.ImageSecurity)
		if !ok || !bytes.Contains(db, cert.Raw) {
			t.Errorf("%s: db lacks the certificate", output)
		}
	}
	code := s.output(results, "firmware", "code") // with keys, as a packaged one
	s = newSite(t)
	s.write("OVMF.fd", code)
	p := s.guest(synthetic.TDXProfile, "secure_boot.setup_mode=true")
	p.Firmware.Package, p.Firmware.Code, p.Firmware.CodeFile = "", "", s.dir+"/OVMF.fd"
	_, results, free := s.mustBuild(p)
	vars, err := ovmf.ParseVars(s.output(results, "firmware", "code"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range vars.List() {
		if slices.Contains([]string{"PK", "KEK", "db"}, x.Name) {
			t.Errorf("variable %s is still there", x.Name)
		}
	}
	for i, want := range plain.Values[0].OneOf {
		if enrolled.Values[0].OneOf[i] != want || free.Values[0].OneOf[i] != want {
			t.Errorf("MRTD moves with the variables: %v, %v, want %s", enrolled.Values[0].OneOf, free.Values[0].OneOf, want)
		}
	}
	volume := func(m *measure.Measurements) string { return m.Values[1].Events[1].Digest }
	if volume(plain) == volume(enrolled) || volume(free) == volume(enrolled) {
		t.Error("RTMR 0 does not move with the variables")
	}
}

// A generic firmware that cannot enforce keys would not show what the image does.
func TestGenericWithoutSecureBoot(t *testing.T) {
	s := newSite(t)
	s.keyPair("sb")
	pei, dxe := ovmftest.Volumes("2025.02-8")
	s.write("plain.fd", ovmftest.Code(pei, bytes.ReplaceAll(dxe, ovmftest.Text("SecureBootConfigDxe"), ovmftest.Text("SecureBootConfigXXX"))))
	p := s.guest(synthetic.TDXProfile + "\n[secure_boot]\nkey = \"sb.key\"\ncert = \"sb.pem\"\nenroll = true\n")
	p.Firmware.Generic.Code, p.Firmware.Generic.CodeFile = "", s.dir+"/plain.fd"
	_, err := s.run(p, Options{})
	wantError(t, err, "firmware.generic: a build without Secure Boot")
}

// A source that is not automatic gives nothing to parts that do not name it.
func TestNotAutomatic(t *testing.T) {
	p := newSite(t).guest(`schema = 1
extends = "snp"
[sources.bookworm]
suite = "bookworm"
`)
	r := Request(p, nil, today)
	for _, src := range r.Sources {
		if src.OnRequest != (src.Suite == "forky") {
			t.Errorf("%s: on request is %v", src.Suite, src.OnRequest)
		}
	}
	for _, w := range r.Wants {
		if want := map[string]string{roleFirmware: "forky", roleGeneric: "trixie"}[w.Role]; w.Suite != want {
			t.Errorf("%s comes from %q, want %q", w.Role, w.Suite, want)
		}
	}
	if len(r.Wants) != 6 { // two of them for the root
		t.Errorf("wants %v", r.Wants)
	}
}
