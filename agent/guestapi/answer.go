package guestapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/plinth-os/plinth/agent/kbs"
)

// An answer to one request. Kinds and texts of success are those of api-server-rest.
type answer struct {
	status int
	kind   string // Content-Type
	allow  string // the method, with StatusMethodNotAllowed
	body   []byte
}

const (
	kindBytes = "application/octet-stream"
	kindJSON  = "application/json"
	kindText  = "text/plain; charset=utf-8"
)

func text(status int, s string) answer {
	return answer{status: status, kind: kindText, body: []byte(s)}
}

func badRequest(format string, args ...any) answer {
	return text(http.StatusBadRequest, fmt.Sprintf(format, args...))
}

// notGranted is for what the measured configuration does not let the container do.
func notGranted(what string) answer {
	return text(http.StatusForbidden, "the workload's api does not grant "+what)
}

func (a answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if a.allow != "" {
		h.Set("Allow", a.allow)
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // who does not read it does not get it
}

// failed tells the container which kind of error it was; the guest's log has the rest.
// What the broker refused keeps its status.
func failed(err error) answer {
	var version *kbs.VersionError
	switch {
	case refused(err):
		return text(http.StatusForbidden, "the broker refuses it to this guest")
	case errors.Is(err, kbs.ErrNotFound):
		return text(http.StatusNotFound, "the broker has no such resource")
	case errors.Is(err, kbs.ErrUnauthorized):
		return text(http.StatusUnauthorized, "the broker does not accept this guest, or has no such resource")
	case errors.As(err, &version):
		return text(http.StatusBadGateway, version.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return text(http.StatusGatewayTimeout, "the guest has no answer in time")
	}
	return text(http.StatusInternalServerError, "the guest cannot do this now")
}

// refused tells whether a broker's policy said no. Trustee has 401 for that too, and
// names it: kbs/src/error.rs.
func refused(err error) bool {
	var s *kbs.StatusError
	return errors.Is(err, kbs.ErrForbidden) || errors.As(err, &s) && s.Status == http.StatusUnauthorized && s.Kind == "PolicyDeny"
}
