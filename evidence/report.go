// Package evidence holds the wire formats of what a guest shows about itself.
// Guest and host share it; nothing here is trusted before it is compared with
// registers and reference values.
package evidence

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// ReportSchema is the number of the report's format.
const ReportSchema = 1

// MaxReport bounds a report, in bytes of JSON.
const MaxReport = 16 << 20

// MaxEventLog bounds the event log in a report, in bytes: in base64 it leaves
// room for the rest.
const MaxEventLog = 8 << 20

// MaxWorkloadLog bounds the log of workloads in a report, in bytes.
const MaxWorkloadLog = 1 << 20

// Registers is the number of PCRs that a report shows, from PCR 0 upwards: the
// static and the dynamic ones of the TCG PC Client profile.
const Registers = 24

// PCRs are register values in lower-case hexadecimal, by bank ("sha256") and
// register (0-23).
type PCRs map[string]map[int]string

// A Report is what the agent tells the host after a boot. It is unsigned: the
// host that reads it owns the TPM as well.
type Report struct {
	Schema   int       `json:"schema"`
	Agent    string    `json:"agent"`     // version
	Kernel   string    `json:"kernel"`    // uname -r
	Cmdline  string    `json:"cmdline"`   // /proc/cmdline
	Root     string    `json:"root"`      // what the root file system is: RootInitrd or RootVerity
	Banks    []string  `json:"banks"`     // active in the TPM: sha1, sha256, sha384, sha512
	Before   PCRs      `json:"before"`    // before the agent's own extends
	After    PCRs      `json:"after"`     // after them
	EventLog []byte    `json:"event_log"` // the firmware's, as the kernel kept it
	Extends  []Extend  `json:"extends"`
	Services []Service `json:"services"`
	Stages   []Stage   `json:"stages"`

	RootTable  string `json:"root_table,omitempty"`  // the device-mapper's table of a verity root: start, length, target, parameters
	RootDevice string `json:"root_device,omitempty"` // of "/": major:minor
	RootLower  string `json:"root_lower,omitempty"`  // of the verity root below an overlay: major:minor

	Addresses   []string   `json:"addresses,omitempty"`    // of the guest's network, CIDR
	Workloads   []Workload `json:"workloads,omitempty"`    // in start order
	WorkloadLog []byte     `json:"workload_log,omitempty"` // by what events workloads were measured: a TCG2 log of the guest's own

	Attestation *Attested `json:"attestation,omitempty"` // nil: nothing attests the guest
	Memory      int64     `json:"memory,omitempty"`      // KiB that the agent holds at the end of the boot: VmRSS
}

// Attested says by what a guest can be attested, and whom it asks for secrets.
type Attested struct {
	TEE     string   `json:"tee"`               // of TEEs
	Brokers []string `json:"brokers,omitempty"` // "host:port", the first asked first
}

// What the root file system of a guest can be.
const (
	RootInitrd = "initrd"
	RootVerity = "verity"
)

// An Extend is one of the agent's own.
type Extend struct {
	PCR     int               `json:"pcr"`
	What    string            `json:"what"`    // the phase
	Digests map[string]string `json:"digests"` // by bank, lower-case hexadecimal
}

// A Service is a program that the agent started.
type Service struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`   // 0 when it never ran
	State string `json:"state"` // Running, Exited, Failed or Waiting
}

// States of a Service.
const (
	Running = "running"
	Exited  = "exited"  // with status 0
	Failed  = "failed"  // with another status, by a signal, or not started at all
	Waiting = "waiting" // for a path that is not there yet; of a Workload, for its start
)

// A Workload is a container that the agent runs.
type Workload struct {
	Name    string `json:"name"`
	Image   string `json:"image"`             // as the configuration names it
	Digest  string `json:"digest"`            // of the manifest: "sha256:..."
	PID     int    `json:"pid"`               // of its first process; 0 when it never ran
	State   string `json:"state"`             // Running, Exited, Failed or Waiting
	Address string `json:"address,omitempty"` // by which the guest reaches it
}

// A Stage is a part of the boot.
type Stage struct {
	Name string `json:"name"`
	MS   int64  `json:"ms"` // its end, in milliseconds since the kernel started; says nothing about security
}

// WriteReport writes the length of the document, 32 bits big-endian, and the
// document, JSON, in one call of w.Write.
func WriteReport(w io.Writer, r *Report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("evidence: report: %w", err)
	}
	if len(b) > MaxReport {
		return fmt.Errorf("evidence: report: %d bytes, want at most %d", len(b), MaxReport)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// ReadReport reads what WriteReport wrote and not a byte more.
func ReadReport(r io.Reader) (*Report, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("evidence: report: length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxReport {
		return nil, fmt.Errorf("evidence: report: %d bytes, want at most %d", n, MaxReport)
	}
	// The length is a claim: memory grows with what arrives.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("evidence: report: %d of %d bytes: %w", len(b), n, err)
	}
	return ParseReport(b)
}

// ParseReport decodes the document alone. Unknown and duplicate keys, and
// values that no agent writes, are errors.
func ParseReport(b []byte) (*Report, error) {
	if len(b) > MaxReport {
		return nil, fmt.Errorf("evidence: report: %d bytes, want at most %d", len(b), MaxReport)
	}
	var r Report
	if err := strictjson.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("evidence: report: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("evidence: report: %w", err)
	}
	return &r, nil
}
