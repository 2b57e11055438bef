package workload

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of what a document says. They are far above what anybody needs, and keep
// an event small enough for every log.
const (
	maxWorkloads = 64
	maxList      = 256      // arguments, variables, mounts, ports, devices
	maxText      = 4096     // of an argument or a path, bytes
	maxValue     = 64 << 10 // of a variable, bytes
	maxMiB       = 1 << 24  // 16 TiB
	maxMilliCPU  = 1000 << 10
	maxPIDs      = 1 << 22 // PID_MAX_LIMIT of the kernel
)

// Admissible are the words of Config.Admit.
var Admissible = []string{"encrypted+signed", "encrypted+unsigned", "plain+signed", "plain+unsigned"}

// Check tells whether c is a configuration that a guest may act on. What Policy,
// Registries and Lookaside say is for their own parsers to judge.
func (c *Config) Check() error {
	for _, f := range []func() error{c.checkDocument, c.checkAdmit, c.checkWorkloads, c.checkPorts} {
		if err := f(); err != nil {
			return fmt.Errorf("workloads: %w", err)
		}
	}
	return nil
}

func (c *Config) checkDocument() error {
	switch {
	case c.Schema != Schema:
		return fmt.Errorf("schema is %d, want %d", c.Schema, Schema)
	case c.Policy != nil && c.PolicyFrom != "":
		return fmt.Errorf("policy_from: want none beside policy")
	case c.PolicyFrom != "" && !ResourceName(c.PolicyFrom):
		return fmt.Errorf("policy_from: %.100q: want \"kbs:///REPOSITORY/TYPE/TAG\"", c.PolicyFrom)
	case c.Auth != "" && !ResourceName(c.Auth):
		return fmt.Errorf("auth: %.100q: want \"kbs:///REPOSITORY/TYPE/TAG\"", c.Auth)
	case c.Proxy != nil && !proxyURL.MatchString(c.Proxy.HTTPS):
		return fmt.Errorf("proxy: https: %.100q: want \"http://HOST:PORT\"", c.Proxy.HTTPS)
	case c.Proxy != nil && !line(c.Proxy.No):
		return fmt.Errorf("proxy: no: %.100q: want one line of text", c.Proxy.No)
	case c.Limits != nil && (c.Limits.Bytes < 0 || c.Limits.Entries < 0):
		return fmt.Errorf("limits: %d bytes, %d entries: want none below 0", c.Limits.Bytes, c.Limits.Entries)
	case len(c.Workloads) == 0 && !c.ImageService:
		return fmt.Errorf("no workloads, and no image_service beside them")
	case len(c.Workloads) > maxWorkloads:
		return fmt.Errorf("%d workloads: want at most %d", len(c.Workloads), maxWorkloads)
	}
	return nil
}

var proxyURL = regexp.MustCompile(`^https?://[A-Za-z0-9.:\[\]-]+/?$`)

func (c *Config) checkAdmit() error {
	for i, a := range c.Admit {
		if !slices.Contains(Admissible, a) || slices.Contains(c.Admit[:i], a) {
			return fmt.Errorf("admit[%d]: %.100q: want each once, of %s", i, a, strings.Join(Admissible, ", "))
		}
	}
	return nil
}

func (c *Config) checkWorkloads() error {
	seen := map[string]bool{}
	for i := range c.Workloads {
		p := &c.Workloads[i]
		if !processName.MatchString(p.Name) || seen[p.Name] {
			return fmt.Errorf("workloads[%d]: name %.100q: want one of its own, of at most 63 small letters, digits and \"-\"", i, p.Name)
		}
		seen[p.Name] = true
		if err := p.check(); err != nil {
			return fmt.Errorf("workloads[%d]: %s: %w", i, p.Name, err)
		}
	}
	return nil
}

// processName is a DNS label: it becomes the container's host name.
var processName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *Config) checkPorts() error {
	type port struct {
		protocol string
		guest    int
	}
	seen := map[port]string{}
	for _, w := range c.Workloads {
		for _, p := range w.Ports {
			key := port{orElse(p.Protocol, "tcp"), p.Guest}
			if by, ok := seen[key]; ok {
				return fmt.Errorf("%s: ports: %s %d of the guest leads to %s already", w.Name, key.protocol, key.guest, by)
			}
			seen[key] = w.Name
		}
	}
	return nil
}

