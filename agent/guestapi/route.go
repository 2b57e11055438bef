package guestapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/plinth-os/plinth/agent/kbs"
)

// A work is a request that is granted and understood.
type work func(ctx context.Context, body []byte) (answer, error)

// hosts are what a client inside the container calls the server. A page of another
// host, whose name somebody made lead here, has its own.
var hosts = map[string]bool{"127.0.0.1:8006": true, "localhost:8006": true, "127.0.0.1": true, "localhost": true}

// foreign are the headers of requests that somebody else had made: a page of a browser,
// or a peer of a proxy in the container.
var foreign = []string{"Origin", "Forwarded", "X-Forwarded-For"}

// route judges a request, and finds the work. It does none.
func (r *REST) route(req *http.Request) (work, answer, bool) {
	if a, ok := local(req); !ok {
		return nil, a, false
	}
	path, _, _ := strings.Cut(req.RequestURI, "?")
	if !plainPath.MatchString(path) {
		return nil, badRequest("path: want letters, digits and any of \"._~-/\", without escapes"), false
	}
	method := http.MethodGet
	if path == "/aa/aael" {
		method = http.MethodPost
	}
	find, ok := r.find(path)
	switch {
	case !ok:
		return nil, text(http.StatusNotFound, "URL NOT FOUND"), false
	case req.Method != method:
		a := text(http.StatusMethodNotAllowed, "Method Not Allowed")
		a.allow = method
		return nil, a, false
	case method == http.MethodGet && (req.ContentLength != 0 || len(req.TransferEncoding) > 0):
		return nil, badRequest("want no body"), false
	}
	q, err := query(req.URL.RawQuery)
	if err != nil {
		return nil, badRequest("query: %v", err), false
	}
	return find(q)
}

// local tells whether a request is one of a program inside the container, to this
// server, by its own will.
func local(req *http.Request) (answer, bool) {
	peer, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return text(http.StatusForbidden, "Forbidden"), false
	}
	if req.URL.IsAbs() || req.URL.Host != "" {
		return badRequest("want a path"), false
	}
	if !hosts[req.Host] {
		return text(http.StatusForbidden, "Forbidden: Host"), false
	}
	for _, name := range foreign {
		if _, ok := req.Header[name]; ok {
			return text(http.StatusForbidden, "Forbidden: "+name), false
		}
	}
	return answer{}, true
}

// plainPath has every path that is served. Two readers of an escaped slash or dot may
// see two paths.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9._~/-]*$`)

// query reads parameters, each at most once.
func query(raw string) (map[string]string, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errors.New("malformed")
	}
	out := map[string]string{}
	for k, v := range values {
		if len(v) != 1 {
			return nil, errors.New("a parameter is there twice")
		}
		out[k] = v[0]
	}
	return out, nil
}

// find returns what judges the parameters of a path. What is not granted is said
// before anything of them is.
func (r *REST) find(path string) (func(map[string]string) (work, answer, bool), bool) {
	if rest, ok := strings.CutPrefix(path, "/cdh/resource/"); ok {
		return func(map[string]string) (work, answer, bool) { return r.resource(rest) }, true
	}
	switch path {
	case "/info":
		return func(map[string]string) (work, answer, bool) { return r.info, answer{}, true }, true
	case "/aa/evidence":
		return func(q map[string]string) (work, answer, bool) { return r.evidence(q, r.Guest.Evidence) }, true
	case "/aa/additional-evidence":
		return func(q map[string]string) (work, answer, bool) { return r.evidence(q, r.Guest.AdditionalEvidence) }, true
	case "/aa/token":
		return r.token, true
	case "/aa/aael":
		return func(map[string]string) (work, answer, bool) {
			return r.measure, notGranted("measure"), r.Grant.Measure
		}, true
	}
	return nil, false
}

