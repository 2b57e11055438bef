package workload

import (
	"crypto"
	_ "crypto/sha1" // a bank that TPMs still have
	"crypto/sha256"
	_ "crypto/sha512" // of RTMRs and of banks
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/jcs"
)

// Who gives an event its meaning.
const (
	DomainCoCo   = "github.com/confidential-containers"
	DomainPlinth = "github.com/plinth-os/plinth"
)

// Operations of events.
const (
	OpPolicy    = "Policy"    // of DomainPlinth: what images must be
	OpPullImage = "PullImage" // of DomainCoCo
	OpWorkload  = "Workload"  // of DomainPlinth: a container
	OpSeparator = "Separator" // of DomainPlinth: no workload comes behind it
)

// Registers of events.
const (
	DefaultPCR = 14 // no shim runs here, whose keys and hashes it has elsewhere; nothing resets it at locality 0
	CopyPCR    = 23 // where other tools look; whoever reaches the TPM can reset it
	RTMR       = 3
	RTMRIndex  = 4 // of RTMR 3 in a CC event log: UEFI 2.10, section 38.4.1
)

// An Event is one line of the attestation agent's event log of CoCo: Trustee,
// kbs/docs/confidential-containers-eventlog.md.
type Event struct {
	Domain    string `json:"domain"`
	Operation string `json:"operation"`
	Content   string `json:"content"` // canonical JSON, one line
}

// An Admitted workload is one whose image was proven.
type Admitted struct {
	Process   *Process
	Manifest  string // digest of the platform's manifest
	Effective *Effective
}

// maxEvents bounds the text of all events of a configuration, in bytes. A log has each
// once for every register, of which there are at most three (RTMR 3, a PCR, its copy),
// and has to fit evidence.MaxWorkloadLog.
const maxEvents = 256 << 10

// Events are all by which c is measured before its first container starts, in the
// order in which a register is extended: the policy, of each workload the image
// and the configuration, the separator. admitted are all of c.Workloads, in order.
// Variables are there by name; their values only in the configuration's digest.
func (c *Config) Events(admitted []Admitted) ([]Event, error) {
	if len(admitted) != len(c.Workloads) {
		return nil, fmt.Errorf("workloads: %d admitted, want all %d", len(admitted), len(c.Workloads))
	}
	policy, err := c.policyEvent()
	if err != nil {
		return nil, err
	}
	out := []Event{policy}
	for i, a := range admitted {
		if a.Process.Name != c.Workloads[i].Name {
			return nil, fmt.Errorf("workloads[%d]: %s admitted, want %s", i, a.Process.Name, c.Workloads[i].Name)
		}
		events, err := a.events()
		if err != nil {
			return nil, fmt.Errorf("workloads: %s: %w", a.Process.Name, err)
		}
		out = append(out, events...)
	}
	separator, err := event(DomainPlinth, OpSeparator, map[string]any{"workloads": len(admitted)})
	out = append(out, separator)
	size := 0
	for _, e := range out {
		size += len(e.Text())
	}
	if size > maxEvents {
		return nil, fmt.Errorf("workloads: events of %d bytes: want at most %d; names of images and of variables are in them", size, maxEvents)
	}
	return out, err
}

// WithPolicy is c with the policy that the broker gave by the name PolicyFrom.
func (c *Config) WithPolicy(policy []byte) (*Config, error) {
	if c.PolicyFrom == "" || c.Policy != nil {
		return nil, fmt.Errorf("workloads: policy: nothing is asked of a broker")
	}
	if !json.Valid(policy) {
		return nil, fmt.Errorf("workloads: policy %s: not JSON", c.PolicyFrom)
	}
	out := *c
	out.Policy = slices.Clone(policy)
	return &out, nil
}

