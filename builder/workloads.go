package builder

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

// The files of [workloads], as the lock calls them.
const (
	policyKey      = "workloads.policy"
	policyFileKey  = "workloads.policy_file" // what a broker will give as the policy
	registriesKey  = "workloads.registries"
	registriesDKey = "workloads.registries_d"
	casKey         = "workloads.cas"
)

// process is a container as the guest is told of it.
func process(w *profiles.Workload) workload.Process {
	p := workload.Process{
		Name: w.Name, Image: w.Image, Command: w.Command, Args: w.Args, Env: w.Env, Dir: w.Dir, User: w.User,
		Network: w.Network, Resources: workload.Resources{MemoryMiB: w.Memory, MilliCPU: w.MilliCPU, PIDs: w.PIDs},
		Capabilities: w.Capabilities, ReadOnly: w.ReadOnly, ScratchMiB: w.Scratch, Devices: w.Devices,
		Restart: w.Restart, Output: w.Output, Exec: w.Exec,
	}
	for _, m := range w.Mounts {
		p.Mounts = append(p.Mounts, workload.Mount{Path: m.Path, Source: m.Source, TmpfsMiB: m.Tmpfs, Volume: m.Volume, Secret: m.Secret})
	}
	if a := w.API; a.Granted() {
		p.API = &workload.API{Resources: a.Resources, Evidence: a.Evidence, Token: a.Token, TEEKey: a.TEEKey, Measure: a.Measure}
	}
	for _, s := range w.Ports {
		protocol, guest, container := profiles.Port(s)
		p.Ports = append(p.Ports, workload.Port{Protocol: protocol, Guest: guest, Container: container})
	}
	return p
}

// workloadConfig is what the profile says, without the files that it names.
func workloadConfig(p *profiles.Profile) *workload.Config {
	w := &p.Workloads
	c := &workload.Config{Schema: workload.Schema, Admit: w.Admit, Auth: w.Auth, ImageService: w.ImageService}
	if w.Proxy != "" {
		c.Proxy = &workload.Proxy{HTTPS: w.Proxy, No: w.NoProxy}
	}
	if w.MaxSize+w.MaxFiles > 0 {
		c.Limits = &workload.Limits{Bytes: int64(w.MaxSize) << 20, Entries: int64(w.MaxFiles)}
	}
	if w.BrokeredPolicy() {
		c.PolicyFrom = w.Policy
	}
	c.Workloads = []workload.Process{}
	for i := range p.Workload {
		c.Workloads = append(c.Workloads, process(&p.Workload[i]))
	}
	return c
}

// lockedConfig is all of it: with the files, and with the digests of the images
// that lie in archives here.
func (s *Spec) lockedConfig(st *cas.Store) (*workload.Config, error) {
	c := workloadConfig(s.Profile)
	read := func(key string, into func([]byte)) error {
		r, err := s.file(key)
		if err != nil {
			return err
		}
		b, err := st.ReadFile(r.Digest)
		if err == nil {
			into(b)
		}
		return err
	}
	w := &s.Profile.Workloads
	policyFile := w.Policy
	if w.BrokeredPolicy() {
		policyFile = ""
	}
	files := []struct {
		path, key string
		into      func([]byte)
	}{
		{policyFile, policyKey, func(b []byte) { c.Policy = b }},
		{w.Registries, registriesKey, func(b []byte) { c.Registries = string(b) }},
		{w.CAs, casKey, func(b []byte) { c.CAs = string(b) }},
	}
	for i, path := range w.RegistriesD {
		files = append(files, struct {
			path, key string
			into      func([]byte)
		}{path, fmt.Sprintf("%s[%d]", registriesDKey, i), func(b []byte) { c.Lookaside = append(c.Lookaside, string(b)) }})
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if err := read(f.key, f.into); err != nil {
			return nil, err
		}
	}
	for i := range c.Workloads {
		if p := &c.Workloads[i]; p.Wanted() == "" && s.Profile.Workload[i].Archive != "" {
			r, err := s.file(manifestKey(p))
			if err != nil {
				return nil, err
			}
			p.Digest = "sha256:" + r.Digest.String()
		}
	}
	return c, nil // the agent's configuration is judged whole
}

