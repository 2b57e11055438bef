package builder

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/tree"
)

// Paths in the guest that belong to plinth.
const (
	guestAgent   = "init"
	guestShell   = "usr/lib/plinth/shell"
	guestModules = "usr/lib/plinth/modules"
)

// runInitrd makes initrd.
func runInitrd(ctx context.Context, w *work) error {
	fsys, done, err := w.moduleFS()
	if err != nil {
		return err
	}
	defer done() // a read-only file: nothing is lost
	index, err := initrd.IndexModules(fsys)
	if err != nil {
		return err
	}
	mods, err := index.Closure(w.wantedModules())
	if err != nil {
		return err
	}
	entries, err := w.initrdEntries(ctx, mods)
	if err != nil {
		return err
	}
	p := w.Profile.Initrd
	return w.write(ctx, "initrd", func(cw *cas.Writer) error {
		return initrd.Write(cw, nil, entries, initrd.Params{Compression: p.Compression, Level: p.Level, Epoch: w.Profile.Epoch})
	})
}

// wantedModules are those of the profile, and the one that agent.fw_cfg stands for.
func (s *Spec) wantedModules() []string {
	names := s.Profile.Kernel.Modules
	if s.Profile.Agent.FWCfg {
		names = append(slices.Clone(names), "qemu_fw_cfg")
	}
	return names
}

// initrdEntries lists what the initrd holds: the agent, its configuration, its
// modules, and what the profile adds.
func (w *work) initrdEntries(ctx context.Context, mods []initrd.Module) ([]tree.Entry, error) {
	entries, err := w.rootPackages(ctx)
	if err != nil {
		return nil, err
	}
	// The kernel opens /dev/console, and a Go program without one /dev/null,
	// before the agent mounts anything.
	entries = append(entries, tree.CharDev("dev/console", 0o600, 5, 1), tree.CharDev("dev/null", 0o666, 1, 3))
	for _, d := range []string{"proc", "sys", "run", "tmp"} {
		entries = appendDir(entries, d)
	}
	entries = append(entries, tree.File(guestAgent, 0o755, w.blob(w.Guest.Agent)))
	if w.Profile.Agent.Shell {
		entries = append(entries, tree.File(guestShell, 0o755, w.blob(w.Guest.Shell)))
	}
	c, err := w.agentConfig()
	if err != nil {
		return nil, err
	}
	for _, m := range mods {
		name := path.Join(guestModules, m.Name+".ko")
		body, err := m.Content()
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", m.Name, err)
		}
		entries = append(entries, tree.File(name, 0o644, tree.Bytes(body)))
		c.Modules = append(c.Modules, config.Module{Path: "/" + name, Params: m.Params})
	}
	files, err := w.profileFiles()
	if err != nil {
		return nil, err
	}
	conf, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	entries = append(entries, files...)
	entries = append(entries, tree.File(strings.TrimPrefix(config.Path, "/"), 0o644, tree.Bytes(conf)))
	return tree.Normalize(entries)
}

// agentConfig is what the guest is told; modules are added by the caller.
func (s *Spec) agentConfig() (*config.Config, error) {
	p := s.Profile
	c := &config.Config{
		Schema:  config.Schema,
		Cmdline: s.cmdline(),
		Phases:  p.Agent.Phases,
		Debug:   p.Agent.Debug,
		FWCfg:   p.Agent.FWCfg,
	}
	if p.Combined() {
		c.TPM = config.TPMOptional
	}
	if p.Agent.Shell {
		c.Shell = "/" + guestShell
	}
	for _, x := range p.Services {
		c.Services = append(c.Services, config.Service{Name: x.Name, Exec: x.Exec, Env: x.Env})
	}
	if p.PCRPolicy.Key == "" {
		return c, nil
	}
	key, err := s.file("pcr_policy.key")
	if err != nil {
		return nil, err
	}
	// What systemd-stub makes of .pcrpkey and .pcrsig. The signature covers this
	// configuration.
	c.Extra = map[string]string{
		"tpm2-pcr-public-key.pem": key.Digest.String(),
		"tpm2-pcr-signature.json": config.AnyContent,
	}
	return c, nil
}

// cmdline is the kernel command line: measured, and compared by the agent.
func (s *Spec) cmdline() string { return strings.Join(s.Profile.Cmdline, " ") }

func (w *work) profileFiles() ([]tree.Entry, error) {
	var out []tree.Entry
	for _, f := range w.Profile.Files {
		r, err := w.file(fileKey(f))
		if err != nil {
			return nil, err
		}
		e := tree.File(strings.TrimPrefix(f.Path, "/"), f.Perm(), w.blob(r))
		e.UID, e.GID = f.IDs()
		out = append(out, e)
	}
	return out, nil
}

// rootPackages returns the files of root.packages. Directories that several
// packages share appear once.
func (w *work) rootPackages(ctx context.Context) ([]tree.Entry, error) {
	pkgs, err := w.unpackRole(ctx, roleRoot)
	if err != nil {
		return nil, err
	}
	var out []tree.Entry
	dirs := map[string]bool{}
	for _, u := range pkgs {
		for _, e := range u.Entries(w.Store, nil) {
			if e.Type() == tree.TypeDir {
				if dirs[e.Path] {
					continue
				}
				dirs[e.Path] = true
			}
			out = append(out, e)
		}
	}
	return out, nil
}

func appendDir(entries []tree.Entry, name string) []tree.Entry {
	for _, e := range entries {
		if e.Path == name {
			return entries
		}
	}
	return append(entries, tree.Dir(name, 0o755))
}

func (w *work) blob(r cas.Ref) tree.Blob {
	return tree.Blob{Size: r.Size, Open: func() (io.ReadCloser, error) { return w.Store.Open(r) }}
}
