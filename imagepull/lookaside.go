package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"github.com/distribution/reference"
	"go.yaml.in/yaml/v3"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

// A Lookaside says where signatures lie that are not in an image's registry: the
// files of registries.d, containers-registries.d(5).
type Lookaside struct {
	general *place
	by      map[string]place // by name or prefix of one
}

type place struct {
	URL         string `yaml:"lookaside"`
	Staging     string `yaml:"lookaside-staging"` // for who signs
	OldURL      string `yaml:"sigstore"`
	OldStaging  string `yaml:"sigstore-staging"`
	Attachments *bool  `yaml:"use-sigstore-attachments"` // they are always looked for
}

const (
	maxLookaside  = 1 << 20 // bytes of a file
	maxSignature  = 4 << 20 // bytes of a signature
	maxSignatures = 128     // of an image
	signaturePath = "%s@%s/signature-%d"
)

// ParseLookaside reads the files of registries.d, each of which may speak of other
// names.
func ParseLookaside(files ...[]byte) (*Lookaside, error) {
	l := &Lookaside{by: map[string]place{}}
	for _, b := range files {
		if len(b) > maxLookaside {
			return nil, fmt.Errorf("registries.d: %d bytes: want at most %d", len(b), maxLookaside)
		}
		var v struct {
			General *place           `yaml:"default-docker"`
			By      map[string]place `yaml:"docker"`
		}
		d := yaml.NewDecoder(strings.NewReader(string(b)))
		d.KnownFields(true)
		if err := d.Decode(&v); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("registries.d: %w", err)
		}
		if v.General != nil {
			if l.general != nil {
				return nil, errors.New("registries.d: default-docker: in two files")
			}
			if err := v.General.check(); err != nil {
				return nil, fmt.Errorf("registries.d: default-docker: %w", err)
			}
			l.general = v.General
		}
		for name, p := range v.By {
			if _, there := l.by[name]; there {
				return nil, fmt.Errorf("registries.d: %s: in two files", name)
			}
			if err := p.check(); err != nil {
				return nil, fmt.Errorf("registries.d: %s: %w", name, err)
			}
			l.by[name] = p
		}
	}
	return l, nil
}

// base returns the URL of the lookaside for an image, "" if there is none.
func (l *Lookaside) base(ref reference.Named) string {
	if l == nil {
		return ""
	}
	for _, name := range policy.DockerScopes(ref) {
		if p, ok := l.by[name]; ok && name != "" && p.url() != "" {
			return p.url()
		}
	}
	if l.general == nil {
		return ""
	}
	return l.general.url()
}

func (p *place) url() string {
	if p.URL != "" {
		return p.URL
	}
	return p.OldURL
}

func (p *place) check() error {
	at := p.url()
	if u, err := url.Parse(at); at != "" && (err != nil || u.Scheme != "https" && u.Scheme != "file") {
		return fmt.Errorf("lookaside %q: want a URL of https or file", at)
	}
	return nil
}

// signatures fetches the OpenPGP messages that lie beside a manifest: the first,
// the second, until there is none.
func (l *Lookaside) signatures(ctx context.Context, client *registry.Client, ref reference.Named, digest string) (out []policy.Signature, err error) {
	base := l.base(ref)
	if base == "" {
		return nil, nil
	}
	for i := 1; i <= maxSignatures; i++ {
		at := strings.TrimSuffix(base, "/") + "/" + fmt.Sprintf(signaturePath, reference.Path(ref), strings.Replace(digest, ":", "=", 1), i)
		b, err := fetchSignature(ctx, client, at)
		if errors.Is(err, fs.ErrNotExist) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("lookaside: %w", err)
		}
		out = append(out, policy.Signature{Source: at, Payload: b})
	}
	return nil, fmt.Errorf("lookaside: more than %d signatures", maxSignatures)
}

// fetchSignature reads a file by its URL, file or https.
func fetchSignature(ctx context.Context, client *registry.Client, at string) ([]byte, error) {
	if file, ok := strings.CutPrefix(at, "file://"); ok {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxSignature+1))
		if err == nil && len(b) > maxSignature {
			err = fmt.Errorf("%s: more than %d bytes", file, maxSignature)
		}
		return b, err
	}
	b, err := client.File(ctx, at, maxSignature)
	if registry.NotFound(err) {
		return nil, fs.ErrNotExist
	}
	return b, err
}
