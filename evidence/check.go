package evidence

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// digestSizes are the banks that a report may show, with the size of a digest
// in bytes.
var digestSizes = map[string]int{"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}

// states are those of services and workloads.
var states = []string{Running, Exited, Failed, Waiting}

// check tells whether an agent could have written r. It says nothing about
// whether the values are right.
func (r *Report) check() error {
	if r.Schema != ReportSchema {
		return fmt.Errorf("schema is %d, want %d", r.Schema, ReportSchema)
	}
	if len(r.EventLog) > MaxEventLog {
		return fmt.Errorf("event_log: %d bytes, want at most %d", len(r.EventLog), MaxEventLog)
	}
	if err := r.checkBanks(); err != nil {
		return err
	}
	for i, e := range r.Extends {
		if err := r.checkExtend(e); err != nil {
			return fmt.Errorf("extends[%d]: %w", i, err)
		}
	}
	for i, s := range r.Services {
		if s.PID < 0 || !slices.Contains(states, s.State) {
			return fmt.Errorf("services[%d]: process %d is %q, want %s", i, s.PID, s.State, strings.Join(states, ", "))
		}
	}
	if err := r.checkAttested(); err != nil {
		return err
	}
	return r.checkWorkloads()
}

// maxBrokers bounds those of a guest.
const maxBrokers = 64

func (r *Report) checkAttested() error {
	if r.Memory < 0 {
		return fmt.Errorf("memory: %d KiB", r.Memory)
	}
	a := r.Attestation
	if a == nil {
		return nil
	}
	if !slices.Contains(TEEs, a.TEE) {
		return fmt.Errorf("attestation: tee %.40q: want one of %s", a.TEE, strings.Join(TEEs, ", "))
	}
	if len(a.Brokers) > maxBrokers {
		return fmt.Errorf("attestation: %d brokers, want at most %d", len(a.Brokers), maxBrokers)
	}
	for i, b := range a.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil || len(b) > 300 {
			return fmt.Errorf("attestation: brokers[%d]: %.300q: want host:port", i, b)
		}
	}
	return nil
}

// maxAddresses bounds the addresses of the guest's network.
const maxAddresses = 64

func (r *Report) checkWorkloads() error {
	if len(r.WorkloadLog) > MaxWorkloadLog {
		return fmt.Errorf("workload_log: %d bytes, want at most %d", len(r.WorkloadLog), MaxWorkloadLog)
	}
	if len(r.Addresses) > maxAddresses {
		return fmt.Errorf("addresses: %d, want at most %d", len(r.Addresses), maxAddresses)
	}
	for i, a := range r.Addresses {
		if _, err := netip.ParsePrefix(a); err != nil {
			return fmt.Errorf("addresses[%d]: %q: want an address and its prefix", i, a)
		}
	}
	for i, w := range r.Workloads {
		if w.PID < 0 || !slices.Contains(states, w.State) {
			return fmt.Errorf("workloads[%d]: process %d is %q, want %s", i, w.PID, w.State, strings.Join(states, ", "))
		}
		if _, err := netip.ParseAddr(w.Address); w.Address != "" && err != nil {
			return fmt.Errorf("workloads[%d]: address %q: want one", i, w.Address)
		}
	}
	return nil
}

func (r *Report) checkBanks() error {
	for i, b := range r.Banks {
		if digestSizes[b] == 0 {
			return fmt.Errorf("banks: %q: unknown", b)
		}
		if slices.Contains(r.Banks[:i], b) {
			return fmt.Errorf("banks: %q: twice", b)
		}
	}
	if err := r.checkPCRs(r.Before); err != nil {
		return fmt.Errorf("before: %w", err)
	}
	if err := r.checkPCRs(r.After); err != nil {
		return fmt.Errorf("after: %w", err)
	}
	return nil
}

func (r *Report) checkPCRs(p PCRs) error {
	for bank, values := range p {
		for n, v := range values {
			if err := r.checkDigest(bank, n, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Report) checkExtend(e Extend) error {
	for bank, v := range e.Digests {
		if err := r.checkDigest(bank, e.PCR, v); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) checkDigest(bank string, pcr int, v string) error {
	if !slices.Contains(r.Banks, bank) {
		return fmt.Errorf("bank %q is not among the active ones, %q", bank, r.Banks)
	}
	if pcr < 0 || pcr >= Registers {
		return fmt.Errorf("%s: PCR %d: want 0 to %d", bank, pcr, Registers-1)
	}
	if len(v) != 2*digestSizes[bank] || strings.Trim(v, "0123456789abcdef") != "" {
		return fmt.Errorf("%s: PCR %d: %q: want %d lower-case hexadecimal digits", bank, pcr, v, 2*digestSizes[bank])
	}
	return nil
}
