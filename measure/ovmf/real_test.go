package ovmf

import (
	"bytes"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/plinth-os/plinth/internal/testenv"
)

// firmware returns the .fd files of this machine's firmware packages and of
// those unpacked below PLINTH_OVMF, by path. Without any the test skips.
func firmware(t *testing.T) map[string][]byte {
	t.Helper()
	if testing.Short() {
		t.Skip("unpacks real firmware, a quarter of a second a file")
	}
	files := map[string][]byte{}
	for _, dir := range append([]string{"/usr/share/OVMF", "/usr/share/ovmf"}, filepath.SplitList(os.Getenv("PLINTH_OVMF"))...) {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".fd" {
				files[path], err = os.ReadFile(path)
			}
			return err
		})
	}
	if len(files) == 0 {
		testenv.Missing(t, "ovmf", "no firmware in /usr/share/OVMF or PLINTH_OVMF")
	}
	return files
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// measured is what a boot's event log says about a code flash: the CRTM version
// and the firmware blobs, one processor and 1 GiB on q35 (secure builds with SMM).
// The logs of the first rows are in measure/eventlog/testdata.
var measured = map[string]struct {
	build, version string
	peiBase        uint64
	pei, dxe       string // SHA-256
	secure, smm    bool
	peiKnown       bool // without that boot
}{
	"b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c": {
		build: "2022.11-6+deb12u2 OVMF_CODE_4M.fd", peiBase: 0x820000, secure: true,
		pei: "4c251b0c52a393c134c2ddf7c9afb08878cf9dc95f9ff6827cad7ed4394dd209", dxe: "82a0445201cb49945461acc6ed78426700fb7e92819862edc55ba3ad4559b135",
	},
	"624e06de18b4fa535e90db7160d00d3d07d206422b89999bf1e27d920264e4e0": {
		build: "2025.02-8+deb13u1 OVMF_CODE_4M.fd", version: "2025.02-8+deb13u1", peiBase: 0x820000, peiKnown: true,
		pei: "a386f05738e11e7b8c253dc47b96bfc66d3d9ce62ee7b30ee3d4a6c5215e7e4e", dxe: "450136d3f01290a89f67a4ecc0e3f8a9d16f49e9eb4e17c4cacdffdeea32f806",
	},
	"7e34e3b83224968bb0714c0ebc88f75c5c37b4cc892c902e511ccc7a7c107f94": {
		build: "2026.08+ds-2 OVMF_CODE_4M.fd", version: "2026.08+ds-2", peiBase: 0x830000, peiKnown: true,
		pei: "10e48f005bc9f46830c4596b9ab6f8d0b98427f08e17d6d0e6eef582a7b12512", dxe: "7aad15bf592e8ebe437b48d49fde223385d8b649821d4026aba079250d009d23",
	},
	"1a46295574430cfb7f825ee3e4dc64b052acbef08e310377ed7c64cb757a9dc1": {
		build: "2025.02-8+deb13u1 OVMF_CODE_4M.secboot.fd", version: "2025.02-8+deb13u1", peiBase: 0x820000, secure: true, smm: true,
		pei: "5e67126dea4c2dfea4512d07a67e6ece09772ec29a4f027eea7ed29af0043ee5", dxe: "8e61460f5088f6ed97e3f28cad67a193d19b210b376bc254e283544b30957bca",
	},
	"d50189a486d22af418198226a3a5bcb6ddac775590f6a808bd629474ee034d62": {
		build: "2022.11-6+deb12u2 OVMF_CODE_4M.secboot.fd", peiBase: 0x820000, secure: true, smm: true,
		pei: "d6e70a1a85f1476f07266a7eeecbe1786007fa270b625de510662a780a3a9962", dxe: "a644ed209b188dd428ea3e15c0b1dbbc1ad05d406bb2857cac4a73b98d0b6b4f",
	},
	"b3cdbd705066cdf2bb0c0b40b77c341dc2a19e0db56c9af0a54fa1737ff3ee5b": {
		build: "2026.08+ds-2 OVMF_CODE_4M.secboot.fd", version: "2026.08+ds-2", peiBase: 0x830000, secure: true, smm: true,
		pei: "901467dbddfc4d56dd65dc1c664c7bdcb76d16204a101a2d900837027501d7ea", dxe: "bb17345bd6a81c2b5a7146721b14aca295f6273c712232db65d6933ffef2039d",
	},
}

