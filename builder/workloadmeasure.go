package builder

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

// unknownInitdata is why neither PCR 8 nor the workloads of a guest can be predicted
// whose initdata is not known.
const unknownInitdata = "which initdata the guest is given is not known: name it in the profile"

// measureWorkloads adds what the guest's agent extends before the first container
// starts, from the functions that the agent calls.
func (i *Image) measureWorkloads(m *measure.Measurements) error {
	if !i.Profile.HasWorkloads() {
		return nil
	}
	events, err := i.workloadEvents()
	if err != nil || events == nil {
		return err
	}
	return m.AddWorkloads(events, WorkloadPCRs(i.Profile)...)
}

// WorkloadPCRs are the PCRs that a guest measures its workloads into.
func WorkloadPCRs(p *profiles.Profile) (pcrs []int) {
	if e := workloadEvents(p); p.HasWorkloads() && e != nil {
		if pcrs = append(pcrs, e.PCR); e.PCR23 {
			pcrs = append(pcrs, workload.CopyPCR)
		}
	}
	return pcrs
}

// workloadEvents are the events, nil where there are none.
func (i *Image) workloadEvents() ([]measure.WorkloadEvent, error) {
	if i.Profile.Workloads.From == profiles.FromInitdata && i.Initdata == nil {
		return []measure.WorkloadEvent{{Name: "workloads", Reason: unknownInitdata}}, nil
	}
	c, err := i.workloadConfig()
	if c == nil {
		return nil, err
	}
	unknown := ""
	if c.PolicyFrom == "" && i.Profile.Workloads.PolicyFile != "" {
		return nil, &ValueError{policyFileKey, errors.New("the initdata asks no broker for a policy")}
	}
	if c.PolicyFrom != "" {
		if c, unknown, err = i.brokersPolicy(c); err != nil {
			return nil, err
		}
	}
	images, err := i.lockedImages()
	if err != nil {
		return nil, err
	}
	events, err := predictEvents(c, images)
	if err == nil && unknown != "" {
		events[0].Data, events[0].Reason = nil, unknown
	}
	return events, err
}

// brokersPolicy is c with the policy that the profile expects of the broker, or why
// none is expected.
func (i *Image) brokersPolicy(c *workload.Config) (with *workload.Config, unknown string, err error) {
	policy := []byte("{}") // to have the event, which is not known
	if i.Profile.Workloads.PolicyFile == "" {
		unknown = "the broker has the policy, " + c.PolicyFrom + ": name the file in the profile, workloads.policy_file"
	} else if policy, err = i.read(PolicyName); err != nil {
		return nil, "", err
	}
	with, err = c.WithPolicy(policy)
	return with, unknown, err
}

// workloadConfig is the one document that the guest reads.
func (i *Image) workloadConfig() (*workload.Config, error) {
	if i.Profile.Workloads.From == profiles.FromInitdata {
		return initdataWorkloads(i.Initdata)
	}
	packed, err := i.Open(InitrdName)
	if err != nil {
		return nil, err
	}
	_, c, err := readAgent(packed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", InitrdName, err)
	}
	return c.Workloads, nil
}

// lockedImages are those of the image's lock, by workload.
func (i *Image) lockedImages() (map[string]LockedImage, error) {
	b, err := i.read(WorkloadsName)
	if err != nil {
		return nil, err
	}
	var list []LockedImage
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", WorkloadsName, err)
	}
	out := map[string]LockedImage{}
	for _, l := range list {
		out[l.Name] = l
	}
	return out, nil
}

// eventsOfWorkload is how many Events has of each.
const eventsOfWorkload = 2

// predictEvents computes the events. Those of an image that is named by a tag, and
// of one that the lock does not have, are not known.
func predictEvents(c *workload.Config, images map[string]LockedImage) ([]measure.WorkloadEvent, error) {
	admitted, reasons := make([]workload.Admitted, len(c.Workloads)), make([]string, len(c.Workloads))
	for i := range c.Workloads {
		p := &c.Workloads[i]
		l := images[p.Name]
		// The digest of an archive is the lock's own.
		locked := l.Image == p.Image && (l.Digest == p.Digest || l.Manifest == p.Digest)
		switch {
		case !locked:
			reasons[i] = p.Image + ": not in the lock of this image"
		case p.Wanted() == "":
			reasons[i] = p.Image + ": a tag may lead to another image tomorrow"
		}
		if !locked { // to have as many events
			l = LockedImage{Manifest: noDigest}
			l.Config.Cmd = []string{"unknown"}
		}
		e, err := p.Effective(&l.Config)
		if err != nil {
			return nil, err
		}
		admitted[i] = workload.Admitted{Process: p, Manifest: l.Manifest, Effective: e}
	}
	events, err := c.Events(admitted)
	if err != nil {
		return nil, err
	}
	out := make([]measure.WorkloadEvent, len(events))
	for n, e := range events {
		out[n] = measure.WorkloadEvent{Name: e.Operation, Data: e.Bytes()}
		if i := (n - 1) / eventsOfWorkload; n > 0 && i < len(admitted) {
			out[n].Name += " " + admitted[i].Process.Name
			if reasons[i] != "" {
				out[n].Data, out[n].Reason = nil, reasons[i]
			}
		}
	}
	return out, nil
}

const noDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
