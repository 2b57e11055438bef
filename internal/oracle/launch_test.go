package oracle

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	edgeless "github.com/edgelesssys/sev-snp-measure-go/guest"
	edgelessovmf "github.com/edgelesssys/sev-snp-measure-go/ovmf"
	gcesev "github.com/google/gce-tcb-verifier/sev"
	gcetdx "github.com/google/gce-tcb-verifier/tdx"
	sevsnp "github.com/google/go-sev-guest/proto/sevsnp"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/measure/tdx"
)

// firmware returns real firmware files by path: those of the published vectors,
// of sev-snp-measure-go, of the machine and below PLINTH_OVMF.
func firmware(t *testing.T) map[string][]byte {
	t.Helper()
	vectors := filepath.Join(testenv.Vectors(t), "measure")
	files := map[string][]byte{}
	for _, dir := range append([]string{
		filepath.Join(vectors, "sev-snp-measure", "fixtures"), filepath.Join(vectors, "tdx-measure"),
		filepath.Join(moduleDir(t, "github.com/edgelesssys/sev-snp-measure-go"), "guest", "testdata"),
		"/usr/share/ovmf", "/usr/share/OVMF",
	}, filepath.SplitList(os.Getenv("PLINTH_OVMF"))...) {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || path == filepath.Join(dir, "svsm.bin") {
				return nil
			}
			if ext := filepath.Ext(path); ext == ".fd" || ext == ".bin" && !strings.Contains(path, "acpi") {
				files[path], err = os.ReadFile(path)
			}
			return err
		})
	}
	return files
}

func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func metadata(t *testing.T, path string, b []byte) *ovmf.Metadata {
	t.Helper()
	m, err := ovmf.ReadMetadata(b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return m
}

// only tells whether a firmware has SEV metadata, of these types alone and
// without the empty sections that gce-tcb-verifier refuses.
func only(m *ovmf.Metadata, types ...ovmf.SEVType) bool {
	for _, s := range m.SEV {
		known := false
		if s.Size == 0 {
			return false
		}
		for _, t := range types {
			known = known || s.Type == t
		}
		if !known {
			return false
		}
	}
	return len(m.SEV) > 0
}

// TestGCE compares launch digests on Google's VMM with those of its own
// verifier, which knows no kernel hashes: firmware with a page for them is
// refused there.
func TestGCE(t *testing.T) {
	products := map[string]sevsnp.SevProduct_SevProductName{
		"Milan": sevsnp.SevProduct_SEV_PRODUCT_MILAN,
		"Genoa": sevsnp.SevProduct_SEV_PRODUCT_GENOA,
	}
	compared := 0
	for path, b := range firmware(t) {
		m := metadata(t, path, b)
		if m.Reset == nil || !only(m, ovmf.SEVMemory, ovmf.SEVSecrets, ovmf.SEVCPUID, ovmf.SEVSVSMCAA) {
			continue
		}
		compared++
		for name, product := range products {
			l, err := snp.NewLaunch(snp.Params{VMM: snp.GCE, Firmware: b, Product: name})
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			for _, vcpus := range []int{1, 2, 7, 64} {
				want, err := gcesev.LaunchDigest(&gcesev.LaunchOptions{Vcpus: vcpus, Product: product}, b)
				if err != nil {
					t.Fatalf("%s: gce-tcb-verifier: %v", path, err)
				}
				got, err := l.Digest(snp.VCPUs{Count: vcpus, Features: 1})
				if err != nil || !bytes.Equal(got[:], want) {
					t.Errorf("%s: %d vCPUs, %s: %x, %v; gce-tcb-verifier says %x", path, vcpus, name, got, err, want)
				}
			}
		}
	}
	enough(t, compared, 3)
}

// TestEC2 compares with sev-snp-measure-go, which has the EC2 VMSA alone and RDX
// zero in it, as sev-snp-measure had before 0.0.13.
func TestEC2(t *testing.T) {
	compared := 0
	for path, b := range firmware(t) {
		m := metadata(t, path, b)
		if m.Reset == nil || !only(m, ovmf.SEVMemory, ovmf.SEVSecrets, ovmf.SEVCPUID) {
			continue
		}
		compared++
		theirs, err := edgelessovmf.New(path)
		if err != nil {
			t.Fatalf("%s: sev-snp-measure-go: %v", path, err)
		}
		seed, err := edgeless.OVMFHash(theirs)
		if err != nil {
			t.Fatalf("%s: sev-snp-measure-go: %v", path, err)
		}
		l, err := snp.NewLaunch(snp.Params{VMM: snp.EC2RDX0, Firmware: b})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for _, vcpus := range []int{1, 2, 16, 192} {
			for _, features := range []uint64{1, 0x21} {
				want, err := edgeless.LaunchDigestFromOVMF(theirs, features, vcpus, seed)
				if err != nil {
					t.Fatalf("%s: sev-snp-measure-go: %v", path, err)
				}
				got, err := l.Digest(snp.VCPUs{Count: vcpus, Features: features})
				if err != nil || !bytes.Equal(got[:], want) {
					t.Errorf("%s: %d vCPUs, features %#x: %x, %v; sev-snp-measure-go says %x", path, vcpus, features, got, err, want)
				}
			}
		}
	}
	enough(t, compared, 2)
}

// TestMRTD compares with gce-tcb-verifier, which extends each page when it adds it.
func TestMRTD(t *testing.T) {
	compared := 0
	for path, b := range firmware(t) {
		if metadata(t, path, b).TDX == nil {
			continue
		}
		want, err := gcetdx.MRTD(gcetdx.LaunchOptionsDefault(""), b)
		if err != nil {
			t.Logf("%s: gce-tcb-verifier: %v", path, err) // sections that Google's VMM does not take
			continue
		}
		compared++
		got, err := tdx.MRTD(b, tdx.SinglePass)
		if err != nil || got != want {
			t.Errorf("%s: %x, %v; gce-tcb-verifier says %x", path, got, err, want)
		}
		other, err := tdx.MRTD(b, tdx.TwoPass)
		if err != nil || other == want {
			t.Errorf("%s: in two passes: %x, %v", path, other, err)
		}
	}
	enough(t, compared, 1)
}

// enough fails t when there was less to compare than the vectors alone bring.
func enough(t *testing.T, compared, least int) {
	t.Helper()
	t.Logf("%d firmware files compared", compared)
	if compared < least {
		t.Errorf("%d firmware files compared, want at least %d", compared, least)
	}
}
