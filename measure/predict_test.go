package measure

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/uki"
)

// TestByOtherCode compares the digests of files with those of
// testdata/payload.py, which shares no code with plinth, and with which the
// digests of the real boots were made.
func TestByOtherCode(t *testing.T) {
	if testing.Short() {
		t.Skip("runs python3 some ten times")
	}
	testenv.Need(t, "python3")
	dir := t.TempDir()
	ask := func(kind string, files ...[]byte) parts {
		args := []string{"testdata/payload.py", kind}
		for i, b := range files {
			path := filepath.Join(dir, string(rune('a'+i)))
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, path)
		}
		if kind == "kernel" {
			args = append(args, "3072")
		}
		out, err := exec.Command("python3", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		var p parts
		if kind == "gpt" {
			if err := json.Unmarshal(out, &p.Cmdline); err != nil {
				t.Fatal(err)
			}
		} else if err := decodeStrict(out, &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	open := func(b *Boot) *payload {
		p, err := newPredictor(b)
		if err != nil {
			t.Fatal(err)
		}
		o, err := p.open()
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	equal := func(what string, got []eventlog.Digest, want map[string]string) {
		t.Helper()
		if !reflect.DeepEqual(got, inBanks(t, want)) {
			t.Errorf("%s: got %x, want %s", what, got, want)
		}
	}
	for _, stub := range []string{"252.39", "257.13", "262.1"} {
		f := newTestFiles(t, "trixie", stub)
		f.cmdline = " console=ttyS0\tquiet \n"
		want, got := ask("uki", f.uki(t)), open(f.boot(t, "disk"))
		equal(stub+" image", got.image, want.Image)
		equal(stub+" initrd", got.initrd, want.Initrd)
		if stub < "258" {
			equal(stub+" inner", got.inner, want.Inner)
		}
		n := 0
		for _, s := range got.sections {
			if len(s) > 0 {
				equal(s[1].Source, s[1].Digests, want.Sections[s[1].Source])
				n++
			}
		}
		if got.cmdline != want.Cmdline || got.release != want.Kernel || got.stub.Full != want.Stub || n == 0 {
			t.Errorf("got %q %q %q, %d sections: want %+v", got.cmdline, got.release, got.stub.Full, n, want)
		}
		if gpt := ask("gpt", f.disk(t)).Cmdline; !bytes.Equal(got.gpt, unhex(t, gpt)) {
			t.Errorf("partition table: got %x, want %s", got.gpt, gpt)
		}
	}
	f := newTestFiles(t, "bookworm", "")
	want := ask("kernel", f.kernel, []byte(f.initrd))
	b := f.boot(t, "kernel")
	b.Machine.MemoryMiB = 3072
	got := open(b)
	equal("kernel, changed by QEMU", got.image, want.Patched)
	equal("initrd", got.initrd, want.Initrd)
	b.Machine.VMM, b.Firmware = "qemu 10.0.0", firmware(t, "trixie")
	equal("kernel", open(b).image, want.Image)
}

func TestPredictRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		path   string
		change func(f *testFiles, b *Boot)
		want   string
	}{
		{"nothing to boot", "disk", func(_ *testFiles, b *Boot) { b.Disk = nil }, "0 of disk, UKI and kernel"},
		{"two things", "disk", func(_ *testFiles, b *Boot) { b.UKI = placeholder }, "2 of disk, UKI and kernel"},
		{"command line with a UKI", "uki", func(_ *testFiles, b *Boot) { b.Cmdline = "x" }, "without a kernel"},
		{"initrd with a disk", "disk", func(_ *testFiles, b *Boot) { b.Initrd = placeholder }, "without a kernel"},
		{"no firmware", "disk", func(_ *testFiles, b *Boot) { b.Firmware = nil }, "no firmware"},
		{"no NVRAM", "disk", func(_ *testFiles, b *Boot) { b.Vars = nil }, "no NVRAM"},
		{"no store in the NVRAM", "disk", func(_ *testFiles, b *Boot) { b.Vars = make([]byte, 4096) }, "NVRAM"},
		{"no bank", "disk", func(_ *testFiles, b *Boot) { b.Banks = nil }, "no bank"},
		{"unknown bank", "disk", func(_ *testFiles, b *Boot) { b.Banks = []eventlog.Alg{0x12} }, "measure: bank"},
		{"firmware digests without the bank", "disk", func(f *testFiles, b *Boot) {
			b.Firmware = f.fw.altered("DXEFV")
			delete(b.Firmware.Volumes[1].Measured["q35"], "sha384")
		}, "volume DXEFV: no digest in bank sha384"},
		{"another machine", "disk", func(_ *testFiles, b *Boot) { b.Machine.Type = "pc" }, `machine type "pc"`},
		{"no memory", "disk", func(_ *testFiles, b *Boot) { b.Machine.MemoryMiB = 0 }, "0 MiB"},
		{"no EFI system partition", "disk", func(f *testFiles, b *Boot) { f.partitions = 0; b.Disk = section(f.disk(t)) }, "no EFI system partition"},
		{"two EFI system partitions", "disk", func(f *testFiles, b *Boot) { f.partitions = 2; b.Disk = section(f.disk(t)) }, "several EFI system partitions"},
		{"no partition table", "disk", func(_ *testFiles, b *Boot) { b.Disk = section(make([]byte, 1<<20)) }, "disk"},
		{"a kernel as a UKI", "uki", func(f *testFiles, b *Boot) { b.UKI = section(f.kernel) }, "unknown stub"},
		{"a UKI as a kernel", "kernel", func(f *testFiles, b *Boot) { b.Kernel = section(f.uki(t)) }, "want a bzImage"},
		{"dbt", "disk", func(_ *testFiles, b *Boot) {
			b.Vars = withVariable(t, b.Vars, ovmf.Variable{Name: "dbt", GUID: imageSecurity, Attributes: 0x27, Data: []byte{1}})
		}, "variable dbt"},
		{"unsigned, with Secure Boot", "disk", func(f *testFiles, b *Boot) {
			b.Firmware, b.Vars = firmware(t, "trixie-secboot"), nvramFlash(t, true)
		}, "Secure Boot"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newTestFiles(t, "trixie", "257.13")
			b := f.boot(t, tt.path)
			tt.change(f, b)
			if _, err := Predict(b); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParseFirmwareRefuses(t *testing.T) {
	good := string(read(t, "testdata/firmware/bookworm.json"))
	for _, tt := range []struct{ name, old, new, want string }{
		{"schema", `"schema": 2`, `"schema": 0`, "schema 0"},
		{"unknown key", `"smm"`, `"sm"`, "unknown field"},
		{"volumes of other names", `"PEIFV"`, `"DXEFV"`, `volume "DXEFV"`},
		{"no digests of DXEFV", `"q35"`, `"q36"`, `volume "DXEFV"`},
		{"no volumes", `"volumes": [`, `"volumes": [], "x": [`, "unknown field"},
	} {
		bad := strings.Replace(good, tt.old, tt.new, 1)
		if bad == good {
			t.Fatal(tt.name, "nothing was changed")
		}
		if _, err := ParseFirmware([]byte(bad)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := ParseFirmware([]byte(`{"schema": 2}`)); err == nil {
		t.Error("firmware without volumes was taken")
	}
	f, err := ParseFirmware([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := f.Marshal(); string(b) != good {
		t.Error("reading and writing changes the digests")
	}
}

func withVariable(t testing.TB, flash []byte, v ovmf.Variable) []byte {
	t.Helper()
	s, err := ovmf.ParseVars(flash)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Set(v); err != nil {
		t.Fatal(err)
	}
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSecureBoot signs an image, and wants the entry of db that verifies it.
func TestSecureBoot(t *testing.T) {
	signer, other := newSigner(t), newSigner(t)
	flash, err := ovmf.Enroll(gunzip(t, "testdata/vars.fd.gz"), ovmf.Keys{
		Owner: keyOwner, PK: other.Cert.Raw, KEK: [][]byte{other.Cert.Raw}, DB: [][]byte{other.Cert.Raw, signer.Cert.Raw},
	})
	if err != nil {
		t.Fatal(err)
	}
	f := newTestFiles(t, "sid-secboot", "257.13")
	image := f.uki(t)
	var signed bytes.Buffer
	if err := uki.Sign(&signed, bytes.NewReader(image), int64(len(image)), signer); err != nil {
		t.Fatal(err)
	}
	b := f.boot(t, "uki")
	b.UKI, b.Vars = section(signed.Bytes()), flash
	p := mustPredict(t, b)
	for _, v := range p.Values {
		if v.Register == "pcr10" && (v.Provenance != Volatile || !strings.Contains(v.Reason, "every module")) {
			t.Errorf("PCR 10 with modules that are not known: %s: %s", v.Provenance, v.Reason)
		}
	}
	want := eventlog.Variable{GUID: imageSecurity, Name: "db", Data: append(keyOwner[:], signer.Cert.Raw...)}.Bytes()
	n := 0
	for _, e := range p.Events {
		switch {
		case e.Type == eventlog.VariableAuthority:
			n++
			if e.Register != 7 || !bytes.Equal(e.Data, want) || !bytes.Equal(e.Digest(eventlog.SHA384), eventlog.SHA384.Sum(want)) {
				t.Errorf("authority: got %x, want %x", e.Data, want)
			}
		case e.Name == "variable SecureBoot":
			if last := e.Data[len(e.Data)-1]; last != 1 {
				t.Errorf("SecureBoot is %d", last)
			}
		case e.Name == "kernel inside the UKI":
			t.Error("the kernel inside the UKI is measured with Secure Boot")
		}
	}
	if n != 1 {
		t.Errorf("%d authorities", n)
	}
	for _, tt := range []struct {
		modules []Module
		want    Provenance
	}{
		{[]Module{}, Volatile}, // PCR 0 and 1 are not known
		{[]Module{{"/m.ko", "ab"}}, Volatile},
	} {
		b.Modules = tt.modules
		for _, v := range mustPredict(t, b).Values {
			if v.Register == "pcr10" && (v.Provenance != tt.want || strings.Contains(v.Reason, "m.ko: no SHA-256") != (len(tt.modules) > 0)) {
				t.Errorf("PCR 10 with modules %v: %s: %s", tt.modules, v.Provenance, v.Reason)
			}
		}
	}
	b.Vars = withVariable(t, flash, ovmf.Variable{Name: "SecureBootEnable", GUID: secureBootEnable, Attributes: 3, Data: []byte{0}})
	if p := mustPredict(t, b); len(p.Events) == 0 {
		t.Error("Secure Boot that is switched off")
	}
	b.Vars = nvramFlash(t, true)
	if _, err := Predict(b); !errors.Is(err, errRefused) {
		t.Errorf("image by a signer who is not in db: %v", err)
	}
}

func newSigner(t testing.TB) *uki.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := uki.LoadSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOwnBootOptions: an NVRAM with boot options makes those of the firmware
// unknown, and a record of a fresh NVRAM does not fit.
func TestOwnBootOptions(t *testing.T) {
	f := newTestFiles(t, "bookworm", "257.13")
	b := f.boot(t, "disk")
	b.Vars = withVariable(t, b.Vars, ovmf.Variable{Name: "Boot0000", GUID: globalVariable, Attributes: 7, Data: []byte{1}})
	p := mustPredict(t, b)
	for _, v := range p.Values {
		if v.Register == "pcr1" && (v.Provenance != Volatile || !strings.Contains(v.Reason, "boot options of its own")) {
			t.Errorf("PCR 1: %s: %s", v.Provenance, v.Reason)
		}
	}
	if fresh := mustPredict(t, f.boot(t, "disk")); p.key == fresh.key {
		t.Error("the record's key is that of a fresh NVRAM")
	}
	// The boot's own options, however many, are no contradiction.
	got := reportOf(t, mustPredict(t, f.boot(t, "disk")))
	if r := mustCheck(t, document(t, p), got); verdict(t, r, "pcr1", "").Verdict != NotPredicted {
		t.Errorf("PCR 1: %+v", verdict(t, r, "pcr1", ""))
	}
}

func TestUnknownVMM(t *testing.T) {
	f := newTestFiles(t, "sid", "262.1")
	for path, register := range map[string]string{"kernel": "pcr4", "disk": "pcr1"} {
		b := f.boot(t, path)
		b.Machine.VMM = ""
		for _, v := range mustPredict(t, b).Values {
			if v.Register == register && (v.Provenance != Volatile || !strings.Contains(v.Reason, "QEMU's version")) {
				t.Errorf("%s of path %s: %s: %s", register, path, v.Provenance, v.Reason)
			}
		}
	}
}

// TestIMAOptions: a command line that sets up IMA makes PCR 10 unknown.
func TestIMAOptions(t *testing.T) {
	r := loadBoot(t, "trixie-disk-full")
	all := records(t).without(r.predict(t, nil).image)
	for cmdline, want := range map[string]Provenance{"quiet": OneOf, "ima_policy=tcb": Volatile, "quiet ima_hash=sha512": Volatile, "noima_": OneOf} {
		r.parts.Cmdline = cmdline
		for _, v := range r.predict(t, all).Values {
			if v.Register == "pcr10" && v.Provenance != want {
				t.Errorf("%q: PCR 10 is %s, want %s: %s", cmdline, v.Provenance, want, v.Reason)
			}
		}
	}
}

func TestOneBank(t *testing.T) {
	f := newTestFiles(t, "trixie", "257.13")
	b := f.boot(t, "disk")
	all := mustPredict(t, b)
	b.Banks = []eventlog.Alg{eventlog.SHA384}
	p := mustPredict(t, b)
	if len(p.Values) != registers+1 {
		t.Errorf("%d values, want %d", len(p.Values), registers+1)
	}
	for _, v := range p.Values {
		for _, w := range all.Values {
			if w.Register == v.Register && w.Bank == v.Bank && w.Phase == v.Phase && !reflect.DeepEqual(v, w) {
				t.Errorf("%s: %+v alone, %+v with other banks", v.Register, v, w)
			}
		}
	}
	for _, e := range p.Events {
		if len(e.Digests) > 1 {
			t.Fatalf("%s: %d digests", e.Name, len(e.Digests))
		}
	}
	if _, err := p.Log().Replay(eventlog.SHA384); err != nil {
		t.Error(err)
	}
}

func BenchmarkPredict(b *testing.B) {
	f := newTestFiles(b, "trixie", "257.13")
	f.initrd = strings.Repeat("initrd", 20<<20/6)
	f.kernel = append(f.kernel, make([]byte, 12<<20)...)
	boot := f.boot(b, "disk")
	boot.Banks = []eventlog.Alg{eventlog.SHA256}
	b.SetBytes(boot.Disk.Size())
	for b.Loop() {
		if _, err := Predict(boot); err != nil {
			b.Fatal(err)
		}
	}
}
