package profiles

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Attestation is what the guest is attested by, and who gives it secrets for that.
type Attestation struct {
	TEE          string   `toml:"tee" enum:"tpm|snp|tdx|az-snp-vtpm|az-tdx-vtpm|sample" doc:"What makes the evidence, as Trustee calls it: tpm, the virtual TPM; snp or tdx, the hardware itself; az-snp-vtpm or az-tdx-vtpm, the hardware behind Azure's TPM; sample, which proves nothing and wants agent.debug. Absent: what the platform has, tpm, snp or tdx."`
	Brokers      []Broker `toml:"brokers" doc:"Brokers that may be asked, and no others. A name without a host, kbs:///REPOSITORY/TYPE/TAG, is the first one's."`
	FromInitdata bool     `toml:"from_initdata" excludes:"brokers" doc:"Take the broker that aa.toml and cdh.toml of the initdata name, which is measured before it is read. For workloads.from = initdata."`
	Key          string   `toml:"key" enum:"ECDH-ES+A256KW-P256|ECDH-ES+A256KW-P521|RSA-OAEP-256" doc:"Kind of the key that secrets are encrypted to; made afresh in each boot. Absent: ECDH-ES+A256KW-P256."`
	Hashes       []string `toml:"hashes,unique" enum:"sha256|sha384|sha512" doc:"Hash algorithms that the broker may choose from to bind that key to the evidence, best first. Absent: sha384, sha256, sha512."`
	AKHandle     string   `toml:"ak_handle" format:"handle" doc:"Where the TPM keeps its attestation key. Absent: at 0x81010002, if there is one, else one is made, the same in each boot of one TPM."`
	Services     bool     `toml:"services" doc:"Let programs of the root file system ask by the ttRPC services of CoCo's attestation-agent and confidential-data-hub."`
}

// Broker gives secrets: Trustee's KBS, or what speaks its protocol.
type Broker struct {
	URL string `toml:"url,id" format:"broker" doc:"Root of the broker, https://HOST:PORT. http is for agent.debug alone."`
	CAs string `toml:"cas" format:"file" doc:"Certificates in PEM that the broker's may come from, in the place of those of the root file system."`
}

// Volume is a disk that the guest encrypts. Nothing that the disk says of itself counts.
type Volume struct {
	Name       string `toml:"name,id" format:"label" doc:"Name of the volume, by which mounts of containers ask for it."`
	Disk       string `toml:"disk" format:"serial" doc:"Serial number of the virtio disk. Every volume has one."`
	Key        string `toml:"key" format:"resource" doc:"What the broker calls the key, of at least 32 bytes, another one for each volume. Absent: a random key that nobody knows, and what the disk held before is gone."`
	Integrity  bool   `toml:"integrity" doc:"A block that the host changed or moved is an error. Without it the host cannot read the disk, but can change it."`
	Filesystem string `toml:"filesystem" enum:"ext4" doc:"File system that is made. Absent: ext4."`
	Format     bool   `toml:"format" doc:"With a key: make the volume anew where the disk begins with zeros. Absent: such a disk is an error."`
}

// TEEs that evidence comes from, see Attestation.TEE.
const (
	TEETPM    = "tpm"
	TEESNP    = "snp"
	TEETDX    = "tdx"
	TEEAzSNP  = "az-snp-vtpm"
	TEEAzTDX  = "az-tdx-vtpm"
	TEESample = "sample"
)

// platformTEE is what makes evidence of a platform.
var platformTEE = map[string]string{PlatformVTPM: TEETPM, PlatformSNP: TEESNP, PlatformTDX: TEETDX}

// HasAttestation tells whether the guest shows evidence to anybody.
func (p *Profile) HasAttestation() bool { return !reflect.DeepEqual(p.Attestation, Attestation{}) }

// HasBroker tells whether there is somebody who gives it secrets.
func (p *Profile) HasBroker() bool {
	return len(p.Attestation.Brokers) > 0 || p.Attestation.FromInitdata
}

// TEE is what makes the guest's evidence.
func (p *Profile) TEE() string { return cmp.Or(p.Attestation.TEE, platformTEE[p.Platform]) }

// BrokeredPolicy tells whether the broker has the policy, and no file.
func (w *Workloads) BrokeredPolicy() bool { return brokered(w.Policy) }

// Granted tells whether a says anything.
func (a API) Granted() bool { return !reflect.DeepEqual(a, API{}) }

