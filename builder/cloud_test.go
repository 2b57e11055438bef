package builder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// cloudImage is a profile that adds lines to vtpm, and an image of which the rules
// for clouds read the initrd.
func cloudImage(t *testing.T, text, cmdline string, modules, builtIn []string) (*profiles.Profile, *Manifest, fstest.MapFS) {
	t.Helper()
	p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte("schema = 1\nextends = \"vtpm\"\nseed = \"s\"\n" + text)}}, "x.toml", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := (&linted{modules: modules}).initrd(t)
	m := &Manifest{
		Cmdline: cmdline, BuiltIn: builtIn, Profile: p.Canonical(),
		Artefacts: []Artefact{{InitrdName, cas.Ref{Digest: cas.Sum(b), Size: int64(len(b))}}},
	}
	return p, m, fstest.MapFS{InitrdName: {Data: b}}
}

// othersThan are the rules that are not for clouds, for a caller that leaves them out.
func othersThan(ids ...string) (out []string) {
	for _, r := range lintRules {
		if !slices.Contains(ids, r.id) {
			out = append(out, r.id)
		}
	}
	return out
}

func TestCloudDrivers(t *testing.T) {
	azure := []string{"hv_vmbus", "hv_storvsc", "sd_mod", "hv_netvsc"}
	without := func(list []string, name string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
	}
	type row struct {
		kinds            string
		modules, builtIn []string
		lacks            string // in what is found; "": nothing
	}
	rows := []row{
		{`"raw"`, nil, nil, ""},
		{`"vhd"`, azure, nil, ""},
		{`"vhd"`, []string{"hv-vmbus", "hv_storvsc", "sd-mod", "hv_netvsc"}, nil, ""}, // as other kernels spell them
		{`"vhd"`, nil, azure, ""},
		{`"vhd"`, nil, nil, "hv_vmbus, hv_storvsc, sd_mod, hv_netvsc in Azure"},
		{`"qcow2"`, []string{"virtio_blk"}, []string{"virtio_pci"}, ""},
		{`"qcow2"`, []string{"virtio_blk"}, nil, "virtio_pci in QEMU"},
		{`"gce"`, []string{"virtio_scsi", "sd_mod", "virtio_net", "gve"}, []string{"nvme", "virtio_pci"}, ""},
		{`"gce"`, []string{"virtio_scsi", "sd_mod", "virtio_net"}, []string{"virtio_pci"}, "nvme, gve in Google Compute Engine"},
		{`"vmdk"`, []string{"ena"}, []string{"nvme"}, ""}, // for AWS
		{`"vmdk"`, []string{"vmw_pvscsi", "sd_mod", "vmxnet3"}, nil, ""},
		{`"vmdk"`, []string{"ena", "vmw_pvscsi"}, nil, "nvme in AWS; sd_mod, vmxnet3 in VMware"},
		{`"raw", "vhd", "vmdk"`, azure, []string{"nvme"}, "ena in AWS"},
	}
	for _, name := range azure {
		rows = append(rows, row{`"vhd"`, without(azure, name), nil, name + " in Azure"})
	}
	for _, c := range rows {
		text := "[outputs]\nkinds = [" + c.kinds + "]\n"
		p, m, files := cloudImage(t, text, "", c.modules, c.builtIn)
		rep, err := Lint(p, m, files, othersThan("cloud-drivers"))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range rep.Findings {
			if f.Severity != LintError || !strings.Contains(f.Do, "[kernel]") {
				t.Errorf("%s: %+v", c.kinds, f)
			}
			got += f.What
		}
		if len(rep.NotChecked) > 0 || (got == "") != (c.lacks == "") || !strings.Contains(got, c.lacks) {
			t.Errorf("%s, modules %q, built in %q: %q, %+v, want %q", c.kinds, c.modules, c.builtIn, got, rep.NotChecked, c.lacks)
		}
		refusals := 0
		for _, kind := range p.Outputs.Forms() {
			f, err := FindForm(kind)
			if err != nil {
				t.Fatal(err)
			}
			var lacks *DriverError
			if err := CheckDrivers(m, files, f); err != nil {
				refusals++
				if !errors.As(err, &lacks) || !errors.Is(err, profiles.ErrUnsupported) || !strings.Contains(err.Error(), c.lacks) || !strings.Contains(lacks.Hint(), "--force") {
					t.Errorf("%s: %v", kind, err)
				}
			}
		}
		if refusals != len(rep.Findings) {
			t.Errorf("%s: export refuses %d forms, lint %d", c.kinds, refusals, len(rep.Findings))
		}
	}
}

