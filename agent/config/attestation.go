package config

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/workload"
)

// TEEs, as evidence has them, which stands beside this package.
const (
	teeTPM    = "tpm"
	teeSample = "sample"
)

var tees = []string{teeTPM, "snp", "tdx", "az-snp-vtpm", "az-tdx-vtpm", teeSample}

// What a broker may be asked to encrypt to, and by which digests it binds that key:
// those of agent/kbs.
var (
	keys   = []string{"ECDH-ES+A256KW-P256", "ECDH-ES+A256KW-P521", "RSA-OAEP-256"}
	hashes = []string{"sha256", "sha384", "sha512"}
)

// Persistent handles: TPM 2.0 Library part 2, section 7.5, and its registry of
// reserved handles.
const (
	firstPersistent = 0x81000000
	lastPersistent  = 0x81ffffff
)

const (
	maxBrokers = 16
	maxVolumes = 16
)

// HasBroker tells whether there is somebody to ask for secrets.
func (c *Config) HasBroker() bool {
	return c.Attestation != nil && (c.Attestation.FromInitdata || len(c.Attestation.Brokers) > 0)
}

func (c *Config) readsInitdata() bool {
	from, err := WorkloadsFrom(c.Cmdline)
	return err == nil && from == workload.FromInitdata
}

func (c *Config) checkAttestation() error {
	a := c.Attestation
	switch {
	case a == nil:
		return nil
	case !slices.Contains(tees, a.TEE):
		return fmt.Errorf("attestation: tee %.100q: want one of %s", a.TEE, strings.Join(tees, ", "))
	case a.TEE == teeSample && !c.Debug:
		return fmt.Errorf("attestation: tee %s: want debug beside it: it proves nothing", a.TEE)
	case a.FromInitdata && len(a.Brokers) > 0:
		return errors.New("attestation: brokers beside from_initdata")
	case a.FromInitdata && !c.readsInitdata():
		return fmt.Errorf("attestation: from_initdata: want %s=%s on the command line beside it", workload.Argument, workload.FromInitdata)
	case len(a.Brokers) > maxBrokers:
		return fmt.Errorf("attestation: %d brokers: want at most %d", len(a.Brokers), maxBrokers)
	case c.HasBroker() && c.Network == nil:
		return errors.New("attestation: want a network to reach a broker by")
	case a.Key != "" && !slices.Contains(keys, a.Key):
		return fmt.Errorf("attestation: key %.100q: want one of %s", a.Key, strings.Join(keys, ", "))
	case a.AKHandle != 0 && a.TEE != teeTPM:
		return fmt.Errorf("attestation: ak_handle: want tee %s beside it", teeTPM)
	case a.AKHandle != 0 && (a.AKHandle < firstPersistent || a.AKHandle > lastPersistent):
		return fmt.Errorf("attestation: ak_handle is %#x, want %#x to %#x", a.AKHandle, uint32(firstPersistent), uint32(lastPersistent))
	}
	for i, h := range a.Hashes {
		if !slices.Contains(hashes, h) || slices.Contains(a.Hashes[:i], h) {
			return fmt.Errorf("attestation: hashes[%d]: %.100q: want each once, of %s", i, h, strings.Join(hashes, ", "))
		}
	}
	seen := map[string]bool{}
	for i, b := range a.Brokers {
		host, err := b.check(c.Debug)
		if err == nil && seen[host] {
			err = fmt.Errorf("%s: twice", b.URL)
		}
		if err != nil {
			return fmt.Errorf("attestation: brokers[%d]: %w", i, err)
		}
		seen[host] = true
	}
	return nil
}

// check holds a broker to a root over TLS, by which nothing but a host is said, and
// returns the host with its port.
func (b *Broker) check(debug bool) (host string, _ error) {
	u, err := url.Parse(b.URL)
	switch {
	case err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || b.URL != u.Scheme+"://"+u.Host || ports[u.Scheme] == "":
		return "", fmt.Errorf("url %.200q: want \"https://HOST:PORT\"", b.URL)
	case u.Scheme == "http" && !debug:
		return "", fmt.Errorf("url %s: want https; http is for debug alone", b.URL)
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != p {
			return "", fmt.Errorf("url %s: port: want 1 to 65535", b.URL)
		}
	}
	if b.CAs != "" {
		if err := checkCertificates(b.CAs); err != nil {
			return "", fmt.Errorf("%s: cas: %w", b.URL, err)
		}
	}
	return withPort(u.Host, u.Scheme), nil
}

// ports are those that schemes mean.
var ports = map[string]string{"https": "443", "http": "80"}

