package builder

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/newc"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/measure"
)

// unpackLimit bounds what one package may hold, unpacked. The largest kernels
// of a distribution have 600 MiB.
const unpackLimit = 2 << 30

// A moduleTree tells the initrd step where a kernel's module directory is: in
// an unpacked package, or in an archive of a local directory.
type moduleTree struct {
	Dir      string           `json:"dir,omitempty"` // lib/modules/RELEASE in the package
	Unpacked *source.Unpacked `json:"unpacked,omitempty"`
	Archive  *cas.Ref         `json:"archive,omitempty"` // newc
}

// runKernel makes vmlinuz, release, modules and, where the package has it, config.
func runKernel(ctx context.Context, w *work) error {
	if w.Profile.Kernel.File != "" {
		return w.localKernel()
	}
	pkgs, err := w.unpackRole(ctx, roleKernel)
	if err != nil {
		return err
	}
	for _, u := range pkgs {
		for _, m := range u.Members {
			if release, ok := strings.CutPrefix(m.Path, "boot/vmlinuz-"); ok {
				return w.packagedKernel(ctx, u, release)
			}
		}
	}
	return fmt.Errorf("package %s: no boot/vmlinuz-* in it or in what it stands for", w.Profile.Kernel.Package)
}

func (w *work) packagedKernel(ctx context.Context, u *source.Unpacked, release string) error {
	if err := w.extract(ctx, "vmlinuz", u, "boot/vmlinuz-"+release); err != nil {
		return err
	}
	if _, ok := u.Member("boot/config-" + release); ok {
		if err := w.extract(ctx, "config", u, "boot/config-"+release); err != nil {
			return err
		}
	}
	dir, err := moduleDir(u, release)
	if err != nil {
		return err
	}
	sub := &source.Unpacked{Data: u.Data}
	for _, m := range u.Members {
		if strings.HasPrefix(m.Path, dir+"/") {
			sub.Members = append(sub.Members, m)
		}
	}
	w.out["modules.data"] = u.Data // so that the result is worth nothing once the blob is gone
	return w.kernelFacts(release, moduleTree{Dir: dir, Unpacked: sub})
}

// moduleDir: Debian 12 has lib/modules, Debian 13 usr/lib/modules.
func moduleDir(u *source.Unpacked, release string) (string, error) {
	for _, d := range []string{"usr/lib/modules/", "lib/modules/"} {
		if _, ok := u.Member(d + release); ok {
			return d + release, nil
		}
	}
	return "", fmt.Errorf("kernel %s: its package has no module directory", release)
}

func (w *work) localKernel() error {
	r, err := w.file("kernel.file")
	if err != nil {
		return err
	}
	w.out["vmlinuz"] = r
	f, err := w.Store.Open(r)
	if err != nil {
		return err
	}
	defer f.Close()
	release, err := measure.KernelRelease(f, r.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", w.Profile.Kernel.File, err)
	}
	var t moduleTree
	if w.Profile.Kernel.ModulesDir != "" {
		a, err := w.file("kernel.modules_dir")
		if err != nil {
			return err
		}
		t.Archive = &a
		w.out["modules.data"] = a
	}
	return w.kernelFacts(release, t)
}

func (w *work) kernelFacts(release string, t moduleTree) error {
	if err := w.put("release", []byte(release)); err != nil {
		return err
	}
	return w.putJSON("modules", t)
}

// moduleFS opens the module directory that the kernel step described. The
// caller calls done when it has read what it wants.
func (w *work) moduleFS() (fsys fs.FS, done func() error, err error) {
	b, err := w.read("kernel", "modules")
	if err != nil {
		return nil, nil, err
	}
	var t moduleTree
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, nil, err
	}
	none := func() error { return nil }
	switch {
	case t.Unpacked != nil:
		deb, err := t.Unpacked.Open(w.Store)
		if err != nil {
			return nil, nil, err
		}
		if fsys, err = fs.Sub(deb, t.Dir); err != nil {
			deb.Close()
		}
		return fsys, deb.Close, err
	case t.Archive != nil:
		fsys, err = w.archiveFS(*t.Archive)
		return fsys, none, err
	}
	return tree.FS(nil), none, nil // a kernel with everything built in
}

func (w *work) archiveFS(r cas.Ref) (fs.FS, error) {
	f, err := w.Store.Open(r)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := newc.Read(f, newc.Limits{})
	if err != nil {
		return nil, err
	}
	return tree.FS(entries), nil
}

// unpackRole fetches and unpacks the locked packages of a role.
func (w *work) unpackRole(ctx context.Context, role string) ([]*source.Unpacked, error) {
	pkgs := w.Lock.Role(role)
	refs, err := w.Workplace.fetch(ctx, w.Profile, pkgs)
	if err != nil {
		return nil, err
	}
	out := make([]*source.Unpacked, len(refs))
	for i, r := range refs {
		if out[i], err = source.UnpackDeb(ctx, w.Store, r, unpackLimit); err != nil {
			return nil, fmt.Errorf("package %s %s: %w", pkgs[i].Name, pkgs[i].Version, err)
		}
	}
	return out, nil
}

// extract stores one regular file of a package as an output. Links that the
// path ends in are followed.
func (w *work) extract(ctx context.Context, name string, u *source.Unpacked, path string) error {
	deb, err := u.Open(w.Store)
	if err != nil {
		return err
	}
	defer deb.Close()
	r, err := deb.Section(path)
	if err != nil {
		return err
	}
	return w.write(ctx, name, func(cw *cas.Writer) error {
		_, err := io.Copy(cw, r)
		return err
	})
}

// extractFrom extracts from the one of several packages that has the path.
func (w *work) extractFrom(ctx context.Context, name string, pkgs []*source.Unpacked, path string) error {
	for _, u := range pkgs {
		if _, ok := u.Member(path); ok {
			return w.extract(ctx, name, u, path)
		}
	}
	return fmt.Errorf("no %s in the package", path)
}
