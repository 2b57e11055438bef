package config

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/workload"
)

const pinned = "docker://registry.example.com/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// containers is a configuration with workloads, every field of theirs set.
func containers() *Config {
	return &Config{
		Schema:  Schema,
		Cmdline: "quiet plinth.workloads=image",
		Debug:   true,
		Workloads: &workload.Config{
			Schema: workload.Schema, Policy: json.RawMessage(`{"default":[{"type":"reject"}]}`), Admit: []string{"plain+signed"},
			Workloads: []workload.Process{{Name: "web", Image: pinned, Env: map[string]string{"A": "1"}}},
		},
		Network:  &Network{Addresses: []string{"192.0.2.2/24", "2001:db8::2/64"}, Gateways: []string{"192.0.2.1", "2001:db8::1"}, DNS: []string{"192.0.2.1"}, MTU: 1400},
		Storage:  &Storage{MemoryMiB: 512},
		Events:   &Events{PCR: 14, PCR23: true},
		Epoch:    1767225600,
		TestKeys: map[string][]byte{"kbs:///default/key/1": []byte("0123456789abcdef0123456789abcdef")},
	}
}

func TestWorkloadsRoundTrip(t *testing.T) {
	b, err := containers().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Marshal()
	if err != nil || string(again) != string(b) {
		t.Errorf("%v; got\n%s\nwant\n%s", err, again, b)
	}
}

func TestWorkloadsFrom(t *testing.T) {
	for _, tt := range []struct{ cmdline, want, err string }{
		{"", "", ""},
		{"quiet plinth.workloadsx=image", "", ""},
		{"quiet plinth.workloads=image", "image", ""},
		{"plinth.workloads=initdata quiet", "initdata", ""},
		{"plinth.workloads=", "", `plinth.workloads: "": want image or initdata`},
		{"plinth.workloads=both", "", `plinth.workloads: "both": want`},
		{"plinth.workloads=image plinth.workloads=initdata", "", "plinth.workloads: twice"},
	} {
		got, err := WorkloadsFrom(tt.cmdline)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: got %q and %v, want %q and %q", tt.cmdline, got, err, tt.want, tt.err)
		}
	}
}

func TestRefusedWorkloads(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(*Config)
	}{
		{"no workloads", "workloads: none, and the command line says plinth.workloads=image", func(c *Config) { c.Workloads = nil }},
		{"no argument", "workloads: want plinth.workloads=image on the command line", func(c *Config) { c.Cmdline = "" }},
		{"two sources", "workloads: want plinth.workloads=image on the command line", func(c *Config) { c.Cmdline = "plinth.workloads=initdata" }},
		{"unknown source", "cmdline: plinth.workloads", func(c *Config) { c.Cmdline = "plinth.workloads=host" }},
		{"no storage", "storage: want one", func(c *Config) { c.Storage = nil }},
		{"bad workload", "config: workloads: workloads[0]: name", func(c *Config) { c.Workloads.Workloads[0].Name = "" }},
		{"two storages", "storage: want one of memory_mib and disk", func(c *Config) { c.Storage.Disk = "x" }},
		{"no kind of storage", "storage: want one of memory_mib and disk", func(c *Config) { c.Storage.MemoryMiB = 0 }},
		{"negative storage", "storage: memory_mib is -1", func(c *Config) { c.Storage.MemoryMiB = -1 }},
		{"disk's path", `storage: disk "../x"`, func(c *Config) { *c.Storage = Storage{Disk: "../x"} }},
		{"long serial number", "storage: disk", func(c *Config) { *c.Storage = Storage{Disk: strings.Repeat("x", 21)} }},
		{"resettable register", "events: PCR 23: want one of [14 15]", func(c *Config) { c.Events.PCR = 23 }},
		{"register of phases", "events: PCR 11", func(c *Config) { c.Events.PCR = 11 }},
		{"negative epoch", "epoch: -1", func(c *Config) { c.Epoch = -1 }},
		{"neither DHCP nor addresses", "network: want dhcp or addresses", func(c *Config) { c.Network.Addresses = nil }},
		{"both", "network: addresses or gateways beside dhcp", func(c *Config) { c.Network.DHCP = true }},
		{"gateway beside DHCP", "network: addresses or gateways beside dhcp", func(c *Config) { c.Network.DHCP, c.Network.Addresses = true, nil }},
		{"address", `network: addresses[1]: "2001:db8::2"`, func(c *Config) { c.Network.Addresses[1] = "2001:db8::2" }},
		{"multicast", "network: addresses[0]", func(c *Config) { c.Network.Addresses[0] = "224.0.0.1/24" }},
		{"gateway", "network: gateways[0]", func(c *Config) { c.Network.Gateways[0] = "host" }},
		{"two gateways", "network: gateways[1]", func(c *Config) { c.Network.Gateways[1] = "192.0.2.3" }},
		{"zone", "network: dns[0]", func(c *Config) { c.Network.DNS[0] = "fe80::1%eth0" }},
		{"MTU", "network: mtu is 1279", func(c *Config) { c.Network.MTU = 1279 }},
		{"test keys", "test_keys: want debug", func(c *Config) { c.Debug = false }},
		{"name of a test key", `test_keys: "key"`, func(c *Config) { c.TestKeys["key"] = nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := containers()
			tt.spoil(c)
			if _, err := c.Marshal(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestDiskSerial(t *testing.T) {
	for _, tt := range []struct {
		path, want string
		ok         bool
	}{
		{"/dev/disk/by-id/virtio-image0", "image0", true},
		{"/dev/disk/by-id/virtio-a.b_c-d", "a.b_c-d", true},
		{"/dev/disk/by-id/virtio-", "", false},
		{"/dev/disk/by-id/virtio-../vda", "", false},
		{"/dev/disk/by-id/virtio-123456789012345678901", "", false},
		{"/dev/vda", "", false},
	} {
		got, ok := DiskSerial(tt.path)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s: got %q and %v, want %q and %v", tt.path, got, ok, tt.want, tt.ok)
		}
	}
}
