package guestapi

import (
	"context"
	"errors"
	"net"
	"strings"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/agent/kbs"
)

// AttestationAgent is where callers look for attestation-agent's service.
// imageservice.Socket is where those of confidential-data-hub are, and
// imageservice.Listen makes either.
const AttestationAgent = "/run/confidential-containers/attestation-agent/attestation-agent.sock"

// Services answer programs of the measured root file system by ttRPC. These get
// whatever the guest can: which of them run is measured, and who could start another
// is root already.
type Services struct {
	Guest  Guest                // nil: images alone
	Images *imageservice.Server // nil: no images
	Logf   func(format string, args ...any)
}

// Serve answers processes of the user that the agent runs as, until ctx ends, and
// closes both listeners: aa is that of AttestationAgent, cdh of imageservice.Socket.
// Either may be nil. A user of that number in a container's namespace is another.
func (s *Services) Serve(ctx context.Context, aa, cdh net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 2)
	n := 0
	serve := func(l net.Listener, register func(*ttrpc.Server)) {
		if l == nil {
			return
		}
		n++
		go func() { done <- s.serve(ctx, l, register) }()
	}
	serve(aa, s.registerAA)
	serve(cdh, s.registerCDH)
	var errs []error
	for range n {
		err := <-done
		if err != nil {
			cancel() // clients want both or none
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Services) serve(ctx context.Context, l net.Listener, register func(*ttrpc.Server)) error {
	srv, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()), ttrpc.WithUnaryServerInterceptor(s.intercept))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	register(srv)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ctx, l); !errors.Is(err, ttrpc.ErrServerClosed) {
		return errors.Join(err, srv.Close())
	}
	return nil
}

func (s *Services) registerAA(srv *ttrpc.Server) {
	if s.Guest != nil {
		api.RegisterAttestationAgentServiceService(srv, attestationAgent{s.Guest})
	}
}

func (s *Services) registerCDH(srv *ttrpc.Server) {
	if s.Images != nil {
		s.Images.Register(srv)
	}
	if s.Guest != nil {
		hub := dataHub{s.Guest}
		api.RegisterGetResourceServiceService(srv, hub)
		api.RegisterSealedSecretServiceService(srv, hub)
		api.RegisterSecureMountServiceService(srv, hub)
		api.RegisterKeyProviderServiceService(srv, hub)
	}
}

// intercept gives every error a code. A mistake in a call must not end PID 1.
func (s *Services) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (out any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.logf("services: %s: panic: %v", info.FullMethod, p)
			out, err = nil, status.Error(codes.Internal, "internal error")
		}
	}()
	out, err = method(ctx, unmarshal)
	if err == nil {
		return out, nil
	}
	if _, ok := status.FromError(err); !ok {
		s.logf("services: %s: %v", info.FullMethod, err)
		err = status.Error(code(err), strings.ToValidUTF8(err.Error(), "?")) // or it has no wire form
	}
	return nil, err
}

func code(err error) codes.Code {
	switch {
	case refused(err):
		return codes.PermissionDenied
	case errors.Is(err, kbs.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, kbs.ErrUnauthorized):
		return codes.Unauthenticated
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Internal
}

func (s *Services) logf(format string, args ...any) {
	if s.Logf != nil {
		s.Logf(format, args...)
	}
}
