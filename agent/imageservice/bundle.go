package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/plinth-os/plinth/imagepull"
)

// What is in a bundle.
const (
	rootFS     = "rootfs"
	configFile = "config.json"
)

// make pulls an image and makes a bundle of it, or leaves none.
func (s *Server) make(ctx context.Context, image, bundle string) (string, error) {
	dir, err := s.open(bundle)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if _, err := dir.Lstat(configFile); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("bundle %s: it has a %s", bundle, configFile)
	}
	im, err := s.Guest.Pull(ctx, image)
	if err != nil {
		return "", err
	}
	if err := s.fill(dir, im); err != nil {
		return "", fmt.Errorf("bundle %s: %w", bundle, err)
	}
	return im.Digest, nil
}

// open makes the directory of a bundle. Bundles is no link, and none leads out of it.
func (s *Server) open(bundle string) (*os.Root, error) {
	dir := filepath.Join(s.Root, Bundles)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	top, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	switch at, err := pathOf(top); {
	case err != nil:
		return nil, err
	case at != dir:
		return nil, fmt.Errorf("bundle %s: %s is %s", bundle, dir, at)
	}
	rel := strings.TrimPrefix(bundle, Bundles+"/")
	if err := top.MkdirAll(path.Join(rel, rootFS), 0o700); err != nil {
		return nil, err
	}
	return top.OpenRoot(rel)
}

// fill mounts the tree and writes the configuration.
func (s *Server) fill(dir *os.Root, im *imagepull.Pulled) error {
	// The directory's own path, without links: mount(2) would follow them.
	root, err := pathOf(dir)
	if err != nil {
		return err
	}
	root = filepath.Join(root, rootFS)
	if err := s.Guest.Mount(im, root); err != nil {
		return err
	}
	err = s.writeConfig(dir, root, &im.Settings)
	if err != nil {
		return errors.Join(err, s.Guest.Unmount(root))
	}
	return nil
}

func pathOf(dir *os.Root) (string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

func (s *Server) writeConfig(dir *os.Root, root string, im *v1.Image) error {
	c, err := s.convert(root, im)
	if err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	const part = configFile + ".part"
	if err := dir.WriteFile(part, b, 0o600); err != nil {
		return err
	}
	// Complete at once, and not in the place of one that came meanwhile.
	return errors.Join(dir.Link(part, configFile), dir.Remove(part))
}

// convert makes the part of a runtime configuration that an image has.
// OCI Image Specification 1.1, "Conversion to OCI Runtime Configuration".
func (s *Server) convert(root string, im *v1.Image) (*specs.Spec, error) {
	u, err := s.Guest.User(root, im.Config.User)
	if err != nil {
		return nil, err
	}
	c := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: rootFS},
		Process: &specs.Process{
			Args: slices.Concat(im.Config.Entrypoint, im.Config.Cmd),
			Env:  im.Config.Env,
			Cwd:  path.Join("/", im.Config.WorkingDir),
			User: specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Groups},
		},
		Annotations: annotations(im),
	}
	for _, v := range sorted(im.Config.Volumes) {
		c.Mounts = append(c.Mounts, specs.Mount{Destination: path.Join("/", v), Type: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "rw"}})
	}
	return c, nil
}

// annotations are the image's labels, and under names of the specification what
// else it says of itself.
func annotations(im *v1.Image) map[string]string {
	out := map[string]string{}
	for name, value := range map[string]string{
		"os": im.OS, "os.version": im.OSVersion, "architecture": im.Architecture, "variant": im.Variant, "author": im.Author,
		"stopSignal": im.Config.StopSignal, "exposedPorts": strings.Join(sorted(im.Config.ExposedPorts), ","),
	} {
		if value != "" {
			out["org.opencontainers.image."+name] = value
		}
	}
	for name, value := range im.Config.Labels {
		out[name] = value
	}
	return out
}

func sorted(set map[string]struct{}) []string {
	var out []string
	for v := range set {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}
