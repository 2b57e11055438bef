package builder

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/verity"
)

// partition is the content of one of a disk's.
func partition(t *testing.T, raw []byte, kind gpt.GUID) (gpt.Partition, []byte) {
	t.Helper()
	table, err := gpt.Read(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Partitions {
		if p.Type == kind {
			return p, raw[p.First*512 : (p.Last+1)*512]
		}
	}
	t.Fatalf("no partition of type %v", kind)
	return gpt.Partition{}, nil
}

func TestVerityRoot(t *testing.T) {
	s := newSite(t)
	p := s.profile(`
[[files]]
path = "/etc/hello"
text = "hello\n"
[[services]]
name = "hello"
exec = ["/usr/bin/hello"]
`, "root.kind=verity")
	spec := s.spec(p)
	m, err := Build(t.Context(), spec, Options{Store: s.Store, Workplace: s.Workplace})
	if err != nil {
		t.Fatal(err)
	}
	results, err := s.run(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := verity.ParseRoot(strings.TrimPrefix(m.Root.Argument, "plinth.verity="))
	if err != nil {
		t.Fatal(err)
	}

	// One root hash, wherever it stands.
	hash := m.Root.RootHash
	if hex.EncodeToString(root.RootHash) != hash || string(s.output(results, "verity", "roothash")) != hash {
		t.Errorf("root hash %s, %x, %s", hash, root.RootHash, s.output(results, "verity", "roothash"))
	}
	want := "panic=-1 " + m.Root.Argument
	if i := s.image(results); i.info.Cmdline != want || i.config.Cmdline != want || m.Cmdline != want || string(s.output(results, "uki", "cmdline")) != want {
		t.Errorf("command line %q, %q, %q: want %q", i.info.Cmdline, i.config.Cmdline, m.Cmdline, want)
	} else {
		initrdLeadsToRoot(t, i)
	}
	if m.Root.DMInit != "no: not built in: CONFIG_BLK_DEV_DM CONFIG_DM_INIT CONFIG_DM_VERITY CONFIG_EROFS_FS" {
		t.Errorf("dm_init %q", m.Root.DMInit)
	}
	if got := fmt.Sprintf("root_hash=%s,salt=%x,data_blocks=%d,data_block_size=4096,hash_block_size=4096", hash, root.Salt, root.DataBlocks); m.Root.KataParams != got {
		t.Errorf("kernel_verity_params %s, want %s", m.Root.KataParams, got)
	}
	for _, name := range []string{"sbom.spdx.json", "sbom.cdx.json"} {
		if !bytes.Contains(s.output(results, "verity", name), []byte(hash)) {
			t.Errorf("%s does not name the root hash", name)
		}
	}

	// The disk has the root and its tree, by the names that the guest looks for.
	raw := s.output(results, "disk", "image.raw")
	dataID, hashID := root.PartitionIDs()
	data, erofs := partition(t, raw, disk.TypeRoot)
	tree, hashes := partition(t, raw, disk.TypeRootVerity)
	if data.ID != gpt.FromUUID(dataID) || tree.ID != gpt.FromUUID(hashID) || data.Attributes != disk.AttrReadOnly || tree.Attributes != disk.AttrReadOnly {
		t.Errorf("partitions %+v, %+v", data, tree)
	}
	if built := s.output(results, "rootfs", "root.erofs"); !bytes.Equal(erofs[:len(built)], built) {
		t.Error("the root partition is not the root that was built")
	}
	check := func() error {
		return verity.Verify(bytes.NewReader(erofs), bytes.NewReader(hashes[root.HashStart*uint64(root.HashBlockSize):]), root.Params, root.RootHash)
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	erofs[root.DataSize()-1] ^= 1
	if check() == nil {
		t.Error("a flipped bit at the end of the root is not noticed")
	}
	if sb, err := verity.ParseSuperblock(hashes); err != nil || !bytes.Equal(sb.Salt, root.Salt) || sb.DataBlocks != root.DataBlocks || sb.UUID == [16]byte{} {
		t.Errorf("superblock %+v, %v", sb, err)
	}
	if !bytes.Contains(erofs, []byte("hello\n")) {
		t.Error("the root has no /etc/hello")
	}
}

// The signature is what openssl takes for one of the root hash, in hexadecimal.
func TestRootSignature(t *testing.T) {
	testenv.Need(t, "openssl")
	s := newSite(t)
	cert := s.keyPair("root")
	set := []string{"root.kind=verity", "root.verity_key=" + s.dir + "/root.key", "root.verity_cert=" + s.dir + "/root.pem"}
	results := s.mustRun("", set...)
	p, content := partition(t, s.output(results, "disk", "image.raw"), disk.TypeRootSig)
	var doc struct{ RootHash, CertificateFingerprint, Signature string }
	if err := json.Unmarshal(bytes.TrimRight(content, "\x00"), &doc); err != nil {
		t.Fatal(err)
	}
	hash := s.output(results, "verity", "roothash")
	if doc.RootHash != string(hash) || doc.CertificateFingerprint != fmt.Sprintf("%x", sha256.Sum256(cert.Raw)) || p.Attributes != disk.AttrReadOnly {
		t.Errorf("%+v, %+v", p, doc)
	}
	der, err := base64.StdEncoding.DecodeString(doc.Signature)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(content []byte) error {
		out, err := exec.Command(testenv.Tool("openssl"), "smime", "-verify", "-binary", "-inform", "der", "-in", s.write("sig.der", der),
			"-content", s.write("content", content), "-CAfile", s.dir+"/root.pem", "-noverify").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := verify(hash); err != nil {
		t.Error(err)
	}
	hash[0] ^= 1
	if verify(hash) == nil {
		t.Error("openssl takes the signature for one of another root hash")
	}
	// The guest needs no signature: what it measures is the same without one.
	if plain := s.mustRun("", "root.kind=verity"); plain["uki"]["image.efi"] != results["uki"]["image.efi"] {
		t.Error("another UKI")
	}
	if s.inStore([]byte("PRIVATE KEY")) {
		t.Error("a private key is in the store")
	}
}

func TestDMInit(t *testing.T) {
	const all = "CONFIG_BLK_DEV_DM=y\nCONFIG_DM_INIT=y\nCONFIG_DM_VERITY=y\nCONFIG_EROFS_FS=y\nCONFIG_CRYPTO_SHA256=y\n"
	for _, c := range []struct {
		config string
		hash   verity.Algorithm
		want   string
	}{
		{all, verity.SHA256, "yes"},
		{all, verity.SHA512, "no: not built in: CONFIG_CRYPTO_SHA512"},
		{strings.Replace(all, "DM_INIT=y", "DM_INIT is not set", 1), verity.SHA256, "no: not built in: CONFIG_DM_INIT"},
		{strings.ReplaceAll(all, "=y", "=m"), verity.SHA256, "no: not built in: CONFIG_BLK_DEV_DM CONFIG_DM_INIT CONFIG_DM_VERITY CONFIG_EROFS_FS CONFIG_CRYPTO_SHA256"},
	} {
		if got := dmInit([]byte(c.config), c.hash); got != c.want {
			t.Errorf("%s: got %s, want %s", c.config, got, c.want)
		}
	}
}

// As the kernel's own document writes it: device-mapper/dm-init.rst, for a root
// hash whose first and last bytes are the names of the partitions.
func TestDMCreate(t *testing.T) {
	r := &verity.Root{
		Params:   verity.Params{Algorithm: verity.SHA256, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 2, Salt: []byte{0xab}, Format: 1},
		RootHash: bytes.Repeat([]byte{0x01, 0x23, 0x45, 0x67}, 8), HashStart: 1, OnCorruption: verity.Panic,
	}
	want := "plinth-root,,,ro,0 16 verity 1 PARTUUID=01234567-0123-4567-0123-456701234567 PARTUUID=01234567-0123-4567-0123-456701234567 " +
		"4096 4096 2 1 sha256 " + strings.Repeat("01234567", 8) + " ab 1 panic_on_corruption"
	if got := dmCreate(r); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// initrdLeadsToRoot: the agent, what it loads, and nothing of the root.
func initrdLeadsToRoot(t *testing.T, i *image) {
	t.Helper()
	var modules []string
	for _, m := range i.config.Modules {
		modules = append(modules, m.Name())
	}
	if got := strings.Join(modules, " "); got != "root leaf dm_verity erofs" {
		t.Errorf("modules %s", got)
	}
	if string(i.content(t, "init")) != "agent" || len(i.config.Services) != 1 || i.config.Overlay {
		t.Errorf("%+v", i.config)
	}
	for _, path := range []string{"etc/hello", "etc/motd", "etc/passwd", "usr/lib/plinth/agent"} {
		if _, ok := i.files[path]; ok {
			t.Errorf("the initrd has %s, which belongs to the root", path)
		}
	}
}

func TestVerityRootKeys(t *testing.T) {
	s := newSite(t)
	results := s.mustRun("", "root.kind=verity", "root.overlay=true", "root.hash=sha512", "root.on_corruption=restart")
	i := s.image(results)
	root, err := verity.ParseRoot(i.info.Cmdline[strings.Index(i.info.Cmdline, "plinth.verity=")+len("plinth.verity="):])
	if err != nil || root.Algorithm != verity.SHA512 || len(root.RootHash) != 64 || root.OnCorruption != verity.Restart {
		t.Errorf("%+v, %v", root, err)
	}
	if !i.config.Overlay || !slices.ContainsFunc(i.config.Modules, func(m config.Module) bool { return m.Name() == "overlay" }) {
		t.Errorf("%+v", i.config)
	}
}

// A change of the command line makes neither the root nor its tree again.
func TestVerityRootStays(t *testing.T) {
	s := newSite(t)
	first := s.mustRun("", "root.kind=verity")
	var st states
	second, err := s.run(s.profile("", "root.kind=verity", "cmdline=panic=-1,quiet"), Options{Progress: st.note})
	if err != nil {
		t.Fatal(err)
	}
	if want := "kernel cached, stub cached, firmware cached, rootfs cached, verity cached, initrd done, uki done, disk done, measure done"; st.String() != want {
		t.Errorf("%s, want %s", &st, want)
	}
	if first["verity"]["roothash"] != second["verity"]["roothash"] || first["disk"]["image.raw"] == second["disk"]["image.raw"] {
		t.Error("another root, or the same disk")
	}
}

// With another seed the same files have another salt, and so another root hash.
func TestVerityRootFollowsSeed(t *testing.T) {
	s := newSite(t)
	a, b := s.mustRun("", "root.kind=verity"), s.mustRun("", "root.kind=verity", "seed=other")
	if a["verity"]["roothash"] == b["verity"]["roothash"] {
		t.Error("two seeds, one root hash")
	}
}

func TestRootOfProfile(t *testing.T) {
	s := newSite(t)
	results := s.mustRun(`
exclude      = ["/etc/issue"]
alternatives = { "/usr/bin/greet" = "/etc/motd" }
[[users]]
name   = "web"
uid    = 123
home   = "/srv"
groups = ["media"]
[[groups]]
name = "media"
gid  = 200
[[files]]
path = "/etc/motd"
text = "mine\n"
[[files]]
path = "/etc/link"
link = "motd"
[[files]]
path  = "/srv"
dir   = true
mode  = "0750"
owner = "123:200"
`)
	i := s.image(results)
	if got := string(i.content(t, "etc/motd")); got != "mine\n" {
		t.Errorf("the profile's file did not win: %q", got)
	}
	for path, target := range map[string]string{"etc/link": "motd", "usr/bin/greet": "/etc/motd"} {
		if e := i.files[path]; e.Target != target {
			t.Errorf("%s: %+v", path, e)
		}
	}
	if e := i.files["srv"]; e.Mode != 0o040750 || e.UID != 123 || e.GID != 200 {
		t.Errorf("srv: %+v", e)
	}
	if _, ok := i.files["etc/issue"]; ok {
		t.Error("what is excluded is there")
	}
	if got := string(i.content(t, "etc/passwd")); !strings.Contains(got, "\nweb:x:123:123::/srv:/usr/sbin/nologin\n") {
		t.Errorf("passwd: %s", got)
	}
	if got := string(i.content(t, "etc/group")); !strings.Contains(got, "\nmedia:x:200:web\n") {
		t.Errorf("group: %s", got)
	}
	var doc struct {
		Files []struct {
			Name string `json:"fileName"`
		} `json:"files"`
	}
	if err := json.Unmarshal(s.output(results, "initrd", "sbom.spdx.json"), &doc); err != nil || len(doc.Files) == 0 {
		t.Errorf("bill of materials of an initrd: %v, %d files", err, len(doc.Files))
	}
}

func TestCheckRoot(t *testing.T) {
	s := newSite(t)
	build := func(kind string) *Manifest {
		m, err := Build(t.Context(), s.spec(s.profile("", "root.kind="+kind)), Options{Store: s.Store, Workplace: s.Workplace})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	onDisk, inMemory := build("verity"), build("initrd")
	r, err := onDisk.Root.parse()
	if err != nil {
		t.Fatal(err)
	}
	// As the kernel prints it: Documentation, device-mapper/verity.rst.
	table := fmt.Sprintf("0 %d verity 1 254:2 254:3 4096 4096 %d 1 sha256 %x %x 1 panic_on_corruption", r.DataBlocks*8, r.DataBlocks, r.RootHash, r.Salt)
	good := evidence.Report{Root: "verity", RootTable: table, RootDevice: "253:0"}
	change := func(old, replacement string) evidence.Report {
		r := good
		r.RootTable = strings.Replace(table, old, replacement, 1)
		return r
	}
	for _, c := range []struct {
		name string
		m    *Manifest
		r    evidence.Report
		ok   bool
	}{
		{"clean", onDisk, good, true},
		{"other devices", onDisk, change("254:2 254:3", "8:1 8:17"), true},
		{"data is its own tree", onDisk, change("254:3", "254:2"), false},
		{"device by name", onDisk, change("254:2", "/dev/sda"), false},
		{"other root hash", onDisk, change(fmt.Sprintf("%x", r.RootHash), strings.Repeat("0", 64)), false},
		{"other salt", onDisk, change(fmt.Sprintf("%x", r.Salt), "-"), false},
		{"shorter", onDisk, change(fmt.Sprintf("0 %d", r.DataBlocks*8), fmt.Sprintf("0 %d", r.DataBlocks*8-8)), false},
		{"later", onDisk, change("0 ", "8 "), false},
		{"corruption goes unnoticed", onDisk, change(" 1 panic_on_corruption", ""), false},
		{"another target", onDisk, change("verity", "linear"), false},
		{"says initrd", onDisk, evidence.Report{Root: "initrd", RootTable: table, RootDevice: "253:0"}, false},
		{"initrd", onDisk, evidence.Report{Root: "initrd"}, false},
		{"no table", onDisk, evidence.Report{Root: "verity"}, false},
		{"initrd of an initrd", inMemory, evidence.Report{Root: "initrd"}, true},
		{"verity of an initrd", inMemory, good, false},
	} {
		got, err := c.m.CheckRoot(&c.r)
		if err != nil || got.OK != c.ok {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// A manifest whose root is not the one on its command line is refused.
func TestManifestRoot(t *testing.T) {
	s := newSite(t)
	m, err := Build(t.Context(), s.spec(s.profile("", "root.kind=verity")), Options{Store: s.Store, Workplace: s.Workplace})
	if err != nil {
		t.Fatal(err)
	}
	parse := func() error {
		b, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParseManifest(b)
		return err
	}
	if err := parse(); err != nil {
		t.Fatal(err)
	}
	sound, cmdline := *m.Root, m.Cmdline
	for name, edit := range map[string]func(){
		"root hash":    func() { m.Root.RootHash = strings.Repeat("0", 64) },
		"argument":     func() { m.Root.Argument = "plinth.verity=x" },
		"Kata":         func() { m.Root.KataParams = "" },
		"command line": func() { m.Cmdline = "panic=-1" },
	} {
		edit()
		if parse() == nil {
			t.Errorf("%s: accepted", name)
		}
		*m.Root, m.Cmdline = sound, cmdline
	}
}
