package builder

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/pe/petest"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/uki"
)

const hardened = "lockdown=integrity oops=panic panic=-1 random.trust_bootloader=off debugfs=off console=tty0"

// linted is an image directory to be spoilt.
type linted struct {
	profile string // further lines
	cmdline string
	modules []string // that the agent loads
	kernel  []byte
	uki     []byte
	files   map[string][]byte
	missing []string // artefacts
}

// lintedSNP and lintedTDX have nothing to find in them.
func lintedSNP() *linted {
	return &linted{
		profile: "platform = \"snp\"\n[agent]\nphases = []\n[snp]\nvcpu_types = [\"EPYC-v4\"]\n[machine]\npath = \"kernel\"\n",
		cmdline: hardened,
		modules: []string{"configfs", "tsm", "sev-guest"},
		kernel:  bzImageOf(packed("zstd", textInterpreter+"\x00"+textSandbox)),
		uki:     unsigned(),
		files:   map[string][]byte{"firmware.fd": firmwareTables(true, true, false)},
	}
}

func lintedTDX() *linted {
	return &linted{
		profile: "platform = \"tdx\"\n[agent]\nphases = []\n[secure_boot]\nkey = \"k\"\ncert = \"c\"\nenroll = true\n",
		cmdline: hardened,
		modules: []string{"configfs", "tsm", "tdx-guest"},
		kernel:  bzImageOf(packed("gzip", textInterpreter+"\x00"+textSandbox)),
		uki:     signed(),
		files:   map[string][]byte{"firmware.fd": slices.Concat(enrolled(ownKeys()), firmwareTables(false, false, true))},
	}
}

// firmwareTables is a last page with metadata for what is asked: edk2,
// OvmfPkg/ResetVector.
func firmwareTables(sev, hashes, tdx bool) []byte {
	const size = 0x1000
	le := binary.LittleEndian
	b := make([]byte, size)
	var table []byte
	entry := func(id string, data ...uint32) {
		for _, d := range data {
			table = le.AppendUint32(table, d)
		}
		g := mustGUID(id)
		table = le.AppendUint16(table, uint16(4*len(data)+18))
		table = append(table, g[:]...)
	}
	put := func(at int, signature string, words ...uint32) {
		copy(b[at:], signature)
		for i, w := range words {
			le.PutUint32(b[at+len(signature)+4*i:], w)
		}
	}
	if hashes {
		entry("7255371f-3a3b-4b04-927b-1da6efa8d454", 0x810400, 0x400)
	}
	if sev {
		put(0x100, "ASEV", 28, 1, 1, 0x800000, 0x1000, 1)
		if hashes {
			put(0x100, "ASEV", 40, 1, 2, 0x800000, 0x1000, 1, 0x810000, 0x1000, 0x10)
		}
		entry("dc886566-984a-4798-a75e-5585a7bf67cc", size-0x100)
	}
	if tdx {
		g := mustGUID("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae")
		copy(b[0x200-len(g):], g[:])
		put(0x200, "TDVF", 48, 1, 1, 0, size, 0xfffff000, 0, size, 0, 0, 1) // BFV: the page itself
		entry("e47a6535-984a-4798-865e-4685a7bf8ec2", size-0x200)
	}
	table = le.AppendUint16(table, uint16(len(table)+18))
	footer := mustGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	table = append(table, footer[:]...)
	copy(b[size-32-len(table):], table)
	return b
}

// packed is a kernel's payload: compressed, its unpacked size at the end.
func packed(how, text string) []byte {
	return compressed(how, append(bytes.Repeat([]byte("code "), 1<<18), text...)) // longer than a window of the search
}

