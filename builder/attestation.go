package builder

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/profiles"
)

// brokerKey is what the lock calls the certificates of a broker.
func brokerKey(i int) string { return fmt.Sprintf("attestation.brokers[%d].cas", i) }

// addAttestation tells the agent by what it is attested, whom it may ask for secrets,
// and which disks it encrypts.
func (w *work) addAttestation(c *config.Config) error {
	p := w.Profile
	for _, v := range p.Volume {
		c.Volumes = append(c.Volumes, config.Volume{
			Name: v.Name, Disk: v.Disk, Key: v.Key, Integrity: v.Integrity, Filesystem: v.Filesystem, Format: v.Format,
		})
	}
	if !p.HasAttestation() {
		return nil
	}
	a := &p.Attestation
	c.Epoch = p.Epoch // certificates are judged by the clock
	c.Attestation = &config.Attestation{
		TEE: p.TEE(), FromInitdata: a.FromInitdata, Key: a.Key, Hashes: a.Hashes, Services: a.Services,
	}
	if a.AKHandle != "" {
		n, err := strconv.ParseUint(a.AKHandle, 0, 32)
		if err != nil {
			return &ValueError{"attestation.ak_handle", err}
		}
		c.Attestation.AKHandle = uint32(n)
	}
	for i, b := range a.Brokers {
		broker := config.Broker{URL: b.URL}
		if b.CAs != "" {
			pem, err := w.locked(brokerKey(i))
			if err != nil {
				return err
			}
			if len(pem) == 0 { // to the agent that is none at all: those of the root file system
				return &ValueError{brokerKey(i), errors.New("the file is empty")}
			}
			broker.CAs = string(pem)
		}
		c.Attestation.Brokers = append(c.Attestation.Brokers, broker)
	}
	return nil
}

// attestationInputs decide what addAttestation writes; nil where it writes nothing.
func (s *Spec) attestationInputs() []any {
	p := s.Profile
	var in []any
	if len(p.Volume) > 0 {
		in = append(in, p.Volume)
	}
	if !p.HasAttestation() {
		return in
	}
	a := p.Attestation
	a.Brokers = slices.Clone(a.Brokers)
	for i := range a.Brokers { // files stand by their digests
		a.Brokers[i].CAs = ""
	}
	return append(in, a, p.TEE(), s.brokerOrigins())
}

// brokerOrigins are the digests of the brokers' certificates.
func (s *Spec) brokerOrigins() (out []string) {
	for i, b := range s.Profile.Attestation.Brokers {
		if r, err := s.file(brokerKey(i)); b.CAs != "" && err == nil { // else the step that reads it fails
			out = append(out, fmt.Sprint(i, " ", r.Digest))
		}
	}
	return out
}

// authorityDirs are where the agent looks for authorities, as trees have their paths:
// Go, crypto/x509/root_linux.go.
var authorityDirs = []string{"etc/ssl/", "etc/pki/"}

// trustsRoot tells whether a broker's certificate is judged by the root's authorities.
func (s *Spec) trustsRoot() bool {
	return slices.ContainsFunc(s.Profile.Attestation.Brokers, func(b profiles.Broker) bool { return b.CAs == "" && strings.HasPrefix(b.URL, "https:") })
}

// checkAuthorities refuses a root without any, where a broker wants some.
func (s *Spec) checkAuthorities(entries []tree.Entry) error {
	has := func(e tree.Entry) bool {
		return slices.ContainsFunc(authorityDirs, func(d string) bool { return strings.HasPrefix(e.Path, d) })
	}
	if !s.trustsRoot() || slices.ContainsFunc(entries, has) {
		return nil
	}
	return &ValueError{"attestation.brokers", errors.New("no authorities in the root file system to know the broker by: add \"ca-certificates\" to root.packages, or name cas")}
}

// attestationModules are those that show the platform's reports. Names as Linux has
// them; the TPM of a vTPM guest is the profile's own to have a driver for.
func attestationModules(p *profiles.Profile) []string {
	if !p.HasAttestation() {
		return nil
	}
	switch p.TEE() {
	case profiles.TEESNP:
		return []string{"?configfs", "sev-guest", "?tsm"}
	case profiles.TEETDX:
		return []string{"?configfs", "tdx_guest", "?tsm"}
	}
	return nil
}

// Modules that encrypt disks, and those by which a changed sector is an error. The
// names with a ? are faster ones of their kind.
var (
	cryptModules     = []string{"virtio_blk", "dm_crypt", "xts", "?aesni_intel"}
	integrityModules = []string{"dm_integrity", "crypto-hmac", "crypto-sha256", "?sha256_ssse3"}
	ext4Modules      = []string{"ext4", "?crypto-crc32c", "?crc32c_intel"} // with checksums of its metadata
)

// volumeModules are those that volumes need. Programs of the guest may ask for
// volumes of their own, with what is there.
func volumeModules(p *profiles.Profile) (names []string) {
	if p.Attestation.Services {
		for _, m := range slices.Concat(cryptModules, integrityModules, ext4Modules) {
			names = append(names, "?"+strings.TrimPrefix(m, "?"))
		}
	}
	if len(p.Volume) == 0 {
		return names
	}
	names = slices.Concat(names, cryptModules, ext4Modules)
	if slices.ContainsFunc(p.Volume, func(v profiles.Volume) bool { return v.Integrity }) {
		names = append(names, integrityModules...)
	}
	return names
}
