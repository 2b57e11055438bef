package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/network"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/workload"
)

// work is what the stages of workloads leave for each other.
type work struct {
	failed    bool             // a stage has, whichever; only a debug build goes on, and without containers
	configfs  bool             // it was mounted
	config    *workload.Config // nil where the guest has none
	registers []register       // in which workloads are measured
	log       eventLog

	attestation attestation
	volumes     volumes

	site     site
	uplink   *network.Uplink // nil where there is no network
	store    imageStore
	puller   *imagepull.Puller
	prepared []*imagepull.Prepared // beside config.Workloads, until they are fetched
	images   []*imagepull.Pulled   // beside config.Workloads
	admit    []workload.Admitted   // the same
	opened   []*opened             // the same, until they are used
	shown    shownImages
	fleet    fleet
}

// forWorkloads makes a stage of what only workloads need: skipped where the command
// line names no source of them, where the source has none, and after a failure that
// only a debug build outlives.
func forWorkloads(run func(context.Context, *State) error) func(context.Context, *State) error {
	return wherever(func(ctx context.Context, s *State) error {
		if s.work.config == nil {
			return nil
		}
		return run(ctx, s)
	})
}

// wherever is forWorkloads for the stages before it is known whether there are any.
func wherever(run func(context.Context, *State) error) func(context.Context, *State) error {
	return func(ctx context.Context, s *State) error {
		from, err := config.WorkloadsFrom(s.Config.Cmdline)
		if err != nil || from == "" || s.work.failed {
			return err
		}
		return run(ctx, s)
	}
}

// online is wherever for what a network wants, too, whoever it is for.
func online(run func(context.Context, *State) error) func(context.Context, *State) error {
	return func(ctx context.Context, s *State) error {
		if s.Config.Network == nil {
			return wherever(run)(ctx, s)
		}
		if s.work.failed {
			return nil
		}
		return run(ctx, s)
	}
}

// configfs is where the kernel shows reports of confidential platforms. It is a
// module, so that it is mounted late.
var configfs = mount{fstype: "configfs", target: "/sys/kernel/config", flags: sealed, optional: true}

func (s *State) mountConfigfs() error {
	if s.work.configfs {
		return nil
	}
	s.work.configfs = true
	if err := s.mount(configfs); err != nil {
		return fmt.Errorf("%s: %w", configfs.target, err)
	}
	return nil
}

// findWorkloads reads the one document that says what runs, and refuses it where
// nobody outside could tell that it was this one.
func findWorkloads(ctx context.Context, s *State) error {
	if err := s.mountConfigfs(); err != nil {
		return err
	}
	s.work.registers = s.eventRegisters()
	c := s.Config.Workloads
	from, _ := config.WorkloadsFrom(s.Config.Cmdline) // it was read before
	if from == workload.FromInitdata {
		var err error
		if c, err = s.fromInitdata(ctx); err != nil {
			return fmt.Errorf("initdata: %w", err)
		}
	}
	if c == nil {
		s.logf("no workloads")
		return nil
	}
	if !s.measured() {
		if err := c.Pinned(); err != nil {
			return fmt.Errorf("nothing here can measure what a tag leads to: %w", err)
		}
	}
	s.work.config = c
	return nil
}

// fromInitdata measures the document that the guest was given, or that it was given
// none, and only then acts on it: what is no document cannot be measured, and ends
// the boot.
func (s *State) fromInitdata(ctx context.Context) (*workload.Config, error) {
	l, err := s.launched()
	if err != nil {
		return nil, err
	}
	raw, err := s.readInitdata(ctx)
	if err != nil {
		return nil, err
	}
	var d *initdata.Document
	if raw != nil {
		if d, err = initdata.Parse(raw); err != nil {
			return nil, err
		}
	}
	if err := s.bind(d, l); err != nil {
		return nil, err
	}
	if d == nil {
		return nil, nil
	}
	s.work.attestation.document = d
	text, ok := d.Data[workload.DataKey]
	if !ok {
		return nil, nil
	}
	c, err := workload.Parse([]byte(text))
	if err != nil {
		return nil, err
	}
	return c, s.Config.Serves(c) // workloads of the configuration were judged with it
}

var errUnbound = errors.New("neither a TPM that the guest needs nor the platform shows which document this is")

// bind makes evidence of the guest show the document: a TPM is extended, and of a
// platform the launch must be the one with it.
func (s *State) bind(d *initdata.Document, l *launch) error {
	bound := false
	if l != nil {
		if err := l.holds(d); err != nil {
			return err
		}
		bound = true
	}
	if s.TPM != nil {
		digest, err := workload.NoInitdata(), error(nil)
		if d != nil {
			digest, err = d.Extend()
		}
		switch {
		case err == nil:
			err = s.Extender.ExtendSHA256(initdata.PCR, "initdata", digest)
		case bound && s.tpmOptional() && errors.Is(err, initdata.ErrAlgorithm):
			err = nil // the platform binds it, and nobody asks this TPM
		}
		if err != nil {
			return err
		}
		bound = bound || !s.tpmOptional()
	}
	if !bound {
		return errUnbound
	}
	return nil
}

// reportWorkloads fills in what a report says of containers.
func (s *State) reportWorkloads() error {
	s.Report.Workloads = s.work.fleet.states()
	var err error
	s.Report.WorkloadLog, err = s.readWorkloadLog()
	return err
}
