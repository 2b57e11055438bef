package builder

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/newc"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/profiles"
)

// A local is one input that a profile names by path on the building host, or by
// address and digest. Its key in the profile, not the path, stands in the lock:
// moving a checkout, or another registry, changes nothing.
type local struct {
	key string
	put func(ctx context.Context, c *source.Client) (cas.Ref, error)
}

func locals(p *profiles.Profile) []local {
	var all []local
	add := func(put func(context.Context, *cas.Store, string) (cas.Ref, error), key string, paths ...string) {
		for i, path := range paths {
			k := key
			if strings.HasSuffix(key, "[]") {
				k = fmt.Sprintf("%s[%d]", strings.TrimSuffix(key, "[]"), i)
			}
			if path != "" {
				all = append(all, local{k, func(ctx context.Context, c *source.Client) (cas.Ref, error) { return put(ctx, c.Store, path) }})
			}
		}
	}
	add(putFile, "kernel.file", p.Kernel.File)
	add(putDir, "kernel.modules_dir", p.Kernel.ModulesDir)
	add(putFile, "stub.file", p.Stub.File)
	add(putFile, "firmware.code_file", p.Firmware.CodeFile)
	add(putFile, "firmware.vars_file", p.Firmware.VarsFile)
	add(putFile, "firmware.generic.code_file", p.Firmware.Generic.CodeFile)
	add(putFile, "firmware.generic.vars_file", p.Firmware.Generic.VarsFile)
	add(putFile, "secure_boot.cert", p.SecureBoot.Cert)
	add(putFile, "secure_boot.pk", p.SecureBoot.PK)
	add(putFile, "secure_boot.kek[]", p.SecureBoot.KEK...)
	add(putFile, "secure_boot.db[]", p.SecureBoot.DB...)
	add(putFile, "root.verity_cert", p.Root.VerityCert)
	add(putPublicKey, "pcr_policy.key", p.PCRPolicy.Key)
	add(putInitdata(p), initdataKey, p.Initdata)
	if !p.Workloads.BrokeredPolicy() {
		add(putFile, policyKey, p.Workloads.Policy)
	}
	add(putFile, policyFileKey, p.Workloads.PolicyFile)
	add(putFile, registriesKey, p.Workloads.Registries)
	add(putFile, registriesDKey+"[]", p.Workloads.RegistriesD...)
	add(putFile, casKey, p.Workloads.CAs)
	for i, b := range p.Attestation.Brokers {
		add(putFile, brokerKey(i), b.CAs)
	}
	for _, f := range p.Files {
		if f.HasContent() {
			all = append(all, local{fileKey(f), func(ctx context.Context, c *source.Client) (cas.Ref, error) { return putProfileFile(ctx, c, f) }})
		}
	}
	for _, l := range p.Layers {
		all = append(all, local{layerKey(l), func(ctx context.Context, c *source.Client) (cas.Ref, error) { return putLayer(ctx, c, l) }})
	}
	return all
}

func fileKey(f profiles.File) string { return "files " + f.Path }

func layerKey(l profiles.Layer) string { return "layers " + l.Name }

// Import brings what a profile names by path or by address, and the inline text of
// its files, into the store of c and returns the lock's entries for it. Of a
// private key only the public half is taken. Images that old has locked, nil for
// none, stay what they are there.
func Import(ctx context.Context, c *source.Client, p *profiles.Profile, old *source.Lock) ([]source.File, error) {
	var out []source.File
	for _, l := range locals(p) {
		r, err := l.put(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.key, err)
		}
		out = append(out, source.File{Path: l.key, Size: r.Size, SHA256: r.Digest})
	}
	images, err := importImages(ctx, c, p, old)
	if err != nil {
		return nil, err
	}
	out = append(out, images...)
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

func putFile(ctx context.Context, st *cas.Store, path string) (cas.Ref, error) {
	return source.PutFile(ctx, st, path, nil)
}

// putProfileFile brings a file of the profile, which may have a digest, wherever
// it is.
func putProfileFile(ctx context.Context, c *source.Client, f profiles.File) (cas.Ref, error) {
	var digest *cas.Digest
	if f.SHA256 != "" {
		d, err := cas.ParseDigest(f.SHA256)
		if err != nil {
			return cas.Ref{}, err
		}
		digest = &d
	}
	switch {
	case f.URL != "" && digest != nil:
		return c.FetchURL(ctx, f.URL, *digest)
	case f.URL != "":
		return cas.Ref{}, fmt.Errorf("%s: no sha256", f.URL)
	case f.Source != "":
		return source.PutFile(ctx, c.Store, f.Source, digest)
	}
	return c.Store.Put([]byte(f.Text))
}

// putLayer brings a layer as it is stored.
func putLayer(ctx context.Context, c *source.Client, l profiles.Layer) (cas.Ref, error) {
	digest, err := cas.ParseDigest(strings.TrimPrefix(l.Digest, "sha256:"))
	switch {
	case err != nil:
		return cas.Ref{}, err
	case l.Registry != "":
		return c.FetchBlob(ctx, l.Registry, digest)
	case l.Layout != "":
		return source.PutLayout(ctx, c.Store, l.Layout, digest)
	}
	return source.PutFile(ctx, c.Store, l.Source, &digest)
}

// putDir packs the regular files of a directory into one archive, so that a
// tree of thousands of modules is one line of the lock.
func putDir(ctx context.Context, st *cas.Store, dir string) (cas.Ref, error) {
	var entries []tree.Entry
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err // the build and source links of a module directory point out of it
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		entries = append(entries, tree.File(filepath.ToSlash(rel), 0o644, tree.Blob{
			Size: fi.Size(),
			Open: func() (io.ReadCloser, error) { return os.Open(path) },
		}))
		return nil
	})
	if err != nil {
		return cas.Ref{}, err
	}
	entries, err = tree.Normalize(entries)
	if err != nil {
		return cas.Ref{}, err
	}
	w, err := st.Create()
	if err != nil {
		return cas.Ref{}, err
	}
	defer w.Abort()
	if err := newc.Write(w, entries, newc.Params{}); err != nil {
		return cas.Ref{}, err
	}
	return w.Commit(ctx)
}

// putPublicKey stores the public half of a PEM private key, SubjectPublicKeyInfo in PEM.
func putPublicKey(_ context.Context, st *cas.Store, path string) (cas.Ref, error) {
	key, err := readRSAKey(path)
	if err != nil {
		return cas.Ref{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return cas.Ref{}, err
	}
	return st.Put(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// locked reads a local input that the lock names.
func (w *work) locked(key string) ([]byte, error) {
	r, err := w.file(key)
	if err != nil {
		return nil, err
	}
	return w.Store.ReadFile(r.Digest)
}

var errNotLocked = errors.New("the lock has no such file; run plinth lock")

// file returns a local input that the lock names.
func (s *Spec) file(key string) (cas.Ref, error) {
	for _, f := range s.Lock.Files {
		if f.Path == key {
			return cas.Ref{Digest: f.SHA256, Size: f.Size}, nil
		}
	}
	return cas.Ref{}, fmt.Errorf("%s: %w", key, errNotLocked)
}