// checkWorkloadFiles reads what a profile's files say as the guest will, so that
// what it would refuse fails here.
func checkWorkloadFiles(c *workload.Config) error {
	if c.Policy != nil {
		if _, err := policy.Parse(c.Policy); err != nil {
			return &ValueError{policyKey, err}
		}
	}
	if c.Registries != "" {
		if _, err := registry.ParseConfig([]byte(c.Registries)); err != nil {
			return &ValueError{registriesKey, err}
		}
	}
	var lookaside [][]byte
	for _, s := range c.Lookaside {
		lookaside = append(lookaside, []byte(s))
	}
	if _, err := imagepull.ParseLookaside(lookaside...); err != nil {
		return &ValueError{registriesDKey, err}
	}
	if _, err := imagepull.ParseAdmit(c.Admit); err != nil {
		return &ValueError{"workloads.admit", err}
	}
	for i := range c.Workloads {
		if _, err := policy.ParseName(c.Workloads[i].Image); err != nil {
			return &ValueError{fmt.Sprintf("workload[%d].image", i), err}
		}
	}
	return nil
}

// addContainers tells the agent what containers need.
func (w *work) addContainers(c *config.Config) error {
	p := w.Profile
	if err := w.addAttestation(c); err != nil {
		return err
	}
	if p.HasNetwork() {
		n := &p.Network
		c.Network = &config.Network{DHCP: n.DHCP, Addresses: n.Addresses, Gateways: n.Gateways, DNS: n.DNS, MTU: n.MTU}
	}
	if len(p.Agent.TestKeys) > 0 {
		c.TestKeys = map[string][]byte{}
		for name, text := range p.Agent.TestKeys {
			key, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return &ValueError{"agent.test_keys." + name, err}
			}
			c.TestKeys[name] = key
		}
	}
	if !p.HasWorkloads() {
		return nil
	}
	c.Epoch = p.Epoch
	c.Storage = &config.Storage{MemoryMiB: p.Workloads.Memory, Disk: p.Workloads.Disk}
	if *c.Storage == (config.Storage{}) {
		c.Storage.MemoryMiB = p.Machine.Memory / 2
	}
	c.Events = workloadEvents(p)
	if p.Workloads.From != profiles.FromImage {
		return nil
	}
	var err error
	if c.Workloads, err = w.lockedConfig(w.Store); err != nil {
		return err
	}
	return checkWorkloadFiles(c.Workloads)
}

// workloadEvents says which PCRs are extended. Of a trust domain RTMR 3 is, and
// none unless the profile asks: it has no TPM but where a cloud gives it one.
func workloadEvents(p *profiles.Profile) *config.Events {
	w := &p.Workloads
	if p.Platform != profiles.PlatformVTPM && w.EventPCR == 0 && !w.PCR23 {
		return nil
	}
	e := &config.Events{PCR: w.EventPCR, PCR23: w.PCR23}
	if e.PCR == 0 {
		e.PCR = workload.DefaultPCR
	}
	return e
}

// containerInputs decide what addContainers writes; nil where it writes nothing.
// Files stand in them by their digests, wherever they lie.
func (s *Spec) containerInputs() []any {
	p := s.Profile
	var in []any
	in = append(in, s.attestationInputs()...)
	if p.HasNetwork() {
		in = append(in, p.Network)
	}
	if !p.HasWorkloads() {
		return in
	}
	w := p.Workloads
	if !w.BrokeredPolicy() {
		w.Policy = ""
	}
	w.PolicyFile, w.Registries, w.RegistriesD, w.CAs = "", "", nil, ""
	list := slices.Clone(p.Workload)
	for i := range list {
		list[i].Archive = ""
	}
	return append(in, w, list, p.Machine.Memory, s.origin("", policyKey, registriesKey, registriesDKey, casKey, "workload"))
}

// containerRootInputs decide what is in the root for the sake of containers.
func (s *Spec) containerRootInputs() (in []any) {
	if s.Profile.HasNetwork() {
		in = append(in, config.ResolvConf)
	}
	if s.Profile.HasWorkloads() {
		in = append(in, runtimePath)
	}
	if s.trustsRoot() {
		in = append(in, authorityDirs)
	}
	return in
}

// Paths in the root file system, as trees have them.
var runtimePath = strings.TrimPrefix(config.Runtime, "/")

const resolvLink = "etc/resolv.conf"

// containerFiles are those that the root gets for containers.
func (s *Spec) containerFiles() []tree.Entry {
	own := slices.ContainsFunc(s.Profile.Files, func(f profiles.File) bool { return f.Path == "/"+resolvLink })
	if !s.Profile.HasNetwork() || own {
		return nil
	}
	return []tree.Entry{tree.Symlink(resolvLink, config.ResolvConf)}
}

// checkRuntime refuses a root that could run no container.
func (s *Spec) checkRuntime(entries []tree.Entry) error {
	if !s.Profile.HasWorkloads() || slices.ContainsFunc(entries, func(e tree.Entry) bool { return e.Path == runtimePath }) {
		return nil
	}
	return &ValueError{"root.packages", fmt.Errorf("no /%s in the root file system, which runs the containers: add \"crun\"", runtimePath)}
}