// A real boot is the second opinion: what the firmware measured must follow from
// its file.
func TestRealFirmware(t *testing.T) {
	for path, code := range firmware(t) {
		want, ok := measured[sum(code)]
		if !ok {
			continue
		}
		f, err := Parse(code)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if f.Version != want.version || f.SecureBoot != want.secure || f.SMM != want.smm {
			t.Errorf("%s: version %q, Secure Boot %v, SMM %v: want %q, %v, %v", path, f.Version, f.SecureBoot, f.SMM, want.version, want.secure, want.smm)
		}
		pei, _ := f.Volume("PEIFV")
		dxe, _ := f.Volume("DXEFV")
		if pei.Base != want.peiBase || dxe.Base != 0x900000 {
			t.Errorf("%s: PEIFV at %#x, DXEFV at %#x: want %#x and 0x900000", path, pei.Base, dxe.Base, want.peiBase)
		}
		if got := sum(dxe.Data); got != want.dxe {
			t.Errorf("%s: DXEFV is %s, its boot measured %s", path, got, want.dxe)
		}
		data, known := pei.InMemory("q35")
		if known != want.peiKnown || known && sum(data) != want.pei {
			t.Errorf("%s: PEIFV in memory is %s, known %v: its boot measured %s", path, sum(data), known, want.pei)
		}
		if !known && sum(pei.Data) == want.pei {
			t.Errorf("%s: PEIFV is measured unaltered: it belongs in the table", path)
		}
	}
}

// PEIFV of 2025.02 was measured on a machine of type pc as well.
func TestInMemoryByMachine(t *testing.T) {
	for path, code := range firmware(t) {
		if measured[sum(code)].build != "2025.02-8+deb13u1 OVMF_CODE_4M.fd" {
			continue
		}
		f, err := Parse(code)
		if err != nil {
			t.Fatal(err)
		}
		pei, _ := f.Volume("PEIFV")
		if data, ok := pei.InMemory("pc"); !ok || sum(data) != "448113fdbd7054a1504acf913bf8d7d90ae2d1246ae1c9aab50490e539c242e7" {
			t.Errorf("%s: pc: %s, %v", path, sum(data), ok)
		}
		if _, ok := pei.InMemory("microvm"); ok {
			t.Errorf("%s: microvm is known", path)
		}
	}
}

// Every .fd file of the packages is either a code flash, a variable store or
// both, and all stores are blank or hold what their name says.
func TestRealFiles(t *testing.T) {
	for path, b := range firmware(t) {
		_, errCode := Parse(b)
		s, errVars := ParseVars(b)
		if errCode != nil && errVars != nil {
			t.Errorf("%s: %v; %v", path, errCode, errVars)
		}
		if errVars != nil {
			continue
		}
		out, err := s.Bytes()
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if diff := cmp.Diff(s.List(), mustVars(t, out).List()); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
		if len(s.List()) == 0 && errCode != nil && !bytes.Equal(blankVars(len(b)), b) {
			t.Errorf("%s: not the blank flash of the tests", path)
		}
	}
}

