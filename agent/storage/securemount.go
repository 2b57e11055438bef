package storage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A SecureMount is what a call of that name to the confidential data hub asks for, of
// a block device. Of LUKS2 there is nothing but its name: a disk is encrypted as
// VolumeOptions say, no header is written and none read. So "encrypted" means a disk
// that this package made, or one made for it.
//
// Document: guest-components, confidential-data-hub/docs/use-cases,
// secure-mount-with-block-device.md.
type SecureMount struct {
	Volume VolumeOptions // but for Key

	Key      string // where Volume.Key is, if it is not Random: "kbs:///a/b/c" or "sealed...."
	Target   string // absolute
	AsDevice bool   // Target becomes a link to the device; else the file system is mounted there
	ReadOnly bool
}

// ParseSecureMount reads a request. It refuses what it does not know, and what would
// be done otherwise than asked for.
func ParseSecureMount(volumeType string, options map[string]string, flags []string, mountPoint string) (*SecureMount, error) {
	m, err := parseSecureMount(volumeType, options, flags, mountPoint)
	if err != nil {
		return nil, fmt.Errorf("storage: secure mount: %w", err)
	}
	return m, nil
}

func parseSecureMount(volumeType string, options map[string]string, flags []string, mountPoint string) (*SecureMount, error) {
	if volumeType != "block-device" {
		return nil, fmt.Errorf("volume type %.64q: want block-device", volumeType)
	}
	m := &SecureMount{Target: mountPoint}
	for name := range options {
		if !slices.Contains(secureMountOptions, name) {
			return nil, fmt.Errorf("option %.64q: unknown", name)
		}
	}
	for _, f := range []func(map[string]string) error{m.encryption, m.device, m.source, m.target, m.name} {
		if err := f(options); err != nil {
			return nil, err
		}
	}
	for _, f := range flags {
		switch f {
		case "ro":
			m.ReadOnly = true
		case "rw", "nodev", "nosuid", "noatime": // as it is mounted anyway
		default:
			return nil, fmt.Errorf("flag %.64q: unknown", f)
		}
	}
	if m.ReadOnly && m.AsDevice {
		return nil, errors.New("flag ro with a device")
	}
	return m, m.checkTarget()
}

var secureMountOptions = []string{
	"deviceId", "devicePath", "sourceType", "encryptionType", "key", "targetType", "filesystemType", "mkfsOpts", "dataIntegrity", "mapperName",
	"pool", "dataset", // of ZFS, which is refused by its name
}

func (m *SecureMount) encryption(o map[string]string) error {
	if o["encryptionType"] != "luks2" {
		return fmt.Errorf("encryptionType %.64q: want luks2, which stands for plain dm-crypt here", o["encryptionType"])
	}
	for _, name := range []string{"pool", "dataset"} {
		if _, ok := o[name]; ok {
			return fmt.Errorf("option %q is ZFS's", name)
		}
	}
	switch v, ok := o["dataIntegrity"]; {
	case ok && v != "true" && v != "false":
		return fmt.Errorf("dataIntegrity %.64q: want true or false", v)
	case v == "true":
		m.Volume.Integrity = true
	}
	return nil
}

func (m *SecureMount) device(o map[string]string) error {
	if id, ok := o["deviceId"]; ok { // goes before the path
		if !deviceNumber.MatchString(id) {
			return fmt.Errorf("deviceId %.64q: want MAJOR:MINOR", id)
		}
		m.Volume.Device = id
		return nil
	}
	p := o["devicePath"]
	if !strings.HasPrefix(p, "/dev/") || path.Clean(p) != p || len(p) > 255 || strings.ContainsAny(p, " \t\n\x00") {
		return fmt.Errorf("devicePath %.64q: want a path below /dev", p)
	}
	m.Volume.Device = p
	return nil
}

func (m *SecureMount) source(o map[string]string) error {
	key, ok := o["key"]
	switch {
	case !ok:
		m.Volume.Random = true
	case strings.HasPrefix(key, "kbs://"), strings.HasPrefix(key, "kbs+"), strings.HasPrefix(key, "sealed."):
		m.Key = key
	case strings.HasPrefix(key, "file://"):
		return errors.New("key: a file of the guest: what is in its image is no secret")
	default:
		return errors.New("key: want a kbs URI or a sealed secret")
	}
	switch o["sourceType"] {
	case "empty":
		m.Volume.Format, m.Volume.Empty = true, true
	case "encrypted":
		if !ok {
			return errors.New("sourceType encrypted without a key")
		}
	default:
		return fmt.Errorf("sourceType %.64q: want empty or encrypted", o["sourceType"])
	}
	return nil
}

