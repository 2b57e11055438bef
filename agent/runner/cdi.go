package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// Container Device Interface, SPEC.md of version 1.1.0: what a container gets with
// a device. Resource control by intelRdt and moved network interfaces are not
// supported; a file that asks for them is refused.
type (
	cdiSpec struct {
		Version        string            `yaml:"cdiVersion"`
		Kind           string            `yaml:"kind"`
		Annotations    map[string]string `yaml:"annotations"`
		Devices        []cdiDevice       `yaml:"devices"`
		ContainerEdits cdiEdits          `yaml:"containerEdits"`
	}
	cdiDevice struct {
		Name           string            `yaml:"name"`
		Annotations    map[string]string `yaml:"annotations"`
		ContainerEdits cdiEdits          `yaml:"containerEdits"`
	}
	cdiEdits struct {
		Env            []string   `yaml:"env"`
		DeviceNodes    []cdiNode  `yaml:"deviceNodes"`
		Mounts         []cdiMount `yaml:"mounts"`
		Hooks          []cdiHook  `yaml:"hooks"`
		AdditionalGIDs []uint32   `yaml:"additionalGids"`
	}
	cdiNode struct {
		Path        string  `yaml:"path"`
		HostPath    string  `yaml:"hostPath"` // "": Path
		Type        string  `yaml:"type"`
		Major       int64   `yaml:"major"`
		Minor       int64   `yaml:"minor"`
		FileMode    *uint32 `yaml:"fileMode"`    // of the guest's node, which is what the container sees
		Permissions string  `yaml:"permissions"` // "": "rwm"
		UID         *uint32 `yaml:"uid"`         // as FileMode
		GID         *uint32 `yaml:"gid"`         // as FileMode
	}
	cdiMount struct {
		HostPath      string   `yaml:"hostPath"`
		ContainerPath string   `yaml:"containerPath"`
		Type          string   `yaml:"type"`
		Options       []string `yaml:"options"` // it is a read-only bind mount without devices, whatever these say
	}
	cdiHook struct {
		Name    string   `yaml:"hookName"`
		Path    string   `yaml:"path"`
		Args    []string `yaml:"args"`
		Env     []string `yaml:"env"`
		Timeout *int     `yaml:"timeout"`
	}
)

const maxCDI = 1 << 20 // bytes of a file

// addDevices edits the configuration for devices, by their qualified names.
func (c *Container) addDevices(conf *config, names []string) error {
	if len(names) == 0 {
		return nil
	}
	all, err := readCDI(c.r.CDI)
	if err != nil {
		return err
	}
	edited := map[*cdiSpec]bool{} // what all devices of a file share is done once
	for _, name := range names {
		s, d := findDevice(all, name)
		if d == nil {
			return fmt.Errorf("device %s: no CDI specification of the guest has it", name)
		}
		edits := []cdiEdits{d.ContainerEdits}
		if !edited[s] {
			edits = []cdiEdits{s.ContainerEdits, d.ContainerEdits}
		}
		edited[s] = true
		for _, e := range edits {
			if err := c.edit(conf, e); err != nil {
				return fmt.Errorf("device %s: %w", name, err)
			}
		}
	}
	return nil
}

// readCDI reads every specification. One that is not understood whole ends it, and
// so does a device that two of them have.
func readCDI(dirs []string) ([]*cdiSpec, error) {
	var out []*cdiSpec
	seen := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(e.Name())) {
				continue
			}
			file := filepath.Join(dir, e.Name())
			s, err := readSpec(file)
			if err != nil {
				return nil, fmt.Errorf("CDI: %s: %w", file, err)
			}
			for _, d := range s.Devices {
				name := s.Kind + "=" + d.Name
				if other := seen[name]; other != "" {
					return nil, fmt.Errorf("CDI: %s: device %s is in %s, too", file, name, other)
				}
				seen[name] = file
			}
			out = append(out, s)
		}
	}
	return out, nil
}

func readSpec(file string) (*cdiSpec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCDI+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxCDI {
		return nil, fmt.Errorf("more than %d bytes", maxCDI)
	}
	return parseSpec(b)
}

// parseSpec reads YAML, and so JSON.
func parseSpec(b []byte) (*cdiSpec, error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	var s cdiSpec
	if err := d.Decode(&s); err != nil {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one document")
	}
	if s.Version == "" || s.Kind == "" || len(s.Devices) == 0 {
		return nil, errors.New("want cdiVersion, kind and devices")
	}
	return &s, nil
}

