package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/initdata"
)

// attestation is what the guest is attested by, and who gives it secrets for that.
type attestation struct {
	attester attester.Attester // nil: none
	brokers  broker            // nil: none
	document *initdata.Document
	ready    chan struct{} // closed when the boot is over; nil: there is nothing to wait for
}

// A broker gives secrets by their URIs, and the first one's tokens: *kbs.Brokers.
type broker interface {
	Resource(ctx context.Context, uri string) ([]byte, error)
	Token(ctx context.Context) (*kbs.Token, error)
}

// openAttestation makes what asks for secrets. Nobody is asked yet.
func openAttestation(_ context.Context, s *State) (err error) {
	c := s.Config.Attestation
	if c == nil || s.work.failed {
		return nil
	}
	if err := s.mountConfigfs(); err != nil {
		return err
	}
	a := &s.work.attestation
	a.ready = make(chan struct{})
	if a.attester, err = s.newAttester(c); err != nil {
		return err
	}
	s.Report.Attestation = &evidence.Attested{TEE: c.TEE}
	from := *c
	if c.FromInitdata {
		if from, err = s.coco(from); err != nil {
			return err
		}
	}
	var clients []*kbs.Client
	for _, b := range from.Brokers {
		client, err := s.newClient(&from, b)
		if err != nil {
			return fmt.Errorf("broker %s: %w", b.URL, err)
		}
		clients = append(clients, client)
	}
	if len(clients) == 0 {
		return nil
	}
	brokers, err := s.work.site.brokers(clients...)
	if err != nil {
		return err // and no nil pointer beside it
	}
	a.brokers = brokers
	return nil
}

// newAttester makes the one that the configuration names: a host may hide a device or
// show one more, and not choose.
func (s *State) newAttester(c *config.Attestation) (attester.Attester, error) {
	switch c.TEE {
	case evidence.TEETPM:
		if s.tpm == nil {
			return nil, errNoTPM
		}
		return attester.NewTPM(s.tpm, attester.TPMOptions{AKHandle: c.AKHandle, Snapshot: s.snapshot})
	case evidence.TEESNP:
		return attester.NewSNP(s.Root)
	case evidence.TEETDX:
		return attester.NewTDX(s.Root, s.ccLog)
	case evidence.TEEAzSNP, evidence.TEEAzTDX:
		if s.tpm == nil {
			return nil, errNoTPM
		}
		return attester.NewAzure(c.TEE, s.tpm, nil, s.snapshot)
	case evidence.TEESample:
		if !s.debug() {
			return nil, errors.New("sample: it proves nothing: want debug beside it")
		}
		return attester.NewSample(), nil
	}
	return nil, fmt.Errorf("tee %q: want one of %s", c.TEE, strings.Join(evidence.TEEs, ", "))
}

// snapshot hands over the log of all PCRs: the firmware's and, behind it, what the
// agent extended. Nothing is extended meanwhile.
func (s *State) snapshot(read func(log []byte) error) error {
	if s.Extender == nil {
		return errNoTPM
	}
	return s.journal().hold(func() error {
		if s.firmwareLog == nil { // it does not grow: boot services are over
			b, err := s.readEventLog()
			if err != nil {
				return err
			}
			s.firmwareLog = b
		}
		log := make([]byte, 0, len(s.firmwareLog)+len(s.Extender.log))
		log = append(log, s.firmwareLog...)
		return read(append(log, s.Extender.log...))
	})
}

// newClient makes a client of one broker.
func (s *State) newClient(c *config.Attestation, b config.Broker) (*kbs.Client, error) {
	client := &kbs.Client{
		URL: b.URL, Attester: s.work.attestation.attester, Key: kbs.KeyAlgorithm(c.Key), Hashes: c.Hashes,
		Generation: s.journal().generation, UserAgent: "plinth-agent", Logf: s.logf,
		AllowHTTP: s.debug(),
	}
	var err error
	if b.CAs == "" {
		client.Roots, err = roots("")
	} else {
		client.Roots, err = kbs.ParseCAs(b.CAs)
	}
	if err != nil {
		return nil, err
	}
	if d := s.work.attestation.document; d != nil {
		client.InitData = &evidence.InitData{Format: "toml", Body: string(d.Raw)}
	}
	s.Report.Attestation.Brokers = append(s.Report.Attestation.Brokers, client.Host())
	return client, nil
}

// coco is the configuration with what the initdata says for CoCo's programs: the broker,
// and the kind of key. Of the rest the log says that it means nothing.
func (s *State) coco(c config.Attestation) (config.Attestation, error) {
	d := s.work.attestation.document
	if d == nil {
		return c, nil
	}
	coco, err := kbs.ParseCoCo(d.Data["aa.toml"], d.Data["cdh.toml"])
	if err != nil {
		return c, fmt.Errorf("initdata: %w", err)
	}
	for _, name := range coco.Ignored {
		s.logf("initdata: %s: means nothing here", name)
	}
	if coco.URL != "" {
		c.Brokers = []config.Broker{{URL: coco.URL, CAs: coco.CAs}}
	}
	if coco.Key != "" {
		c.Key = string(coco.Key)
	}
	return c, nil
}

// settled waits until the boot is over, where somebody attests the guest: what asks
// for secrets while programs run is attested at one phase, the last.
func (s *State) settled(ctx context.Context) error {
	if s.work.attestation.ready == nil {
		return nil
	}
	select {
	case <-s.work.attestation.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ready is the last phase.
func ready(ctx context.Context, s *State) error {
	err := extendPhase(config.Ready)(ctx, s)
	if ch := s.work.attestation.ready; ch != nil && (err == nil || s.debug()) {
		close(ch)
	}
	return err
}