// The line that a finding tells to write mends it.
func TestCloudDriversAdvice(t *testing.T) {
	for _, f := range Forms {
		g := gapFor(&f, nil)
		if g == nil {
			t.Fatalf("%s: nothing is missing", f.Name)
		}
		have := map[string]bool{}
		line, _, _ := strings.Cut(g.do(), " for ")
		_, list, _ := strings.Cut(line, "append = [")
		for name := range strings.SplitSeq(strings.TrimSuffix(list, "] }"), ", ") {
			have[strings.Trim(name, `"`)] = true
		}
		if g := gapFor(&f, have); g != nil {
			t.Errorf("%s: %q leaves %s", f.Name, line, g.what())
		}
	}
}

// Where nobody knows what is built in, the rule says so and nothing is refused.
func TestCloudDriversUnknown(t *testing.T) {
	const text = "[kernel]\nfile = \"k\"\nmodules = []\n[outputs]\nkinds = [\"vhd\"]\n"
	p, m, files := cloudImage(t, text, "", nil, nil)
	rep, err := Lint(p, m, files, othersThan("cloud-drivers"))
	if err != nil || len(rep.Findings) > 0 || len(rep.NotChecked) != 1 || !strings.Contains(rep.NotChecked[0].Why, "kernel.modules_dir") {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := CheckDrivers(m, files, &Forms[1]); err != nil {
		t.Error(err)
	}
	// A profile: its modules, if the kernel may not lack them.
	for modules, want := range map[string]int{
		`"hv_vmbus", "hv_storvsc", "sd_mod", "hv_netvsc"`:  0,
		`"hv_vmbus", "hv-storvsc", "sd-mod", "hv-netvsc"`:  0,
		`"hv_vmbus", "?hv_storvsc", "sd_mod", "hv_netvsc"`: 1,
	} {
		p, _, _ := cloudImage(t, "[kernel]\nmodules = ["+modules+"]\n[outputs]\nkinds = [\"vhd\"]\n", "", nil, nil)
		rep, err := Lint(p, nil, nil, othersThan("cloud-drivers"))
		if err != nil || len(rep.Findings) > 0 || len(rep.NotChecked) != want {
			t.Errorf("%s: %+v, %v", modules, rep, err)
		}
	}
}

func TestCloudConsole(t *testing.T) {
	const vhd = "[outputs]\nkinds = [\"vhd\"]\n"
	for _, c := range []struct{ text, cmdline, want string }{
		{"", "console=ttyS0", "console"},
		{"", "console=tty0", ""},
		{"[outputs]\nkinds = [\"qcow2\"]\n", "console=ttyS0", "console"}, // QEMU's user is the host
		{vhd, "console=tty0 console=ttyS0,115200", "cloud-console cloud-firmware"},
		{vhd, "console=ttyS1", "console no-console cloud-firmware"},
		{vhd, "console=tty0", "no-console cloud-firmware"},
		{vhd, "", "no-console cloud-firmware"},
		{vhd + "[agent]\ndebug = true\nshell = true\n", "console=ttyS0", "console cloud-firmware"},
	} {
		p, m, files := cloudImage(t, c.text, c.cmdline, nil, nil)
		rep, err := Lint(p, m, files, othersThan("console", "cloud-console", "no-console", "cloud-firmware"))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(ids(rep), " "); got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.text, c.cmdline, got, c.want)
		}
	}
}