func compressed(how string, plain []byte) []byte {
	var b bytes.Buffer
	switch how {
	case "zstd":
		w, err := zstd.NewWriter(&b, zstd.WithWindowSize(1<<20))
		if err != nil {
			panic(err)
		}
		w.Write(plain)
		w.Close()
		binary.Write(&b, binary.LittleEndian, uint32(len(plain)))
	case "gzip":
		w := gzip.NewWriter(&b)
		w.Write(plain)
		w.Close()
	case "lz4":
		w := lz4.NewWriter(&b)
		if err := w.Apply(lz4.LegacyOption(true)); err != nil {
			panic(err)
		}
		w.Write(plain)
		w.Close()
		binary.Write(&b, binary.LittleEndian, uint32(len(plain)))
	}
	return b.Bytes()
}

func bzImageOf(payload []byte) []byte {
	b := make([]byte, 0x400)
	b[0x1f1] = 1 // one sector of setup after the first
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(b, payload...)
}

func unsigned() []byte {
	section := func(name string, b []byte) uki.Section {
		return uki.Section{Name: name, Content: io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))}
	}
	var b bytes.Buffer
	if err := uki.Write(&b, petest.Stub("257.9-1").Bytes(), []uki.Section{section(".linux", petest.Kernel().Bytes()), section(".cmdline", []byte(hardened))}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// newSigner makes a signer; two of them are enough for all rows.
func newSigner(name string) *uki.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	return &uki.Signer{Key: key, Cert: c}
}

var (
	ownSigner     = sync.OnceValue(func() *uki.Signer { return newSigner("own") })
	foreignSigner = sync.OnceValue(func() *uki.Signer { return newSigner("foreign") })
)