// containerModules are those that attestation, volumes, network, storage and
// containers need. Names as Linux has them; what a kernel has built in is found there.
func containerModules(p *profiles.Profile) (names []string) {
	names = append(attestationModules(p), volumeModules(p)...)
	if p.HasNetwork() {
		names = append(names, "virtio_net")
	}
	if !p.HasWorkloads() {
		return names
	}
	names = append(names,
		"dm_verity", "erofs", "crypto-sha256", "overlay", // images
		"veth", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq", // their network
		"?configfs", // how the platform shows its reports
	)
	if p.Workloads.Disk == "" {
		return append(names, "loop")
	}
	return append(names, "virtio_blk", "dm_crypt", "dm_integrity", "xts", "crypto-hmac", "?aesni_intel", "?sha256_ssse3")
}

// workloadsOutput is the document of the workloads step: the images that the
// workloads' names lead to, as the lock has them.
const workloadsOutput = "workloads.json"

// policyOutput is the policy that a broker will give, where the profile has it.
const policyOutput = "policy.json"

// A LockedImage is the image of one workload.
type LockedImage struct {
	Name     string         `json:"name"`             // of the workload
	Image    string         `json:"image"`            // as the workload calls it
	Digest   string         `json:"digest,omitempty"` // by which the workload wants it
	Manifest string         `json:"manifest"`         // digest
	Config   v1.ImageConfig `json:"config"`           // what it says of its process
}

// runWorkloads makes workloads.json, and hands on the broker's policy.
func runWorkloads(_ context.Context, w *work) error {
	if w.Profile.Workloads.PolicyFile != "" {
		r, err := w.file(policyFileKey)
		if err != nil {
			return err
		}
		b, err := w.Store.ReadFile(r.Digest)
		if err != nil {
			return err
		}
		if _, err := policy.Parse(b); err != nil {
			return &ValueError{policyFileKey, err}
		}
		w.out[policyOutput] = r
	}
	processes, err := w.processes()
	if err != nil {
		return err
	}
	out := []LockedImage{}
	for i := range processes {
		p := &processes[i]
		m, err := w.file(manifestKey(p))
		if errors.Is(err, errNotLocked) && w.Profile.Workloads.From == profiles.FromInitdata {
			continue // on a disk that only the guest is given
		}
		if err != nil {
			return err
		}
		c, err := w.file(imageConfigKey(p))
		if err != nil {
			return err
		}
		b, err := w.Store.ReadFile(c.Digest)
		if err != nil {
			return err
		}
		var image v1.Image
		if err := json.Unmarshal(b, &image); err != nil {
			return fmt.Errorf("%s: %w", imageConfigKey(p), err)
		}
		out = append(out, LockedImage{p.Name, p.Image, p.Digest, "sha256:" + m.Digest.String(), image.Config})
	}
	return w.putJSON(workloadsOutput, out)
}

// processes are the workloads that the profile, or the initdata that it names, has.
func (w *work) processes() ([]workload.Process, error) {
	if w.Profile.Workloads.From == profiles.FromImage {
		return workloadConfig(w.Profile).Workloads, nil
	}
	if w.Profile.Initdata == "" {
		return nil, nil
	}
	r, err := w.file(initdataKey)
	if err != nil {
		return nil, err
	}
	raw, err := w.Store.ReadFile(r.Digest)
	if err != nil {
		return nil, err
	}
	c, err := initdataWorkloads(raw)
	if c == nil {
		return nil, err
	}
	return c.Workloads, nil
}

// initdataWorkloads is what initdata says of workloads, nil where it says nothing.
func initdataWorkloads(raw []byte) (*workload.Config, error) {
	d, err := initdata.Parse(raw)
	if err != nil {
		return nil, err
	}
	text, ok := d.Data[workload.DataKey]
	if !ok {
		return nil, nil
	}
	c, err := workload.Parse([]byte(text))
	if err != nil {
		return nil, &ValueError{"initdata: " + workload.DataKey, err}
	}
	return c, nil
}

// needed puts a ? before the names of modules of which a kernel without modules
// knows nothing: everything is built in.
func needed(p *profiles.Profile, names []string) (out []string) {
	for _, m := range names {
		if p.Kernel.File != "" && p.Kernel.ModulesDir == "" {
			m = "?" + strings.TrimPrefix(m, "?")
		}
		out = append(out, m)
	}
	return out
}
