package export

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/measure/refvalue"
)

// A Trustee is the admin API of a Trustee key broker: kbs/docs/kbs.yaml and
// kbs/src/api_server.rs at refvalue.PolicyCommit.
type Trustee struct {
	URL    string       // root of the broker: "https://kbs.example.com:8080"
	Token  string       // admin token, a JWT; "" asks without one
	Client *http.Client // nil: http.DefaultClient; redirects are refused in any case
}

const (
	trusteePath = "/kbs/v0/reference-value"
	maxAnswer   = 1 << 20 // bytes of an answer's body
)

// What a broker has of a value.
type State string

// The states.
const (
	StateSame    State = "same"    // it has the value already
	StateNew     State = "new"     // it has none of this name
	StateChanged State = "changed" // it has another one
	StateUnknown State = "unknown" // it does not let this token ask
)

// An Outcome is what became of one reference value.
type Outcome struct {
	Name  string          `json:"name"`
	State State           `json:"state"` // before
	Was   json.RawMessage `json:"was,omitempty"`
	Value json.RawMessage `json:"value"`
	Set   bool            `json:"set"` // it was sent; then the broker has it now
}

// A Request is one that would be made.
type Request struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Header string `json:"header"`         // the token is not in it
	Body   string `json:"body,omitempty"` // JSON
}

// A RefusedError is a broker that answers and says no; exit code 7.
type RefusedError struct {
	Request string // "POST https://..."
	Status  int
	Type    string // last part of the problem's type, as "AdminAuthAccess"; "" when it is not said
	Detail  string
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("%s: %d %s", e.Request, e.Status, http.StatusText(e.Status))
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// An UnreachableError is a broker that gives no answer, or one that says it is out
// of order; exit code 5.
type UnreachableError struct{ Err error }

func (e *UnreachableError) Error() string { return "export: broker: " + e.Err.Error() }
func (e *UnreachableError) Unwrap() error { return e.Err }

// As makes it what a failed network is elsewhere.
func (e *UnreachableError) As(target any) bool {
	n, ok := target.(**source.NetworkError)
	if ok {
		*n = &source.NetworkError{What: "the broker", Errs: []error{e.Err}}
	}
	return ok
}

// Hint says what to do.
func (e *UnreachableError) Hint() string {
	var unknown x509.UnknownAuthorityError
	if errors.As(e.Err, &unknown) {
		return "give the authority of the broker's certificate with --ca FILE"
	}
	return "look at --url, and whether the broker runs; nothing is half registered that a second call would not mend"
}

// The types of problems that Trustee has for a token and for RVPS: kbs/src/error.rs.
const (
	problemAccess = "AdminAuthAccess"
	problemRVPS   = "RvpsError"
)

// Hint says what to do.
func (e *RefusedError) Hint() string {
	switch {
	case e.Type == problemAccess || e.Type == "" && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden):
		return "the token has to be signed by a key that the broker trusts, hold the role that its ACL names, and not be out of date; the ACL has to allow " + trusteePath
	case e.Status == http.StatusNotFound:
		return "--url is the root of a broker with the attestation service built in, as https://HOST:PORT"
	case e.Status >= 300 && e.Status < 400:
		return "the token is not sent to another address: give the one that the broker has"
	}
	return ""
}

// Register makes the broker have the values of s. What it has already is not sent
// again, so that a second call changes nothing; what was sent is read back.
//
// A value of the same name is replaced as a whole: what another image needs has
// to be in s, too. Outcome.Was tells what was there.
func (t *Trustee) Register(ctx context.Context, s *refvalue.Set) ([]Outcome, error) {
	out, err := t.compare(ctx, s)
	if err != nil {
		return nil, err
	}
	todo := &refvalue.Set{TEE: s.TEE, Expires: s.Expires}
	for i, o := range out {
		if o.State != StateSame {
			todo.Values = append(todo.Values, s.Values[i])
			out[i].Set = true
		}
	}
	if len(todo.Values) == 0 {
		return out, nil
	}
	message, err := todo.RVPS()
	if err != nil {
		return nil, err
	}
	if _, err := t.do(ctx, http.MethodPost, trusteePath, message); err != nil {
		return nil, err
	}
	return out, t.readBack(ctx, todo)
}

// Requests are those that Register makes of a broker that has none of the values.
func (t *Trustee) Requests(s *refvalue.Set) ([]Request, error) {
	if _, err := t.root(); err != nil {
		return nil, err
	}
	var out []Request
	ask := func() {
		for _, v := range s.Values {
			out = append(out, t.request(http.MethodGet, valuePath(v.Name), nil))
		}
	}
	message, err := s.RVPS()
	if err != nil {
		return nil, err
	}
	ask()
	out = append(out, t.request(http.MethodPost, trusteePath, message))
	ask()
	return out, nil
}

func (t *Trustee) request(method, path string, body []byte) Request {
	r := Request{Method: method, URL: strings.TrimSuffix(t.URL, "/") + path, Header: "Accept: application/json", Body: string(body)}
	if body != nil {
		r.Header = "Content-Type: application/json"
	}
	if t.Token != "" {
		r.Header += "; Authorization: Bearer (not shown)"
	}
	return r
}

// valuePath is where a value is read. Its name may have slashes, which stay.
func valuePath(name string) string {
	return trusteePath + (&url.URL{Path: "/" + name}).EscapedPath()
}

