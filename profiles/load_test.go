package profiles

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// files makes a file system of texts by path.
func files(texts map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range texts {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

// load reads text as the profile p.toml.
func load(text string, o Options) (*Profile, error) {
	return Load(files(map[string]string{"p.toml": text}), "p.toml", o)
}

func mustLoad(t *testing.T, fsys fs.FS, name string, o Options) *Profile {
	t.Helper()
	p, err := Load(fsys, name, o)
	if err != nil {
		t.Fatalf("Load(%s):\n%v", name, err)
	}
	return p
}

// head is what most rows extend.
const head = "schema = 1\nextends = \"vtpm\"\n"

func TestBuiltin(t *testing.T) {
	// Others may lie beside them: plinth init writes into a folder of this name.
	if want := []string{"snp", "tdx", "vtpm", "vtpm-debug"}; !slices.Equal(slices.Sorted(slices.Values(Builtin())), want) {
		t.Errorf("built in: %v, want %v", Builtin(), want)
	}
	for _, name := range Builtin() {
		p := mustLoad(t, fstest.MapFS{}, name, Options{})
		if p.Name != name || p.Origin != "built-in profile "+name || p.Dir != "" || !p.Stock {
			t.Errorf("%s: got name %q, origin %q, dir %q, stock %v", name, p.Name, p.Origin, p.Dir, p.Stock)
		}
		if len(p.Sources["debian"].Mirror) != 0 {
			t.Errorf("%s names a mirror", name)
		}
		table().walk(func(k *key) {
			if k.format.host && strings.Contains(string(p.Canonical()), `"`+k.name+`":`) {
				t.Errorf("%s: %s: a built-in profile has no files of the host beside it", name, k.path)
			}
		})
	}
}

func TestStock(t *testing.T) {
	release := mustLoad(t, fstest.MapFS{}, "vtpm", Options{})
	debug := mustLoad(t, fstest.MapFS{}, "vtpm-debug", Options{})
	for _, want := range []string{"lockdown=integrity", "panic=-1", "random.trust_bootloader=off"} {
		if !slices.Contains(release.Cmdline, want) || !slices.Contains(debug.Cmdline, want) {
			t.Errorf("a stock profile lacks %s", want)
		}
	}
	if c := strings.Join(release.Cmdline, " "); strings.Contains(c, "ttyS") || strings.Contains(c, "hvc") || !strings.Contains(c, "console=") {
		t.Errorf("vtpm: %s: want a console= that the host does not see", c)
	}
	if release.Agent.Debug || release.Agent.Shell || release.Agent.FWCfg {
		t.Errorf("vtpm: agent: %+v", release.Agent)
	}
	if !debug.Agent.Debug || !debug.Agent.Shell || !slices.Contains(debug.Cmdline, "console=ttyS0,115200") {
		t.Errorf("vtpm-debug: agent %+v, cmdline %v", debug.Agent, debug.Cmdline)
	}
	if release.Seed == debug.Seed {
		t.Error("vtpm and vtpm-debug share a seed, hence the identifiers of their disks")
	}
	suites := []string{}
	for _, s := range release.SourcesFor(release.Kernel.Suite) {
		suites = append(suites, s.Name+" "+s.Suite+" "+strings.Join(s.Components, " "))
	}
	if want := []string{"debian trixie main", "debian-security trixie-security main"}; !slices.Equal(suites, want) {
		t.Errorf("sources: got %v, want %v", suites, want)
	}
}

func TestLookup(t *testing.T) {
	stockText := string(stock("vtpm").data)
	fsys := files(map[string]string{
		"profiles/mine.toml":  head + "seed = 'mine'",
		"profiles/vtpm.toml":  head + "seed = 'not the stock one'",
		"elsewhere/vtpm.toml": stockText,
		"here.toml":           head,
		"bad name.toml":       head,
		"large.toml":          head + strings.Repeat("#", maxSize),
	})
	for _, c := range []struct{ name, wantName, origin, dir, seed string }{
		{"mine", "mine", "profiles/mine.toml", "profiles", "mine"},
		{"vtpm", "vtpm", "profiles/vtpm.toml", "profiles", "not the stock one"},
		{"./profiles/mine.toml", "mine", "profiles/mine.toml", "profiles", "mine"},
		{"elsewhere/../here.toml", "here", "here.toml", ".", "7f0c2d6e-plinth-vtpm"},
		{"vtpm-debug", "vtpm-debug", "built-in profile vtpm-debug", "", "7f0c2d6e-plinth-vtpm-debug"},
	} {
		p := mustLoad(t, fsys, c.name, Options{})
		if p.Name != c.wantName || p.Origin != c.origin || p.Dir != c.dir || p.Seed != c.seed || p.Stock != (c.dir == "") {
			t.Errorf("%s: got name %q, origin %q, dir %q, seed %q, stock %v, want %+v", c.name, p.Name, p.Origin, p.Dir, p.Seed, p.Stock, c)
		}
	}
	if p := mustLoad(t, fsys, "elsewhere/vtpm.toml", Options{}); !p.Stock || p.Dir != "elsewhere" {
		t.Errorf("the bytes of a stock profile: got stock %v, dir %q", p.Stock, p.Dir)
	}
	for _, c := range []struct{ name, want string }{
		{"vtmp", `vtmp: no such profile: there is no profiles/vtmp.toml, and built in are snp, tdx, vtpm-debug, vtpm; did you mean "vtpm"?`},
		{"./vtpm", "./vtpm: no such file"},
		{"none.toml", "none.toml: no such file"},
		{"bad name.toml", `bad name.toml: bad name of a profile: want lower-case letters, digits and ._+-, a letter or digit first, and .toml`},
		{"large.toml", "large.toml:1:1: more than 1048576 bytes"},
	} {
		_, err := Load(fsys, c.name, Options{})
		if f := (*Faults)(nil); !errors.As(err, &f) || err.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %v", c.name, err, c.want)
		}
	}
}

type failing struct{}

func (failing) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}

