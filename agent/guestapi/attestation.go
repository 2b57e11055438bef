package guestapi

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/workload"
)

// attestationAgent is attestation_agent.AttestationAgentService.
type attestationAgent struct{ guest Guest }

func (a attestationAgent) GetEvidence(ctx context.Context, r *api.GetEvidenceRequest) (*api.GetEvidenceResponse, error) {
	return evidenceOf(ctx, r.RuntimeData, a.guest.Evidence)
}

func (a attestationAgent) GetAdditionalEvidence(ctx context.Context, r *api.GetAdditionalEvidenceRequest) (*api.GetEvidenceResponse, error) {
	return evidenceOf(ctx, r.RuntimeData, a.guest.AdditionalEvidence)
}

func evidenceOf(ctx context.Context, data []byte, get func(context.Context, []byte) ([]byte, error)) (*api.GetEvidenceResponse, error) {
	if len(data) > MaxRuntimeData {
		return nil, status.Errorf(codes.InvalidArgument, "runtime data: %d bytes, want at most %d", len(data), MaxRuntimeData)
	}
	b, err := get(ctx, data)
	if err != nil {
		return nil, err
	}
	return &api.GetEvidenceResponse{Evidence: b}, nil
}

// GetToken answers with the private key, as CoCo's does: it is for clients that decrypt
// what the broker sends.
func (a attestationAgent) GetToken(ctx context.Context, r *api.GetTokenRequest) (*api.GetTokenResponse, error) {
	if r.TokenType != tokenKBS {
		return nil, status.Errorf(codes.InvalidArgument, "token type %.40q: want %s", r.TokenType, tokenKBS)
	}
	b, err := a.guest.Token(ctx, true)
	if err != nil {
		return nil, err
	}
	return &api.GetTokenResponse{Token: b}, nil
}

// ExtendRuntimeMeasurement takes CoCo's domain too: confidential-data-hub and Kata's
// agent measure under it. The agent's own stays the agent's, and so does the choice of
// the register.
func (a attestationAgent) ExtendRuntimeMeasurement(ctx context.Context, r *api.ExtendRuntimeMeasurementRequest) (*api.ExtendRuntimeMeasurementResponse, error) {
	if r.RegisterIndex != nil {
		return nil, status.Error(codes.InvalidArgument, "register index: which register it is, the guest's configuration says")
	}
	e := workload.Event{Domain: r.Domain, Operation: r.Operation, Content: r.Content}
	if err := checkEvent(e); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if reserved(e.Domain, workload.DomainPlinth) {
		return nil, status.Errorf(codes.PermissionDenied, "domain %s: it is the guest's own", e.Domain)
	}
	switch err := a.guest.Measure(context.WithoutCancel(ctx), e); {
	case errors.Is(err, ErrNoRegister):
		return &api.ExtendRuntimeMeasurementResponse{Result: api.RuntimeMeasurementResult_NOT_SUPPORTED}, nil
	case err != nil:
		return nil, err
	}
	return &api.ExtendRuntimeMeasurementResponse{Result: api.RuntimeMeasurementResult_OK}, nil
}

// BindInitData is refused: the initdata of a guest is what it was launched with.
func (attestationAgent) BindInitData(context.Context, *api.BindInitDataRequest) (*api.BindInitDataResponse, error) {
	return nil, status.Error(codes.Unimplemented, "initdata is bound at launch")
}

func (a attestationAgent) GetTeeType(context.Context, *api.GetTeeTypeRequest) (*api.GetTeeTypeResponse, error) {
	return &api.GetTeeTypeResponse{Tee: a.guest.TEE()}, nil
}

func (a attestationAgent) GetAdditionalTees(context.Context, *api.GetAdditionalTeesRequest) (*api.GetAdditionalTeesResponse, error) {
	return &api.GetAdditionalTeesResponse{AdditionalTees: a.guest.AdditionalTEEs()}, nil
}
