package storage

import (
	"maps"
	"reflect"
	"strings"
	"testing"
)

func options(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// TestParseSecureMount: requests of kata-agent (src/agent/src/rpc.rs,
// storage/block_handler.rs), and those of guest-components' guide that can be done.
func TestParseSecureMount(t *testing.T) {
	empty := VolumeOptions{Random: true, Format: true, Empty: true, Filesystem: "ext4"}
	for name, x := range map[string]struct {
		options map[string]string
		flags   []string
		target  string
		want    SecureMount
	}{
		"kata, images": {
			options("deviceId", "8:16", "sourceType", "empty", "targetType", "fileSystem", "filesystemType", "ext4", "mkfsOpts", "-E lazy_journal_init", "encryptionType", "luks2", "dataIntegrity", "false"),
			nil, "/run/kata-containers/image", SecureMount{Volume: onDevice(empty, "8:16")},
		},
		"kata, emptyDir": {
			options("deviceId", "254:3", "sourceType", "empty", "targetType", "fileSystem", "filesystemType", "ext4", "mkfsOpts", "-O ^has_journal -m 0 -i 163840 -I 128", "encryptionType", "luks2", "dataIntegrity", "true"),
			nil, "/run/kata-containers/sandbox/storage/x", SecureMount{Volume: VolumeOptions{
				Device: "254:3", Random: true, Format: true, Empty: true, Filesystem: "ext4", Integrity: true, Ext4: Ext4Options{NoJournal: true, BytesPerInode: 163840},
			}},
		},
		"guide, 1.1": {
			options("devicePath", "/dev/loop0", "sourceType", "empty", "targetType", "device", "encryptionType", "luks2"), nil, "/mnt/dev-path",
			SecureMount{Volume: VolumeOptions{Device: "/dev/loop0", Random: true, Format: true, Empty: true}, AsDevice: true},
		},
		"guide, 1.2": {
			options("devicePath", "/dev/loop0", "sourceType", "empty", "targetType", "fileSystem", "encryptionType", "luks2", "filesystemType", "ext4"), nil, "/mnt/directory-path",
			SecureMount{Volume: onDevice(empty, "/dev/loop0")},
		},
		"guide, 2.2, with a key of the broker": {
			options("devicePath", "/dev/vdb", "sourceType", "encrypted", "targetType", "fileSystem", "encryptionType", "luks2", "key", "kbs:///a/b/c"), []string{"ro"}, "/mnt/x",
			SecureMount{Volume: VolumeOptions{Device: "/dev/vdb", Filesystem: "ext4"}, Key: "kbs:///a/b/c", ReadOnly: true},
		},
		"device below /dev, the number counts": {
			options("devicePath", "/dev/vdb", "deviceId", "254:16", "sourceType", "empty", "targetType", "device", "encryptionType", "luks2", "key", "sealed.a.b.c"), []string{"rw", "noatime"}, "/dev/plain",
			SecureMount{Volume: VolumeOptions{Device: "254:16", Format: true, Empty: true}, Key: "sealed.a.b.c", AsDevice: true},
		},
		"mkfs": {
			options("devicePath", "/dev/vdb", "sourceType", "empty", "targetType", "fileSystem", "encryptionType", "luks2", "mkfsOpts", "-F -q -m5 -b 4096 -O metadata_csum,64bit -E nodiscard,lazy_itable_init=0 -I256"), nil, "/x",
			SecureMount{Volume: VolumeOptions{Device: "/dev/vdb", Random: true, Format: true, Empty: true, Filesystem: "ext4", Ext4: Ext4Options{ReservedPercent: 5}}},
		},
	} {
		got, err := ParseSecureMount("block-device", x.options, x.flags, x.target)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.HasPrefix(got.Volume.Name, "secure-") || !volumeName.MatchString(got.Volume.Name) {
			t.Errorf("%s: name %q", name, got.Volume.Name)
		}
		got.Volume.Name, x.want.Target = "", x.target
		if !reflect.DeepEqual(*got, x.want) {
			t.Errorf("%s: %+v\nwant %+v", name, *got, x.want)
		}
	}
	m, err := ParseSecureMount("block-device", options("devicePath", "/dev/vdb", "sourceType", "empty", "targetType", "device", "encryptionType", "luks2", "mapperName", "My-disk_1"), nil, "/x")
	if err != nil || m.Volume.Name != "My-disk_1" {
		t.Errorf("%+v, %v", m, err)
	}
}

func onDevice(o VolumeOptions, device string) VolumeOptions {
	o.Device = device
	return o
}

// TestParseSecureMountRefuses: each row changes one thing of a request that is taken.
func TestParseSecureMountRefuses(t *testing.T) {
	good := options("devicePath", "/dev/vdb", "sourceType", "empty", "targetType", "fileSystem", "encryptionType", "luks2", "filesystemType", "ext4", "key", "kbs:///a/b/c",
		"mkfsOpts", "-m 0", "dataIntegrity", "true", "mapperName", "x")
	if _, err := ParseSecureMount("block-device", good, nil, "/mnt/x"); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ option, value, want string }{
		{"devicePath", "", "devicePath"}, {"devicePath", "/dev/../etc/x", "devicePath"}, {"devicePath", "vdb", "devicePath"}, {"devicePath", "/etc/passwd", "devicePath"},
		{"devicePath", "/dev/vd b", "devicePath"}, {"devicePath", "/dev/" + strings.Repeat("v", 300), "devicePath"},
		{"deviceId", "254", "deviceId"}, {"deviceId", "254:1:2", "deviceId"}, {"deviceId", "", "deviceId"}, {"deviceId", "../../x", "deviceId"}, {"deviceId", "-1:2", "deviceId"},
		{"sourceType", "", "sourceType"}, {"sourceType", "Empty", "sourceType"}, {"targetType", "", "targetType"}, {"targetType", "filesystem", "targetType"},
		{"encryptionType", "", "encryptionType"}, {"encryptionType", "zfs", "encryptionType"}, {"encryptionType", "luks1", "encryptionType"}, {"pool", "x", "ZFS"}, {"dataset", "x", "ZFS"},
		{"key", "", "key: want"}, {"key", "file:///etc/key", "file of the guest"}, {"key", "http://x/SECRET-CANARY", "key: want"},
		{"filesystemType", "xfs", "filesystemType"}, {"dataIntegrity", "", "dataIntegrity"}, {"dataIntegrity", "yes", "dataIntegrity"}, {"dataIntegrity", "True", "dataIntegrity"},
		{"mapperName", "", "mapperName"}, {"mapperName", "../x", "mapperName"}, {"cipher", "null", "unknown"}, {"devicepath", "/dev/vda", "unknown"},
		{"mkfsOpts", "-d /etc", "not supported"}, {"mkfsOpts", "/dev/vdc", "not supported"}, {"mkfsOpts", "-E root_owner=0:0", "not supported"}, {"mkfsOpts", "-E lazy_itable_init,test_fs", "not supported"},
		{"mkfsOpts", "-O encrypt", "not supported"}, {"mkfsOpts", "-O ^metadata_csum", "not supported"}, {"mkfsOpts", "-O", "not supported"}, {"mkfsOpts", "-m 51", "-m"}, {"mkfsOpts", "-m -1", "-m"},
		{"mkfsOpts", "-m", "-m"}, {"mkfsOpts", "-i 12", "-i"}, {"mkfsOpts", "-i 99999999999", "-i"}, {"mkfsOpts", "-I 1024", "not supported"}, {"mkfsOpts", "-b 1024", "not supported"},
		{"mkfsOpts", "-J device=/dev/vdc", "not supported"}, {"mkfsOpts", "--help", "not supported"}, {"mkfsOpts", "-", "not supported"},
	} {
		o := maps.Clone(good)
		o[x.option] = x.value
		_, err := ParseSecureMount("block-device", o, nil, "/mnt/x")
		if err == nil || !strings.HasPrefix(err.Error(), "storage: secure mount: ") || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s %q: %v, want %q", x.option, x.value, err, x.want)
		}
	}
	encrypted := maps.Clone(good)
	encrypted["sourceType"] = "encrypted"
	delete(encrypted, "key")
	device := maps.Clone(good)
	device["targetType"] = "device"
	bare := maps.Clone(device)
	delete(bare, "mkfsOpts")
	for _, x := range []struct {
		kind    string
		options map[string]string
		flags   []string
		target  string
		want    string
	}{
		{"alibaba-cloud-oss", good, nil, "/mnt/x", "volume type"},
		{"", good, nil, "/mnt/x", "volume type"},
		{"block-device", encrypted, nil, "/mnt/x", "without a key"},
		{"block-device", device, nil, "/mnt/x", "mkfsOpts with a device"},
		{"block-device", bare, []string{"ro"}, "/mnt/x", "ro with a device"},
		{"block-device", good, []string{"dev"}, "/mnt/x", "flag"},
		{"block-device", good, []string{"suid,dev"}, "/mnt/x", "flag"},
		{"block-device", good, nil, "", "mount point"},
		{"block-device", good, nil, "mnt", "mount point"},
		{"block-device", good, nil, "/", "mount point"},
		{"block-device", good, nil, "/mnt/../etc", "mount point"},
		{"block-device", good, nil, "/mnt/", "mount point"},
		{"block-device", good, nil, "/mnt\x00x", "mount point"},
		{"block-device", good, nil, "/usr/lib", "the guest's own"},
		{"block-device", good, nil, "/etc", "the guest's own"},
		{"block-device", good, nil, "/run", "the guest's own"},
		{"block-device", good, nil, "/var", "the guest's own"},
		{"block-device", good, nil, "/dev/x", "the guest's own"},
		{"block-device", bare, nil, "/dev", "the guest's own"},
		{"block-device", bare, nil, "/proc/x", "the guest's own"},
	} {
		if _, err := ParseSecureMount(x.kind, x.options, x.flags, x.target); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s, flags %q, %q: %v, want %q", x.kind, x.flags, x.target, err, x.want)
		}
	}
}

func FuzzSecureMount(f *testing.F) {
	f.Add("254:16", "/dev/vdb", "-E lazy_journal_init -O ^has_journal -m 0 -i 163840 -I 128", "kbs:///a/b/c", "x", "/mnt/x", "ro")
	f.Add("", "/dev/a", "-m5 -F", "sealed.x", "", "/dev/x", "")
	f.Fuzz(func(t *testing.T, id, path, mkfs, key, name, target, flag string) {
		o := options("devicePath", path, "mkfsOpts", mkfs, "sourceType", "empty", "targetType", "fileSystem", "encryptionType", "luks2")
		for option, value := range map[string]string{"deviceId": id, "key": key, "mapperName": name} {
			if value != "" {
				o[option] = value
			}
		}
		m, err := ParseSecureMount("block-device", o, []string{flag}, target)
		if err != nil {
			return
		}
		if m.Key != "" {
			m.Volume.Key = make([]byte, MinVolumeKey)
		}
		if err := m.Volume.check(); err != nil {
			t.Errorf("%+v: %v", m, err)
		}
		if m.Target != target || m.Key != key || !strings.HasPrefix(m.Volume.Device, "/dev/") && m.Volume.Device != id {
			t.Errorf("%+v", m)
		}
	})
}