func TestLookupError(t *testing.T) {
	for _, name := range []string{"vtpm", "x/p.toml"} {
		_, err := Load(failing{}, name, Options{})
		if f := (*Faults)(nil); !errors.Is(err, fs.ErrPermission) || errors.As(err, &f) {
			t.Errorf("%s: got %v, want the error of the file system", name, err)
		}
	}
}

func TestHost(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/p.toml", []byte(head+"[secure_boot]\nkey = 'k'\ncert = '/etc/c'"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := mustLoad(t, Host, dir+"/x/../p.toml", Options{})
	if p.SecureBoot.Key != dir+"/k" || p.SecureBoot.Cert != "/etc/c" {
		t.Errorf("got %+v", p.SecureBoot)
	}
}

func TestExtends(t *testing.T) {
	deep := map[string]string{}
	for i := range 20 {
		deep[string(rune('a'+i))+".toml"] = "schema = 1\nextends = '" + string(rune('a'+i+1)) + "'"
	}
	fsys := files(map[string]string{
		"profiles/vtpm.toml":  head + "[machine]\nmemory = 512", // extends the built-in one of its own name
		"profiles/child.toml": head + "[machine]\nvcpus = [8]",
		"a/child.toml":        head,
		"a/path.toml":         "schema = 1\nextends = '../profiles/child.toml'",
		"a/loop.toml":         "schema = 1\nextends = 'loop2'",
		"a/loop2.toml":        "schema = 1\nextends = './loop.toml'",
		"a/self.toml":         "schema = 1\nextends = 'self'",
		"a/none.toml":         "schema = 1\nextends = 'vtpn'",
		"a/nopath.toml":       "schema = 1\nextends = '../vtpm.toml'",
		"a/badbase.toml":      "schema = 1\nextends = 'worse'\nsed = 1",
		"a/worse.toml":        "schema = 1\nmachine.cpu = 7",
	})
	for _, c := range []struct {
		name   string
		memory int
		vcpus  []int
	}{
		{"vtpm", 512, []int{1, 2}},
		{"child", 512, []int{8}}, // the file beside it wins over the built-in profile
		{"a/child.toml", 1024, []int{1, 2}},
		{"a/path.toml", 512, []int{8}},
	} {
		p := mustLoad(t, fsys, c.name, Options{})
		if p.Machine.Memory != c.memory || !slices.Equal(p.Machine.VCPUs, c.vcpus) {
			t.Errorf("%s: got %+v, want %+v", c.name, p.Machine, c)
		}
	}
	for name, want := range map[string]string{
		"a/loop.toml":    "a/loop2.toml:2:11: extends: goes round in a circle: a/loop.toml extends a/loop2.toml extends a/loop.toml",
		"a/self.toml":    `a/self.toml:2:11: extends: no profile "self"`,
		"a/none.toml":    `a/none.toml:2:11: extends: no profile "vtpn"; did you mean "vtpm"?`,
		"a/nopath.toml":  `a/nopath.toml:2:11: extends: no profile "../vtpm.toml"`,
		"a/badbase.toml": "a/badbase.toml:1:1: platform: is missing: What measures the guest: a virtual TPM, AMD SEV-SNP or Intel TDX.\na/badbase.toml:3:1: sed: unknown key; did you mean \"seed\"?\na/worse.toml:2:15: machine.cpu: is an integer: want a string; write \"7\"",
	} {
		_, err := Load(fsys, name, Options{})
		if err == nil || !strings.HasPrefix(err.Error(), want) && name != "a/badbase.toml" {
			t.Errorf("%s:\ngot  %v\nwant %v", name, err, want)
			continue
		}
		for line := range strings.Lines(want) {
			if !strings.Contains(err.Error(), strings.TrimSpace(line)) {
				t.Errorf("%s:\ngot  %v\nwant %v", name, err, line)
			}
		}
	}
	_, err := Load(files(deep), "a.toml", Options{})
	if want := "p.toml:2:11: extends: more than 16 profiles deep"; err == nil || err.Error() != want {
		t.Errorf("deep: got %v, want %v", err, want)
	}
}

