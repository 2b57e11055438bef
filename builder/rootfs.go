package builder

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/plinth-os/plinth/builder/rootfs"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/erofs"
	"github.com/plinth-os/plinth/internal/ident"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/profiles"
)

// runRootFS makes root.erofs, and the inventory of what is in it.
func runRootFS(ctx context.Context, w *work) error {
	t, err := w.rootTree(ctx)
	if err != nil {
		return err
	}
	if err := w.putJSON("inventory.json", t.Inventory); err != nil {
		return err
	}
	p := erofs.Params{
		UUID:  ident.UUID(w.Profile.Seed, "root file system", treeDigest(t.Entries)),
		Epoch: w.Profile.Epoch,
		Label: "root",
	}
	return w.write(ctx, "root.erofs", func(cw *cas.Writer) error {
		b := bufio.NewWriterSize(cw, 1<<20)
		if err := erofs.Write(b, t.Entries, p); err != nil {
			return err
		}
		return b.Flush()
	})
}

// note tells the user something that changes nothing.
func (w *work) note(format string, args ...any) {
	if w.Workplace != nil && w.Workplace.Notice != nil {
		w.Workplace.Notice(format, args...)
	}
}

// rootTree is the root file system: packages, the profile's files, the agent.
func (w *work) rootTree(ctx context.Context) (*rootfs.Tree, error) {
	pkgs, err := w.rootPackages(ctx)
	if err != nil {
		return nil, err
	}
	layers, err := w.rootLayers(ctx)
	if err != nil {
		return nil, err
	}
	files, err := w.profileFiles()
	if err != nil {
		return nil, err
	}
	files = append(files, w.containerFiles()...)
	files = append(files, tree.File(rootfs.Agent, 0o755, w.blob(w.Guest.Agent)))
	if w.Profile.Agent.Shell {
		files = append(files, tree.File(guestShell, 0o755, w.blob(w.Guest.Shell)))
	}
	t, err := rootfs.Build(append(pkgs, layers...), files, w.rootParams())
	if err != nil {
		return nil, err
	}
	if err := w.checkRuntime(t.Entries); err != nil {
		return nil, err
	}
	if err := w.checkAuthorities(t.Entries); err != nil {
		return nil, err
	}
	if err := w.nameFiles(&t.Inventory); err != nil {
		return nil, err
	}
	for _, n := range t.Notes {
		w.note("root: %s: %s", cmp.Or(n.Package, w.Profile.Name), n.Text)
	}
	return t, nil
}

// rootParams are what the profile says of the root besides packages and files.
func (s *Spec) rootParams() rootfs.Params {
	p := s.Profile
	out := rootfs.Params{Epoch: p.Epoch, Exclude: p.Root.Exclude, Alternatives: p.Root.Alternatives}
	for _, u := range p.Users {
		out.Users = append(out.Users, rootfs.User{
			Name: u.Name, UID: number(u.UID), Group: u.Group, Comment: u.Comment, Home: u.Home, Shell: u.Shell, Groups: u.Groups,
		})
	}
	for _, g := range p.Groups {
		out.Groups = append(out.Groups, rootfs.Group{Name: g.Name, GID: number(g.GID)})
	}
	return out
}

// number is a user's or a group's; 0 stands for none given.
func number(n int) *uint32 {
	if n == 0 {
		return nil
	}
	u := uint32(n)
	return &u
}

// rootPackages fetches and unpacks the packages of the root.
func (w *work) rootPackages(ctx context.Context) ([]rootfs.Package, error) {
	unpacked, err := w.unpackRole(ctx, roleRoot)
	if err != nil {
		return nil, err
	}
	var out []rootfs.Package
	for i, p := range w.Lock.Role(roleRoot) {
		control, err := source.ReadControl(ctx, w.Store, p.Ref())
		if err != nil {
			return nil, err
		}
		out = append(out, rootfs.Package{
			Name: p.Name, Version: p.Version, Arch: p.Arch, SHA256: p.SHA256,
			Control: control, Entries: unpacked[i].Entries(w.Store, nil),
		})
	}
	return out, nil
}

// layerLimit bounds what one layer may hold, unpacked.
const layerLimit = 8 << 30

// rootLayers unpacks the layers of the root.
func (w *work) rootLayers(ctx context.Context) ([]rootfs.Package, error) {
	var out []rootfs.Package
	for _, l := range w.Profile.Layers {
		p, err := w.rootLayer(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", layerKey(l), err)
		}
		out = append(out, *p)
	}
	return out, nil
}

func (w *work) rootLayer(ctx context.Context, l profiles.Layer) (*rootfs.Package, error) {
	if slices.ContainsFunc(w.Lock.Role(roleRoot), func(p source.Package) bool { return p.Name == l.Name }) {
		return nil, errors.New("a package has this name, too")
	}
	r, err := w.file(layerKey(l))
	if err != nil {
		return nil, err
	}
	layer, err := source.UnpackLayer(ctx, w.Store, r, layerLimit)
	if err != nil {
		return nil, err
	}
	taken, err := rootfs.NewSelection(l.Paths, l.Strip, l.To)
	if err != nil {
		return nil, err
	}
	entries, err := layer.Entries(w.Store, taken.Place)
	if err != nil {
		return nil, err
	}
	if err := taken.Check(); err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("nothing is taken of it")
	}
	if uid, gid, ok := l.IDs(); ok {
		for i := range entries {
			entries[i].UID, entries[i].GID = uid, gid
		}
	}
	return &rootfs.Package{
		Name: l.Name, Version: "sha256:" + r.Digest.String(), SHA256: r.Digest, PURL: rootfs.GenericPURL(l.Name, r.Digest), Entries: entries,
	}, nil
}

// nameFiles makes what the profile took from addresses components of the root.
func (w *work) nameFiles(v *rootfs.Inventory) error {
	for _, f := range w.Profile.Files {
		if f.URL == "" {
			continue
		}
		r, err := w.file(fileKey(f))
		if err != nil {
			return err
		}
		v.Name(rootfs.Component{Name: f.Path, Version: "sha256:" + r.Digest.String(), SHA256: r.Digest.String(), PURL: rootfs.GenericPURL(f.Path, r.Digest)})
	}
	return nil
}

// treeDigest is over everything of a tree but the order of what has none.
func treeDigest(entries []tree.Entry) []byte {
	h := sha256.New()
	field := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	for _, e := range entries {
		field([]byte(e.Path))
		field([]byte(e.Target))
		field([]byte(e.Link))
		field(e.Content.Digest[:])
		for _, n := range []uint32{e.Mode, e.UID, e.GID, e.Major, e.Minor, uint32(len(e.Xattrs))} {
			h.Write(binary.BigEndian.AppendUint32(nil, n))
		}
		for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
			field([]byte(name))
			field(e.Xattrs[name])
		}
	}
	return h.Sum(nil)
}

// inventory returns what the rootfs step says is in the root.
func (w *work) inventory() (*rootfs.Inventory, error) {
	b, err := w.read("rootfs", "inventory.json")
	if err != nil {
		return nil, err
	}
	v := &rootfs.Inventory{}
	return v, json.Unmarshal(b, v)
}