// compare asks for each value.
func (t *Trustee) compare(ctx context.Context, s *refvalue.Set) ([]Outcome, error) {
	var out []Outcome
	for _, v := range s.Values {
		want, err := json.Marshal(v.Compared())
		if err != nil {
			return nil, err
		}
		o := Outcome{Name: v.Name, Value: want}
		if o.Was, o.State, err = t.read(ctx, v.Name); err != nil {
			return nil, err
		}
		if o.State == StateChanged && sameJSON(o.Was, want) {
			o.State = StateSame
		}
		out = append(out, o)
	}
	return out, nil
}

// read returns what the broker has under a name. StateChanged only says that there
// is something.
func (t *Trustee) read(ctx context.Context, name string) (json.RawMessage, State, error) {
	b, err := t.do(ctx, http.MethodGet, valuePath(name), nil)
	var refused *RefusedError
	switch {
	case err == nil:
		var compact bytes.Buffer
		if json.Compact(&compact, b) != nil {
			return nil, "", &RefusedError{"GET " + t.URL + valuePath(name), http.StatusOK, "", fmt.Sprintf("an answer that is no JSON: %.100q", b)}
		}
		return compact.Bytes(), StateChanged, nil
	case !errors.As(err, &refused):
		return nil, "", err
	// The documentation has 404 for a value that is not there. The broker says 401,
	// as for every error, and that it is of RVPS.
	case refused.Status == http.StatusNotFound && refused.Type == "",
		refused.Type == problemRVPS && strings.Contains(refused.Detail, "No reference value found"):
		return nil, StateNew, nil
	// An ACL may let a token write and not read.
	case refused.Type == problemAccess:
		return nil, StateUnknown, nil
	}
	return nil, "", err
}

// readBack looks whether the broker has what it was sent.
func (t *Trustee) readBack(ctx context.Context, s *refvalue.Set) error {
	now, err := t.compare(ctx, s)
	if err != nil {
		return err
	}
	for _, o := range now {
		if o.State == StateSame || o.State == StateUnknown {
			continue
		}
		got := "nothing"
		if o.Was != nil {
			got = string(o.Was)
		}
		return &RefusedError{"POST " + t.URL + trusteePath, http.StatusOK, "", fmt.Sprintf("the broker took %s and has %s, want %s", o.Name, got, o.Value)}
	}
	return nil
}

// sameJSON compares values; the order of a list does not count, as the policy
// looks for members.
func sameJSON(a, b json.RawMessage) bool {
	x, y := members(a), members(b)
	return x != nil && slices.Equal(x, y)
}

// members are the elements of a list, sorted, or the one scalar with a mark in
// front, so that a list of one is something else. nil: not JSON.
func members(b json.RawMessage) []string {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	list, ok := v.([]any)
	out := []string{"list"}
	if !ok {
		list, out = []any{v}, []string{"scalar"}
	}
	for _, e := range list {
		text, err := json.Marshal(e)
		if err != nil {
			return nil
		}
		out = append(out, string(text))
	}
	slices.Sort(out[1:])
	return out
}

// root is the broker's address, judged.
func (t *Trustee) root() (*url.URL, error) {
	u, err := url.Parse(t.URL)
	if err != nil {
		return nil, fmt.Errorf("export: broker: %w", err)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("export: broker: %q: want https://HOST:PORT", t.URL)
	}
	return u, nil
}

// Check refuses an address that is none of a broker.
func (t *Trustee) Check() error {
	_, err := t.root()
	return err
}

// Plain tells whether a token would go over a network unprotected.
func (t *Trustee) Plain() bool {
	u, err := t.root()
	if err != nil || u.Scheme == "https" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}

// do makes one request and returns the body of an answer with status 200.
func (t *Trustee) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	if _, err := t.root(); err != nil {
		return nil, err
	}
	address := strings.TrimSuffix(t.URL, "/") + path
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("export: broker: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if t.Token != "" {
		req.Header.Set("Authorization", "Bearer "+t.Token)
	}
	resp, err := t.client().Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
		return nil, &UnreachableError{err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, &UnreachableError{fmt.Errorf("%s %s: %w", method, address, err)}
	case len(answer) > maxAnswer:
		return nil, &RefusedError{method + " " + address, resp.StatusCode, "", fmt.Sprintf("the answer has more than %d bytes", maxAnswer)}
	case resp.StatusCode == http.StatusOK:
		return answer, nil
	case resp.StatusCode >= 500:
		return nil, &UnreachableError{refusal(method+" "+address, resp.StatusCode, answer)}
	}
	return nil, refusal(method+" "+address, resp.StatusCode, answer)
}

// client is the one given, but follows nobody: a token is for one address.
func (t *Trustee) client() *http.Client {
	c := http.Client{}
	if t.Client != nil {
		c = *t.Client
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// refusal reads the problem in an answer: RFC 7807, with type and detail.
func refusal(request string, status int, body []byte) *RefusedError {
	var p struct{ Type, Detail string }
	e := &RefusedError{Request: request, Status: status}
	if json.Unmarshal(body, &p) != nil {
		e.Detail = strings.TrimSpace(fmt.Sprintf("%.200q", body))
		if len(body) == 0 {
			e.Detail = ""
		}
		return e
	}
	e.Type = p.Type[strings.LastIndexByte(p.Type, '/')+1:]
	e.Detail = printable(p.Detail)
	return e
}

// printable is foreign text that is safe on a terminal, at most a few lines of it.
func printable(text string) string {
	const most = 1000
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}