func withPort(host, scheme string) string {
	if u := (&url.URL{Host: host}); u.Port() == "" {
		host += ":" + ports[scheme]
	}
	return strings.ToLower(host)
}

// checkCertificates takes certificates in PEM and no other blocks.
func checkCertificates(text string) error {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return errors.New("want certificates in PEM, and nothing beside them")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
		if len(strings.TrimSpace(string(rest))) == 0 {
			return nil
		}
	}
}

func (c *Config) checkVolumes() error {
	if len(c.Volumes) > maxVolumes {
		return fmt.Errorf("volumes: %d: want at most %d", len(c.Volumes), maxVolumes)
	}
	// Serial numbers are the host's to give: by one key it could exchange two disks.
	names, disks, keys := map[string]bool{}, map[string]bool{}, map[string]bool{}
	if c.Storage != nil && c.Storage.Disk != "" {
		disks[c.Storage.Disk] = true
	}
	for i, v := range c.Volumes {
		switch {
		case !workload.VolumeName(v.Name) || names[v.Name]:
			return fmt.Errorf("volumes[%d]: name %.100q: want one of its own, of at most 63 small letters, digits and \"-\"", i, v.Name)
		case !Serial(v.Disk) || disks[v.Disk]:
			return fmt.Errorf("volumes[%d]: %s: disk %.100q: want the serial number of a virtio disk that nothing else uses", i, v.Name, v.Disk)
		case v.Key != "" && !workload.ResourceName(v.Key):
			return fmt.Errorf("volumes[%d]: %s: key %.100q: want \"kbs:///REPOSITORY/TYPE/TAG\"", i, v.Name, v.Key)
		case v.Key != "" && keys[v.Key]:
			return fmt.Errorf("volumes[%d]: %s: key %s: want one that no other volume has", i, v.Name, v.Key)
		case v.Key == "" && v.Format:
			return fmt.Errorf("volumes[%d]: %s: format: want a key beside it: without one a volume is always made anew", i, v.Name)
		case !slices.Contains([]string{"", FilesystemExt4}, v.Filesystem):
			return fmt.Errorf("volumes[%d]: %s: filesystem %.100q: want %s", i, v.Name, v.Filesystem, FilesystemExt4)
		}
		names[v.Name], disks[v.Disk], keys[v.Key] = true, true, true
	}
	return nil
}

// checkSecrets refuses what could never be had: a guest that is sent out with it
// fails in front of its users.
func (c *Config) checkSecrets() error {
	for i, v := range c.Volumes {
		if v.Key == "" {
			continue
		}
		if err := c.gives(v.Key); err != nil {
			return fmt.Errorf("volumes[%d]: %s: key: %w", i, v.Name, err)
		}
	}
	if c.Workloads == nil {
		return nil
	}
	return c.Serves(c.Workloads)
}

// gives tells whether there is somebody to ask for a secret. Keys for tests stand in a
// broker's place.
func (c *Config) gives(name string) error {
	rest, _ := strings.CutPrefix(name, "kbs://")
	host, _, _ := strings.Cut(rest, "/")
	switch {
	case !c.HasBroker() && (len(c.TestKeys) == 0 || host != ""):
		return fmt.Errorf("%.200s: there is no broker to give it", orElse(name, "a sealed secret"))
	case host == "" || !c.HasBroker() || c.Attestation.FromInitdata:
		return nil
	}
	for _, b := range c.Attestation.Brokers {
		if u, err := url.Parse(b.URL); err == nil && withPort(u.Host, u.Scheme) == withPort(host, u.Scheme) {
			return nil
		}
	}
	return fmt.Errorf("%.200s: %s is none of the brokers", name, host)
}

// Serves tells whether the guest has what w asks of it: the volumes, and somebody who
// gives secrets. Workloads of initdata are judged so once they are read.
func (c *Config) Serves(w *workload.Config) error {
	for _, n := range w.Needs() {
		if err := c.gives(n.Name); err != nil {
			return fmt.Errorf("workloads: %s: %w", n.Where, err)
		}
	}
	for _, p := range w.Workloads {
		for i, m := range p.Mounts {
			if m.Volume != "" && !slices.ContainsFunc(c.Volumes, func(v Volume) bool { return v.Name == m.Volume }) {
				return fmt.Errorf("workloads: %s: mounts[%d]: volume %s: there is none", p.Name, i, m.Volume)
			}
		}
		switch a := p.API; {
		case a == nil:
		case (a.Evidence || a.Token) && c.Attestation == nil:
			return fmt.Errorf("workloads: %s: api: evidence or token: the guest has no attestation", p.Name)
		case a.Token && !c.HasBroker():
			return fmt.Errorf("workloads: %s: api: token: there is no broker to give it", p.Name)
		}
	}
	return nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
