package builder

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

// What the lock calls an image's manifest and its configuration: with the name and
// the digest by which the workload wants it, so that another one is another entry.
// Neither says what the guest will take, which its policy does; they are what is
// predicted.
func manifestKey(p *workload.Process) string    { return imageKey(p) + " manifest" }
func imageConfigKey(p *workload.Process) string { return imageKey(p) + " config" }

func imageKey(p *workload.Process) string {
	name := "workload " + p.Name + " " + p.Image
	if p.Digest != "" {
		name += "@" + p.Digest
	}
	return name
}

// maxImageConfig bounds an image's configuration, in bytes.
const maxImageConfig = 4 << 20

// importImages brings the manifest and the configuration of each workload's image
// into the store. What old has locked is taken by its digest, so that a tag that
// moved changes nothing.
func importImages(ctx context.Context, c *source.Client, p *profiles.Profile, old *source.Lock) (out []source.File, err error) {
	if !p.HasWorkloads() {
		return nil, nil
	}
	ways, wanted, err := wantedImages(p)
	if err != nil {
		return nil, err
	}
	for _, w := range wanted {
		m, config, err := lockedBefore(&w.process, old)
		if err != nil || w.archive != "" || !c.Store.Holds(m) || !c.Store.Holds(config) {
			m, config, err = ways.importImage(ctx, c, w, m)
		}
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", w.process.Name, err)
		}
		out = append(out,
			source.File{Path: manifestKey(&w.process), Size: m.Size, SHA256: m.Digest},
			source.File{Path: imageConfigKey(&w.process), Size: config.Size, SHA256: config.Digest})
	}
	return out, nil
}

// ways are how images are reached: as the guest will, but with the credentials that
// this user has.
type ways struct {
	arch            string
	registries, cas string // content of the files
}

// wantedImage is one that a workload names.
type wantedImage struct {
	process workload.Process
	archive string // the file that has it, "" for one in a registry
}

func wantedImages(p *profiles.Profile) (w ways, out []wantedImage, err error) {
	w.arch = p.Arch
	if p.Workloads.From == profiles.FromImage {
		for i := range p.Workload {
			out = append(out, wantedImage{process(&p.Workload[i]), p.Workload[i].Archive})
		}
		return w, out, w.read(&p.Workloads)
	}
	if p.Initdata == "" {
		return w, nil, nil
	}
	raw, err := ReadInitdata(p.Initdata)
	if err != nil {
		return w, nil, err
	}
	c, err := initdataWorkloads(raw)
	if err != nil || c == nil {
		return w, nil, err
	}
	w.registries, w.cas = c.Registries, c.CAs
	for _, x := range c.Workloads {
		if strings.HasPrefix(x.Image, "docker://") { // a disk is not there yet
			out = append(out, wantedImage{process: x})
		}
	}
	return w, out, nil
}

// read reads the files that the profile names.
func (w *ways) read(p *profiles.Workloads) error {
	for _, f := range []struct {
		path string
		into *string
	}{{p.Registries, &w.registries}, {p.CAs, &w.cas}} {
		if f.path == "" {
			continue
		}
		b, err := os.ReadFile(f.path)
		if err != nil {
			return err
		}
		*f.into = string(b)
	}
	return nil
}

// keptImages is the lock without the images that are to be looked up afresh: all of
// them, or those of workloads that update names.
func keptImages(old *source.Lock, update []string, all bool) *source.Lock {
	if old == nil || all {
		return nil
	}
	kept := *old
	kept.Files = slices.DeleteFunc(slices.Clone(old.Files), func(f source.File) bool {
		return slices.ContainsFunc(update, func(name string) bool { return strings.HasPrefix(f.Path, "workload "+name+" ") })
	})
	return &kept
}

// packagesOf takes the names of workloads out of those that are to be updated, but
// for those that packages of the lock have, too.
func packagesOf(update []string, files []source.File, old *source.Lock) (out []string) {
	for _, name := range update {
		isPackage := old != nil && slices.ContainsFunc(old.Packages, func(p source.Package) bool { return p.Name == name })
		if isPackage || !slices.ContainsFunc(files, func(f source.File) bool { return strings.HasPrefix(f.Path, "workload "+name+" ") }) {
			out = append(out, name)
		}
	}
	return out
}

var errNotBefore = errors.New("not locked yet")

func lockedBefore(p *workload.Process, old *source.Lock) (manifest, config cas.Ref, err error) {
	if old == nil {
		return manifest, config, errNotBefore
	}
	s := &Spec{Lock: old}
	if manifest, err = s.file(manifestKey(p)); err == nil {
		config, err = s.file(imageConfigKey(p))
	}
	return manifest, config, err
}