func (m *SecureMount) target(o map[string]string) error {
	switch fs := o["filesystemType"]; {
	case fs != "" && fs != "ext4":
		return fmt.Errorf("filesystemType %.64q: want ext4", fs)
	case o["targetType"] == "fileSystem":
		m.Volume.Filesystem = "ext4"
		return m.Volume.Ext4.parse(o["mkfsOpts"])
	case o["targetType"] != "device":
		return fmt.Errorf("targetType %.64q: want device or fileSystem", o["targetType"])
	case strings.TrimSpace(o["mkfsOpts"]) != "":
		return errors.New("mkfsOpts with a device")
	}
	m.AsDevice = true
	return nil
}

func (m *SecureMount) name(o map[string]string) error {
	m.Volume.Name = "secure-" + strings.ToLower(rand.Text()[:12])
	if name, ok := o["mapperName"]; ok {
		if !volumeName.MatchString(name) {
			return fmt.Errorf("mapperName %.64q: want %s", name, volumeName)
		}
		m.Volume.Name = name
	}
	return nil
}

// The guest's own directories, on which nothing is mounted. A device may be shown
// below /dev, by a name that is new.
var ownDirectories = []string{"bin", "boot", "dev", "etc", "init", "lib", "lib32", "lib64", "proc", "root", "sbin", "sys", "usr"}

func (m *SecureMount) checkTarget() error {
	t := m.Target
	if !path.IsAbs(t) || path.Clean(t) != t || t == "/" || len(t) > 4000 || strings.Contains(t, "\x00") {
		return fmt.Errorf("mount point %.64q: want an absolute path without dots", t)
	}
	top, _, below := strings.Cut(t[1:], "/")
	if slices.Contains(ownDirectories, top) && !(m.AsDevice && below && top == "dev") || !below && (top == "run" || top == "var") {
		return fmt.Errorf("mount point %.64q: that is the guest's own", t)
	}
	return nil
}

// parse takes the options of mkfs.ext4 that are done, and those that change nothing
// here: all that mkfs may leave to the kernel's idle time is always written at once,
// inodes are of 256 bytes.
func (e *Ext4Options) parse(text string) error {
	for words := strings.Fields(text); len(words) > 0; {
		option, value := words[0], ""
		words = words[1:]
		switch {
		case option == "-F" || option == "-q":
			continue
		case len(option) > 2 && strings.HasPrefix(option, "-"): // "-m0"
			option, value = option[:2], option[2:]
		case len(words) > 0:
			value, words = words[0], words[1:]
		}
		if err := e.option(option, value); err != nil {
			return fmt.Errorf("mkfsOpts: %w", err)
		}
	}
	return nil
}

// Words of "-E" without an effect, and features of "-O" that are always there.
var (
	ext4Extended = []string{
		"lazy_itable_init", "lazy_itable_init=0", "lazy_itable_init=1", "lazy_journal_init", "lazy_journal_init=0", "lazy_journal_init=1",
		"discard", "nodiscard", "assume_storage_prezeroed=0",
	}
	ext4Features = []string{
		"has_journal", "ext_attr", "dir_index", "filetype", "extent", "extents", "64bit", "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize",
		"metadata_csum", "^flex_bg", "^resize_inode", "^uninit_bg",
	}
)

func (e *Ext4Options) option(option, value string) error {
	switch option {
	case "-E":
		return e.words(option, value, ext4Extended)
	case "-O":
		return e.words(option, value, ext4Features)
	case "-m":
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil || n > 50 {
			return fmt.Errorf("-m %.64q: want 0 to 50", value)
		}
		e.ReservedPercent = int(n)
		return nil
	case "-i":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n < 1024 || n > 64<<20 {
			return fmt.Errorf("-i %.64q: want 1024 to 67108864", value)
		}
		e.BytesPerInode = int64(n)
		return nil
	case "-I":
		if value == "128" || value == "256" {
			return nil
		}
	case "-b":
		if value == "4096" {
			return nil
		}
	}
	return fmt.Errorf("%.64q: not supported", strings.TrimSpace(option+" "+value))
}

func (e *Ext4Options) words(option, list string, known []string) error {
	for w := range strings.SplitSeq(list, ",") {
		switch {
		case option == "-O" && w == "^has_journal":
			e.NoJournal = true
		case !slices.Contains(known, w):
			return fmt.Errorf("%s %.64q: not supported", option, w)
		}
	}
	return nil
}
