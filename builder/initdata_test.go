package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// document makes initdata in a form, and returns its path and its bytes.
func (s *site) document(a initdata.Algorithm, policy string, form initdata.Form) (path string, raw []byte) {
	s.t.Helper()
	raw, err := initdata.Build(a, map[string]string{initdata.Policy: policy})
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := initdata.Encode(raw, form)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.write("initdata", b), raw
}

// What a guest shows that is given the profile's initdata stands in
// measurements.json; the image stays as it is.
func TestInitdata(t *testing.T) {
	s := newSite(t)
	_, without, _ := s.mustBuild(s.profile(""))
	path, raw := s.document(initdata.SHA256, "package agent_policy\n", initdata.Device)
	m, results, doc := s.mustBuild(s.profile("", "initdata="+path))
	digest := sha256.Sum256(raw)
	value := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	at := slices.IndexFunc(doc.Values, func(v measure.Value) bool { return v.Phase == measure.PhaseInitdata })
	if at < 0 || doc.Values[at].Register != "pcr8" || doc.Values[at].Bank != "sha256" || doc.Values[at].Value != hex.EncodeToString(value[:]) {
		t.Fatalf("no value of PCR 8 with the initdata, %x", value)
	}
	if got := m.Artefact(InitdataName); got.Digest != cas.Sum(raw) {
		t.Errorf("artefact %+v, want the plain form, %s", got, cas.Sum(raw))
	}
	for _, step := range []string{"initrd", "uki", "disk"} {
		for name, r := range results[step] {
			if without[step][name] != r {
				t.Errorf("%s %s moved with the initdata", step, name)
			}
		}
	}
	// The form says nothing.
	plain, _ := s.document(initdata.SHA256, "package agent_policy\n", initdata.Plain)
	_, again, _ := s.mustBuild(s.profile("", "initdata="+plain))
	if again["measure"]["measurements.json"] != results["measure"]["measurements.json"] {
		t.Error("other measurements for the same document in another form")
	}
	other, _ := s.document(initdata.SHA256, "package agent_policy\n\n", initdata.Plain)
	_, moved, _ := s.mustBuild(s.profile("", "initdata="+other))
	if moved["measure"]["measurements.json"] == results["measure"]["measurements.json"] {
		t.Error("the same measurements for another document")
	}
}

func TestInitdataOfGuests(t *testing.T) {
	s := newSite(t)
	path, raw := s.document(initdata.SHA512, "package agent_policy\n", initdata.Annotated)
	digest := hex.EncodeToString(initdata.SHA512.Sum(raw))
	_, _, bare := s.mustBuild(s.guest(synthetic.SNPProfile))
	_, _, doc := s.mustBuild(s.guest(synthetic.SNPProfile, "initdata="+path))
	if doc.SNP.HostData != digest[:64] || bare.SNP.HostData != "" {
		t.Errorf("HOSTDATA %q, want %q; without initdata %q", doc.SNP.HostData, digest[:64], bare.SNP.HostData)
	}
	if doc.Values[0].Value != bare.Values[0].Value {
		t.Error("the launch digest moved")
	}

	s = newSite(t)
	path, _ = s.document(initdata.SHA512, "package agent_policy\n", initdata.Annotated)
	_, _, doc = s.mustBuild(s.guest(synthetic.TDXProfile, "initdata="+path))
	if doc.TDX.MRConfigID != digest[:96] {
		t.Errorf("MRCONFIGID %q, want %q", doc.TDX.MRConfigID, digest[:96])
	}
	_, _, doc = s.mustBuild(s.guest(synthetic.TDXProfile, "initdata="+path, "tdx.mr_config_id="+digest[:96]))
	if doc.TDX.MRConfigID != digest[:96] {
		t.Errorf("MRCONFIGID %q, want %q", doc.TDX.MRConfigID, digest[:96])
	}
	_, err := s.run(s.guest(synthetic.TDXProfile, "initdata="+path, "tdx.mr_config_id="+strings.Repeat("0a", 48)), Options{})
	wantError(t, err, "tdx.mr_config_id: 0a0a")
	var value *ValueError
	if !errors.As(err, &value) {
		t.Errorf("got %T, want a ValueError", err)
	}
}

func TestInitdataRefuses(t *testing.T) {
	s := newSite(t)
	refused := func(path, want string) error {
		t.Helper()
		_, err := Import(context.Background(), &source.Client{Store: s.Store}, s.profile("", "initdata="+path), nil)
		wantError(t, err, want)
		return err
	}
	path, _ := s.document(initdata.SHA384, "package agent_policy\n", initdata.Plain)
	if err := refused(path, fmt.Sprintf("initdata: %s: initdata: tpm: algorithm \"sha384\": a TPM wants sha256", path)); !errors.Is(err, initdata.ErrAlgorithm) {
		t.Errorf("got %v, want ErrAlgorithm", err)
	}
	refused(s.write("broken", []byte("version = 1\n")), "initdata: no algorithm")
	refused(s.write("bomb", append([]byte("initdata"), make([]byte, 8)...)), "initdata: gzip: ")
	if err := refused(s.dir+"/none", "initdata: open "); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want one that says that there is no file", err)
	}
}
