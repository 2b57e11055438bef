package builder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/pe/petest"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/tests/synthetic"
	"github.com/plinth-os/plinth/uki"
)

// states are the last states that steps reported, by step.
type states struct {
	mu   sync.Mutex
	last map[string]string
}

func (s *states) note(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]string{}
	}
	s.last[e.Step] = e.State
}

func (s *states) String() string {
	var all []string
	for _, st := range pipeline {
		if s.last[st.name] != "" {
			all = append(all, st.name+" "+s.last[st.name])
		}
	}
	return strings.Join(all, ", ")
}

func TestRunTwice(t *testing.T) {
	s := newSite(t)
	var first, second states
	a, err := s.run(s.profile(""), Options{Progress: first.note})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.run(s.profile(""), Options{Progress: second.note, Jobs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if want := "kernel done, stub done, firmware done, initrd done, uki done, disk done, measure done"; first.String() != want {
		t.Errorf("first: %s, want %s", &first, want)
	}
	if want := strings.ReplaceAll(first.String(), "done", "cached"); second.String() != want {
		t.Errorf("second: %s, want %s", &second, want)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%v\nis not\n%v", b, a)
	}
	for _, x := range artefacts {
		if a[x.step][x.output] == (cas.Ref{}) && !x.optional {
			t.Errorf("step %s made no %s", x.step, x.output)
		}
	}
}

// One job at a time, a fresh store, the same outputs.
func TestRunOneAtATime(t *testing.T) {
	a, err := newSite(t).run(newSite(t).profile(""), Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	b, err := s.run(s.profile(""), Options{Jobs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%v\nis not\n%v", b, a)
	}
}

// A result whose blob is gone is worth nothing: the step runs again.
func TestRunMissingBlob(t *testing.T) {
	s := newSite(t)
	a, err := s.run(s.profile(""), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Store.Remove(a["initrd"]["initrd"].Digest); err != nil {
		t.Fatal(err)
	}
	var st states
	if _, err := s.run(s.profile(""), Options{Progress: st.note}); err != nil {
		t.Fatal(err)
	}
	if want := "kernel cached, stub cached, firmware cached, initrd done, uki cached, disk cached, measure cached"; st.String() != want {
		t.Errorf("%s, want %s", &st, want)
	}
}

// A failed step says so, those that it stops say that, and those that need it
// never begin.
func TestRunFails(t *testing.T) {
	s := newSite(t)
	var st states
	_, err := s.run(s.profile("", "kernel.modules=laef"), Options{Progress: st.note})
	wantError(t, err, `initrd: `)
	var unknown *initrd.UnknownModuleError
	if !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
	if st.last["initrd"] != "failed" || st.last["uki"] != "" || st.last["disk"] != "" {
		t.Errorf("%s", &st)
	}
	for _, c := range []struct{ set, want string }{
		{"firmware.code=usr/share/none", "firmware: no usr/share/none in the package"},
		{"kernel.package=motd", "kernel: package motd: no boot/vmlinuz-"},
	} {
		s := newSite(t)
		_, err := s.run(s.profile("", c.set), Options{})
		wantError(t, err, c.want)
	}
}

// image is what a build made, opened.
type image struct {
	info   *uki.Info
	file   *pe.File
	raw    []byte
	config *config.Config
	files  map[string]tree.Entry
}

func (s *site) image(results map[string]Outputs) *image {
	s.t.Helper()
	i := &image{raw: s.output(results, "uki", "image.efi"), files: map[string]tree.Entry{}}
	var err error
	if i.info, err = uki.Inspect(bytes.NewReader(i.raw), int64(len(i.raw))); err != nil {
		s.t.Fatal(err)
	}
	if i.file, err = pe.Parse(bytes.NewReader(i.raw), int64(len(i.raw))); err != nil {
		s.t.Fatal(err)
	}
	entries, err := initrd.Read(bytes.NewReader(s.output(results, "initrd", "initrd")))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		i.files[e.Path] = e
	}
	if i.config, err = config.Parse(i.content(s.t, strings.TrimPrefix(config.Path, "/"))); err != nil {
		s.t.Fatal(err)
	}
	return i
}

// content is that of a file of the initrd.
func (i *image) content(t *testing.T, path string) []byte {
	t.Helper()
	e, ok := i.files[path]
	if !ok || e.Content.Open == nil {
		t.Fatalf("the initrd has no file %s", path)
	}
	r, err := e.Content.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// section is the content of a section of the UKI.
func (i *image) section(t *testing.T, name string) []byte {
	t.Helper()
	s, ok := i.file.Section(name)
	if !ok {
		t.Fatalf("no section %s", name)
	}
	b, err := io.ReadAll(i.file.Measured(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *site) mustRun(text string, set ...string) map[string]Outputs {
	s.t.Helper()
	results, err := s.run(s.profile(text, set...), Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	return results
}

func TestImageOfPackages(t *testing.T) {
	s := newSite(t)
	results := s.mustRun(`
[[files]]
path  = "/etc/hello"
text  = "hello\n"
mode  = "0640"
owner = "1:2"
[[services]]
name = "hello"
exec = ["/usr/bin/hello", "-v"]
env  = { A = "b" }
`)
	i := s.image(results)
	if i.info.Cmdline != "panic=-1" || i.info.Uname != synthetic.Release || i.info.Stub.Major != 257 || i.info.OSRelease != "" || len(i.info.Signers) != 0 {
		t.Errorf("%+v", i.info)
	}
	if got := string(s.output(results, "uki", "cmdline")); got != "panic=-1" {
		t.Errorf("cmdline %q", got)
	}
	for path, want := range map[string]string{
		"usr/lib/plinth/agent": "agent", "etc/motd": "hello\n", "etc/issue": "synthetic\n", "etc/hello": "hello\n",
		"usr/lib/plinth/modules/leaf.ko": string(synthetic.Module("depends=root,built-in")),
	} {
		if got := string(i.content(t, path)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if e := i.files["init"]; e.Target != "/usr/lib/plinth/agent" {
		t.Errorf("init: %+v", e)
	}
	if e := i.files["etc/hello"]; e.Mode != tree.TypeFile|0o640 || e.UID != 1 || e.GID != 2 {
		t.Errorf("etc/hello: %+v", e)
	}
	if _, ok := i.files["usr/lib/plinth/shell"]; ok {
		t.Error("there is a shell")
	}
	c := i.config
	if len(c.Modules) != 2 || c.Modules[0].Path != "/usr/lib/plinth/modules/root.ko" || c.Modules[1].Path != "/usr/lib/plinth/modules/leaf.ko" ||
		c.Cmdline != "panic=-1" || c.Debug || c.Shell != "" || c.Extra != nil || len(c.Phases) != 4 ||
		len(c.Services) != 1 || c.Services[0].Exec[1] != "-v" || c.Services[0].Env["A"] != "b" {
		t.Errorf("%+v", c)
	}
	disk := s.output(results, "disk", "image.raw")
	if table, err := gpt.Read(bytes.NewReader(disk), int64(len(disk))); err != nil || len(table.Partitions) != 1 {
		t.Errorf("%+v, %v", table, err)
	}
}

func TestImageOfFiles(t *testing.T) {
	s := newSite(t)
	code, vars := ovmftest.Code(ovmftest.Volumes("2026.08-1")), ovmftest.BlankVars(0x84000)
	s.write("own/bzImage", synthetic.Kernel("6.1.0-own"))
	s.write("own/mods/kernel/leaf.ko", synthetic.Module("depends="))
	s.write("own/mods/kernel/qemu_fw_cfg.ko", synthetic.Module("depends="))
	s.write("own/stub.efi", petest.Stub("252.39-1").Bytes())
	s.write("own/CODE.fd", code)
	s.write("own/VARS.fd", vars)
	p := s.profile("", "agent.fw_cfg=true", "agent.debug=true", "agent.shell=true", "root.packages=[]")
	p.Kernel.Package, p.Kernel.File, p.Kernel.ModulesDir = "", s.dir+"/own/bzImage", s.dir+"/own/mods"
	p.Stub.Package, p.Stub.File = "", s.dir+"/own/stub.efi"
	p.Firmware.Package, p.Firmware.Code, p.Firmware.Vars = "", "", ""
	p.Firmware.CodeFile, p.Firmware.VarsFile = s.dir+"/own/CODE.fd", s.dir+"/own/VARS.fd"
	results, err := s.run(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := s.image(results)
	if i.info.Uname != "6.1.0-own" || i.info.Stub.Major != 252 || !bytes.Equal(i.section(t, ".linux"), synthetic.Kernel("6.1.0-own")) {
		t.Errorf("%+v", i.info)
	}
	if !bytes.Equal(s.output(results, "firmware", "code"), code) || !bytes.Equal(s.output(results, "firmware", "vars"), vars) {
		t.Error("other firmware")
	}
	if c := i.config; !c.FWCfg || !c.Debug || c.Shell != "/usr/lib/plinth/shell" || len(c.Modules) != 2 || c.Modules[1].Path != "/usr/lib/plinth/modules/qemu_fw_cfg.ko" {
		t.Errorf("%+v", c)
	}
	if string(i.content(t, "usr/lib/plinth/shell")) != "shell" {
		t.Error("another shell")
	}
	if n := len(s.spec(p).Lock.Packages); n != 0 {
		t.Errorf("%d packages in the lock", n)
	}
}

// With everything built in, a kernel of one's own comes without modules.
func TestKernelWithoutModules(t *testing.T) {
	s := newSite(t)
	s.write("bzImage", synthetic.Kernel("6.1.0-own"))
	for _, kind := range []string{"initrd", "verity"} {
		p := s.profile("", "kernel.modules=[]", "root.kind="+kind)
		p.Kernel.Package, p.Kernel.File = "", s.dir+"/bzImage"
		results, err := s.run(p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c := s.image(results).config; len(c.Modules) != 0 {
			t.Errorf("%s: %+v", kind, c)
		}
	}
}

func TestSecureBoot(t *testing.T) {
	s := newSite(t)
	cert, other := s.keyPair("sb"), s.keyPair("db")
	results := s.mustRun("[secure_boot]\nkey = \"sb.key\"\ncert = \"sb.pem\"\nenroll = true\ndb = [\"sb.pem\", \"db.pem\"]\n")
	i := s.image(results)
	if err := uki.VerifySignature(bytes.NewReader(i.raw), int64(len(i.raw)), cert); err != nil {
		t.Error(err)
	}
	vars, err := ovmf.ParseVars(s.output(results, "firmware", "vars"))
	if err != nil {
		t.Fatal(err)
	}
	for name, certs := range map[string][][]byte{"PK": {cert.Raw}, "KEK": {cert.Raw}, "db": {cert.Raw, other.Raw}} {
		at := slices.IndexFunc(vars.List(), func(v ovmf.Variable) bool { return v.Name == name })
		if at < 0 {
			t.Errorf("no variable %s", name)
			continue
		}
		for _, c := range certs {
			if !bytes.Contains(vars.List()[at].Data, c) {
				t.Errorf("%s lacks a certificate", name)
			}
		}
	}
	var doc struct {
		Values []struct{ Register, Provenance string }
	}
	if err := json.Unmarshal(s.output(results, "measure", "measurements.json"), &doc); err != nil || len(doc.Values) == 0 {
		t.Errorf("%d values, %v", len(doc.Values), err)
	}
	_, err = s.run(s.profile("[secure_boot]\nkey = \"sb.key\"\ncert = \"db.pem\"\n"), Options{})
	wantError(t, err, "uki: ")
}

// The signed policy covers what the stub measures, and the agent knows what the
// stub will leave in /.extra.
func TestPCRPolicy(t *testing.T) {
	s := newSite(t)
	s.keyPair("pcr")
	i := s.image(s.mustRun("[pcr_policy]\nkey = \"pcr.key\"\nbanks = [\"sha256\", \"sha384\"]\n"))
	var sig map[string][]struct{ Pol, Sig string }
	if err := json.Unmarshal(i.section(t, ".pcrsig"), &sig); err != nil || len(sig["sha256"]) != 4 || len(sig["sha384"]) != 4 {
		t.Errorf("%v, %v", sig, err)
	}
	key := i.section(t, ".pcrpkey")
	want := map[string]string{"tpm2-pcr-public-key.pem": fmt.Sprintf("%x", sha256.Sum256(key)), "tpm2-pcr-signature.json": config.AnyContent}
	if fmt.Sprint(i.config.Extra) != fmt.Sprint(want) {
		t.Errorf("extra files %v, want %v", i.config.Extra, want)
	}
}

// planOf is a plan of steps that a test makes up; each needs nothing.
func planOf(steps map[string]func(context.Context) error) *Plan {
	p := &Plan{Spec: &Spec{}}
	for name, run := range steps {
		p.Steps = append(p.Steps, Planned{Name: name, Key: cas.Sum([]byte(name)), step: &step{
			name: name, run: func(ctx context.Context, _ *work) error { return run(ctx) },
		}})
	}
	return p
}

func TestRunStopsTheOthers(t *testing.T) {
	s := newSite(t)
	var st states
	begun := make(chan bool)
	failed := errors.New("failed")
	_, err := Run(context.Background(), planOf(map[string]func(context.Context) error{
		"waits": func(ctx context.Context) error { close(begun); <-ctx.Done(); return ctx.Err() },
		"fails": func(context.Context) error { <-begun; return failed },
	}), Options{Store: s.Store, Progress: st.note})
	if !errors.Is(err, failed) || st.last["fails"] != "failed" || st.last["waits"] != "stopped" {
		t.Errorf("%v, %v", err, st.last)
	}
}

func TestRunJobs(t *testing.T) {
	s := newSite(t)
	var now, most atomic.Int32
	count := func(context.Context) error {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(10 * time.Millisecond)
		now.Add(-1)
		return nil
	}
	steps := map[string]func(context.Context) error{}
	for i := range 6 {
		steps[fmt.Sprint(i)] = count
	}
	if _, err := Run(context.Background(), planOf(steps), Options{Store: s.Store, Jobs: 2}); err != nil || most.Load() != 2 {
		t.Errorf("%d steps at a time, %v", most.Load(), err)
	}
}

// Two processes that run the same step: the second waits and takes the result.
func TestRunWaitsForAnother(t *testing.T) {
	s := newSite(t)
	var runs atomic.Int32
	plan := planOf(map[string]func(context.Context) error{"slow": func(context.Context) error {
		runs.Add(1)
		time.Sleep(50 * time.Millisecond)
		return nil
	}})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			st, err := cas.Open(s.Store.Dir())
			if err == nil {
				_, err = Run(context.Background(), plan, Options{Store: st})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs.Load() != 1 {
		t.Errorf("the step ran %d times", runs.Load())
	}
}
