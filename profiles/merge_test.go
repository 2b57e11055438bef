package profiles

import (
	"encoding/json"
	"strings"
	"testing"
)

// field returns the JSON of a dotted key of p's canonical form.
func field(t *testing.T, p *Profile, path string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(p.Canonical(), &v); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMerge(t *testing.T) {
	const f = "[[files]]\npath = '/a'\ntext = 'a'\n[[files]]\npath = '/b'\nsource = 'b'\nmode = '0755'\n"
	const s = "[[services]]\nname = 'x'\nexec = ['/x', '1']\nenv = { A = '1', B = '2' }\n"
	for _, c := range []struct{ name, base, over, path, want string }{
		{"scalar replaces", "seed = 'a'", "seed = 'b'", "seed", `"b"`},
		{"scalar stays", "seed = 'a'", "", "seed", `"a"`},
		{"false replaces", "agent.fw_cfg = true", "agent.fw_cfg = false", "agent.fw_cfg", `null`},
		{"table goes deep", "[machine]\ncpu = 'host'\nmemory = 256", "machine.memory = 512", "machine", `{"cpu":"host","memory":512,"type":"q35","vcpus":[1,2]}`},
		{"sources go deep", "sources.debian.suite = 'sid'\nsources.x.debs = 'd'", "sources.debian.components = ['contrib']", "sources",
			`{"debian":{"check_valid_until":true,"components":["contrib"],"suite":"sid"},"debian-security":{"check_valid_until":true,"components":["main"],"suite":"trixie-security"},"x":{"debs":"d"}}`},
		{"list replaces", "cmdline = ['a', 'b']", "cmdline = ['c']", "cmdline", `["c"]`},
		{"empty list replaces", "cmdline = ['a', 'b']", "cmdline = []", "cmdline", `null`},
		{"append", "cmdline = ['a', 'b']", "cmdline = { append = ['c', 'a'] }", "cmdline", `["a","b","c","a"]`},
		{"remove", "cmdline = ['a', 'b', 'c']", "cmdline = { remove = ['c', 'a'] }", "cmdline", `["b"]`},
		{"remove takes the first of two", "cmdline = ['a', 'b', 'a']", "cmdline = { remove = ['a'] }", "cmdline", `["b","a"]`},
		{"remove, then append", "kernel.modules = ['a', 'b']", "kernel.modules = { append = ['a'], remove = ['a'] }", "kernel.modules", `["b","a"]`},
		{"change of a change", "cmdline = { remove = ['console=tty0'], append = ['a'] }", "[cmdline]\nremove = ['a']\nappend = ['b']", "cmdline", `["lockdown=integrity","oops=panic","panic=-1","random.trust_bootloader=off","debugfs=off","b"]`},
		{"change of nothing", "", "root.packages = { append = ['ca-certificates'] }", "root.packages", `["ca-certificates"]`},
		{"change of a default", "", "agent.phases = { remove = ['sysinit'] }", "agent.phases", `["enter-initrd","leave-initrd","ready"]`},
		{"integers", "machine.vcpus = [1, 2, 4]", "machine.vcpus = { remove = [0x2], append = [3] }", "machine.vcpus", `[1,4,3]`},
		{"file without kernel package", "", "[kernel]\nfile = 'k'\nmodules_dir = 'm'", "kernel", `{"file":"k","modules":["virtio_pci","virtio_blk","virtio_console","?tpm_tis","?tpm_crb"],"modules_dir":"m"}`},
		{"package without kernel file", "[kernel]\nfile = 'k'\nmodules_dir = 'm'", "kernel.package = 'linux'\nkernel.modules = []", "kernel", `{"package":"linux"}`},
		{"half of the firmware", "", "firmware.vars_file = 'v'", "firmware", `{"code":"usr/share/OVMF/OVMF_CODE_4M.fd","package":"ovmf","vars_file":"v"}`},
		{"directory without suite", "", "sources.debian.debs = 'd'", "sources.debian", `{"debs":"d"}`},
		{"file added", f, "[[files]]\npath = '/c'\ntext = ''", "files", `[{"owner":"0:0","path":"/a","text":"a"},{"mode":"0755","owner":"0:0","path":"/b","source":"b"},{"owner":"0:0","path":"/c","text":""}]`},
		{"file changed", f, "[[files]]\npath = '/b'\ntext = 'new'", "files", `[{"owner":"0:0","path":"/a","text":"a"},{"mode":"0755","owner":"0:0","path":"/b","text":"new"}]`},
		{"file removed", f, "files = { remove = ['/a'] }", "files", `[{"mode":"0755","owner":"0:0","path":"/b","source":"b"}]`},
		{"file removed and added", f, "files = { remove = ['/b'], append = [{ path = '/b', text = 'x' }] }", "files", `[{"owner":"0:0","path":"/a","text":"a"},{"owner":"0:0","path":"/b","text":"x"}]`},
		{"files as an inline list", f, "files = [{ path = '/a', mode = '0600' }]", "files", `[{"mode":"0600","owner":"0:0","path":"/a","text":"a"},{"mode":"0755","owner":"0:0","path":"/b","source":"b"}]`},
		{"service changed", s, "[[services]]\nname = 'x'\nexec = { append = ['2'] }\nenv.B = ''", "services", `[{"env":{"A":"1","B":""},"exec":["/x","1","2"],"name":"x"}]`},
	} {
		fsys := files(map[string]string{"base.toml": head + c.base, "top.toml": "schema = 1\nextends = 'base'\n" + c.over})
		p, err := Load(fsys, "top.toml", Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if got := field(t, p, c.path); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// A profile means the same whether it is written in one file or in several, in whatever order, in whatever folder.
func TestCanonical(t *testing.T) {
	one := mustLoad(t, files(map[string]string{"d/p.toml": strings.Replace(string(stock("vtpm").data), `seed     = "7f0c2d6e-plinth-vtpm"`, `seed = "x"`, 1) + "\n[[files]]\npath = '/f'\nsource = 'f'"}), "d/p.toml", Options{})
	two := mustLoad(t, files(map[string]string{"p.toml": `extends = "vtpm"
machine.vcpus = [0x1, 2]
schema = 1
files = [{ source = "f", path = "/f" }]
seed = "\u0078"
initrd = {}
agent.debug = false
root.packages = []
`}), "p.toml", Options{})
	if string(one.Canonical()) != string(two.Canonical()) {
		t.Errorf("one file:  %s\ntwo files: %s", one.Canonical(), two.Canonical())
	}
	if one.Files[0].Source == two.Files[0].Source {
		t.Error("the same file, from two folders")
	}
	for _, set := range []string{"agent.phases=[]", "sources.debian.check_valid_until=false", "sources.debian.components=[]", "seed=y", "epoch=1767225601", "cmdline={append=['x']}", "agent.debug=true", "machine.vcpus=[2, 1]", "kernel.suite=sid"} {
		p := mustLoad(t, files(map[string]string{"p.toml": head + "seed = 'x'\nfiles = [{ path = '/f', source = 'f' }]"}), "p.toml", Options{Set: []string{set}})
		if string(p.Canonical()) == string(one.Canonical()) {
			t.Errorf("%s does not show", set)
		}
		if again, err := ParseCanonical(p.Canonical()); err != nil || string(again.Canonical()) != string(p.Canonical()) {
			t.Errorf("%s: read back: %v", set, err)
		}
	}
}

func TestExplain(t *testing.T) {
	p := mustLoad(t, files(map[string]string{"p.toml": head + `cmdline = { append = ["a=\"b c\""] }
agent.phases = []
[[services]]
name = "x"
exec = ["/x"]
env = { HOME = "/" }
`}), "p.toml", Options{Set: []string{"machine.memory=512"}, SourceDateEpoch: "1100000000"})
	got := map[string]string{}
	keys := ""
	for _, v := range p.Explain() {
		got[v.Key] = v.Value + " " + v.Origin.String()
		keys += v.Key + " "
	}
	for key, want := range map[string]string{
		"schema":               `1 p.toml:1:10`,
		"extends":              `"vtpm" p.toml:2:11`,
		"arch":                 `"amd64" default`,
		"epoch":                `1100000000 SOURCE_DATE_EPOCH`,
		"platform":             `"vtpm" built-in profile vtpm:4:12`,
		"cmdline[0]":           `"lockdown=integrity" built-in profile vtpm:11:3`,
		"cmdline[6]":           `"a=\"b c\"" p.toml:3:23`,
		"agent.phases":         `[] p.toml:4:16`,
		"agent.debug":          `false default`,
		"services[0].exec[0]":  `"/x" p.toml:7:9`,
		"services[0].env.HOME": `"/" p.toml:8:16`,
		"machine.memory":       `512 --set machine.memory=512`,
	} {
		if got[key] != want {
			t.Errorf("%s: got %s, want %s", key, got[key], want)
		}
	}
	if !strings.HasPrefix(keys, "schema extends arch platform seed epoch cmdline[0] ") {
		t.Errorf("order: %s", keys)
	}
}

func TestTemplate(t *testing.T) {
	vtpm := mustLoad(t, files(nil), "vtpm", Options{})
	text := string(Template("mine"))
	p := mustLoad(t, files(map[string]string{"profiles/mine.toml": text}), "mine", Options{})
	want := strings.ReplaceAll(string(vtpm.Canonical()), `"name":"vtpm"`, `"name":"mine"`)
	want = strings.ReplaceAll(want, vtpm.Seed, "mine")
	if string(p.Canonical()) != want {
		t.Errorf("got  %s\nwant %s", p.Canonical(), want)
	}
	if len(Template("a")) == 0 || strings.Contains(text, "NAME") {
		t.Error("the name is not filled in")
	}
	// What it shows in comments is right as well.
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "# ") {
			line = strings.TrimPrefix(line, "#")
		}
		b.WriteString(line)
	}
	p, err := load(b.String(), Options{})
	if err != nil {
		t.Fatalf("uncommented: %v\n%s", err, b.String())
	}
	if len(p.Files) != 2 || len(p.Services) != 1 || !p.SecureBoot.Enroll || p.Sources["local"].Debs == "" {
		t.Errorf("uncommented: got %s", p.Canonical())
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{"vtpm": true, "vtpm-2.1": true, "": false, "a b": false, "../x": false, "x.toml": false, "-x": false, "X": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
