package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
)

// attested is containers with attestation, volumes and secrets, every field set.
func attested(t *testing.T) *Config {
	t.Helper()
	c := containers()
	c.Attestation = &Attestation{
		TEE: "tpm", Brokers: []Broker{{URL: "https://kbs.example.com:8443", CAs: certificate(t)}, {URL: "http://192.0.2.1"}},
		Key: "RSA-OAEP-256", Hashes: []string{"sha512", "sha384"}, AKHandle: 0x81010002, Services: true,
	}
	c.Volumes = []Volume{{Name: "data", Disk: "data0", Key: "kbs:///a/b/c", Integrity: true, Filesystem: FilesystemExt4, Format: true}, {Name: "tmp", Disk: "tmp0"}}
	c.Workloads.Policy, c.Workloads.PolicyFrom = nil, "kbs:///a/policy/b"
	w := &c.Workloads.Workloads[0]
	w.Env["S"] = "sealed.e30.e30.AA"
	w.Mounts = []workload.Mount{{Path: "/d", Volume: "data"}, {Path: "/s", Secret: "kbs://KBS.example.com:8443/a/b/c"}, {Path: "/t", Secret: "sealed.e30.e30.AA"}}
	w.API = &workload.API{Resources: []string{"kbs:///a/"}, Evidence: true, Token: true, TEEKey: true, Measure: true}
	return c
}

func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestAttestationRoundTrip(t *testing.T) {
	b, err := attested(t).Marshal()
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
	if !c.HasBroker() {
		t.Errorf("%+v", c.Attestation)
	}
}