// A path means the same file wherever the profile is read from, and a base's paths are its own.
func TestPaths(t *testing.T) {
	fsys := files(map[string]string{
		"base/base.toml":  head + "[[files]]\npath = '/base'\nsource = 'f'\n[[files]]\npath = '/both'\nsource = 'g'\n",
		"top/top.toml":    "schema = 1\nextends = '../base/base.toml'\n[[files]]\npath = '/both'\nsource = 'g'\n[[files]]\npath = '/abs'\nsource = '/abs/./h'\n",
		"top/kernel.toml": head + "[kernel]\nfile = 'bzImage'\nmodules_dir = '../lib/modules'",
	})
	p := mustLoad(t, fsys, "top/top.toml", Options{Set: []string{"secure_boot.key=k", "secure_boot.cert=sub/c"}})
	got := []string{p.SecureBoot.Key, p.SecureBoot.Cert}
	for _, f := range p.Files {
		got = append(got, f.Path+" "+f.Source)
	}
	if want := []string{"k", "sub/c", "/base base/f", "/both top/g", "/abs /abs/h"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if k := mustLoad(t, fsys, "top/kernel.toml", Options{}).Kernel; k.File != "top/bzImage" || k.ModulesDir != "lib/modules" || k.Package != "" {
		t.Errorf("kernel: got %+v", k)
	}
}

func TestOverrides(t *testing.T) {
	text := head + "epoch = 1000000000\n[kernel]\nfile = 'k'\nmodules = []"
	for _, c := range []struct {
		set   []string
		epoch string
		want  string
		got   func(*Profile) any
	}{
		{nil, "", "1000000000", func(p *Profile) any { return p.Epoch }},
		{nil, "1100000000", "1100000000", func(p *Profile) any { return p.Epoch }},
		{[]string{"epoch=1200000000"}, "1100000000", "1200000000", func(p *Profile) any { return p.Epoch }},
		{[]string{"seed=a", "seed=b c=d"}, "", "b c=d", func(p *Profile) any { return p.Seed }},
		{[]string{`seed="a\u0020b"`, `seed='x'`}, "", "x", func(p *Profile) any { return p.Seed }},
		{[]string{"machine.vcpus=4"}, "", "[4]", func(p *Profile) any { return p.Machine.VCPUs }},
		{[]string{"machine.vcpus=[4, 2]", "machine.memory=256"}, "", "{q35 max [4 2] 256 }", func(p *Profile) any { return p.Machine }},
		{[]string{`cmdline={append=["quiet"]}`}, "", "quiet", func(p *Profile) any { return p.Cmdline[len(p.Cmdline)-1] }},
		{[]string{"cmdline=quiet"}, "", "[quiet]", func(p *Profile) any { return p.Cmdline }},
		{[]string{"agent.debug = true"}, "", "true", func(p *Profile) any { return p.Agent.Debug }},
		{[]string{"kernel.package=linux-image-amd64"}, "", "{linux-image-amd64    []}", func(p *Profile) any { return p.Kernel }},
		{[]string{"sources.sid.suite=sid", "sources.sid.check_valid_until=false"}, "", "{sid [main] []  false false  sid}", func(p *Profile) any { return p.Sources["sid"] }},
		{[]string{"sources.debian.mirror=http://mirror.example/debian"}, "", "[http://mirror.example/debian]", func(p *Profile) any { return p.Sources["debian"].Mirror }},
		{[]string{`services=[{name="a", exec=["/a"], env={X="1"}}]`}, "", "[{a [/a] map[X:1]  }]", func(p *Profile) any { return p.Services }},
	} {
		p, err := load(text, Options{Set: c.set, SourceDateEpoch: c.epoch})
		if err != nil {
			t.Errorf("%q: %v", c.set, err)
		} else if got := sprint(c.got(p)); got != c.want {
			t.Errorf("%q: got %s, want %s", c.set, got, c.want)
		}
	}
	for _, c := range []struct {
		set   []string
		epoch string
		want  string
	}{
		{[]string{"machine.memry=1", "nonsense", "=1"}, "", "--set machine.memry=1: machine.memry: unknown key; did you mean \"memory\"?\n--set nonsense: want KEY=VALUE\n--set =1: want KEY=VALUE"},
		{[]string{"machine.memory=lots"}, "", "--set machine.memory=lots: unexpected character U+006C 'l' at start of value"},
		{[]string{"machine.memory=1"}, "", "--set machine.memory=1: machine.memory: 1: want 128 to 1048576"},
		{[]string{"machine.memory='512'"}, "", "--set machine.memory='512': machine.memory: is a string: want an integer; write 512"},
		{[]string{"extends=vtpm"}, "", "--set extends=vtpm: extends: only a file can say this"},
		{[]string{"schema=1"}, "", "--set schema=1: schema: only a file can say this"},
		{[]string{"root.kind=tree"}, "", `--set root.kind=tree: root.kind: "tree": want "verity" or "initrd"`},
		{nil, "now", `SOURCE_DATE_EPOCH: epoch: is a string: want an integer`},
		{nil, "0", `SOURCE_DATE_EPOCH: epoch: 0: want 315532800 to 4294967295`},
	} {
		_, err := load(text, Options{Set: c.set, SourceDateEpoch: c.epoch})
		if err == nil || err.Error() != c.want {
			t.Errorf("%q %q:\ngot  %v\nwant %v", c.set, c.epoch, err, c.want)
		}
	}
}

func TestUnsupported(t *testing.T) {
	_, err := load(head+"arch = 'arm64'", Options{})
	want := `p.toml:3:8: arch: "arm64" is not supported yet: want "amd64"`
	if u := (*UnsupportedError)(nil); !errors.Is(err, ErrUnsupported) || !errors.As(err, &u) || len(u.Faults) != 1 || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, err := load(head, Options{Set: []string{"arch=riscv64"}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v, want an unsupported error", err)
	}
	// A profile that is wrong is wrong first.
	if _, err := load(head+"arch = 'arm64'\nsed = ''", Options{}); err == nil || errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v, want faults", err)
	}
}

func TestSourcesFor(t *testing.T) {
	p, err := load(head+"[sources.sid]\nsuite = 'sid'\ncomponents = ['main', 'contrib']\n[sources.local]\ndebs = 'debs'", Options{})
	if err != nil {
		t.Fatal(err)
	}
	for suite, want := range map[string]string{
		"":         "debian debian-security local sid",
		"trixie":   "debian",
		"sid":      "sid",
		"bookworm": "bookworm",
	} {
		var names []string
		for _, s := range p.SourcesFor(suite) {
			names = append(names, s.Name)
			if s.Name == "bookworm" && (s.Suite != "bookworm" || !slices.Equal(s.Components, []string{"main"}) || !s.CheckValidUntil) {
				t.Errorf("%s: got %+v, want the defaults", suite, s)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q: got %s, want %s", suite, got, want)
		}
	}
	if s := p.Sources["local"]; s.Debs != "debs" || s.Components != nil || s.CheckValidUntil {
		t.Errorf("local: got %+v: the defaults of an archive do not apply to a directory", s)
	}
	if p, err = load(head+"[sources.forky]\nsuite = 'forky'\nnot_automatic = true", Options{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range append(p.SourcesFor(""), p.SourcesFor("forky")...) {
		if s.NotAutomatic != (s.Name == "forky") {
			t.Errorf("%s: not_automatic is %v", s.Name, s.NotAutomatic)
		}
	}
}

func TestDecoded(t *testing.T) {
	p, err := load(head+`
pcr_policy = { key = "k" }
[[files]]
path = "/bin/x"
text = "x"
mode = "04755"
owner = "1000:100"
[secure_boot]
key = "k"
cert = "c"
enroll = true
db = ["d", "e"]
`, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := p.Files[0]
	uid, gid := f.IDs()
	pk, kek, db := p.SecureBoot.Enrolled()
	got := sprint(f.Perm() == 0o4755, uid, gid, pk, kek, db, p.PhasePaths())
	want := "true 1000 100 c [c] [d e] [enter-initrd enter-initrd:leave-initrd enter-initrd:leave-initrd:sysinit enter-initrd:leave-initrd:sysinit:ready]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p, err = load(head+"agent.phases = []", Options{})
	if err != nil || !slices.Equal(p.PhasePaths(), []string{""}) {
		t.Errorf("without phases: got %q, %v", p.PhasePaths(), err)
	}
}