// importImage fetches manifest and configuration. locked is the manifest's entry in
// the lock, empty where there is none.
func (ways *ways) importImage(ctx context.Context, c *source.Client, w wantedImage, locked cas.Ref) (m, config cas.Ref, err error) {
	name, err := w.name(locked)
	if err != nil {
		return m, config, err
	}
	if name.Ref != nil && c.Offline {
		return m, config, &source.NetworkError{What: name.String(), Offline: true, Pinned: true}
	}
	puller, err := ways.puller(name)
	if err != nil {
		return m, config, err
	}
	im, err := puller.Inspect(ctx, name)
	if err != nil {
		return m, config, err
	}
	from, err := puller.Source(ctx, name)
	if err != nil {
		return m, config, err
	}
	m, config, err = putImage(ctx, c.Store, from, im)
	return m, config, errors.Join(err, from.Close())
}

// name is where the image is got here: an archive is a disk only in the guest.
func (w *wantedImage) name(locked cas.Ref) (policy.Name, error) {
	if w.archive == "" {
		n, err := policy.ParseName(w.process.Image)
		by := w.process.Digest
		if locked != (cas.Ref{}) {
			by = "sha256:" + locked.Digest.String()
		}
		if err == nil && by != "" {
			n.Ref, err = reference.WithDigest(reference.TrimNamed(n.Ref), digest.Digest(by))
		}
		return n, err
	}
	file, err := filepath.Abs(w.archive)
	if err != nil {
		return policy.Name{}, err
	}
	n, err := policy.ParseName(w.process.Image)
	n.Path = file
	return n, err
}

func putImage(ctx context.Context, st *cas.Store, from imagepull.Source, im *imagepull.Image) (m, config cas.Ref, err error) {
	manifest, err := from.Manifest(ctx, im.Digest)
	if err != nil {
		return m, config, err
	}
	if m, err = st.Put(manifest.Bytes); err != nil {
		return m, config, err
	}
	b, err := readConfig(ctx, from, im.Config)
	if err != nil {
		return m, config, err
	}
	config, err = st.Put(b)
	return m, config, err
}

// readConfig reads the image's configuration, which has the digest that the
// manifest says.
func readConfig(ctx context.Context, from imagepull.Source, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxImageConfig {
		return nil, fmt.Errorf("config %s: %d bytes: want at most %d", d.Digest, d.Size, maxImageConfig)
	}
	r, err := from.Blob(ctx, d, nil, 0)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, r) // EOF comes once size and digest are right
	return b.Bytes(), errors.Join(err, r.Close())
}

// puller is for one image.
func (w *ways) puller(n policy.Name) (*imagepull.Puller, error) {
	client := &registry.Client{Proxy: http.ProxyFromEnvironment, UserAgent: "plinth"}
	p := &imagepull.Puller{Registry: client, Platform: v1.Platform{OS: "linux", Architecture: w.arch}}
	if n.Ref == nil {
		return p, nil
	}
	var err error
	if w.registries != "" {
		if client.Config, err = registry.ParseConfig([]byte(w.registries)); err != nil {
			return nil, &ValueError{registriesKey, err}
		}
	}
	if w.cas != "" {
		if client.Roots, err = x509.SystemCertPool(); err != nil {
			client.Roots = x509.NewCertPool() // of a host that has none
		}
		if !client.Roots.AppendCertsFromPEM([]byte(w.cas)) {
			return nil, &ValueError{casKey, errors.New("no certificate in PEM")}
		}
	}
	places, err := client.Config.Sources(n.Ref)
	if err != nil {
		return nil, err
	}
	client.Auth, err = userAuth(places)
	return p, err
}

// userAuth is the first of the user's files with credentials for one of the places
// that have the image, nil where none has any: containers-auth.json(5), and what
// docker login writes.
func userAuth(places []registry.Source) (*registry.AuthFile, error) {
	for _, path := range authFiles(os.Getenv) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := registry.ParseAuthFile(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if slices.ContainsFunc(places, func(s registry.Source) bool { _, ok := a.For(s.Ref); return ok }) {
			return a, nil
		}
	}
	return nil, nil
}

func authFiles(getenv func(string) string) []string {
	if path := getenv("REGISTRY_AUTH_FILE"); path != "" {
		return []string{path}
	}
	var out []string
	add := func(dir string, elem ...string) {
		if dir != "" {
			out = append(out, filepath.Join(append([]string{dir}, elem...)...))
		}
	}
	home := getenv("HOME")
	add(getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		add(dir, "containers", "auth.json")
	} else {
		add(home, ".config", "containers", "auth.json")
	}
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	return out
}