func (p *Process) check() error {
	for _, f := range []func() error{p.checkImage, p.checkProgram, p.checkMounts, p.checkNetwork, p.checkBounds, p.checkRights, p.checkAPI} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// Transports of Process.Image.
const (
	transportRegistry = "docker://"
	transportArchive  = "oci-archive:"
)

var (
	sha256Digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	// registryImage has the host in it: a guest takes no registry for granted.
	// Components: OCI Distribution Specification, "Pulling manifests".
	registryImage = regexp.MustCompile(`^(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+:[0-9]+|\[[0-9a-fA-F:]+\](?::[0-9]+)?)(?::[0-9]+)?` +
		`(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+` +
		`(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?$`)
	archiveImage = regexp.MustCompile(`^/dev/disk/by-id/virtio-[A-Za-z0-9._-]{1,20}(?::[A-Za-z0-9._/@:+-]{1,255})?$`)
)

func (p *Process) checkImage() error {
	name, remote := strings.CutPrefix(p.Image, transportRegistry)
	file, local := strings.CutPrefix(p.Image, transportArchive)
	switch {
	case remote && !registryImage.MatchString(name) || local && !archiveImage.MatchString(file) || remote == local || len(p.Image) > maxText:
		return fmt.Errorf("image %.200q: want \"docker://HOST/REPOSITORY@sha256:...\" or \"oci-archive:/dev/disk/by-id/virtio-SERIAL\"", p.Image)
	case p.Digest == "":
		return nil
	case !sha256Digest.MatchString(p.Digest):
		return fmt.Errorf("digest %.100q: want \"sha256:\" and 64 small hexadecimal digits", p.Digest)
	case remote && strings.Contains(name, "@"):
		return fmt.Errorf("digest %s: the image's name has one already", p.Digest)
	}
	return nil
}

// Pinned tells whether every image is named by its digest, so that nobody but
// whoever wrote the document chooses it: nil when it is.
func (c *Config) Pinned() error {
	for _, p := range c.Workloads {
		if p.Wanted() == "" {
			return fmt.Errorf("workloads: %s: image %s: want it by digest", p.Name, p.Image)
		}
	}
	if c.ImageService {
		return fmt.Errorf("workloads: image_service: programs of the guest choose images while it runs")
	}
	return nil
}

// Wanted is the digest of the manifest or the index that the image must have, ""
// where it is named by a tag.
func (p *Process) Wanted() string {
	if p.Digest != "" {
		return p.Digest
	}
	if _, digest, ok := strings.Cut(p.Image, "@"); ok && strings.HasPrefix(p.Image, transportRegistry) {
		return digest
	}
	return ""
}

func (p *Process) checkProgram() error {
	for _, list := range []struct {
		what  string
		words []string
	}{{"command", p.Command}, {"args", p.Args}} {
		if err := checkWords(list.what, list.words); err != nil {
			return err
		}
	}
	if len(p.Command) > 0 && p.Command[0] == "" {
		return fmt.Errorf("command: an empty program")
	}
	if len(p.Env) > maxList {
		return fmt.Errorf("env: %d variables: want at most %d", len(p.Env), maxList)
	}
	for name, value := range p.Env {
		if !variable(name, value) {
			return fmt.Errorf("env: %.100q: not a variable's name or value", name)
		}
		if strings.HasPrefix(value, sealedPrefix) && !Sealed(value) {
			return fmt.Errorf("env: %.100q: its value begins as a sealed secret and is none", name)
		}
	}
	if p.Dir != "" && !clean(p.Dir) {
		return fmt.Errorf("dir %.200q: want an absolute path", p.Dir)
	}
	if p.User != "" && !userName.MatchString(p.User) {
		return fmt.Errorf("user %.100q: want \"USER\" or \"USER:GROUP\"", p.User)
	}
	return nil
}

// userName: names as useradd(8) takes them, or numbers.
var userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?)?$`)

func checkWords(what string, words []string) error {
	if len(words) > maxList {
		return fmt.Errorf("%s: %d words: want at most %d", what, len(words), maxList)
	}
	for i, w := range words {
		if len(w) > maxText || !text(w) {
			return fmt.Errorf("%s[%d]: %.100q: want text of at most %d bytes", what, i, w, maxText)
		}
	}
	return nil
}

func variable(name, value string) bool {
	return name != "" && len(name) <= maxText && !strings.Contains(name, "=") && text(name) && len(value) <= maxValue && text(value)
}

func (p *Process) checkMounts() error {
	if len(p.Mounts) > maxList {
		return fmt.Errorf("mounts: %d: want at most %d", len(p.Mounts), maxList)
	}
	seen := map[string]bool{}
	for i, m := range p.Mounts {
		switch {
		case !clean(m.Path) || m.Path == "/" || seen[m.Path]:
			return fmt.Errorf("mounts[%d]: path %.200q: want an absolute one of its own, not the root", i, m.Path)
		case reserved(m.Path):
			return fmt.Errorf("mounts[%d]: %s: there is what every container gets", i, m.Path)
		case m.kinds() != 1:
			return fmt.Errorf("mounts[%d]: %s: want one of tmpfs_mib, source, volume and secret", i, m.Path)
		case m.TmpfsMiB < 0 || m.TmpfsMiB > maxMiB:
			return fmt.Errorf("mounts[%d]: %s: tmpfs_mib %d: want 1 to %d", i, m.Path, m.TmpfsMiB, maxMiB)
		case m.Source != "" && (!clean(m.Source) || m.Source == "/" || shown(m.Source)):
			return fmt.Errorf("mounts[%d]: %s: source %.200q: want a file or directory of the root file system", i, m.Path, m.Source)
		case m.Volume != "" && !VolumeName(m.Volume):
			return fmt.Errorf("mounts[%d]: %s: volume %.100q: want the name of one", i, m.Path, m.Volume)
		case m.Secret != "" && !ResourceName(m.Secret) && !Sealed(m.Secret):
			return fmt.Errorf("mounts[%d]: %s: secret %.100q: want \"kbs:///REPOSITORY/TYPE/TAG\" or a sealed secret", i, m.Path, m.Secret)
		}
		seen[m.Path] = true
	}
	return nil
}

// kinds is how many things a mount says are there.
func (m *Mount) kinds() (n int) {
	for _, said := range []bool{m.TmpfsMiB != 0, m.Source != "", m.Volume != "", m.Secret != ""} {
		if said {
			n++
		}
	}
	return n
}

// reserved tells whether the runner puts something there itself.
func reserved(p string) bool {
	return slices.ContainsFunc([]string{"/proc", "/sys", "/dev"}, func(d string) bool { return below(p, d) })
}

// shown tells whether a path of the guest is of the kernel or made while it runs:
// nothing there is measured.
func shown(p string) bool {
	return slices.ContainsFunc([]string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/run"}, func(d string) bool { return below(p, d) })
}

func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func (p *Process) checkNetwork() error {
	switch {
	case !slices.Contains([]string{"", NetworkNAT, NetworkNone}, p.Network):
		return fmt.Errorf("network %.100q: want %s or %s", p.Network, NetworkNAT, NetworkNone)
	case p.Network == NetworkNone && len(p.Ports) > 0:
		return fmt.Errorf("ports: want none without a network")
	case len(p.Ports) > maxList:
		return fmt.Errorf("ports: %d: want at most %d", len(p.Ports), maxList)
	}
	for i, q := range p.Ports {
		if !slices.Contains([]string{"", "tcp", "udp"}, q.Protocol) {
			return fmt.Errorf("ports[%d]: protocol %.100q: want tcp or udp", i, q.Protocol)
		}
		if min(q.Guest, q.Container) < 1 || max(q.Guest, q.Container) > 65535 {
			return fmt.Errorf("ports[%d]: %d to %d: want 1 to 65535", i, q.Guest, q.Container)
		}
	}
	return nil
}

func (p *Process) checkBounds() error {
	for _, b := range []struct {
		what     string
		got, max int
	}{
		{"scratch_mib", p.ScratchMiB, maxMiB},
		{"resources: memory_mib", p.Resources.MemoryMiB, maxMiB},
		{"resources: milli_cpu", p.Resources.MilliCPU, maxMilliCPU},
		{"resources: pids", p.Resources.PIDs, maxPIDs},
	} {
		if b.got < 0 || b.got > b.max {
			return fmt.Errorf("%s: %d: want 0 to %d", b.what, b.got, b.max)
		}
	}
	if p.ReadOnly && p.ScratchMiB != 0 {
		return fmt.Errorf("scratch_mib: want none where the root is read_only")
	}
	return nil
}

// cdiDevice: Container Device Interface 1.1.0, "Qualified device names".
var cdiDevice = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*$`)