// attestation judges what stands under [attestation].
func (r *rules) attestation() {
	a, at := r.Attestation, func(k string) spot { return spot{"attestation", k} }
	if r.tree.table["attestation"] == nil || !r.faults.sound("platform", "attestation.tee", "attestation.brokers", "attestation.from_initdata", "agent.debug") {
		return
	}
	if !r.HasAttestation() && r.faults.sound("attestation.key", "attestation.hashes", "attestation.ak_handle", "attestation.services") {
		r.fault(spot{"attestation"}, `write tee = "`+platformTEE[r.Platform]+`"`, "says nothing")
	}
	if own := platformTEE[r.Platform]; r.Combined() && a.TEE != "" && a.TEE != own && a.TEE != TEESample {
		r.fault(at("tee"), "", "%s: platform %s has %s", quote(a.TEE), quote(r.Platform), own)
	}
	if a.FromInitdata && r.Workloads.From != FromInitdata && r.faults.sound("workloads.from") {
		r.fault(at("from_initdata"), `write from = "initdata" under [workloads]`, "wants workloads.from %s: else the guest reads no initdata", quote(FromInitdata))
	}
	if a.TEE == TEESample && !r.Agent.Debug {
		r.fault(at("tee"), "add agent.debug = true", "%s proves nothing: it wants agent.debug", quote(a.TEE))
	}
	if a.AKHandle != "" && r.TEE() != TEETPM {
		r.fault(at("ak_handle"), "", "is for tee %s", quote(TEETPM))
	}
	for i, b := range a.Brokers {
		if strings.HasPrefix(b.URL, "http:") && !r.Agent.Debug {
			r.fault(spot{"attestation", "brokers", i, "url"}, "write https", "%s: without TLS it wants agent.debug", quote(b.URL))
		}
	}
	if azure := r.TEE() == TEEAzSNP || r.TEE() == TEEAzTDX; (r.HasBroker() || azure) && !r.HasNetwork() && r.faults.sound("network.dhcp", "network.addresses") {
		r.fault(spot{"attestation"}, "add [network] with dhcp = true", "the guest has no network")
	}
}

// volumes judges disks, which nothing else may hold.
func (r *rules) volumes() {
	taken := map[string]string{}
	if d := r.Workloads.Disk; d != "" {
		taken[d] = "workloads.disk"
	}
	for _, w := range r.Workload {
		if name, ok := strings.CutPrefix(w.Image, archivePrefix); ok {
			serial, _, _ := strings.Cut(name, ":")
			taken[serial] = "workload " + w.Name
		}
	}
	keys := map[string]string{} // by one key the host, which numbers the disks, could exchange two
	for i, v := range r.Volume {
		at := func(k string) spot { return spot{"volume", i, k} }
		switch by := taken[v.Disk]; {
		case v.Disk == "" && r.faults.sound("volume[].disk"):
			r.fault(at("disk"), "", "is missing")
		case by != "":
			r.fault(at("disk"), "", "%s is that of %s already", quote(v.Disk), by)
		}
		taken[v.Disk] = "volume " + v.Name
		if v.Format && v.Key == "" && r.faults.sound("volume[].key") {
			r.fault(at("format"), "", "is for a volume with a key: without one it is made anew in each boot")
		}
		if v.Key != "" {
			r.brokered(at("key"), v.Key)
			if by := keys[v.Key]; by != "" {
				r.fault(at("key"), "", "%s is that of volume %s already", quote(v.Key), by)
			}
			keys[v.Key] = v.Name
		}
	}
}

// archivePrefix is before the serial number of a disk that is an image.
const archivePrefix = "oci-archive:/dev/disk/by-id/virtio-"

// secrets judges what a container gets of the guest.
func (r *rules) secrets(i int) {
	w := &r.Workload[i]
	at := func(s ...any) spot { return append(spot{"workload", i}, s...) }
	for j, m := range w.Mounts {
		known := slices.ContainsFunc(r.Volume, func(v Volume) bool { return v.Name == m.Volume })
		if m.Volume != "" && !known && r.faults.sound("volume", "volume[].name") {
			r.fault(at("mounts", j), "", "%s: no such [[volume]]", quote(m.Volume))
		}
		if m.Secret != "" {
			r.brokered(at("mounts", j), orSealed(m.Secret))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.Env)) {
		switch value := w.Env[name]; {
		case !strings.HasPrefix(value, sealedPrefix):
		case !formats["secret"].ok(value):
			r.fault(at("env", name), "", "begins as a sealed secret and is none")
		default:
			r.brokered(at("env", name), "a sealed secret")
		}
	}
	a, given := w.API, r.tree.table["workload"].list[i].table["api"] != nil
	switch {
	case !given || !r.faults.sound("workload[].api"):
		return
	case !a.Granted():
		r.fault(at("api"), `write evidence = true, or resources = ["kbs:///REPOSITORY/TYPE/TAG"]`, "grants nothing")
	case a.TEEKey && !a.Token:
		r.fault(at("api", "tee_key"), "", "wants token beside it")
	case a.Measure && r.Platform == PlatformSNP:
		r.fault(at("api", "measure"), "", "platform %s has no register for it", quote(r.Platform))
	}
	for j, name := range a.Resources {
		r.brokered(at("api", "resources", j), name)
	}
	if (a.Evidence || a.Token) && !r.HasAttestation() {
		r.fault(at("api"), `add [attestation] with tee = "`+platformTEE[r.Platform]+`"`, "evidence and token are of the guest's attestation")
	}
	if a.Token && r.HasAttestation() && !r.HasBroker() {
		r.fault(at("api", "token"), "add brokers under [attestation]", "there is no broker that gives one")
	}
}

const sealedPrefix = "sealed."

// orSealed is the name of a secret as a message has it.
func orSealed(s string) string {
	if strings.HasPrefix(s, sealedPrefix) {
		return "a sealed secret"
	}
	return s
}

// brokered reports a secret that nobody gives. Keys for tests stand in a broker's place.
func (r *rules) brokered(s spot, name string) {
	if !r.HasBroker() && len(r.Agent.TestKeys) == 0 && r.faults.sound("attestation.brokers", "attestation.from_initdata", "agent.test_keys") {
		if brokered(name) {
			name = quote(name)
		}
		r.fault(s, `add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`, "%s: the guest has no broker", name)
	}
}
