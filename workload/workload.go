// Package workload says what a guest runs: which container images, who must have
// signed them, which process each becomes, and the events by which all of it is
// measured before any of it starts. Guest and builder call the same functions, so
// that what is predicted is what is extended.
package workload

import (
	"encoding/json"
	"fmt"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// Schema is the number of the document's format.
const Schema = 1

// Argument is the kernel argument that says where the one Config comes from.
const Argument = "plinth.workloads"

// The values of Argument. Without it the guest runs no workloads.
const (
	FromImage    = "image"    // agent.json, measured with the image
	FromInitdata = "initdata" // what the guest was given at launch, key DataKey
)

// MaxSize bounds the document, in bytes.
const MaxSize = 1 << 20

// DataKey is what initdata calls the document.
const DataKey = "workloads.json"

// A Config is the whole document: JSON, strict.
type Config struct {
	Schema int `json:"schema"`
	// Policy is policy.json of containers/image. Without one every image is
	// rejected.
	Policy json.RawMessage `json:"policy,omitempty"`
	// PolicyFrom is what the broker calls the policy, in the place of Policy: "kbs:///...".
	PolicyFrom string `json:"policy_from,omitempty"`
	// Admit lists the kinds of images that are taken at all, whatever Policy says
	// of them: "encrypted+signed", "plain+unsigned". Absent: the signed ones.
	Admit      []string  `json:"admit,omitempty"`
	Registries string    `json:"registries,omitempty"`   // registries.conf, version 2
	Lookaside  []string  `json:"registries_d,omitempty"` // the files of registries.d, YAML
	CAs        string    `json:"cas,omitempty"`          // PEM; besides those of the root file system
	Proxy      *Proxy    `json:"proxy,omitempty"`
	Auth       string    `json:"auth,omitempty"` // what the key provider calls the auth.json: "kbs:///repository/type/tag"
	Limits     *Limits   `json:"limits,omitempty"`
	Workloads  []Process `json:"workloads"` // in start order

	// ImageService lets programs of the root file system pull images by the
	// interface of CoCo's confidential-data-hub, under the same policy.
	ImageService bool `json:"image_service,omitempty"`
}

// A Proxy is what registries are reached by.
type Proxy struct {
	HTTPS string `json:"https"`
	No    string `json:"no,omitempty"` // as the variable NO_PROXY
}

// Limits bound one image. Zero: the default of the puller.
type Limits struct {
	Bytes   int64 `json:"bytes,omitempty"`
	Entries int64 `json:"entries,omitempty"`
}

// A Process is one workload: an image, and what differs from what the image's
// configuration says. Effective fills in the image's part.
type Process struct {
	Name    string            `json:"name"`
	Image   string            `json:"image"`             // "docker://HOST/REPOSITORY@sha256:...", ":TAG" with a policy that asks for a signature, "oci-archive:/dev/disk/by-id/virtio-SERIAL"
	Digest  string            `json:"digest,omitempty"`  // "sha256:...": what Image must lead to, manifest or index, where Image cannot say it
	Command []string          `json:"command,omitempty"` // in the place of the image's Entrypoint and Cmd
	Args    []string          `json:"args,omitempty"`    // in the place of its Cmd
	Env     map[string]string `json:"env,omitempty"`     // besides the image's; a value "sealed...." is a sealed secret, opened when the container is made
	Dir     string            `json:"dir,omitempty"`
	User    string            `json:"user,omitempty"` // "USER[:GROUP]", names as the image has them

	Mounts       []Mount   `json:"mounts,omitempty"`
	Ports        []Port    `json:"ports,omitempty"`
	Network      string    `json:"network,omitempty"` // NetworkNAT (also when empty) or NetworkNone
	Resources    Resources `json:"resources,omitzero"`
	Capabilities []string  `json:"capabilities,omitempty"` // besides the default ones: "CAP_NET_ADMIN"
	ReadOnly     bool      `json:"read_only,omitempty"`    // the root of the container
	ScratchMiB   int       `json:"scratch_mib,omitempty"`  // bound of what is written to the root, in memory; 0: DefaultScratchMiB
	Devices      []string  `json:"devices,omitempty"`      // CDI: "vendor.example/class=name"
	Restart      string    `json:"restart,omitempty"`      // "", RestartFailure, RestartAlways
	Output       string    `json:"output,omitempty"`       // "": read and dropped; OutputConsole: to the console, which is the host's
	Exec         bool      `json:"exec,omitempty"`         // programs of the guest may run others in the container
	API          *API      `json:"api,omitempty"`          // what it may ask of the guest; nil: nobody listens
}

// An API is what a container may ask of the guest, by HTTP at 127.0.0.1:8006 of its own
// network, as CoCo's api-server-rest has it.
type API struct {
	Resources []string `json:"resources,omitempty"` // "kbs:///repository/type/tag", or "kbs:///repository/type/" and "kbs:///repository/" for all below
	Evidence  bool     `json:"evidence,omitempty"`
	Token     bool     `json:"token,omitempty"`
	TEEKey    bool     `json:"tee_key,omitempty"` // with the token comes the private key that secrets are encrypted to
	Measure   bool     `json:"measure,omitempty"` // it may extend events of domains that are not the agent's
}

// The values of Process.Network. Each container has a network of its own.
const (
	NetworkNAT  = "nat"  // it reaches what the guest reaches, by the guest's address; Ports lead to it
	NetworkNone = "none" // loopback
)

// The values of Process.Restart.
const (
	RestartFailure = "failure"
	RestartAlways  = "always"
)

// OutputConsole is a value of Process.Output.
const OutputConsole = "console"

// A Mount is a place of the container that is not in its image: exactly one of
// Tmpfs, Source, Volume and Secret says what is there.
type Mount struct {
	Path     string `json:"path"`                // in the container, absolute
	TmpfsMiB int    `json:"tmpfs_mib,omitempty"` // memory of its own, of at most this size
	Source   string `json:"source,omitempty"`    // file or directory of the measured root file system; always read-only
	Volume   string `json:"volume,omitempty"`    // name of an encrypted disk of the guest
	Secret   string `json:"secret,omitempty"`    // a file with what the broker calls "kbs:///repository/type/tag", or with a sealed secret's plaintext ("sealed."); read-only, in memory
}

// A Port of the guest that leads to one of the container.
type Port struct {
	Protocol  string `json:"protocol,omitempty"` // "tcp" (also when empty) or "udp"
	Guest     int    `json:"guest"`
	Container int    `json:"container"`
}

// Resources bound a container. Zero: no bound of its own.
type Resources struct {
	MemoryMiB int `json:"memory_mib,omitempty"`
	MilliCPU  int `json:"milli_cpu,omitempty"` // thousandths of a processor
	PIDs      int `json:"pids,omitempty"`      // 0: DefaultPIDs
}

// What a process gets that does not say.
const (
	DefaultScratchMiB = 64
	DefaultPIDs       = 1024
)

// Parse decodes the document. Whatever is not understood whole is an error:
// unknown and duplicate keys, data behind the document, values that contradict
// each other.
func Parse(b []byte) (*Config, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("workloads: %d bytes, want at most %d", len(b), MaxSize)
	}
	var c Config
	if err := strictjson.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("workloads: %w", err)
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &c, nil
}
