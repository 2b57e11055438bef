package workload

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// resourceName is a resource of a broker: its host, of those that the guest may ask,
// or none, and three parts, none of which begins with a dot. CoCo's guest-components,
// attestation-agent/docs/KBS_URI.md.
var (
	resourceName = regexp.MustCompile(`^kbs://` + resourceHost + `/` + part + `/` + part + `/` + part + `$`)
	// grant is one of whichever broker is asked first, or all below a path.
	grant = regexp.MustCompile(`^kbs:///(?:` + part + `/(?:` + part + `/(?:` + part + `)?)?)?$`)
)

const (
	part         = `[A-Za-z0-9_-][A-Za-z0-9._-]*`
	resourceHost = `(?:(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9a-f:]+\])(?::[0-9]{1,5})?)?`
)

// ResourceName tells whether s is what a broker may call a secret,
// "kbs:///repository/type/tag".
func ResourceName(s string) bool { return len(s) <= maxText && resourceName.MatchString(s) }

const sealedPrefix = "sealed."

// sealed is a JWS in its compact form behind the prefix: RFC 7515, section 3.1.
var sealed = regexp.MustCompile(`^sealed\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// Sealed tells whether s has the form of a sealed secret. Whose it is, and whether it
// may be opened, is for the guest to find out.
func Sealed(s string) bool { return len(s) <= maxValue && sealed.MatchString(s) }

// VolumeName tells whether s can be what a volume is called by.
func VolumeName(s string) bool { return processName.MatchString(s) }

// A Need is something that only a broker has.
type Need struct {
	Where string // in the document
	Name  string // what the broker calls it; "" for a sealed secret, which says it inside
}

// Needs are all of c, in order.
func (c *Config) Needs() (out []Need) {
	if c.PolicyFrom != "" {
		out = append(out, Need{"policy_from", c.PolicyFrom})
	}
	if c.Auth != "" {
		out = append(out, Need{"auth", c.Auth})
	}
	for i := range c.Workloads {
		for _, n := range c.Workloads[i].needs() {
			n.Where = c.Workloads[i].Name + ": " + n.Where
			out = append(out, n)
		}
	}
	return out
}

func (p *Process) needs() (out []Need) {
	for i, m := range p.Mounts {
		switch {
		case m.Secret == "":
		case Sealed(m.Secret):
			out = append(out, Need{fmt.Sprintf("mounts[%d]", i), ""})
		default:
			out = append(out, Need{fmt.Sprintf("mounts[%d]", i), m.Secret})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		if Sealed(p.Env[name]) {
			out = append(out, Need{"env: " + name, ""})
		}
	}
	if p.API != nil {
		for i, r := range p.API.Resources {
			out = append(out, Need{fmt.Sprintf("api: resources[%d]", i), r})
		}
	}
	return out
}

func (p *Process) checkAPI() error {
	a := p.API
	switch {
	case a == nil:
		return nil
	case len(a.Resources) == 0 && !a.Evidence && !a.Token && !a.TEEKey && !a.Measure:
		return fmt.Errorf("api: grants nothing")
	case a.TEEKey && !a.Token:
		return fmt.Errorf("api: tee_key: want token beside it")
	case len(a.Resources) > maxList:
		return fmt.Errorf("api: %d resources: want at most %d", len(a.Resources), maxList)
	}
	for i, r := range a.Resources {
		if len(r) > maxText || !grant.MatchString(r) || slices.Contains(a.Resources[:i], r) {
			return fmt.Errorf("api: resources[%d]: %.100q: want each once, as in \"kbs:///REPOSITORY/TYPE/TAG\" or \"kbs:///REPOSITORY/\"", i, r)
		}
	}
	return nil
}
