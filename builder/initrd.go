package builder

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder/rootfs"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/profiles"
)

// Paths in the guest that belong to plinth.
const (
	guestInit    = "init"
	guestShell   = "usr/lib/plinth/shell"
	guestModules = "usr/lib/plinth/modules"
)

// runInitrd makes initrd and, where it is the root, the bills of materials. It
// notes which drivers the kernel has built in.
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
	if err := w.putJSON(builtInOutput, builtIn(index)); err != nil {
		return err
	}
	mods, err := index.Closure(w.wantedModules())
	if err != nil {
		return err
	}
	base, inventory, err := w.initrdBase(ctx)
	if err != nil {
		return err
	}
	entries, err := w.initrdEntries(base, mods)
	if err != nil {
		return err
	}
	p := w.Profile.Initrd
	err = w.write(ctx, "initrd", func(cw *cas.Writer) error {
		return initrd.Write(cw, nil, entries, initrd.Params{Compression: p.Compression, Level: p.Level, Epoch: w.Profile.Epoch})
	})
	if err != nil || inventory == nil {
		return err
	}
	return w.putInventory(inventory, rootfs.Document{ImageFile: InitrdName, ImageSHA256: w.out["initrd"].Digest.String()})
}

// wantedModules are those of the profile, and those that other keys stand for.
func (s *Spec) wantedModules() []string {
	names := slices.Clone(s.Profile.Kernel.Modules)
	if s.Profile.Agent.FWCfg {
		names = append(names, "qemu_fw_cfg")
	}
	if s.Profile.Verity() {
		names = append(names, needed(s.Profile, rootModules(&s.Profile.Root))...)
	}
	return append(names, needed(s.Profile, containerModules(s.Profile))...)
}

// rootModules lead to a verity root.
func rootModules(r *profiles.Root) []string {
	names := []string{"dm_verity", "erofs", "crypto-" + r.Hash}
	if r.Overlay {
		names = append(names, "overlay")
	}
	return names
}

// initrdEntries adds modules and the agent's configuration to what the initrd
// holds.
func (w *work) initrdEntries(entries []tree.Entry, mods []initrd.Module) ([]tree.Entry, error) {
	root, err := w.root()
	if err != nil {
		return nil, err
	}
	c, err := w.agentConfig(root)
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
	if err := w.addContainers(c); err != nil {
		return nil, err
	}
	conf, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	entries = append(entries, tree.File(strings.TrimPrefix(config.Path, "/"), 0o644, tree.Bytes(conf)))
	return tree.Normalize(entries)
}

// initrdBase is what the initrd holds besides modules and configuration: the whole
// root, where the initrd is it, else no more than the agent needs to go there.
func (w *work) initrdBase(ctx context.Context) ([]tree.Entry, *rootfs.Inventory, error) {
	// The kernel opens /dev/console, and a Go program without one /dev/null,
	// before the agent mounts anything.
	entries := []tree.Entry{tree.CharDev("dev/console", 0o600, 5, 1), tree.CharDev("dev/null", 0o666, 1, 3)}
	if !w.Profile.Verity() {
		t, err := w.rootTree(ctx)
		if err != nil {
			return nil, nil, err
		}
		return append(entries, t.Entries...), &t.Inventory, nil
	}
	for _, d := range []string{"proc", "sys", "run", "tmp"} {
		entries = append(entries, tree.Dir(d, 0o755))
	}
	entries = append(entries, tree.File(guestInit, 0o755, w.blob(w.Guest.Agent)))
	if w.Profile.Agent.Shell { // for a root that cannot be reached
		entries = append(entries, tree.File(guestShell, 0o755, w.blob(w.Guest.Shell)))
	}
	return entries, nil, nil
}

// agentConfig is what the guest is told; modules are added by the caller.
func (s *Spec) agentConfig(root *Root) (*config.Config, error) {
	p := s.Profile
	c := &config.Config{
		Schema:  config.Schema,
		Cmdline: s.cmdline(root),
		Overlay: p.Root.Overlay,
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
		c.Services = append(c.Services, config.Service{
			Name: x.Name, Exec: x.Exec, Env: x.Env,
			After: x.After, Retry: x.Restart == profiles.RestartFailure, Restart: x.Restart == profiles.RestartAlways,
		})
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

// profileFiles are files, links and directories that the profile adds.
func (w *work) profileFiles() ([]tree.Entry, error) {
	var out []tree.Entry
	for _, f := range w.Profile.Files {
		name := strings.TrimPrefix(f.Path, "/")
		var e tree.Entry
		switch {
		case f.Link != "":
			e = tree.Symlink(name, f.Link)
		case f.Dir:
			e = tree.Dir(name, f.Perm())
		default:
			r, err := w.file(fileKey(f))
			if err != nil {
				return nil, err
			}
			e = tree.File(name, f.Perm(), w.blob(r))
		}
		e.UID, e.GID = f.IDs()
		out = append(out, e)
	}
	return out, nil
}

func (w *work) blob(r cas.Ref) tree.Blob {
	return tree.Blob{Size: r.Size, Digest: r.Digest, Open: func() (io.ReadCloser, error) { return w.Store.Open(r) }}
}