// policyEvent has the digest of the policy's canonical JSON: agent.json, initdata
// and brokers may write one policy with other spaces. Without a policy, nothing is
// admitted, and there is no digest.
func (c *Config) policyEvent() (Event, error) {
	if c.PolicyFrom != "" && c.Policy == nil {
		return Event{}, fmt.Errorf("workloads: policy %s: not known yet", c.PolicyFrom)
	}
	content := map[string]any{}
	if c.Policy != nil {
		b, err := jcs.Transform(c.Policy)
		if err != nil {
			return Event{}, fmt.Errorf("workloads: policy: %w", err)
		}
		content["policy"] = sha256Of(b)
	}
	if len(c.Admit) > 0 {
		content["admit"] = slices.Sorted(slices.Values(c.Admit))
	}
	return event(DomainPlinth, OpPolicy, content)
}

func (a *Admitted) events() ([]Event, error) {
	pulled, err := PullImage(a.Process.Image, a.Manifest)
	if err != nil {
		return nil, err
	}
	digest, err := a.Effective.Digest()
	if err != nil {
		return nil, err
	}
	process, err := event(DomainPlinth, OpWorkload, map[string]any{
		"configuration": digest, "env": a.Effective.names(), "image": a.Manifest, "name": a.Process.Name,
	})
	return []Event{pulled, process}, err
}

// PullImage is the event of one image, as CoCo's agents write it: image is its name
// without "docker://", manifest the digest of the platform's manifest.
func PullImage(image, manifest string) (Event, error) {
	if !sha256Digest.MatchString(manifest) {
		return Event{}, fmt.Errorf("manifest %.100q: want \"sha256:\" and 64 small hexadecimal digits", manifest)
	}
	return event(DomainCoCo, OpPullImage, map[string]any{"image": strings.TrimPrefix(image, transportRegistry), "digest": manifest})
}

func event(domain, operation string, content any) (Event, error) {
	b, err := jcs.Marshal(content)
	return Event{domain, operation, string(b)}, err
}

// Text is the event in words: domain and operation have no spaces, content no line
// end.
func (e Event) Text() string { return e.Domain + " " + e.Operation + " " + e.Content }

// tag says whose tagged event it is: "AAEL", which in a log stands as "LEAA".
const tag = 0x4141454c

// Bytes is the tagged event, little-endian: TCG_PCClientTaggedEvent (TCG PC Client
// Platform Firmware Profile 1.06, section 10.4.2.1).
func (e Event) Bytes() []byte {
	text := e.Text()
	b := binary.LittleEndian.AppendUint32(nil, tag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// Digest is what a register is extended by, in the bank of h.
func (e Event) Digest(h crypto.Hash) []byte {
	d := h.New()
	d.Write(e.Bytes())
	return d.Sum(nil)
}

// algorithms is TPM_ALG_ID: TPM 2.0 Library part 2, section 6.3.
var algorithms = map[crypto.Hash]uint16{crypto.SHA1: 0x04, crypto.SHA256: 0x0b, crypto.SHA384: 0x0c, crypto.SHA512: 0x0d}

const eventTag = 6 // EV_EVENT_TAG

// Record is the event as a log has it, TCG_PCR_EVENT2: register is the PCR, or
// RTMRIndex; hashes are those of the banks that were extended. CoCo's agents write
// one.
func (e Event) Record(register uint32, hashes ...crypto.Hash) []byte {
	b := binary.LittleEndian.AppendUint32(nil, register)
	b = binary.LittleEndian.AppendUint32(b, eventTag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(hashes)))
	for _, h := range hashes {
		b = binary.LittleEndian.AppendUint16(b, algorithms[h])
		b = append(b, e.Digest(h)...)
	}
	data := e.Bytes()
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
}

// NoInitdata is what PCR 8 is extended by, in bank sha256, where a guest looked for
// initdata and was given none: so that its absence is seen too. No document has
// this digest, for it is of what is none.
func NoInitdata() []byte {
	sum := sha256.Sum256([]byte(DomainPlinth + " NoInitdata"))
	return sum[:]
}
