// Package kbs is a small key broker for tests: what Trustee's KBS, its attestation
// service and RVPS do with reference values, evidence and resources, written from
// their sources and documents at 78962cd and sharing no code with what it tests.
// It keeps values in memory, checks admin tokens, and refuses what they refuse.
//
// Of evidence it takes a TPM's, and checks more of it than Trustee: the event log
// must replay to every register, and the registers are compared where Trustee
// leaves that to policies. Quotes are verified by go-tpm-tools, logs by go-eventlog:
// the parts of go-tpm-tools' server.VerifyAttestation, with which no check could be
// switched off alone. What that one says of the same evidence is in internal/oracle.
package kbs

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Broker answers the admin API and, by the protocol RCAR, guests. The zero value
// takes requests from anybody, as KBS does in the mode InsecureAllowAll, and has
// nothing to give. Once it serves, its fields are changed within Change alone.
type Broker struct {
	Admin *Admin // who may administer; nil: everybody

	// Documented makes it answer as kbs/docs/kbs.yaml has it: 404 for a value or
	// resource that is not there, 400 for a value of a wrong form, 403 where a policy
	// forbids. KBS itself says 401 for all of them.
	Documented bool

	Resources map[string]Resource // by "repository/type/tag"

	// Off has the checks of evidence that are not made: CheckSignature and so on, and
	// "pcr0" to "pcr23" for the reference values of a register.
	Off map[string]bool

	Sample   bool                             // takes the evidence of the sample TEE and device, which proves nothing
	Hash     string                           // "sha256", ...: what the challenge selects; "": it selects nothing, which is sha384
	Lifetime time.Duration                    // of tokens and sessions; 0: 5 minutes
	Now      func() time.Time                 // nil: time.Now
	Log      func(format string, args ...any) // a line for every request; nil: nobody

	// Faults are what goes wrong, by step: StepAuth, StepAttest, StepResource.
	Faults map[string]Fault
	// Tamper changes a request on its way, as a host could that ended the guest's TLS.
	Tamper func(step string, body []byte) []byte

	mu           sync.Mutex
	values       map[string]any
	requests     []Recorded
	attestations []json.RawMessage
	sessions     map[string]*session // by ID
	appraisals   map[string]*appraisal
	accepted     map[int][][]event // by register: the events of evidence that was accepted
	tokenKey     *ecdsa.PrivateKey
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

// Change calls f, which may change the fields of b, between two requests.
func (b *Broker) Change(f func(b *Broker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// ServeHTTP is the API: kbs/src/api_server.rs.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	answer := httptest.NewRecorder()
	fault := b.serve(answer, r, body)
	fault.send(w, r, answer.Result())
}

// serve answers one request after the other, and says what is to go wrong with the
// answer.
func (b *Broker) serve(w *httptest.ResponseRecorder, r *http.Request, body []byte) Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, Recorded{r.Method, r.URL.EscapedPath(), r.Header.Get("Content-Type"), r.Header.Get("Authorization"), body})
	step := stepOf(r)
	if step == "" {
		b.administer(w, r, body)
		return ""
	}
	if b.Tamper != nil {
		body = b.Tamper(step, body)
	}
	switch step {
	case StepAuth:
		b.auth(w, body)
	case StepAttest:
		b.attest(w, r, body)
	case StepResource:
		b.resource(w, r)
	}
	if b.Log != nil {
		detail := ""
		if w.Code != http.StatusOK {
			detail = ": " + w.Body.String()
		}
		b.Log("%s %s: %d%s", r.Method, r.URL.EscapedPath(), w.Code, detail)
	}
	return b.Faults[step]
}

// administer is the API of operators.
func (b *Broker) administer(w http.ResponseWriter, r *http.Request, body []byte) {
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
