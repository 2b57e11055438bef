// Package kbs is a small key broker for tests: what Trustee's KBS, its attestation
// service and RVPS do with reference values, written from their sources and
// documents at 78962cd and sharing no code with what it tests. It keeps values in
// memory, checks admin tokens, and refuses what they refuse.
package kbs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Broker answers the admin API. The zero value takes requests from anybody, as
// KBS does in the mode InsecureAllowAll.
type Broker struct {
	Admin *Admin // who may ask; nil: everybody

	// Documented makes it answer as kbs/docs/kbs.yaml has it: 404 for a value that
	// is not there, 400 for one of a wrong form. KBS itself says 401 for both.
	Documented bool

	mu       sync.Mutex
	values   map[string]any
	requests []Recorded
}

// Recorded is a request as it came in.
type Recorded struct {
	Method, Path, ContentType, Authorization string
	Body                                     []byte
}

const (
	prefix     = "/kbs/v0/"
	valuePath  = prefix + "reference-value"
	problem    = "https://github.com/confidential-containers/kbs/errors/"
	maxMessage = 2 << 20 // bytes; [http_server] payload_request_size
)

// Values returns what the broker has, by name.
func (b *Broker) Values() map[string]any {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.values)
}

// Requests returns those that came in, in their order.
func (b *Broker) Requests() []Recorded {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

// Set puts a value under a name, as another operator would have.
func (b *Broker) Set(name string, value any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(map[string]any{name: value})
}

// put overwrites values of the same name. The caller holds the lock.
func (b *Broker) put(values map[string]any) {
	if b.values == nil {
		b.values = map[string]any{}
	}
	maps.Copy(b.values, values)
}

// ServeHTTP is the API: kbs/src/api_server.rs.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, Recorded{r.Method, r.URL.EscapedPath(), r.Header.Get("Content-Type"), r.Header.Get("Authorization"), body})
	name, isValue := strings.CutPrefix(r.URL.Path, valuePath)
	switch {
	case !isValue || name != "" && name[0] != '/':
		b.refuse(w, http.StatusNotFound, "PluginNotFound", "Plugin not found")
	case b.Admin != nil && b.Admin.check(r) != nil:
		b.refuse(w, http.StatusUnauthorized, "AdminAuthAccess", fmt.Sprintf("admin access denied for endpoint reference-value: %v", b.Admin.check(r)))
	case r.Method == http.MethodGet:
		b.get(w, strings.TrimPrefix(name, "/"))
	case r.Method == http.MethodPost && name == "":
		b.post(w, r, body)
	default:
		b.refuse(w, http.StatusNotFound, "PluginNotFound", "Plugin not found")
	}
}

func (b *Broker) get(w http.ResponseWriter, name string) {
	v, ok := b.values[name]
	switch {
	case ok:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	case b.Documented:
		w.WriteHeader(http.StatusNotFound)
	default:
		b.refuse(w, http.StatusUnauthorized, "RvpsError",
			"RVPS configuration failed: Failed to get reference_values: No reference value found for the given id: "+name)
	}
}

func (b *Broker) post(w http.ResponseWriter, r *http.Request, body []byte) {
	values, err := parseMessage(body)
	if ct := r.Header.Get("Content-Type"); err == nil && ct != "application/json" {
		err = fmt.Errorf("content type %q: want application/json", ct) // the only one in kbs.yaml
	}
	if err == nil {
		b.put(values)
		w.Header().Set("Content-Type", "application/json")
		return // an empty body
	}
	status := http.StatusUnauthorized
	if b.Documented {
		status = http.StatusBadRequest
	}
	b.refuse(w, status, "RvpsError", fmt.Sprintf("RVPS configuration failed: Failed to register reference value: %v", err))
}

// refuse answers with an ErrorInformation of kbs.yaml.
func (b *Broker) refuse(w http.ResponseWriter, status int, kind, detail string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"type": problem + kind, "detail": detail})
}

// parseMessage is RVPS's verify_and_extract: rvps/src/lib.rs.
func parseMessage(b []byte) (map[string]any, error) {
	var m map[string]any
	if err := parse(b, &m); err != nil {
		return nil, fmt.Errorf("parse message: %w", err)
	}
	version, ok := m["version"]
	if !ok {
		version = "0.1.0"
	}
	payload, isText := m["payload"].(string)
	if version != "0.1.0" || !isText {
		return nil, fmt.Errorf("version %v, payload %T: want 0.1.0 and a text", version, m["payload"])
	}
	content, err := base64.StdEncoding.Strict().DecodeString(payload)
	if err != nil || strings.ContainsAny(payload, "\r\n") {
		return nil, fmt.Errorf("payload: base64 decode: %v", err)
	}
	switch m["type"] {
	case "sample":
		return parseSample(content)
	case "corim":
		return parseCoRIM(content)
	}
	return nil, fmt.Errorf("could not find extractor for %v", m["type"])
}

// parseSample is rvps/src/extractors/sample/mod.rs, and refuses names that no
// storage takes: deps/key-value-storage/src/lib.rs, is_valid_key.
func parseSample(b []byte) (map[string]any, error) {
	var values map[string]any
	if err := parse(b, &values); err != nil {
		return nil, fmt.Errorf("sample: %w", err)
	}
	for name := range values {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func checkName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./"
	if name == "" || strings.Trim(name, letters) != "" {
		return fmt.Errorf("name %q: not one that a storage takes", name)
	}
	return nil
}

// A stored value is what rvps/src/reference_value.rs writes.
type stored struct {
	Version    string `json:"version"`
	Name       string `json:"name"`
	Expiration string `json:"expiration"`
	Value      any    `json:"value"`
}

// parseStore is the file of the local_json storage:
// deps/key-value-storage/src/local_json/mod.rs.
func parseStore(b []byte) (map[string]any, time.Time, error) {
	var items map[string]string
	if err := parse(b, &items); err != nil {
		return nil, time.Time{}, fmt.Errorf("storage: %w", err)
	}
	values, expires := map[string]any{}, time.Time{}
	for name, text := range items {
		raw, err := base64.URLEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, expires, fmt.Errorf("storage: %s: %w", name, err)
		}
		var s stored
		if err := parse(raw, &s); err != nil {
			return nil, expires, fmt.Errorf("storage: %s: %w", name, err)
		}
		t, err := time.Parse("2006-01-02T15:04:05Z", s.Expiration)
		if err != nil || s.Name != name || s.Value == nil || checkName(name) != nil {
			return nil, expires, fmt.Errorf("storage: %s: %+v, %v", name, s, err)
		}
		if expires.IsZero() || t.Before(expires) {
			expires = t
		}
		values[name] = s.Value
	}
	return values, expires, nil
}

// parse reads one JSON document; a text where an object is wanted is an error, and
// so is anything behind it.
func parse(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one document")
	}
	return nil
}
