// Package config is the agent's only configuration: one strict document in the
// initrd or in the verity root, and so measured with it.
package config

import (
	"fmt"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/workload"
)

// Path is where the document lies in the guest.
const Path = "/etc/plinth/agent.json"

// Schema is the number of the document's format.
const Schema = 1

// MaxSize bounds the document, in bytes.
const MaxSize = 1 << 20

// ReportPort is the default name of the virtio-serial port for the report.
const ReportPort = "org.plinth.report"

// Boot phases, in the order in which the agent passes them. The words are
// those of systemd's pcrphase services, so that policies made for them hold.
const (
	EnterInitrd = "enter-initrd" // the boot is the one that the image was built for; modules are loaded
	LeaveInitrd = "leave-initrd" // the root file system is the final one
	SysInit     = "sysinit"      // what services need is there
	Ready       = "ready"        // services were started
)

// Phases are all boot phases, in order.
var Phases = []string{EnterInitrd, LeaveInitrd, SysInit, Ready}

// What the agent does after a failure.
const (
	PowerOff = "poweroff"
	Reboot   = "reboot"
	Halt     = "halt"
)

// Whether the guest wants a TPM.
const (
	TPMRequired = "required" // none ends the boot
	TPMOptional = "optional" // the guest is attested by other means; one that is there is reported
)

// AnyContent in Config.Extra admits a file whatever it holds.
const AnyContent = "any"

// Config is what the agent is told at build time. There are no defaults for
// what is measured: a phase that is not listed is not extended.
type Config struct {
	Schema     int       `json:"schema"`
	Cmdline    string    `json:"cmdline"`               // the only one it may be booted with
	Modules    []Module  `json:"modules,omitempty"`     // in load order
	Phases     []string  `json:"phases,omitempty"`      // those of Phases that are extended into PCR 11, in the same order
	Services   []Service `json:"services,omitempty"`    // in start order
	ReportPort string    `json:"report_port,omitempty"` // empty: ReportPort
	// Extra are the files that a UKI's stub may put below /.extra, by their path
	// there ("os-release"), with the SHA-256 of their content in hexadecimal. A
	// PCR signature covers this document and so cannot be listed in it with its
	// digest: that one file is AnyContent.
	Extra     map[string]string `json:"extra,omitempty"`
	Overlay   bool              `json:"overlay,omitempty"`    // a verity root is writable, in memory
	FWCfg     bool              `json:"fw_cfg,omitempty"`     // qemu_fw_cfg may be among Modules
	TPM       string            `json:"tpm,omitempty"`        // TPMRequired (also when empty) or TPMOptional
	Debug     bool              `json:"debug,omitempty"`      // report what is wrong and go on
	Shell     string            `json:"shell,omitempty"`      // program for the console; debug only
	OnFailure string            `json:"on_failure,omitempty"` // PowerOff (also when empty), Reboot or Halt

	// What containers need. Whether there are any, and by which document, the
	// command line says: workload.Argument.
	Workloads *workload.Config  `json:"workloads,omitempty"` // of workload.FromImage
	Network   *Network          `json:"network,omitempty"`   // nil: loopback alone
	Storage   *Storage          `json:"storage,omitempty"`   // of images; nil where there are no workloads
	Events    *Events           `json:"events,omitempty"`    // where workloads are measured; nil: nowhere
	Epoch     int64             `json:"epoch,omitempty"`     // the clock never shows less, seconds since 1970
	TestKeys  map[string][]byte `json:"test_keys,omitempty"` // by "kbs:///repository/type/tag", in the place of a broker's; debug only

	Attestation *Attestation `json:"attestation,omitempty"` // nil: the guest has no broker, and shows no evidence
	Volumes     []Volume     `json:"volumes,omitempty"`     // encrypted disks, opened before the first container is made
}