func TestRefusedAttestation(t *testing.T) {
	noBroker := func(c *Config) { c.Attestation, c.TestKeys = nil, nil }
	for _, tt := range []struct {
		name, want string
		spoil      func(*Config)
	}{
		{"no TEE", "attestation: tee \"\": want one of tpm, snp", func(c *Config) { c.Attestation.TEE = "" }},
		{"unknown TEE", "attestation: tee \"sgx\"", func(c *Config) { c.Attestation.TEE = "sgx" }},
		{"sample", "attestation: tee sample: want debug", func(c *Config) { c.Attestation.TEE, c.Debug = "sample", false; c.TestKeys = nil }},
		{"two sources", "brokers beside from_initdata", func(c *Config) { c.Attestation.FromInitdata = true }},
		{"initdata that nobody reads", "attestation: from_initdata: want plinth.workloads=initdata", func(c *Config) { c.Attestation.FromInitdata, c.Attestation.Brokers = true, nil }},
		{"too many brokers", "attestation: 17 brokers: want at most 16", func(c *Config) { c.Attestation.Brokers = make([]Broker, 17) }},
		{"no network", "attestation: want a network", func(c *Config) { c.Network = nil }},
		{"key", "attestation: key \"RSA1_5\"", func(c *Config) { c.Attestation.Key = "RSA1_5" }},
		{"hash", "attestation: hashes[1]: \"sha1\"", func(c *Config) { c.Attestation.Hashes[1] = "sha1" }},
		{"hash twice", "attestation: hashes[1]: \"sha512\"", func(c *Config) { c.Attestation.Hashes[1] = "sha512" }},
		{"transient handle", "ak_handle is 0x80000000, want 0x81000000 to 0x81ffffff", func(c *Config) { c.Attestation.AKHandle = 0x80000000 }},
		{"handle without a TPM", "ak_handle: want tee tpm", func(c *Config) { c.Attestation.TEE = "snp" }},

		{"no URL", `attestation: brokers[0]: url ""`, func(c *Config) { c.Attestation.Brokers[0].URL = "" }},
		{"no host", `attestation: brokers[0]: url "https://"`, func(c *Config) { c.Attestation.Brokers[0].URL = "https://" }},
		{"port alone", `attestation: brokers[0]: url "https://:8443"`, func(c *Config) { c.Attestation.Brokers[0].URL = "https://:8443" }},
		{"no port behind a colon", `attestation: brokers[0]: url "https://kbs:"`, func(c *Config) { c.Attestation.Brokers[0].URL = "https://kbs:" }},
		{"path", `attestation: brokers[0]: url "https://kbs/"`, func(c *Config) { c.Attestation.Brokers[0].URL = "https://kbs/" }},
		{"query", `attestation: brokers[0]: url "https://kbs?a"`, func(c *Config) { c.Attestation.Brokers[0].URL = "https://kbs?a" }},
		{"user", `attestation: brokers[0]: url "https://a:b@kbs"`, func(c *Config) { c.Attestation.Brokers[0].URL = "https://a:b@kbs" }},
		{"scheme", `attestation: brokers[0]: url "ftp://kbs"`, func(c *Config) { c.Attestation.Brokers[0].URL = "ftp://kbs" }},
		{"without TLS", "attestation: brokers[1]: url http://192.0.2.1: want https", func(c *Config) { c.Debug, c.TestKeys = false, nil }},
		{"twice", "attestation: brokers[1]: https://KBS.example.com:8443: twice", func(c *Config) { c.Attestation.Brokers[1].URL = "https://KBS.example.com:8443" }},
		{"certificates", "cas: want certificates in PEM", func(c *Config) { c.Attestation.Brokers[0].CAs = "x" }},
		{"no certificate", "cas: want certificates in PEM", func(c *Config) { c.Attestation.Brokers[0].CAs = "\n" }},
		{"port 0", "brokers[0]: url https://kbs:0: port: want 1 to 65535", func(c *Config) { c.Attestation.Brokers[0].URL = "https://kbs:0" }},
		{"large port", "brokers[0]: url https://kbs:65536: port: want 1 to 65535", func(c *Config) { c.Attestation.Brokers[0].URL = "https://kbs:65536" }},
		{"certificates and more", "cas: want certificates in PEM", func(c *Config) { c.Attestation.Brokers[0].CAs += "x" }},

		{"volume's name", `volumes[0]: name "../x"`, func(c *Config) { c.Volumes[0].Name = "../x" }},
		{"volume twice", `volumes[1]: name "data"`, func(c *Config) { c.Volumes[1].Name = "data" }},
		{"volume's disk", `volumes[0]: data: disk ""`, func(c *Config) { c.Volumes[0].Disk = "" }},
		{"disk twice", `volumes[1]: tmp: disk "data0"`, func(c *Config) { c.Volumes[1].Disk = "data0" }},
		{"disk of images", `volumes[0]: data: disk "data0"`, func(c *Config) { c.Storage = &Storage{Disk: "data0"} }},
		{"volume's key", `volumes[0]: data: key "kbs:///a/b"`, func(c *Config) { c.Volumes[0].Key = "kbs:///a/b" }},
		{"key of two volumes", `volumes[1]: tmp: key kbs:///a/b/c: want one that no other volume has`, func(c *Config) { c.Volumes[1].Key = "kbs:///a/b/c" }},
		{"climbing key", `volumes[0]: data: key "kbs:///a/../c"`, func(c *Config) { c.Volumes[0].Key = "kbs:///a/../c" }},
		{"format of nothing", "volumes[1]: tmp: format: want a key", func(c *Config) { c.Volumes[1].Format = true }},
		{"file system", `volumes[0]: data: filesystem "xfs"`, func(c *Config) { c.Volumes[0].Filesystem = "xfs" }},
		{"too many volumes", "volumes: 17: want at most 16", func(c *Config) { c.Volumes = make([]Volume, 17) }},
		{"volume's key of nobody", "volumes[0]: data: key: kbs:///a/b/c: there is no broker", noBroker},
		{"volume's key of another", "volumes[0]: data: key: kbs://other/a/b/c: other is none of the brokers", func(c *Config) { c.Volumes[0].Key = "kbs://other/a/b/c" }},
		{"another port", "volumes[0]: data: key: kbs://kbs.example.com/a/b/c: kbs.example.com is none of the brokers", func(c *Config) { c.Volumes[0].Key = "kbs://kbs.example.com/a/b/c" }},

		{"policy of nobody", "workloads: policy_from: kbs:///a/policy/b: there is no broker", func(c *Config) { noBroker(c); c.Volumes = nil }},
		{"sealed secret of nobody", "workloads: web: env: S: a sealed secret: there is no broker", func(c *Config) {
			noBroker(c)
			c.Volumes, c.Workloads.PolicyFrom, c.Workloads.Workloads[0].Mounts = nil, "", nil
		}},
		{"secret of another", "workloads: web: mounts[1]: kbs://other/a/b/c: other is none", func(c *Config) { c.Workloads.Workloads[0].Mounts[1].Secret = "kbs://other/a/b/c" }},
		{"no such volume", "workloads: web: mounts[0]: volume other: there is none", func(c *Config) { c.Workloads.Workloads[0].Mounts[0].Volume = "other" }},
		{"evidence of nothing", "workloads: web: api: evidence or token: the guest has no attestation", func(c *Config) {
			c.Attestation = nil
			c.Workloads.Workloads[0].Mounts[1].Secret = "kbs:///a/b/c"
		}},
		{"token of nobody", "workloads: web: api: token: there is no broker", func(c *Config) {
			c.Attestation.Brokers = nil
			c.Workloads.Workloads[0].Mounts[1].Secret = "kbs:///a/b/c"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := attested(t)
			tt.spoil(c)
			if _, err := c.Marshal(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

// Whose port is not said, is the scheme's.
func TestBrokersPort(t *testing.T) {
	for _, tt := range []struct {
		url, key string
		ok       bool
	}{
		{"https://kbs", "kbs://kbs:443/a/b/c", true}, {"https://kbs:443", "kbs://kbs/a/b/c", true}, {"http://kbs", "kbs://kbs:80/a/b/c", true},
		{"http://kbs", "kbs://kbs:443/a/b/c", false}, {"https://[2001:db8::1]", "kbs://[2001:db8::1]/a/b/c", true}, {"https://[2001:db8::1]:1", "kbs://[2001:db8::1]/a/b/c", false},
	} {
		c := &Config{Attestation: &Attestation{Brokers: []Broker{{URL: tt.url}}}}
		if err := c.gives(tt.key); (err == nil) != tt.ok {
			t.Errorf("%s of %s: %v", tt.key, tt.url, err)
		}
	}
}

// This package knows the names that evidence has.
func TestTEEs(t *testing.T) {
	a, b := slices.Sorted(slices.Values(tees)), slices.Sorted(slices.Values(evidence.TEEs))
	if !slices.Equal(a, b) || teeTPM != evidence.TEETPM || teeSample != evidence.TEESample {
		t.Errorf("%q, want %q", a, b)
	}
}