// Debian enrols the certificate beside it into OVMF_VARS_4M.snakeoil.fd.
func TestSnakeoilStore(t *testing.T) {
	found := false
	for path, b := range firmware(t) {
		dir := filepath.Dir(path)
		text, err := os.ReadFile(filepath.Join(dir, "..", "ovmf", "PkKek-1-snakeoil.pem"))
		if filepath.Base(path) != "OVMF_VARS_4M.snakeoil.fd" || err != nil {
			continue
		}
		found = true
		cert, _ := pem.Decode(text)
		s := mustVars(t, b)
		for name, guid := range map[string]GUID{"PK": GlobalVariable, "KEK": GlobalVariable, "db": ImageSecurity} {
			data, attrs, _ := s.Get(name, guid)
			lists, err := ParseSignatureLists(data)
			if err != nil || attrs != authenticatedAttr || len(lists) != 1 || len(lists[0].Signatures) != 1 {
				t.Fatalf("%s: %s: %d lists, attributes %#x, %v", path, name, len(lists), attrs, err)
			}
			if lists[0].Type != CertX509 || !bytes.Equal(lists[0].Signatures[0].Data, cert.Bytes) {
				t.Errorf("%s: %s is another certificate", path, name)
			}
		}
	}
	if !found {
		t.Skip("no OVMF_VARS_4M.snakeoil.fd with its certificate")
	}
}

