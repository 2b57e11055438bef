package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
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
	header := http.Header{"Accept": {v1.MediaTypeImageIndex}}
	resp, err := c.get(ctx, s, "referrers/"+digest+"?artifactType="+url.QueryEscape(artifactType), header)
	if NotFound(err) || unsupported(err) {
		resp, err = c.get(ctx, s, "manifests/"+Tag(digest), accepted)
	}
	if NotFound(err) {
		return nil, nil
	}
	var out []v1.Descriptor
	left := int64(maxManifest) // bytes, of all pages
	for page := 1; err == nil; page++ {
		var list []v1.Descriptor
		var next string
		if list, next, err = readPage(resp, s, &left); err != nil {
			break
		}
		for _, d := range list {
			if d.ArtifactType == artifactType { // a registry need not filter
				out = append(out, d)
			}
		}
		if next == "" {
			return out, nil
		}
		if page == maxPages {
			err = fmt.Errorf("more than %d pages", maxPages)
			break
		}
		resp, err = c.get(ctx, s, next, header)
	}
	return nil, fmt.Errorf("referrers: %w", err)
}

// readPage reads one answer of at most left bytes, and where the list goes on.
func readPage(resp *http.Response, s Source, left *int64) (list []v1.Descriptor, next string, err error) {
	b, err := readAll(resp, *left)
	if err != nil {
		return nil, "", err
	}
	*left -= int64(len(b))
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, "", err
	}
	next, err = nextPage(resp, s)
	return index.Manifests, next, err
}

// Tag is the tag that stands for a digest: Distribution Specification, "Referrers Tag
// Schema".
func Tag(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// maxPages bounds into how many answers a registry may cut a list.
const maxPages = 128

var nextLink = regexp.MustCompile(`<([^<>]*)>[^,<>]*;\s*rel="?next"?\s*(?:[;,]|$)`)

// nextPage is where a list goes on, as get wants it, "" at its end. It is in the same
// repository: Distribution Specification, "Listing Referrers".
func nextPage(resp *http.Response, s Source) (string, error) {
	m := nextLink.FindStringSubmatch(strings.Join(resp.Header.Values("Link"), ","))
	if m == nil {
		return "", nil
	}
	base := newEndpoint(s).url("")
	u, err := resp.Request.URL.Parse(m[1])
	if err != nil {
		return "", fmt.Errorf("next page %.200q: not a URL", m[1])
	}
	u.Scheme = "https" // get knows which to take
	path, ok := strings.CutPrefix(u.String(), base)
	if !ok {
		return "", fmt.Errorf("next page %.200q: want one below %s", m[1], base)
	}
	return path, nil
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
