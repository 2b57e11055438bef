package profiles

import (
	"encoding/base64"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// maxCmdline is the most that an x86 kernel takes: COMMAND_LINE_SIZE is 2048 with the NUL (Linux, arch/x86/include/asm/setup.h).
const maxCmdline = 2047

// verityRoom is what the argument of a verity root takes of it, at most: two digests of 64 bytes in hexadecimal, and numbers.
const verityRoom = 447

// workloadsRoom is what the argument for workloads takes of it.
const workloadsRoom = len(" plinth.workloads=initdata")

// reserved are the paths of the guest that the agent or the kernel owns: a file put there would be hidden or break the boot.
var reserved = []string{"/init", "/etc/plinth", "/usr/lib/plinth", "/.extra", "/dev", "/proc", "/run", "/sys"}

// refused are kernel arguments that would undo what the image is for.
var refused = []struct{ argument, reason string }{
	{"init=", "PID 1 is the agent"},
	{"rdinit=", "PID 1 is the agent"},
	{"initrd=", "it would add a file of the ESP, which the host can write, to the initrd"},
	{"plinth.verity=", "the build writes it; see root.kind"},
	{"plinth.workloads=", "the build writes it; see workloads.from"},
	{"bootconfig", "it would take arguments from what is appended to the initrd, and the agent refuses to start then"},
}

// maxLevel is the highest compression level, by compression.
var maxLevel = map[string]int{"none": 0, "gzip": 9, "zstd": 19, "xz": 0}

// rules judges a decoded profile by what no single key shows.
type rules struct {
	*Profile
	faults *faultList
}

// spot is a place in a profile: keys, and indices of lists.
type spot []any

func (r *rules) judge() {
	r.sources()
	r.kernel()
	r.firmware()
	r.generic()
	r.platform()
	r.suites()
	r.files()
	r.layers()
	r.services()
	r.root()
	r.cmdline()
	r.agent()
	r.network()
	r.workloads()
	r.attestation()
	r.volumes()
	r.signing()
}

// fault reports what is wrong at s, and places it at the innermost value there that the profile has.
func (r *rules) fault(s spot, suggestion, format string, args ...any) {
	n, at, there := r.tree, "", true
	for _, step := range s {
		var next *node
		switch step := step.(type) {
		case string:
			at, next = join(at, step), n.table[step]
		case int:
			if next = n.list[step]; next.kind == nodeTable {
				at = fmt.Sprintf("%s[%d]", at, step)
			}
		}
		if there = there && next != nil; there {
			n = next
		}
	}
	r.faults.add(n.origin, at, suggestion, format, args...)
}

func (r *rules) sources() {
	for _, name := range slices.Sorted(maps.Keys(r.Sources)) {
		if s := r.Sources[name]; s.Suite == "" && s.Debs == "" && r.faults.sound("sources.*.suite", "sources.*.debs") {
			r.fault(spot{"sources", name}, "", "suite is missing, or debs")
		}
	}
	packages := r.Kernel.Package + r.Stub.Package + r.Firmware.Package + r.Firmware.Generic.Package + strings.Join(r.Root.Packages, "") + strings.Join(r.Root.Bare, "")
	if packages != "" && len(r.Sources) == 0 && r.faults.sound("sources") {
		r.fault(spot{"sources"}, `write [sources.debian] with suite = "trixie"`, "is missing: there are packages to fetch")
	}
}

func (r *rules) kernel() {
	k := r.Kernel
	if k.Package == "" && k.File == "" && r.faults.sound("kernel.package", "kernel.file") {
		r.fault(spot{"kernel", "package"}, "", "is missing, or kernel.file")
	}
	if k.File == "" && k.ModulesDir != "" && r.faults.sound("kernel.file") {
		r.fault(spot{"kernel", "modules_dir"}, "", "wants kernel.file")
	}
	if k.File != "" && k.ModulesDir == "" && len(k.Modules) > 0 && r.faults.sound("kernel.modules_dir", "kernel.modules") {
		r.fault(spot{"kernel", "modules_dir"}, "or write modules = [] when all are built in", "is missing: kernel.file comes without modules")
	}
	if s := r.Stub; s.Package == "" && s.File == "" && r.faults.sound("stub.package", "stub.file") {
		r.fault(spot{"stub", "package"}, "", "is missing, or stub.file")
	}
}

func (r *rules) firmware() {
	f := r.Firmware
	if f.Code == "" && f.CodeFile == "" && r.faults.sound("firmware.code", "firmware.code_file") {
		r.fault(spot{"firmware", "code"}, "", "is missing, or firmware.code_file")
	}
	switch {
	case !r.faults.sound("platform", "firmware.vars", "firmware.vars_file"):
	case r.Combined() && f.Vars != "":
		r.fault(spot{"firmware", "vars"}, "", "the firmware of platform %s is one file, code", quote(r.Platform))
	case r.Combined() && f.VarsFile != "":
		r.fault(spot{"firmware", "vars_file"}, "", "the firmware of platform %s is one file, code_file", quote(r.Platform))
	case !r.Combined() && f.Vars == "" && f.VarsFile == "":
		r.fault(spot{"firmware", "vars"}, "", "is missing, or firmware.vars_file")
	}
	if f.Package == "" && f.Code+f.Vars != "" && r.faults.sound("firmware.package") {
		r.fault(spot{"firmware", "package"}, "", "is missing: code and vars are paths in it")
	}
}

// generic judges the firmware for hosts without the platform's hardware, which is whole or not there.
func (r *rules) generic() {
	g, at := r.Firmware.Generic, func(k string) spot { return spot{"firmware", "generic", k} }
	if g == (Generic{}) || !r.faults.sound("firmware.generic.package", "firmware.generic.code", "firmware.generic.vars", "firmware.generic.code_file", "firmware.generic.vars_file") {
		return
	}
	if r.Platform == PlatformVTPM && r.faults.sound("platform") {
		r.fault(spot{"firmware", "generic"}, "", "a guest of platform %s runs under its own firmware everywhere", quote(r.Platform))
	}
	if g.Code == "" && g.CodeFile == "" {
		r.fault(at("code"), "", "is missing, or firmware.generic.code_file")
	}
	if g.Vars == "" && g.VarsFile == "" {
		r.fault(at("vars"), "", "is missing, or firmware.generic.vars_file")
	}
	if g.Package == "" && g.Code+g.Vars != "" {
		r.fault(at("package"), "", "is missing: code and vars are paths in it")
	}
}

// platform reports what the platform lacks, and what is for another one.
func (r *rules) platform() {
	if r.Platform == "" || !r.faults.sound("platform") {
		return
	}
	if r.Platform != PlatformVTPM && len(r.Agent.Phases) > 0 && r.faults.sound("agent.phases") {
		r.fault(spot{"platform"}, "write phases = [] under [agent]", "%s has no TPM to extend agent.phases into", quote(r.Platform))
	}
	if r.Platform != PlatformVTPM && r.PCRPolicy.Key != "" {
		r.fault(spot{"pcr_policy", "key"}, "", "platform %s has no TPM to unseal with", quote(r.Platform))
	}
	if r.Platform == PlatformSNP && len(r.SNP.VCPUTypes) == 0 && r.faults.sound("snp.vcpu_types") {
		r.fault(spot{"snp", "vcpu_types"}, `write vcpu_types = ["EPYC-v4"] under [snp]`, "is missing: the model of the vCPUs is measured")
	}
	if r.Platform == PlatformSNP && (r.SecureBoot.Enroll || r.SecureBoot.SetupMode) {
		r.fault(spot{"secure_boot"}, "", "the firmware of platform %s has no variables to change: kernel, initrd and command line are measured at launch", quote(r.Platform))
	}
	for _, t := range []string{PlatformSNP, PlatformTDX} {
		if r.tree.table[t] != nil && r.Platform != t {
			r.fault(spot{t}, "", "is for platform %s", quote(t))
		}
	}
}

// suites reports a suite that no source has and whose name a source of another suite took.
func (r *rules) suites() {
	for _, c := range []struct {
		at    spot
		suite string
	}{
		{spot{"kernel", "suite"}, r.Kernel.Suite},
		{spot{"stub", "suite"}, r.Stub.Suite},
		{spot{"firmware", "suite"}, r.Firmware.Suite},
		{spot{"firmware", "generic", "suite"}, r.Firmware.Generic.Suite},
	} {
		found := r.SourcesFor(c.suite)
		if s, taken := r.Sources[c.suite]; taken && s.Suite != c.suite && len(found) == 1 && found[0].Name == c.suite {
			r.fault(c.at, "name the source differently", "no source has suite %s, and sources.%s has another", quote(c.suite), c.suite)
		}
	}
}

func (r *rules) files() {
	for i, f := range r.Files {
		table := r.tree.table["files"].list[i].table
		if table["source"] == nil && table["url"] == nil && table["text"] == nil && f.HasContent() &&
			r.faults.sound("files[].source", "files[].url", "files[].text", "files[].link", "files[].dir") {
			r.fault(spot{"files", i}, "", "source is missing, or url, text, link or dir")
		}
		if f.URL != "" && f.SHA256 == "" && r.faults.sound("files[].sha256") {
			r.fault(spot{"files", i, "sha256"}, "", "is missing: what is at the URL may change")
		}
		for _, p := range reserved {
			if f.Path == p || strings.HasPrefix(f.Path, p+"/") {
				r.fault(spot{"files", i, "path"}, "", "%s belongs to the agent or the kernel", quote(p))
			}
		}
	}
}

func (r *rules) layers() {
	for i, l := range r.Layers {
		if l.Source+l.Layout+l.Registry == "" && r.faults.sound("layers[].source", "layers[].layout", "layers[].registry") {
			r.fault(spot{"layers", i}, "", "source is missing, or layout or registry")
		}
	}
}

func (r *rules) services() {
	for i, s := range r.Services {
		if len(s.Exec) > 0 && !path.IsAbs(s.Exec[0]) && r.faults.sound("services[].exec") {
			r.fault(spot{"services", i, "exec", 0}, "", "%s: want the absolute path of the program", quote(s.Exec[0]))
		}
	}
}

func (r *rules) root() {
	if r.Root.Overlay && !r.Verity() && r.faults.sound("root.kind") {
		r.fault(spot{"root", "overlay"}, "", "is for root.kind %s: an initrd is in memory, and can be written to", quote(RootVerity))
	}
	if key, cert := r.Root.VerityKey, r.Root.VerityCert; key+cert != "" && r.faults.sound("root.verity_key", "root.verity_cert", "root.kind") {
		switch {
		case !r.Verity():
			r.fault(spot{"root"}, "", "verity_key and verity_cert are for root.kind %s", quote(RootVerity))
		case cert == "":
			r.fault(spot{"root", "verity_cert"}, "", "is missing: root.verity_key signs in its name")
		case key == "":
			r.fault(spot{"root", "verity_key"}, "", "is missing: root.verity_cert alone signs nothing")
		}
	}
	for _, link := range slices.Sorted(maps.Keys(r.Root.Alternatives)) {
		if to := r.Root.Alternatives[link]; !path.IsAbs(to) && r.faults.sound("root.alternatives") {
			r.fault(spot{"root", "alternatives", link}, "", "%s: want an absolute path", quote(to))
		}
	}
}

func (r *rules) cmdline() {
	limit, beside := maxCmdline, ""
	if r.Verity() {
		limit, beside = maxCmdline-verityRoom, ", for the root hash comes beside it"
	}
	if r.HasWorkloads() {
		limit -= workloadsRoom
		if beside == "" {
			beside = ", for workloads.from comes beside it"
		}
	}
	if n := len(strings.Join(r.Cmdline, " ")); n > limit && r.faults.sound("root.kind") {
		r.fault(spot{"cmdline"}, "", "%d bytes: want at most %d%s", n, limit, beside)
	}
	for i, a := range r.Cmdline {
		for _, f := range refused {
			if a == f.argument || strings.HasSuffix(f.argument, "=") && strings.HasPrefix(a, f.argument) {
				r.fault(spot{"cmdline", i}, "", "%s is refused: %s", quote(a), f.reason)
			}
		}
	}
}

func (r *rules) agent() {
	if r.Agent.Shell && !r.Agent.Debug && r.faults.sound("agent.debug") {
		r.fault(spot{"agent", "shell"}, "add debug = true", "wants agent.debug")
	}
	if len(r.Agent.TestKeys) > 0 && !r.Agent.Debug && r.faults.sound("agent.debug") {
		r.fault(spot{"agent", "test_keys"}, "add debug = true", "wants agent.debug")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Agent.TestKeys)) {
		if _, err := base64.StdEncoding.DecodeString(r.Agent.TestKeys[name]); err != nil {
			r.fault(spot{"agent", "test_keys", name}, "", "want base64")
		}
	}
	for i, m := range r.Kernel.Modules {
		if name := strings.ReplaceAll(strings.TrimPrefix(m, "?"), "-", "_"); name == "qemu_fw_cfg" {
			r.fault(spot{"kernel", "modules", i}, "write fw_cfg = true under [agent]", "%s is not loaded this way", quote(m))
		}
	}
	if i := r.Initrd; i.Level > maxLevel[i.Compression] && r.faults.sound("initrd.compression") {
		r.fault(spot{"initrd", "level"}, "", "%d: want at most %d with compression %s", i.Level, maxLevel[i.Compression], quote(i.Compression))
	}
}

func (r *rules) signing() {
	s := r.SecureBoot
	if s.Key != "" && s.Cert == "" && r.faults.sound("secure_boot.cert") {
		r.fault(spot{"secure_boot", "cert"}, "", "is missing: secure_boot.key signs in its name")
	}
	if s.Key == "" && s.Cert != "" && r.faults.sound("secure_boot.key") {
		r.fault(spot{"secure_boot", "key"}, "", "is missing: secure_boot.cert alone signs nothing")
	}
	if pk, kek, db := s.Enrolled(); s.Enroll && (pk == "" || len(kek) == 0 || len(db) == 0) && r.faults.sound("secure_boot.cert", "secure_boot.pk", "secure_boot.kek", "secure_boot.db") {
		r.fault(spot{"secure_boot", "enroll"}, "add cert, or all of pk, kek and db", "has no certificate to enroll")
	}
	reached := passed(r.Agent.Phases)
	for i, p := range r.PCRPolicy.Phases {
		if !slices.Contains(reached, p) && r.faults.sound("agent.phases") {
			r.fault(spot{"pcr_policy", "phases", i}, didYouMean(p, reached), "the agent never passes %s: see agent.phases", quote(p))
		}
	}
}
