package builder

import (
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// The pipeline, top to bottom: packages -> parts -> initrd -> UKI -> disk ->
// what will be measured. A step may need only steps above it.
var pipeline = []step{
	{
		name: "kernel", version: 1,
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
		name: "initrd", version: 1, needs: []string{"kernel"},
		does: "pack the agent, its configuration, modules and files",
		inputs: func(s *Spec) any {
			p := s.Profile
			in := []any{s.Guest, s.origin(roleRoot, "files", "pcr_policy.key"), p.Kernel.Modules, placement(p.Files), p.Services, p.Agent, p.Initrd, p.Cmdline, p.Epoch}
			if p.Combined() { // the agent runs without a TPM
				in = append(in, "tpm optional")
			}
			return in
		},
		run: runInitrd,
	},
	{
		name: "uki", version: 1, needs: []string{"kernel", "stub", "initrd"},
		does: "join stub, command line, initrd and kernel; sign",
		inputs: func(s *Spec) any {
			p := s.Profile
			// Private keys stand in it by their certificate or public half.
			return []any{p.Cmdline, s.origin("", "secure_boot.cert", "pcr_policy.key"), p.PCRPolicy.Banks, p.PhasePaths()}
		},
		run: runUKI,
	},
	{
		name: "disk", version: 1, needs: []string{"uki"},
		does:   "lay out the ESP on a GPT disk",
		inputs: func(s *Spec) any { return []any{s.Profile.Seed, s.Profile.Epoch} },
		run:    runDisk,
	},
	{
		name: "measure", version: 1, needs: []string{"firmware", "initrd", "disk"},
		does: "predict what firmware, stub and kernel will measure",
		inputs: func(s *Spec) any {
			p := s.Profile
			in := []any{p.Name, p.Platform, p.Machine, p.Agent.Phases, cas.Sum(s.Records)}
			switch p.Platform {
			case profiles.PlatformSNP:
				in = append(in, p.SNP)
			case profiles.PlatformTDX:
				in = append(in, p.TDX)
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
		out = append(out, f.Path+" "+f.Mode+" "+f.Owner)
	}
	return out
}
