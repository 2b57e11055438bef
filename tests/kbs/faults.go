package kbs

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"time"
)

// A Fault is what a broker does wrong, or what stands between it and the guest.
type Fault string

// What goes wrong with any answer.
const (
	FaultGarbage     Fault = "garbage"     // status 200 and no JSON
	FaultEmpty       Fault = "empty"       // status 200 and nothing
	FaultTruncated   Fault = "truncated"   // the first half of the right one
	FaultEndless     Fault = "endless"     // it begins like JSON and does not end
	FaultSilent      Fault = "silent"      // nothing comes
	FaultHeaders     Fault = "headers"     // 16 MiB of headers
	FaultRedirect    Fault = "redirect"    // to another place
	FaultUnavailable Fault = "unavailable" // status 503
	FaultVersion     Fault = "version"     // a refusal for the protocol's version
)

// What goes wrong in one step.
const (
	FaultStaleNonce  Fault = "stale nonce"  // StepAuth: the session has another
	FaultOtherToken  Fault = "other token"  // StepAttest: for another guest's key
	FaultOtherSigner Fault = "other signer" // StepAttest: signed by another broker
	FaultOtherKey    Fault = "other key"    // StepResource: encrypted to another key
)

const maxEndless = 1 << 30 // bytes; a client that takes them all has failed its test

// send writes the right answer, or what becomes of it.
func (f Fault) send(w http.ResponseWriter, r *http.Request, right *http.Response) {
	switch f {
	case FaultGarbage:
		w.Write(bytes.Repeat([]byte{0xff, 0x00, '{', '"'}, 1024))
	case FaultEmpty:
	case FaultTruncated:
		b, _ := io.ReadAll(right.Body) // of a recorder: does not fail
		w.Write(b[:len(b)/2])
	case FaultEndless:
		w.Header().Set("Content-Type", "application/json")
		if _, err := io.WriteString(w, `{"nonce":"`); err != nil {
			return
		}
		chunk := bytes.Repeat([]byte("A"), 64<<10)
		for n := 0; n < maxEndless; n += len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	case FaultSilent:
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
	case FaultHeaders:
		w.Header().Set("X-Long", strings.Repeat("a", 16<<20))
	case FaultRedirect:
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	case FaultUnavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
	case FaultVersion:
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"type":"`+problem+`AttestationError","detail":"Attestation error: RCAR handshake Auth failed: `+
			`KBS Client Protocol Version Mismatch: expect =0.9.0 while the request is `+Version+`"}`)
	default:
		forward(w, right)
	}
}

// forward sends an answer as it is.
func forward(w http.ResponseWriter, right *http.Response) {
	for name, values := range right.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(right.StatusCode)
	io.Copy(w, right.Body)
}