// virt-fw-vars writes what Enroll would, but for order and time; and it adds a dbx
// of one dummy where there is none.
func TestVirtFWVarsAgrees(t *testing.T) {
	testenv.Need(t, "virt-fw-vars", "openssl")
	dir := t.TempDir()
	keys := makeKeys(t, dir)
	blank, out := filepath.Join(dir, "blank.fd"), filepath.Join(dir, "out.fd")
	if err := os.WriteFile(blank, blankVars(0x84000), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := keys.Owner.String()
	run(t, "virt-fw-vars", "--input", blank, "--output", out, "--sb",
		"--set-pk", owner, filepath.Join(dir, "PK.pem"), "--add-kek", owner, filepath.Join(dir, "KEK.pem"), "--add-db", owner, filepath.Join(dir, "db.pem"))
	theirs, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	s := mustVars(t, theirs)
	if !bytes.Equal(mustBytes(t, s), theirs) {
		t.Error("a rewrite of its store gives other bytes")
	}
	s.Delete("dbx", ImageSecurity)
	enrolled, err := Enroll(blankVars(0x84000), keys)
	if err != nil {
		t.Fatal(err)
	}
	byName := func(s *VarStore) map[string]Variable {
		m := map[string]Variable{}
		for _, v := range s.List() {
			v.Time = [16]byte{}
			m[v.GUID.String()+" "+v.Name] = v
		}
		return m
	}
	if diff := cmp.Diff(byName(s), byName(mustVars(t, enrolled))); diff != "" {
		t.Error(diff)
	}
}

func run(t *testing.T, tool string, args ...string) {
	t.Helper()
	if out, err := exec.Command(testenv.Tool(tool), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
}

// makeKeys makes NAME.key and NAME.pem for PK, KEK and db in dir.
func makeKeys(t *testing.T, dir string) Keys {
	t.Helper()
	der := func(name string) []byte {
		run(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=plinth test "+name,
			"-keyout", filepath.Join(dir, name+".key"), "-out", filepath.Join(dir, name+".pem"))
		text, err := os.ReadFile(filepath.Join(dir, name+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	return Keys{Owner: testKeys.Owner, PK: der("PK"), KEK: [][]byte{der("KEK")}, DB: [][]byte{der("db")}, Epoch: testKeys.Epoch}
}

// metadata is what edk2's sources of the release say that its builds have, and
// what such a firmware serves.
var metadata = map[string]struct {
	build, serves string
	sev           []SEVSection
	temporary     []TDXSection // those behind BFV and CFV
	hashes        *Area
}{
	"3e4fd0b3fe3b2dbe481c3d9e99418a034174f26cbe1f55aa212b0f18c12d2d6f": {
		build: "2026.08+ds-2 OVMF.amdsev.fd", serves: "vtpm disk, sev kernel, seves kernel, snp kernel", sev: sev202608, temporary: memory202608, hashes: &Area{0x810c00, 0x400},
	},
	"6a3e8f438ad7269f5dfd884647587b88391fb23965bb3aa7902b519438dba129": {
		build: "2026.08+ds-2 OVMF.fd", serves: "vtpm disk, vtpm kernel, tdx disk, tdx kernel", sev: sev202608, temporary: memory202608, hashes: &Area{0x810c00, 0x400},
	},
	"a265075b4147a096109e501e76196df1ec8a18659c26f7401492c597ec88f312": {
		build: "2026.08+ds-2 OVMF.inteltdx.ms.fd", serves: "tdx disk, tdx kernel",
		sev:       append(sev202608[:4:4], SEVSection{Type: SEVSVSMCAA}, SEVSection{Type: SEVMemory}),
		temporary: memory(0x810000, 0x10000),
	},
	"14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db": {
		build: "2025.02-8+deb13u1 OVMF.fd", serves: "vtpm disk, vtpm kernel, tdx disk, tdx kernel",
		sev:       append(sev202608[:5:5], SEVSection{0x810000, 0x10000, SEVMemory}),
		temporary: memory(0x811000, 0xf000),
	},
	"7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773": {
		build: "2022.11-6+deb12u2 OVMF.fd", serves: "vtpm disk, vtpm kernel",
		sev:       append(sev202608[:4:4], SEVSection{0x80f000, 0x11000, SEVMemory}),
		temporary: memory(0x810000, 0x10000),
	},
}

var (
	sev202608 = []SEVSection{
		{0x800000, 0x9000, SEVMemory}, {0x80a000, 0x3000, SEVMemory}, {0x80d000, 0x1000, SEVSecrets}, {0x80e000, 0x1000, SEVCPUID},
		{0x80f000, 0x1000, SEVSVSMCAA}, {0x811000, 0x1f000, SEVMemory}, {0x810000, 0x1000, SEVKernelHashes},
	}
	memory202608 = append(memory(0x814000, 0xc000), TDXSection{GPA: 0x820000, MemSize: 0x10000, Type: TDXTempMem})
)

// memory lists the sections of temporary memory and of the hand-off block; the
// first differs from build to build.
func memory(gpa, size uint64) []TDXSection {
	return []TDXSection{
		{GPA: gpa, MemSize: size, Type: TDXTempMem}, {GPA: 0x80b000, MemSize: 0x2000, Type: TDXTempMem},
		{GPA: 0x809000, MemSize: 0x2000, Type: TDXHOB}, {GPA: 0x800000, MemSize: 0x6000, Type: TDXTempMem},
	}
}

func TestRealMetadata(t *testing.T) {
	for path, b := range firmware(t) {
		m, err := ReadMetadata(b)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		want, ok := metadata[sum(b)]
		if !ok {
			continue
		}
		if *m.Reset != 0x80b004 || m.SVSM != nil || m.Whole != len(b) {
			t.Errorf("%s: reset block %#x, SVSM %v, whole %#x", path, *m.Reset, m.SVSM, m.Whole)
		}
		for name, diff := range map[string]string{
			"SEV":    cmp.Diff(want.sev, m.SEV),
			"TDX":    cmp.Diff(want.temporary, m.TDX[2:]),
			"hashes": cmp.Diff(want.hashes, m.Hashes),
		} {
			if diff != "" {
				t.Errorf("%s: %s: %s", want.build, name, diff)
			}
		}
		f, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if got := serves(f.Uses(m)); got != want.serves {
			t.Errorf("%s serves %q, want %q", want.build, got, want.serves)
		}
	}
}

// The TDX build shows its version and does not measure it.
func TestVersionOfTheTDXBuild(t *testing.T) {
	for path, b := range firmware(t) {
		if metadata[sum(b)].build != "2026.08+ds-2 OVMF.inteltdx.ms.fd" {
			continue
		}
		f, err := Parse(b)
		if err != nil || f.Version != "2026.08+ds-2" {
			t.Errorf("%s: version %q, %v", path, f.Version, err)
		}
	}
}