func signed() []byte {
	b := unsigned()
	var out bytes.Buffer
	if err := uki.Sign(&out, bytes.NewReader(b), int64(len(b)), ownSigner()); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func ownKeys() ovmf.Keys     { return keysOf(ownSigner()) }
func foreignOnly() ovmf.Keys { return keysOf(foreignSigner()) }

func keysOf(s *uki.Signer) ovmf.Keys {
	der := s.Cert.Raw
	return ovmf.Keys{Owner: ovmf.GUID{1}, PK: der, KEK: [][]byte{der}, DB: [][]byte{der}, Epoch: 1767225600}
}

func enrolled(k ovmf.Keys) []byte {
	b, err := ovmf.Enroll(ovmftest.BlankVars(0x84000), k)
	if err != nil {
		panic(err)
	}
	return b
}

// lint builds the directory and applies the rules.
func (l *linted) lint(t *testing.T, skip ...string) *LintReport {
	t.Helper()
	p, m, files := l.image(t)
	rep, err := Lint(p, m, files, skip)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func (l *linted) parse(t *testing.T) *profiles.Profile {
	t.Helper()
	text := "schema = 1\nseed = \"s\"\nepoch = 1767225600\n" + l.profile + "\n[kernel]\nfile = \"k\"\n[stub]\nfile = \"s\"\n[firmware]\ncode_file = \"f\"\n"
	if !strings.Contains(l.profile, "snp") && !strings.Contains(l.profile, "tdx") {
		text += "vars_file = \"v\"\n"
	}
	p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte(text)}}, "x.toml", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (l *linted) image(t *testing.T) (*profiles.Profile, *Manifest, fstest.MapFS) {
	t.Helper()
	files := map[string][]byte{"vmlinuz": l.kernel, "image.efi": l.uki, "initrd": l.initrd(t)}
	for name, b := range l.files {
		files[name] = b
	}
	m := &Manifest{Cmdline: l.cmdline}
	dir := fstest.MapFS{}
	for name, b := range files {
		if !slices.Contains(l.missing, name) {
			dir[name] = &fstest.MapFile{Data: b}
			m.Artefacts = append(m.Artefacts, Artefact{name, cas.Ref{Digest: cas.Sum(b), Size: int64(len(b))}})
		}
	}
	return l.parse(t), m, dir
}

func (l *linted) initrd(t *testing.T) []byte {
	t.Helper()
	c := &config.Config{Schema: config.Schema, Cmdline: hardened}
	var entries []tree.Entry
	for _, name := range l.modules {
		path := "/usr/lib/plinth/modules/" + name + ".ko"
		c.Modules = append(c.Modules, config.Module{Path: path})
		entries = append(entries, tree.File(path[1:], 0o644, tree.Bytes([]byte(name))))
	}
	doc, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	entries = append(entries, tree.File(config.Path[1:], 0o644, tree.Bytes(doc)))
	var b bytes.Buffer
	if err := initrd.Write(&b, nil, entries, initrd.Params{Compression: "none"}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ids(rep *LintReport) (out []string) {
	for _, f := range rep.Findings {
		out = append(out, f.ID)
	}
	return out
}

// TestLint spoils one thing a row and expects the one rule that sees it.
func TestLint(t *testing.T) {
	for _, row := range []struct {
		name string
		base func() *linted
		do   func(*linted)
		want []string
		text string // in the first finding
	}{
		{"snp", lintedSNP, func(*linted) {}, nil, ""},
		{"tdx", lintedTDX, func(*linted) {}, nil, ""},

		{"snp from a disk", lintedSNP, func(l *linted) { l.profile = strings.Replace(l.profile, `"kernel"`, `"disk"`, 1) }, []string{"firmware-only"}, "nothing but the firmware is measured"},
		{"snp, path left out", lintedSNP, func(l *linted) { l.profile = strings.Replace(l.profile, `path = "kernel"`, "", 1) }, []string{"firmware-only"}, ""},
		{"snp, UKI by -kernel", lintedSNP, func(l *linted) { l.profile = strings.Replace(l.profile, `"kernel"`, `"uki"`, 1) }, nil, ""},
		{"firmware without a hash page", lintedSNP, func(l *linted) { l.files["firmware.fd"] = firmwareTables(true, false, false) }, []string{"kernel-hashes"}, "no page for the digests"},
		{"firmware with SEV's hash area alone", lintedSNP, func(l *linted) { l.files["firmware.fd"][0x100+16+12+8] = 4 }, []string{"kernel-hashes"}, ""},
		{"firmware for TDX", lintedSNP, func(l *linted) { l.files["firmware.fd"] = firmwareTables(false, false, true) }, []string{"kernel-hashes", "firmware-platform"}, ""},
		{"firmware for SNP", lintedTDX, func(l *linted) {
			l.files["firmware.fd"] = slices.Concat(enrolled(ownKeys()), firmwareTables(true, true, false))
		}, []string{"firmware-platform"}, "no TDX metadata"},

		{"unsigned, keys enforced", lintedTDX, func(l *linted) { l.uki = unsigned() }, []string{"foreign-keys"}, "image.efi has none"},
		{"signed by another", lintedTDX, func(l *linted) {
			l.files["firmware.fd"] = slices.Concat(enrolled(foreignOnly()), firmwareTables(false, false, true))
		}, []string{"foreign-keys"}, "none of those of image.efi"},
		{"set-up mode", lintedTDX, func(l *linted) {
			l.files["firmware.fd"] = slices.Concat(ovmftest.BlankVars(0x84000), firmwareTables(false, false, true))
			l.uki = unsigned()
		}, []string{"cmdline-override"}, "RTMR 2 shows it, and the agent powers off"},
		{"keys in firmware that checks nothing", lintedTDX, func(l *linted) {
			l.files["firmware.fd"] = slices.Concat(enrolled(foreignOnly()), insecure(), firmwareTables(false, false, true))
			l.uki = unsigned()
		}, []string{"cmdline-override"}, ""},

		{"debugging allowed by policy", lintedSNP, func(l *linted) {
			l.profile = strings.Replace(l.profile, "[snp]\n", "[snp]\npolicy = \"0xb0000\"\n", 1)
		}, []string{"debug-policy"}, "read and write the guest's memory"},
		{"policy without debugging", lintedSNP, func(l *linted) {
			l.profile = strings.Replace(l.profile, "[snp]\n", "[snp]\npolicy = \"0x30000\"\n", 1)
		}, nil, ""},
		{"debugging allowed by attributes", lintedTDX, func(l *linted) { l.profile += "[tdx]\nattributes = \"0x10000001\"\n" }, []string{"debug-policy"}, ""},
		{"debug agent with a shell", lintedSNP, func(l *linted) {
			l.profile = strings.Replace(l.profile, "[agent]\n", "[agent]\ndebug = true\nshell = true\n", 1)
		}, []string{"debug", "shell"}, ""},
		{"fw_cfg", lintedSNP, func(l *linted) { l.profile = strings.Replace(l.profile, "[agent]\n", "[agent]\nfw_cfg = true\n", 1) }, []string{"fw-cfg"}, ""},

		{"serial console", lintedSNP, func(l *linted) { l.cmdline += " console=ttyS0,115200" }, []string{"console"}, "the host reads"},
		{"early console", lintedSNP, func(l *linted) { l.cmdline += " earlyprintk=ttyS0 earlycon" }, []string{"console", "console"}, ""},
		{"initrd=", lintedSNP, func(l *linted) { l.cmdline += ` initrd=\x` }, []string{"outside-code"}, "ESP"},
		{"init=, rdinit=, bootconfig", lintedSNP, func(l *linted) { l.cmdline += " init=/x rdinit=/y bootconfig" }, []string{"outside-code", "outside-code", "outside-code"}, ""},
		{"mitigations off", lintedSNP, func(l *linted) {
			l.cmdline += " mitigations=off nokaslr nopti nosmep nosmap iomem=relaxed module.sig-enforce=0"
		}, slices.Repeat([]string{"weakened"}, 7), ""},
		{"mitigations on", lintedSNP, func(l *linted) { l.cmdline += " mitigations=auto,nosmt" }, nil, ""},
		{"nothing hardened", lintedSNP, func(l *linted) { l.cmdline = "quiet" }, slices.Repeat([]string{"hardening"}, 5), "root can write kernel memory"},
		{"hardening undone", lintedSNP, func(l *linted) { l.cmdline += " lockdown=none panic=0" }, []string{"hardening", "hardening"}, ""},

		{"no driver", lintedSNP, func(l *linted) { l.modules = nil }, []string{"guest-drivers", "guest-drivers"}, "sev_guest is neither"},
		{"the other platform's driver", lintedSNP, func(l *linted) { l.modules = []string{"tsm", "tdx-guest"} }, []string{"guest-drivers"}, "sev_guest"},
		{"no tsm", lintedTDX, func(l *linted) { l.modules = []string{"tdx_guest"} }, []string{"guest-drivers"}, "tsm is neither"},
		{"tsm of Linux 6.17", lintedTDX, func(l *linted) { l.modules = []string{"tdx_guest", "tsm_report"} }, nil, ""},
		{"drivers built in", lintedSNP, func(l *linted) {
			l.modules = nil
			l.kernel = bzImageOf(packed("zstd", textSandbox+textDrivers["sev_guest"]+textDrivers["tsm"]))
		}, nil, ""},
		{"no sandbox", lintedSNP, func(l *linted) { l.kernel = bzImageOf(packed("zstd", textInterpreter)) }, []string{"acpi-code"}, "nothing measures the tables"},
		{"no sandbox, tdx", lintedTDX, func(l *linted) { l.kernel = bzImageOf(packed("gzip", textInterpreter)) }, []string{"acpi-code"}, "RTMR 0 shows"},
		{"no sandbox, lz4", lintedSNP, func(l *linted) { l.kernel = bzImageOf(packed("lz4", textInterpreter)) }, []string{"acpi-code"}, "nothing measures the tables"},
		{"no interpreter", lintedSNP, func(l *linted) { l.kernel = bzImageOf(packed("zstd", "")) }, nil, ""},
		{"ACPI off", lintedSNP, func(l *linted) {
			l.kernel = bzImageOf(packed("zstd", textInterpreter))
			l.cmdline += " acpi=off"
		}, nil, ""},
	} {
		l := row.base()
		row.do(l)
		rep := l.lint(t)
		if got := ids(rep); !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
			continue
		}
		if len(rep.NotChecked) > 0 {
			t.Errorf("%s: not checked: %v", row.name, rep.NotChecked)
		}
		if row.text != "" && !strings.Contains(rep.Findings[0].What, row.text) {
			t.Errorf("%s: %q lacks %q", row.name, rep.Findings[0].What, row.text)
		}
		for _, f := range rep.Findings {
			if f.Where == "" || f.Do == "" || f.Severity == "" {
				t.Errorf("%s: %+v", row.name, f)
			}
		}
	}
}

// insecure is a code flash without the driver that Secure Boot is set up with.
func insecure() []byte {
	pei, dxe := ovmftest.Volumes("1")
	return ovmftest.Code(pei, bytes.Replace(dxe, ovmftest.Text("SecureBootConfigDxe"), ovmftest.Text("SecureBootXonfigDxe"), 1))
}

// TestLintUnchecked: what cannot be told is said, and passes nothing.
func TestLintUnchecked(t *testing.T) {
	for name, row := range map[string]struct {
		do   func(*linted)
		want []string
		why  string // of the first
	}{
		"no kernel":            {func(l *linted) { l.missing = []string{"vmlinuz"} }, []string{"acpi-code"}, "has no vmlinuz"},
		"not a bzImage":        {func(l *linted) { l.kernel = []byte("kernel") }, []string{"acpi-code"}, "not a bzImage"},
		"payload out of file":  {func(l *linted) { binary.LittleEndian.PutUint32(l.kernel[0x248:], 1<<31) }, []string{"acpi-code"}, "at offset 0x80000400"},
		"payload of no length": {func(l *linted) { binary.LittleEndian.PutUint32(l.kernel[0x24c:], 0) }, []string{"acpi-code"}, "payload of 0 bytes"},
		"unknown compression":  {func(l *linted) { l.kernel = bzImageOf([]byte("BZh91AY&SY")) }, []string{"acpi-code"}, "want zstd, gzip, xz or lz4"},
		"damaged payload":      {func(l *linted) { l.kernel[0x410] ^= 1; clear(l.kernel[0x420:0x430]) }, []string{"acpi-code"}, "does not unpack"},
		"huge payload":         {func(l *linted) { binary.LittleEndian.PutUint32(l.kernel[len(l.kernel)-4:], 1<<31) }, []string{"acpi-code"}, "unpacks to 2147483648 bytes"},
		"no initrd":            {func(l *linted) { l.missing = []string{"initrd"} }, []string{"guest-drivers"}, "has no initrd"},
		"neither":              {func(l *linted) { l.missing = []string{"vmlinuz"}; l.modules = nil }, []string{"guest-drivers", "acpi-code"}, "has no vmlinuz"},
		"no firmware":          {func(l *linted) { l.missing = []string{"firmware.fd"} }, []string{"kernel-hashes", "firmware-platform", "foreign-keys"}, "has no firmware.fd"},
	} {
		l := lintedSNP()
		row.do(l)
		rep := l.lint(t)
		var got []string
		for _, u := range rep.NotChecked {
			got = append(got, u.ID)
		}
		if !slices.Equal(got, row.want) || len(rep.Findings) > 0 {
			t.Errorf("%s: %v, findings %v, want %v", name, rep.NotChecked, ids(rep), row.want)
		} else if why := rep.NotChecked[0].Why; !strings.Contains(why, row.why) {
			t.Errorf("%s: %q lacks %q", name, why, row.why)
		}
	}
}

// TestLintProfile looks at profiles that nobody built yet.
func TestLintProfile(t *testing.T) {
	for name, row := range map[string]struct {
		findings, unchecked []string
	}{
		"vtpm":       {[]string{"cmdline-override"}, []string{"foreign-keys", "acpi-code"}},
		"vtpm-debug": {[]string{"debug", "shell", "console", "cmdline-override", "hardening"}, []string{"foreign-keys", "acpi-code"}},
		"snp":        {nil, []string{"kernel-hashes", "firmware-platform", "foreign-keys", "acpi-code"}},
		"tdx":        {[]string{"cmdline-override"}, []string{"firmware-platform", "foreign-keys", "acpi-code"}},
	} {
		p, err := profiles.Load(fstest.MapFS{}, name, profiles.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		rep, err := Lint(p, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var unchecked []string
		for _, u := range rep.NotChecked {
			unchecked = append(unchecked, u.ID)
		}
		if !slices.Equal(ids(rep), row.findings) || !slices.Equal(unchecked, row.unchecked) {
			t.Errorf("%s: %v, not checked %v", name, ids(rep), unchecked)
		}
	}
}

func TestLintDamage(t *testing.T) {
	p, m, files := lintedSNP().image(t)
	files["firmware.fd"].Data[7] ^= 1
	var damage *LintDamage
	if _, err := Lint(p, m, files, nil); !errors.As(err, &damage) || damage.File != "firmware.fd" {
		t.Errorf("%v", err)
	}
}

func TestLintSkip(t *testing.T) {
	l := lintedSNP()
	l.cmdline += " console=ttyS0 nokaslr"
	rep := l.lint(t, "console")
	if got := ids(rep); !slices.Equal(got, []string{"weakened"}) || len(rep.NotChecked) > 0 || !slices.Equal(rep.LeftOut, []string{"console"}) {
		t.Errorf("%v, %+v", got, rep)
	}
}

// TestSearchTexts puts a text across every edge of the search's window.
func TestSearchTexts(t *testing.T) {
	const text, other = "the longest text, across the edge", "nowhere"
	for at := 1<<20 - 2*len(text); at <= 1<<20+len(text); at++ {
		b := make([]byte, 3<<20)
		copy(b[at:], text)
		found, err := searchTexts(bytes.NewReader(b), []string{text, other})
		if err != nil || !found[text] || found[other] {
			t.Fatalf("at %d: %v, %v", at, found, err)
		}
	}
}

// TestKernelTexts looks into kernels of Debian, which have ACPI, no sandbox
// and the drivers as modules.
func TestKernelTexts(t *testing.T) {
	kernels := filepath.SplitList(os.Getenv("PLINTH_VMLINUZ"))
	if len(kernels) == 0 {
		testenv.Missing(t, "vmlinuz", "PLINTH_VMLINUZ names no kernel")
	}
	for _, path := range kernels {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := &Manifest{Artefacts: []Artefact{{"vmlinuz", cas.Ref{Digest: cas.Sum(b), Size: int64(len(b))}}}}
		i := &lintImage{manifest: m, files: fstest.MapFS{"vmlinuz": {Data: b}}, read: map[string][]byte{}}
		k, err := i.kernel()
		if err != nil {
			t.Fatal(err)
		}
		if !k.interpreter || k.sandbox || k.builtIn["sev_guest"] || k.builtIn["tdx_guest"] || k.builtIn["tsm"] {
			t.Errorf("%s: %+v", path, k)
		}
	}
}

// FuzzUnpackKernel: a kernel is a foreign file.
func FuzzUnpackKernel(f *testing.F) {
	f.Add(bzImageOf(compressed("zstd", []byte(textInterpreter))))
	f.Add(bzImageOf(compressed("gzip", []byte(textSandbox))))
	f.Add(bzImageOf(compressed("lz4", []byte(textSandbox))))
	f.Add(bzImageOf([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := unpackKernel(b)
		if err != nil {
			return
		}
		if n, err := io.Copy(io.Discard, r); err == nil && n > maxKernel {
			t.Errorf("%d bytes", n)
		}
	})
}
