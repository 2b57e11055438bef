package config

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// check tells whether c is a configuration that an agent may act on.
func (c *Config) check() error {
	if c.Schema != Schema {
		return fmt.Errorf("schema is %d, want %d", c.Schema, Schema)
	}
	for _, f := range []func() error{
		c.checkCmdline, c.checkModules, c.checkTPM, c.checkPhases, c.checkServices, c.checkExtra, c.checkDebug,
		c.checkWorkloads, c.checkNetwork, c.checkStorage, c.checkEvents, c.checkTestKeys,
		c.checkAttestation, c.checkVolumes, c.checkSecrets,
	} {
		if err := f(); err != nil {
			return err
		}
	}
	if !slices.Contains([]string{"", PowerOff, Reboot, Halt}, c.OnFailure) {
		return fmt.Errorf("on_failure: %q: want %s, %s or %s", c.OnFailure, PowerOff, Reboot, Halt)
	}
	if strings.ContainsAny(c.ReportPort, "\x00\n/") || !utf8.ValidString(c.ReportPort) {
		return fmt.Errorf("report_port: %q: want the name of a virtio-serial port", c.ReportPort)
	}
	return nil
}

func (c *Config) checkCmdline() error {
	if strings.ContainsAny(c.Cmdline, "\x00\n") || !utf8.ValidString(c.Cmdline) {
		return fmt.Errorf("cmdline: %q: want one line of text", c.Cmdline)
	}
	if Bootconfig(c.Cmdline) {
		return fmt.Errorf("cmdline: %q: the kernel would take more of its command line from the end of the initrd", c.Cmdline)
	}
	return nil
}

// Bootconfig reports whether a command line makes the kernel look for a
// bootconfig behind the initrd.
// Documentation: Linux, admin-guide/bootconfig, "Boot Kernel With a Boot Config".
func Bootconfig(cmdline string) bool {
	return slices.ContainsFunc(strings.Fields(strings.ReplaceAll(cmdline, `"`, " ")), func(w string) bool {
		name, _, _ := strings.Cut(w, "=")
		return name == "bootconfig"
	})
}

func (c *Config) checkModules() error {
	seen := map[string]bool{}
	for i, m := range c.Modules {
		name := m.Name()
		switch {
		case !absolute(m.Path) || name == "":
			return fmt.Errorf("modules[%d]: path %q: want an absolute one that ends in NAME.ko", i, m.Path)
		case seen[name]:
			return fmt.Errorf("modules[%d]: %s: twice", i, name)
		case strings.ContainsRune(m.Params, 0):
			return fmt.Errorf("modules[%d]: params %q: a NUL", i, m.Params)
		case name == "qemu_fw_cfg" && !c.FWCfg:
			return fmt.Errorf("modules[%d]: %s: it shows what the host likes; want fw_cfg beside it", i, name)
		}
		seen[name] = true
	}
	return nil
}

// Name is the module's name as the kernel spells it, "" when Path names none.
func (m Module) Name() string {
	name, ok := strings.CutSuffix(path.Base(m.Path), ".ko")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

func (c *Config) checkTPM() error {
	if !slices.Contains([]string{"", TPMRequired, TPMOptional}, c.TPM) {
		return fmt.Errorf("tpm: %q: want %s or %s", c.TPM, TPMRequired, TPMOptional)
	}
	if c.TPM == TPMOptional && len(c.Phases) > 0 {
		return fmt.Errorf("phases: %q: want none where the TPM is optional", c.Phases)
	}
	return nil
}

func (c *Config) checkPhases() error {
	next := 0
	for i, p := range c.Phases {
		n := slices.Index(Phases, p)
		if n < 0 {
			return fmt.Errorf("phases[%d]: %q: want one of %s", i, p, strings.Join(Phases, ", "))
		}
		if n < next {
			return fmt.Errorf("phases[%d]: %s: want each once, in the order %s", i, p, strings.Join(Phases, ", "))
		}
		next = n + 1
	}
	return nil
}

func (c *Config) checkServices() error {
	seen := map[string]bool{}
	for i, s := range c.Services {
		if s.Name == "" || seen[s.Name] {
			return fmt.Errorf("services[%d]: name %q: want one of its own", i, s.Name)
		}
		seen[s.Name] = true
		if len(s.Exec) == 0 || !absolute(s.Exec[0]) {
			return fmt.Errorf("services[%d]: %s: exec %q: want an absolute path first", i, s.Name, s.Exec)
		}
		if slices.ContainsFunc(s.Exec, hasNUL) {
			return fmt.Errorf("services[%d]: %s: exec %q: a NUL", i, s.Name, s.Exec)
		}
		if s.After != "" && !absolute(s.After) {
			return fmt.Errorf("services[%d]: %s: after %q: want an absolute path", i, s.Name, s.After)
		}
		for k, v := range s.Env {
			if k == "" || strings.ContainsAny(k, "=\x00") || hasNUL(v) {
				return fmt.Errorf("services[%d]: %s: env: %q: not a variable's name or value", i, s.Name, k)
			}
		}
	}
	return nil
}

func (c *Config) checkExtra() error {
	for p, digest := range c.Extra {
		if !fs.ValidPath(p) || p == "." {
			return fmt.Errorf("extra: %q: want a path below /.extra", p)
		}
		if b, err := hex.DecodeString(digest); digest != AnyContent && (err != nil || len(b) != 32 || strings.ToLower(digest) != digest) {
			return fmt.Errorf("extra: %s: %q: want a SHA-256 digest in lower-case hexadecimal or %q", p, digest, AnyContent)
		}
	}
	return nil
}

func (c *Config) checkDebug() error {
	if c.Shell != "" && !c.Debug {
		return fmt.Errorf("shell: %s: want debug beside it", c.Shell)
	}
	if c.Shell != "" && !absolute(c.Shell) {
		return fmt.Errorf("shell: %q: want an absolute path", c.Shell)
	}
	return nil
}

func absolute(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && !hasNUL(p) }

func hasNUL(s string) bool { return strings.ContainsRune(s, 0) }