// Attestation says by what the guest is attested, and who gives it secrets for that.
type Attestation struct {
	TEE     string   `json:"tee"`               // of evidence.TEEs; evidence.TEESample with debug alone
	Brokers []Broker `json:"brokers,omitempty"` // no other is asked; the first, where a URI names none

	// FromInitdata takes the broker that aa.toml and cdh.toml of the initdata name,
	// which is measured like this document. Excludes Brokers.
	FromInitdata bool `json:"from_initdata,omitempty"`

	Key      string   `json:"key,omitempty"`       // to which secrets are encrypted: one of kbs.Keys; empty: the first of them
	Hashes   []string `json:"hashes,omitempty"`    // offered for the binding of keys, best first; empty: sha384, sha256, sha512
	AKHandle uint32   `json:"ak_handle,omitempty"` // of a TPM's attestation key; 0: CoCo's, if there is one, else one is made

	// Services lets programs of the root file system ask by the ttRPC services of CoCo's
	// attestation-agent and confidential-data-hub.
	Services bool `json:"services,omitempty"`
}

// A Broker gives secrets: Trustee's KBS, or what speaks its protocol.
type Broker struct {
	URL string `json:"url"`           // "https://kbs.example.com:8443", without a path
	CAs string `json:"cas,omitempty"` // PEM; in the place of the root file system's. http is for debug alone
}

// A Volume is a disk that the guest encrypts. What the disk says of itself counts for
// nothing: the cipher is this one, and only the key is the broker's.
type Volume struct {
	Name       string `json:"name"`                 // a DNS label
	Disk       string `json:"disk"`                 // serial number of a virtio disk
	Key        string `json:"key,omitempty"`        // "kbs:///repository/type/tag"; empty: random, and what the disk held is gone
	Integrity  bool   `json:"integrity,omitempty"`  // a changed or moved sector is an error
	Filesystem string `json:"filesystem,omitempty"` // FilesystemExt4 (also when empty)
	Format     bool   `json:"format,omitempty"`     // with a Key: a disk that begins with zeros is made anew; else that is an error
}

// FilesystemExt4 is the only value of Volume.Filesystem.
const FilesystemExt4 = "ext4"

// Network is how the guest's one network interface is set up.
type Network struct {
	DHCP bool `json:"dhcp,omitempty"` // DHCPv4, and of IPv6 what routers announce; excludes what follows

	Addresses []string `json:"addresses,omitempty"` // CIDR
	Gateways  []string `json:"gateways,omitempty"`  // at most one of each family
	DNS       []string `json:"dns,omitempty"`       // addresses; with DHCP, in the place of the lease's
	MTU       int      `json:"mtu,omitempty"`
}

// Storage is where images are kept until the guest stops: exactly one of the two.
type Storage struct {
	MemoryMiB int    `json:"memory_mib,omitempty"` // at most so much memory
	Disk      string `json:"disk,omitempty"`       // serial number of a virtio disk, which is encrypted with a random key
}

// Events says in which register of the TPM workloads are measured, besides RTMR 3
// where the platform has that.
type Events struct {
	PCR   int  `json:"pcr"`
	PCR23 bool `json:"pcr_23,omitempty"` // a copy where other tools look for it; whoever reaches the TPM can reset it
}

// A Module is a kernel module, decompressed.
type Module struct {
	Path   string `json:"path"` // absolute; the file's name is the module's name and ".ko"
	Params string `json:"params,omitempty"`
}

// A Service is a program that the agent starts and supervises.
type Service struct {
	Name    string            `json:"name"`
	Exec    []string          `json:"exec"` // absolute path and arguments
	Env     map[string]string `json:"env,omitempty"`
	After   string            `json:"after,omitempty"`   // start it once this path is there; empty: at once
	Retry   bool              `json:"retry,omitempty"`   // start it again when it failed
	Restart bool              `json:"restart,omitempty"` // start it again when it ends
}

// Parse decodes the document. Whatever the agent does not understand whole is
// an error: unknown and duplicate keys, data behind the document, values that
// contradict each other.
func Parse(b []byte) (*Config, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("config: %d bytes, want at most %d", len(b), MaxSize)
	}
	var c Config
	if err := strictjson.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return &c, nil
}

// Marshal writes the document; equal configurations give equal bytes. It
// refuses what Parse would refuse in the guest.
func (c *Config) Marshal() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	b, err := strictjson.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("config: %d bytes, want at most %d", len(b), MaxSize)
	}
	return b, nil
}
