package builder

import (
	"fmt"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// The pipeline, top to bottom: packages -> parts -> root -> initrd -> UKI ->
// disk -> what will be measured. A step may need only steps above it, and needs
// none that the profile does without.
var pipeline = []step{
	{
		name: "kernel", version: 2,
		does:   "take the kernel and its modules out of their package",
		inputs: func(s *Spec) any { return s.origin(roleKernel, "kernel.file", "kernel.modules_dir") },
		run:    runKernel,
	},
	{
		name: "stub", version: 1,
		does:   "take systemd-stub out of its package",
		inputs: func(s *Spec) any { return s.origin(roleStub, "stub.file") },
		run:    runStub,
	},
	{
		name: "firmware", version: 1,
		does:   "take the firmware out of its package, enroll keys, digest its volumes",
		inputs: firmwareInputs,
		run:    runFirmware,
	},
	{
		name: "rootfs", version: 2, when: verityRoot,
		does: "make the root file system of packages, files and the agent",
		inputs: func(s *Spec) any {
			p := s.Profile
			return []any{s.rootInputs(), p.Seed, p.Epoch}
		},
		run: runRootFS,
	},
	{
		name: "verity", version: 2, needs: []string{"rootfs"}, when: verityRoot,
		does: "hash the root file system; list what is in it",
		inputs: func(s *Spec) any {
			p := s.Profile
			return []any{p.Name, p.Seed, p.Epoch, p.Root.Hash, p.Root.OnCorruption}
		},
		run: runVerity,
	},
	{
		name: "initrd", version: 3, needs: []string{"kernel", "verity"},
		does:   "pack the agent, its configuration, modules and what else the root does not hold",
		inputs: initrdInputs,
		run:    runInitrd,
	},
	{
		name: "uki", version: 1, needs: []string{"kernel", "stub", "verity", "initrd"},
		does: "join stub, command line, initrd and kernel; sign",
		inputs: func(s *Spec) any {
			p := s.Profile
			// Private keys stand in it by their certificate or public half.
			in := []any{p.Cmdline, s.origin("", "secure_boot.cert", "pcr_policy.key"), p.PCRPolicy.Banks, p.PhasePaths()}
			if p.HasWorkloads() {
				in = append(in, p.Workloads.From)
			}
			return in
		},
		run: runUKI,
	},
	{
		name: "disk", version: 1, needs: []string{"rootfs", "verity", "uki"},
		does: "lay out ESP and root on a GPT disk",
		inputs: func(s *Spec) any {
			in := []any{s.Profile.Seed, s.Profile.Epoch}
			if n := s.diskMultiple(); n > 0 {
				in = append(in, n)
			}
			if s.signedRoot() { // the private key stands in it by its certificate
				in = append(in, s.origin("", "root.verity_cert"))
			}
			return in
		},
		run: runDisk,
	},
	{
		name: "forms", version: 1, needs: []string{"disk"}, when: otherForms,
		does: "write the disk in the forms that hypervisors and clouds take",
		inputs: func(s *Spec) any {
			p := s.Profile
			return []any{p.Seed, p.Epoch, p.Outputs.Forms()}
		},
		run: runForms,
	},
	{
		name: "workloads", version: 1, when: func(s *Spec) bool { return s.Profile.HasWorkloads() },
		does: "note the images that workloads name, as the lock has them",
		inputs: func(s *Spec) any {
			return []any{s.origin("", "workload", initdataKey, policyFileKey), s.Profile.Workloads.From}
		},
		run: runWorkloads,
	},
	{
		name: "measure", version: 1, needs: []string{"firmware", "initrd", "disk", "workloads"},
		does: "predict what firmware, stub and kernel will measure",
		inputs: func(s *Spec) any {
			p := s.Profile
			in := []any{p.Name, p.Platform, p.Machine, p.Agent.Phases, cas.Sum(s.Records)}
			if notes := cloudNotes(p); len(notes) > 0 {
				in = append(in, notes)
			}
			switch p.Platform {
			case profiles.PlatformSNP:
				in = append(in, p.SNP)
			case profiles.PlatformTDX:
				in = append(in, p.TDX)
			}
			if p.Initdata != "" {
				in = append(in, s.origin("", initdataKey))
			}
			if p.HasWorkloads() {
				in = append(in, p.Workloads.From, workloadEvents(p))
			}
			return in
		},
		run: runMeasure,
	},
}

func firmwareInputs(s *Spec) any {
	p := s.Profile
	in := []any{
		s.origin(roleFirmware, "firmware.code_file", "firmware.vars_file", "secure_boot.cert", "secure_boot.pk", "secure_boot.kek", "secure_boot.db"),
		p.Firmware.Code, p.Firmware.Vars, p.SecureBoot.Enroll, p.Epoch,
	}
	if p.SecureBoot.SetupMode {
		in = append(in, "setup mode")
	}
	if p.Combined() {
		g := p.Firmware.Generic
		in = append(in, p.Platform, s.origin(roleGeneric, "firmware.generic.code_file", "firmware.generic.vars_file"), g.Code, g.Vars)
	}
	return in
}

// verityRoot tells whether the steps for a root on the disk are wanted.
func verityRoot(s *Spec) bool { return s.Profile.Verity() }

func initrdInputs(s *Spec) any {
	p := s.Profile
	in := []any{s.Guest, s.origin("", "pcr_policy.key"), p.Kernel.Modules, p.Services, p.Agent, p.Initrd, p.Cmdline, p.Epoch}
	if verityRoot(s) {
		in = append(in, p.Root.Overlay, p.Root.Hash)
	} else {
		in = append(in, s.rootInputs(), p.Name, p.Seed)
	}
	if p.Combined() { // the agent runs without a TPM
		in = append(in, "tpm optional")
	}
	return append(in, s.containerInputs()...)
}

// signedRoot tells whether the disk has a signature of the root hash.
func (s *Spec) signedRoot() bool { return s.Profile.Verity() && s.Profile.Root.VerityCert != "" }

// rootInputs decide what is in the root, wherever it is.
func (s *Spec) rootInputs() any {
	p := s.Profile
	in := []any{s.Guest.Agent, s.shell(), s.origin(roleRoot, "files"), placement(p.Files), p.Root.Exclude, p.Root.Alternatives, p.Users, p.Groups}
	if len(p.Layers) > 0 {
		in = append(in, s.origin("", "layers"), layerPlacement(p.Layers))
	}
	return append(in, s.containerRootInputs()...)
}

// shell is the digest of the shell, for a profile that has one.
func (s *Spec) shell() (r cas.Ref) {
	if s.Profile.Agent.Shell {
		r = s.Guest.Shell
	}
	return r
}

// origin is what decides a part: the locked packages of a role and the locked
// local files whose key is one of keys or begins with one.
func (s *Spec) origin(role string, keys ...string) any {
	var digests []string
	if role != "" {
		for _, p := range s.Lock.Role(role) {
			digests = append(digests, p.SHA256.String())
		}
	}
	for _, f := range s.Lock.Files {
		for _, k := range keys {
			if f.Path == k || hasKeyPrefix(f.Path, k) {
				digests = append(digests, f.Path+" "+f.SHA256.String())
			}
		}
	}
	return digests
}

// hasKeyPrefix reports whether path is an element of the list called key:
// "files /etc/motd", "secure_boot.db[0]".
func hasKeyPrefix(path, key string) bool {
	return len(path) > len(key) && path[:len(key)] == key && (path[len(key)] == ' ' || path[len(key)] == '[')
}

// placement is where files go and whose they are; where they come from on the
// building host decides nothing.
func placement(files []profiles.File) any {
	var out []string
	for _, f := range files {
		at := fmt.Sprintf("%s %o %s %t %s", f.Path, f.Perm(), f.Owner, f.Dir, f.Link)
		if f.URL != "" { // a component of its own in the bills of materials
			at += " pinned"
		}
		out = append(out, at)
	}
	return out
}

// layerPlacement is what is taken of layers, and where it goes.
func layerPlacement(layers []profiles.Layer) any {
	var out [][]any
	for _, l := range layers {
		out = append(out, []any{l.Name, l.Paths, l.Strip, l.To, l.Owner})
	}
	return out
}
