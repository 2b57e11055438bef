package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/internal/jcs"
)

// An Effective process is what runs: the image's configuration with a Process over
// it, and nothing left to be filled in. Its digest is measured, so that a field
// more is another digest of every process that sets it.
type Effective struct {
	Args       []string `json:"args"`
	Env        []string `json:"env"` // "NAME=VALUE": the image's, then the workload's by name
	Dir        string   `json:"dir"`
	User       string   `json:"user,omitempty"` // as the image or the workload writes it; found inside the image; "": root
	StopSignal string   `json:"stop_signal"`    // "SIGTERM"

	Mounts       []Mount   `json:"mounts,omitempty"`
	Ports        []Port    `json:"ports,omitempty"`
	Network      string    `json:"network"`
	Resources    Resources `json:"resources"`
	Capabilities []string  `json:"capabilities,omitempty"`
	ReadOnly     bool      `json:"read_only,omitempty"`
	ScratchMiB   int       `json:"scratch_mib,omitempty"` // 0 where the root is read-only
	Devices      []string  `json:"devices,omitempty"`
	Restart      string    `json:"restart,omitempty"`
	Output       string    `json:"output,omitempty"`
	Exec         bool      `json:"exec,omitempty"`
	API          *API      `json:"api,omitempty"`
}

// searchPath is PATH where neither the image nor the workload has one: runtimes
// find programs by it.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Effective fills in what the image's configuration says. Command stands in the
// place of the image's Entrypoint and Cmd, Args in the place of its Cmd (as
// command and args of a Kubernetes container do). Volumes, ExposedPorts and
// Healthcheck of the image mean nothing here.
func (p *Process) Effective(image *v1.ImageConfig) (*Effective, error) {
	e := &Effective{
		Args: p.args(image), Dir: p.Dir, User: orElse(p.User, image.User),
		Mounts: slices.Clone(p.Mounts), Ports: slices.Clone(p.Ports), Network: orElse(p.Network, NetworkNAT), Resources: p.Resources,
		Capabilities: slices.Sorted(slices.Values(p.Capabilities)), ReadOnly: p.ReadOnly, ScratchMiB: p.ScratchMiB,
		Devices: slices.Clone(p.Devices), Restart: p.Restart, Output: p.Output, Exec: p.Exec, API: p.API.sorted(),
	}
	for i := range e.Ports {
		e.Ports[i].Protocol = orElse(e.Ports[i].Protocol, "tcp")
	}
	if e.ScratchMiB == 0 && !e.ReadOnly {
		e.ScratchMiB = DefaultScratchMiB
	}
	if e.Resources.PIDs == 0 {
		e.Resources.PIDs = DefaultPIDs
	}
	if e.Dir == "" { // an image may have it without a slash
		e.Dir = path.Join("/", image.WorkingDir)
	}
	var err error
	if e.StopSignal, err = stopSignal(image.StopSignal); err == nil {
		e.Env, err = p.env(image.Env)
	}
	if err == nil {
		err = e.check()
	}
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", p.Name, err)
	}
	return e, nil
}

// sorted is a copy in which the order of grants makes no difference.
func (a *API) sorted() *API {
	if a == nil {
		return nil
	}
	out := *a
	out.Resources = slices.Sorted(slices.Values(a.Resources))
	return &out
}

func (p *Process) args(image *v1.ImageConfig) []string {
	switch {
	case len(p.Command) > 0:
		return slices.Concat(p.Command, p.Args)
	case len(p.Args) > 0:
		return slices.Concat(image.Entrypoint, p.Args)
	}
	return slices.Concat(image.Entrypoint, image.Cmd)
}

// env is the image's variables in its order, of a name the last value, without
// those that the workload sets; then these, by name.
func (p *Process) env(image []string) ([]string, error) {
	values := map[string]string{}
	var names []string
	for _, v := range image {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("the image's env: %.100q: want NAME=VALUE", v)
		}
		if _, ok := values[name]; !ok {
			names = append(names, name)
		}
		values[name] = value
	}
	var out []string
	_, ours := p.Env["PATH"]
	if _, ok := values["PATH"]; !ok && !ours {
		out = append(out, searchPath)
	}
	for _, name := range names {
		if _, ok := p.Env[name]; !ok {
			out = append(out, name+"="+values[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		out = append(out, name+"="+p.Env[name])
	}
	return out, nil
}

// maxEffective bounds arguments and variables together, in bytes: beyond 2 MiB the
// kernel starts no program (execve(2), "Limits on size of arguments and
// environment").
const maxEffective = 1 << 20

// check judges what came from the image; the workload's part was.
func (e *Effective) check() error {
	if len(e.Args) == 0 || e.Args[0] == "" {
		return fmt.Errorf("no program: the image has neither Entrypoint nor Cmd, and the workload no command")
	}
	size := 0
	for _, s := range slices.Concat(e.Args, e.Env, []string{e.Dir, e.User}) {
		if size += len(s) + 1; !text(s) {
			return fmt.Errorf("%.100q: want text without NUL", s)
		}
	}
	if size > maxEffective {
		return fmt.Errorf("arguments and variables of %d bytes: want at most %d", size, maxEffective)
	}
	if len(e.Env) > 2*maxList { // the image's and the workload's
		return fmt.Errorf("%d variables: want at most %d", len(e.Env), 2*maxList)
	}
	for _, v := range e.Env {
		if name, _, _ := strings.Cut(v, "="); len(name) > maxText {
			return fmt.Errorf("env: %.100q: want names of at most %d bytes", name, maxText)
		}
	}
	if e.User != "" && !userName.MatchString(e.User) {
		return fmt.Errorf("the image's user %.100q: want \"USER\" or \"USER:GROUP\"", e.User)
	}
	if !clean(e.Dir) {
		return fmt.Errorf("the image's working directory %.200q: want a path", e.Dir)
	}
	return nil
}

// Digest is the SHA-256 of e's canonical JSON (RFC 8785), "sha256:" before it.
func (e *Effective) Digest() (string, error) {
	b, err := jcs.Marshal(e)
	if err != nil {
		return "", err
	}
	return sha256Of(b), nil
}

// names are those of the variables, in order of the alphabet.
func (e *Effective) names() []string {
	out := []string{}
	for _, v := range e.Env {
		name, _, _ := strings.Cut(v, "=")
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func sha256Of(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