// info tells a client what there is. Without a grant of the attestation-agent's part
// there is no TEE to tell of, as with api-server-rest.
func (r *REST) info(context.Context, []byte) (answer, error) {
	g := r.Grant
	out := struct {
		Version        string   `json:"version"`
		TEE            string   `json:"tee,omitempty"`
		AdditionalTEEs []string `json:"additional_tees,omitempty"`
		Feature        string   `json:"feature"`
	}{Version: r.Version, Feature: "none"}
	attestation := g.Evidence || g.Token || g.Measure
	switch {
	case attestation && len(g.Resources) > 0:
		out.Feature = "all"
	case attestation:
		out.Feature = "attestation"
	case len(g.Resources) > 0:
		out.Feature = "resource"
	}
	if attestation {
		out.TEE, out.AdditionalTEEs = r.Guest.TEE(), r.Guest.AdditionalTEEs()
	}
	b, err := json.Marshal(out)
	return answer{status: http.StatusOK, kind: kindJSON, body: b}, err
}

// resource gives what the grant has. Which broker it is from is not the container's to
// say.
func (r *REST) resource(path string) (work, answer, bool) {
	uri := resources + path
	if u, err := kbs.ParseURI(uri); err != nil || u.String() != uri {
		return nil, badRequest("want /cdh/resource/REPOSITORY/TYPE/TAG"), false
	}
	if !granted(r.Grant.Resources, path) {
		return nil, notGranted(uri), false
	}
	return func(ctx context.Context, _ []byte) (answer, error) {
		b, err := r.Guest.Resource(ctx, uri)
		return answer{status: http.StatusOK, kind: kindBytes, body: b}, err
	}, answer{}, true
}

const resources = "kbs:///"

// granted tells whether one of the grants is the resource at path, or ends in "/" and
// is above it.
func granted(grants []string, path string) bool {
	for _, g := range grants {
		g, ok := strings.CutPrefix(g, resources)
		if ok && (path == g || g == "" || strings.HasSuffix(g, "/") && strings.HasPrefix(path, g)) {
			return true
		}
	}
	return false
}

func (r *REST) evidence(q map[string]string, get func(context.Context, []byte) ([]byte, error)) (work, answer, bool) {
	if !r.Grant.Evidence {
		return nil, notGranted("evidence"), false
	}
	data, err := runtimeData(q)
	if err != nil {
		return nil, badRequest("%v", err), false
	}
	return func(ctx context.Context, _ []byte) (answer, error) {
		b, err := get(ctx, data)
		return answer{status: http.StatusOK, kind: kindBytes, body: b}, err
	}, answer{}, true
}

// runtimeData are the bytes that evidence is to have in it: text as it is, or with
// encoding=base64 that of URLs, without padding.
func runtimeData(q map[string]string) ([]byte, error) {
	s, ok := q["runtime_data"]
	if !ok {
		return nil, errors.New("runtime_data is missing")
	}
	data := []byte(s)
	switch encoding, ok := q["encoding"]; {
	case !ok:
		if !utf8.ValidString(s) {
			return nil, errors.New("runtime_data: want UTF-8, or encoding=base64")
		}
	case encoding == "base64":
		var err error
		// The decoder passes over line ends.
		if data, err = base64.RawURLEncoding.Strict().DecodeString(s); err != nil || strings.ContainsAny(s, "\r\n") {
			return nil, errors.New("runtime_data: want base64 of URLs without padding")
		}
	default:
		return nil, errors.New("encoding: want base64")
	}
	if len(data) > MaxRuntimeData {
		return nil, fmt.Errorf("runtime_data: %d bytes, want at most %d: send a digest", len(data), MaxRuntimeData)
	}
	return data, nil
}

// tokenKBS is the only token type: the broker's.
const tokenKBS = "kbs"

func (r *REST) token(q map[string]string) (work, answer, bool) {
	if !r.Grant.Token {
		return nil, notGranted("token"), false
	}
	if q["token_type"] != tokenKBS {
		return nil, badRequest("token_type: want kbs"), false
	}
	return func(ctx context.Context, _ []byte) (answer, error) {
		b, err := r.Guest.Token(ctx, r.Grant.TEEKey)
		if err == nil && !r.Grant.TEEKey {
			err = withoutKey(b)
		}
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, kind: kindBytes, body: b}, nil
	}, answer{}, true
}

// withoutKey makes sure that a container without the grant gets no key, whatever the
// guest made of that.
func withoutKey(token []byte) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(token, &keys); err != nil {
		return errors.New("token: not a JSON object")
	}
	for k := range keys {
		if k != "token" {
			return fmt.Errorf("token: %q is in it", k)
		}
	}
	return nil
}