func (p *Process) checkRights() error {
	for i, c := range p.Capabilities {
		if !slices.Contains(Capabilities, c) || slices.Contains(p.Capabilities[:i], c) {
			return fmt.Errorf("capabilities[%d]: %.100q: want each once, as in CAP_NET_ADMIN", i, c)
		}
	}
	if len(p.Devices) > maxList {
		return fmt.Errorf("devices: %d: want at most %d", len(p.Devices), maxList)
	}
	for i, d := range p.Devices {
		if !cdiDevice.MatchString(d) || len(d) > maxText || slices.Contains(p.Devices[:i], d) {
			return fmt.Errorf("devices[%d]: %.100q: want each once, as in vendor.example/class=name", i, d)
		}
	}
	if !slices.Contains([]string{"", RestartFailure, RestartAlways}, p.Restart) {
		return fmt.Errorf("restart %.100q: want %s or %s", p.Restart, RestartFailure, RestartAlways)
	}
	if !slices.Contains([]string{"", OutputConsole}, p.Output) {
		return fmt.Errorf("output %.100q: want %s", p.Output, OutputConsole)
	}
	return nil
}

// Capabilities are the words of Process.Capabilities: linux/capability.h of 6.12,
// in the order of their bits.
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

func clean(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && len(p) <= maxText && line(p) }

// text has no NUL, which a program's arguments cannot hold.
func text(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func line(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
