package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/plinth-os/plinth/evidence"
)

// What a broker's status says. Trustee answers nearly everything that it refuses with
// 401, a policy's refusal among it: StatusError.Kind tells them apart.
var (
	ErrUnauthorized = errors.New("unauthorized") // 401
	ErrForbidden    = errors.New("forbidden")    // 403
	ErrNotFound     = errors.New("not found")    // 404
)

// Values of StatusError.Kind: Trustee, kbs/src/error.rs.
const (
	kindPolicyDeny     = "PolicyDeny"
	kindPluginInternal = "PluginInternalError" // the policy agreed; no such resource, mostly
	kindPluginNotFound = "PluginNotFound"
)

// A StatusError is a broker's answer other than 200. It is one of ErrUnauthorized,
// ErrForbidden and ErrNotFound if Status is theirs.
type StatusError struct {
	Status int
	Kind   string // the last part of the answer's "type": "PolicyDeny"; "" when it has none
	Detail string // at most 512 printable bytes
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("the broker says %d", e.Status)
	if t := http.StatusText(e.Status); t != "" {
		s += " " + t
	}
	if e.Kind != "" {
		s += ", " + e.Kind
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Is makes errors.Is find the status.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized
	case ErrForbidden:
		return e.Status == http.StatusForbidden
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	}
	return false
}

// A VersionError is a broker that speaks another version of the protocol.
type VersionError struct {
	Client string // ours
	Server string // what the broker wants, "" if it does not say
}

func (e *VersionError) Error() string {
	server := e.Server
	if server == "" {
		server = "another"
	}
	return fmt.Sprintf("the broker's protocol is version %s, ours %s", server, e.Client)
}

// maxDetail bounds what of a broker's text gets into an error.
const maxDetail = 512

// The text by which Trustee refuses a version: kbs/src/attestation/backend.rs, and how
// the older releases that say "client" and "server" put it.
var (
	versionMismatch = regexp.MustCompile(`(?i)protocol version mismatch`)
	versionServer   = regexp.MustCompile(`(?i)(?:expect(?:s|ed)?|server)[^0-9]{0,20}([0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9})`)
	errorKind       = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,63}$`)
)

// refusal makes an error of an answer. Trustee's are JSON in the manner of RFC 7807.
func refusal(status int, body []byte) error {
	var info struct {
		Type   string `json:"type"`
		Detail string `json:"detail"`
	}
	if json.Unmarshal(body, &info) != nil {
		info.Type, info.Detail = "", string(body)
	}
	kind := info.Type[strings.LastIndexByte(info.Type, '/')+1:]
	if !errorKind.MatchString(kind) {
		kind = ""
	}
	if versionMismatch.MatchString(info.Detail) {
		e := &VersionError{Client: evidence.ProtocolVersion}
		if m := versionServer.FindStringSubmatch(info.Detail); m != nil {
			e.Server = m[1]
		}
		return e
	}
	return &StatusError{status, kind, printable(info.Detail)}
}

// printable cuts a broker's text to what a console shows as it stands.
func printable(s string) string {
	s = s[:min(len(s), maxDetail)]
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s))
}

// A NetworkError is a broker that could not be asked, or an answer that did not come
// whole.
type NetworkError struct{ Err error }

// Error is cut like what a broker says: it may quote who answered, before anybody knows
// who that is, and names in a certificate.
func (e *NetworkError) Error() string { return printable(e.Err.Error()) }
func (e *NetworkError) Unwrap() error { return e.Err }

// passing reports whether to ask again may help: the network failed, or the broker
// itself (5xx). What somebody decided stays decided, and a wrong certificate, which is
// no net.Error, stays wrong.
func passing(err error) bool {
	var (
		status  *StatusError
		network *NetworkError
		op      *net.OpError
		n       net.Error
	)
	if errors.As(err, &status) {
		return status.Status >= 500
	}
	if !errors.As(err, &network) {
		return false
	}
	err = network.Err
	if errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error") {
		return false // crypto/tls: the two sides do not agree
	}
	return errors.As(err, &n) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
