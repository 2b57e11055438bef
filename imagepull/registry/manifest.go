package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of manifests, and of Docker's twins.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var accepted = http.Header{"Accept": {strings.Join([]string{
	v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, dockerManifest, dockerList,
}, ", ")}}

// IsIndex tells whether a media type is that of a list of manifests.
func IsIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == dockerList
}

// IsManifest tells whether it is that of an image's manifest.
func IsManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == dockerManifest
}

// A Manifest is what a name leads to.
type Manifest struct {
	Bytes     []byte
	Digest    string // of Bytes
	MediaType string
	From      string // where it was found, for people
}

// Manifest fetches what ref names: by its digest where it has one, which the bytes
// then have.
func (c *Client) Manifest(ctx context.Context, ref reference.Named) (*Manifest, error) {
	sources, err := c.Config.Sources(ref)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, s := range sources {
		m, err := c.manifestFrom(ctx, s)
		if err == nil {
			return m, nil
		}
		if failed = append(failed, err); ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("manifest: %w", errors.Join(failed...))
}

func (c *Client) manifestFrom(ctx context.Context, s Source) (*Manifest, error) {
	what, want := "latest", ""
	if t, ok := s.Ref.(reference.Tagged); ok {
		what = t.Tag()
	}
	if d, ok := s.Ref.(reference.Digested); ok {
		want = d.Digest().String()
		what = want
	}
	resp, err := c.get(ctx, s, "manifests/"+what, accepted)
	if err != nil {
		return nil, err
	}
	b, err := readAll(resp, maxManifest)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Bytes: b, Digest: digestOf(b), From: s.Ref.String()}
	if want != "" && m.Digest != want {
		return nil, &DigestError{s.Ref.String(), m.Digest, want}
	}
	m.MediaType, err = mediaType(b, resp.Header.Get("Content-Type"))
	return m, err
}

// mediaType is what a manifest says of itself, and where it says nothing, what the
// registry says. That they differ is how one set of bytes is two images.
func mediaType(b []byte, header string) (string, error) {
	var v struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	header, _, _ = strings.Cut(header, ";")
	header = strings.TrimSpace(header)
	switch {
	case v.MediaType == "":
		return header, nil
	case header != v.MediaType && (IsIndex(header) || IsManifest(header)):
		return "", fmt.Errorf("manifest: the registry calls it %s, it calls itself %s", header, v.MediaType)
	}
	return v.MediaType, nil
}

// Referrers lists the manifests whose subject is one with a digest, of one artifact
// type. Registries without the call have an index by a tag instead: Distribution
// Specification, "Listing Referrers".
func (c *Client) Referrers(ctx context.Context, repo reference.Named, digest, artifactType string) ([]v1.Descriptor, error) {
	s := Source{Ref: repo}
	if all, err := c.Config.Sources(repo); err != nil {
		return nil, err
	} else if len(all) > 0 {
		s = all[len(all)-1] // mirrors need not have them
	}
	resp, err := c.get(ctx, s, "referrers/"+digest+"?artifactType="+url.QueryEscape(artifactType), http.Header{"Accept": {v1.MediaTypeImageIndex}})
	if NotFound(err) || unsupported(err) {
		resp, err = c.get(ctx, s, "manifests/"+strings.Replace(digest, ":", "-", 1), accepted)
	}
	if NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("referrers: %w", err)
	}
	b, err := readAll(resp, maxManifest)
	if err != nil {
		return nil, err
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("referrers: %w", err)
	}
	var out []v1.Descriptor
	for _, d := range index.Manifests {
		if d.ArtifactType == artifactType { // a registry need not filter
			out = append(out, d)
		}
	}
	return out, nil
}

// unsupported tells whether a registry does not know a call.
func unsupported(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && (status.Status == http.StatusMethodNotAllowed || status.Status == http.StatusBadRequest)
}

// NotFound tells whether a registry says that it does not have what was asked for.
func NotFound(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Status == http.StatusNotFound
}
