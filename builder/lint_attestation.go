package builder

import (
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

func sampleTEE(i *lintImage) ([]lintFound, error) {
	if i.TEE() != profiles.TEESample {
		return nil, nil
	}
	return []lintFound{{
		"the guest's evidence is made up: whoever runs anything at all can show the same", "attestation.tee",
		"take what the platform has, and a broker that refuses sample evidence",
	}}, nil
}

func plainBroker(i *lintImage) (found []lintFound, _ error) {
	for _, b := range i.Attestation.Brokers {
		if strings.HasPrefix(b.URL, "http:") {
			found = append(found, lintFound{
				"whoever is on the way to " + b.URL + " can stand in for the broker, and give the guest secrets of its own", "attestation.brokers",
				"take https, and name the authorities in cas",
			})
		}
	}
	return found, nil
}

// noBroker is for images whose keys nobody gives.
func noBroker(i *lintImage) ([]lintFound, error) {
	if i.HasBroker() || len(i.Agent.TestKeys) > 0 {
		return nil, nil
	}
	c, err := i.containers()
	if err != nil || c == nil {
		return nil, err
	}
	plain := func(kind string) bool { return !strings.HasPrefix(kind, "encrypted+") }
	if len(c.Admit) > 0 && !slices.ContainsFunc(c.Admit, plain) {
		return []lintFound{{"only encrypted images are taken, and there is no broker to give their keys", "workloads.admit", "add brokers under [attestation]"}}, nil
	}
	if needs := c.Needs(); len(needs) > 0 {
		return []lintFound{{"there is no broker to give it", needs[0].Where, "add brokers under [attestation]"}}, nil
	}
	return nil, nil
}

func initdataBroker(i *lintImage) ([]lintFound, error) {
	if !i.Attestation.FromInitdata {
		return nil, nil
	}
	return []lintFound{{
		"the broker is whichever the initdata names, and who starts the guest chooses that: secrets of a broker of theirs are no secrets of yours", "attestation.from_initdata",
		"name the brokers in the profile, or have every verifier look at what binds the initdata",
	}}, nil
}

func grantedKey(i *lintImage) ([]lintFound, error) {
	return i.eachWorkload(func(p *workload.Process) *lintFound {
		if p.API == nil || !p.API.TEEKey {
			return nil
		}
		return &lintFound{
			"it gets the private key that the broker encrypts the guest's secrets to: with the token, it can have all that the guest can, whatever api.resources says", "api.tee_key",
			"let it ask for what it needs: api.resources",
		}
	})
}

// grantedEvidence: whoever chooses what evidence is bound to can ask a broker by a key
// of its own.
func grantedEvidence(i *lintImage) ([]lintFound, error) {
	return i.eachWorkload(func(p *workload.Process) *lintFound {
		if p.API == nil || !p.API.Evidence {
			return nil
		}
		return &lintFound{
			"it can attest to a broker as this guest, with a key of its own, and have all that the guest can, whatever api.resources says", "api.evidence",
			"let it ask for what it needs: api.resources, or api.token for who wants to know what the guest is",
		}
	})
}

// wideGrant: what the guest itself wants of the broker is not for containers.
func wideGrant(i *lintImage) ([]lintFound, error) {
	c, err := i.containers()
	if err != nil || c == nil {
		return nil, err
	}
	own := []string{c.Auth}
	for _, v := range i.Volume {
		own = append(own, v.Key)
	}
	return i.eachWorkload(func(p *workload.Process) *lintFound {
		if p.API == nil {
			return nil
		}
		for _, g := range p.API.Resources {
			covered := func(name string) bool { return name == g || strings.HasSuffix(g, "/") && strings.HasPrefix(name, g) }
			what := "all that the broker gives this guest, keys of images and of disks among it"
			if g != "kbs:///" {
				n := slices.IndexFunc(own, covered)
				if n < 0 {
					continue
				}
				what = own[n] + ", which is the guest's own"
			}
			return &lintFound{g + ": it may have " + what, "api.resources", "name what it needs: \"kbs:///REPOSITORY/TYPE/\""}
		}
		return nil
	})
}

func volumeIntegrity(i *lintImage) (found []lintFound, _ error) {
	for _, v := range i.Volume {
		if !v.Integrity {
			found = append(found, lintFound{
				"the host can turn blocks of the volume into noise, or into others, and nobody notices", fmt.Sprintf("volume %s: integrity", v.Name),
				"set integrity = true, which costs space and time; that a block is the newest, it does not say either",
			})
		}
	}
	return found, nil
}