// A prediction says for whom it does not hold, with the registers of its platform.
func TestCloudNotes(t *testing.T) {
	for _, c := range []struct{ platform, kinds, want string }{
		{"vtpm", "raw qcow2", ""},
		{"vtpm", "vhd", "in Azure, with firmware of its own, PCR 0 to 7 differ, and PCR 10, in which IMA sums them up; what holds is PCR 8, 9 and 11 to 15"},
		{"vtpm", "gce vmdk", "in Google Compute Engine or AWS or VMware, "},
		{"tdx", "gce", "MRTD, RTMR 0 and RTMR 1 differ; what holds is RTMR 2"},
		{"snp", "vhd", "the launch digest differs"},
	} {
		p := &profiles.Profile{Platform: c.platform, Outputs: profiles.Outputs{Kinds: strings.Fields(c.kinds)}}
		if got := strings.Join(cloudNotes(p), "\n"); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s, %s: %q, want %q", c.platform, c.kinds, got, c.want)
		}
	}
}

// A build notes which drivers its kernel has built in, and for whom the prediction
// does not hold.
func TestCloudBuild(t *testing.T) {
	s := newSite(t)
	p := s.profile("[outputs]\nkinds = [\"vhd\", \"qcow2\", \"vmdk\"]\n", `kernel.modules=["hv_storsvc"]`)
	if _, err := s.run(p, Options{}); err == nil || !strings.Contains(err.Error(), `did you mean hv_storvsc?`) {
		t.Errorf("a module that is none: %v", err)
	}
	p = s.profile("[outputs]\nkinds = [\"vhd\", \"qcow2\", \"vmdk\"]\n", `kernel.modules=["hv_storvsc", "hv_netvsc", "sd_mod", "ena"]`)
	m, err := Build(t.Context(), s.spec(p), Options{Store: s.Store, Workplace: s.Workplace})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(m.BuiltIn, " "); got != "nvme virtio_pci" {
		t.Errorf("built in: %s", got)
	}
	if got := strings.Join(names(m)[:4], " "); got != "image.raw image.qcow2 image.vhd image.vmdk" {
		t.Errorf("artefacts: %s", got)
	}
	dir := s.lay(m)
	rep, err := Lint(p, m, os.DirFS(dir), othersThan("cloud-drivers"))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(ids(rep)) != "[cloud-drivers]" || !strings.HasPrefix(rep.Findings[0].What, "image.qcow2: ") || !strings.Contains(rep.Findings[0].What, ": virtio_blk in QEMU") {
		t.Errorf("%+v", rep)
	}
	doc := string(mustRead(t, filepath.Join(dir, MeasurementsName)))
	if !strings.Contains(doc, "in Azure or AWS or VMware, with firmware of its own, PCR 0 to 7 differ") {
		t.Error("measurements.json has no note")
	}
}

// The example for a cloud demands what the cloud needs, and shows what happens on
// the serial console.
func TestCloudExamples(t *testing.T) {
	for example, place := range map[string]string{"azure": "Azure", "gce": "Google Compute Engine", "aws": "AWS"} {
		text, err := profiles.Example(example, "mine")
		if err != nil {
			t.Fatal(err)
		}
		p, err := profiles.Load(fstest.MapFS{"mine.toml": {Data: text}}, "mine.toml", profiles.Options{})
		if err != nil {
			t.Fatal(err)
		}
		rep, err := Lint(p, nil, nil, othersThan("console", "cloud-drivers", "cloud-console", "no-console", "cloud-firmware"))
		if err != nil || strings.Join(ids(rep), " ") != "cloud-console cloud-firmware" || len(rep.NotChecked) > 0 {
			t.Errorf("%s: %+v, %v", example, rep, err)
		}
		for _, c := range cloudsFor(p) {
			for _, m := range slices.Concat(c.needed(), c.more) {
				if c.name == place && !slices.Contains(p.Kernel.Modules, m) && !slices.Contains(p.Kernel.Modules, "?"+m) {
					t.Errorf("%s: kernel.modules lacks %s", example, m)
				}
			}
		}
	}
}