func findDevice(all []*cdiSpec, name string) (*cdiSpec, *cdiDevice) {
	kind, device, _ := strings.Cut(name, "=")
	for _, s := range all {
		if s.Kind != kind {
			continue
		}
		for i := range s.Devices {
			if s.Devices[i].Name == device {
				return s, &s.Devices[i]
			}
		}
	}
	return nil, nil
}

func (c *Container) edit(conf *config, e cdiEdits) error {
	conf.Process.Env = append(conf.Process.Env, e.Env...)
	for _, id := range e.AdditionalGIDs {
		if id >= rangeSize {
			return fmt.Errorf("additional group %d: want at most %d", id, rangeSize-1)
		}
		conf.Process.User.AdditionalGids = append(conf.Process.User.AdditionalGids, id)
	}
	for _, n := range e.DeviceNodes {
		if err := addNode(conf, n); err != nil {
			return err
		}
	}
	for _, m := range e.Mounts {
		source, err := c.mountSource(m.HostPath)
		if err != nil {
			return err
		}
		conf.Mounts = append(conf.Mounts, specs.Mount{Destination: m.ContainerPath, Type: "bind", Source: source, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	for _, h := range e.Hooks {
		if err := addHook(conf, h); err != nil {
			return err
		}
	}
	return nil
}

// addNode shows a device of the guest to the container. In a user namespace no node
// is made: the guest's own is mounted, with its owner and mode.
func addNode(conf *config, n cdiNode) error {
	host := n.HostPath
	if host == "" {
		host = n.Path
	}
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return fmt.Errorf("%s: %w", real, err)
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return fmt.Errorf("%s: not a device", real)
	}
	if err := checkNode(real, n, kind); err != nil {
		return fmt.Errorf("%s: %w", real, err)
	}
	access := n.Permissions
	if access == "" {
		access = "rwm"
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	conf.Mounts = append(conf.Mounts, specs.Mount{Destination: n.Path, Type: "bind", Source: real, Options: []string{"bind", "nosuid", "noexec"}})
	r := conf.Linux.Resources
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access})
	return nil
}

// forbidden are the devices by which the guest is attested, talks to the host, or
// is reached as a whole. No configuration gives them away.
var forbidden = []string{
	"tpm*", "tpmrm*", "tdx*", "sev*", "vport*", "hvc*", "ttyS*", "ttyAMA*", "console", "kmsg", "mem", "kmem", "port", "kvm", "vsock", "vhost*", "fuse", "loop*", "nbd*", "dm-*", "mapper/*",
}

func checkNode(real string, n cdiNode, kind string) error {
	name, ok := strings.CutPrefix(real, "/dev/")
	if !ok || !strings.HasPrefix(n.Path, "/dev/") || path.Clean(n.Path) != n.Path {
		return errors.New("want a device of /dev, in /dev")
	}
	for _, f := range forbidden {
		if match, _ := path.Match(f, name); match {
			return errors.New("a device that no container gets")
		}
	}
	if n.Type != "" && n.Type != kind && !(n.Type == "u" && kind == "c") {
		return fmt.Errorf("type is %s, want %s", kind, n.Type)
	}
	if strings.Trim(n.Permissions, "rwm") != "" {
		return fmt.Errorf("permissions %.20q: want of \"rwm\"", n.Permissions)
	}
	return nil
}

// addHook adds a program that crun runs in a certain moment: runtime-spec,
// config.md, "POSIX-platform Hooks". It is the measured root's, but for startContainer:
// that one runs inside, where the path leads into the image.
func addHook(conf *config, h cdiHook) error {
	if !path.IsAbs(h.Path) {
		return fmt.Errorf("hook %.100q: want an absolute path", h.Path)
	}
	if conf.Hooks == nil {
		conf.Hooks = &specs.Hooks{}
	}
	hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout}
	switch all := conf.Hooks; h.Name {
	case "createRuntime":
		all.CreateRuntime = append(all.CreateRuntime, hook)
	case "createContainer":
		all.CreateContainer = append(all.CreateContainer, hook)
	case "startContainer":
		all.StartContainer = append(all.StartContainer, hook)
	case "poststart":
		all.Poststart = append(all.Poststart, hook)
	case "poststop":
		all.Poststop = append(all.Poststop, hook)
	default:
		return fmt.Errorf("hook %.100q: not supported", h.Name)
	}
	return nil
}
