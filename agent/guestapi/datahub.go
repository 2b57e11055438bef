package guestapi

import (
	"context"
	"encoding/json"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/agent/kbs"
)

// dataHub is the services of confidential-data-hub that are not of images.
type dataHub struct{ guest Guest }

// GetResource takes any URI that names one of the guest's brokers.
func (h dataHub) GetResource(ctx context.Context, r *api.GetResourceRequest) (*api.GetResourceResponse, error) {
	u, err := kbs.ParseURI(r.ResourcePath)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	b, err := h.guest.Resource(ctx, u.String())
	if err != nil {
		return nil, err
	}
	return &api.GetResourceResponse{Resource: b}, nil
}

func (h dataHub) UnsealSecret(ctx context.Context, r *api.UnsealSecretInput) (*api.UnsealSecretOutput, error) {
	b, err := h.guest.Unseal(ctx, r.Secret)
	if err != nil {
		return nil, err
	}
	return &api.UnsealSecretOutput{Plaintext: b}, nil
}

func (h dataHub) SecureMount(ctx context.Context, r *api.SecureMountRequest) (*api.SecureMountResponse, error) {
	// A disk that is half open is nobody's: it goes on without its caller.
	err := h.guest.SecureMount(context.WithoutCancel(ctx), MountRequest{VolumeType: r.VolumeType, Options: r.Options, Flags: r.Flags, MountPoint: r.MountPoint})
	if err != nil {
		return nil, err
	}
	return &api.SecureMountResponse{}, nil
}

// WrapKey is refused, as confidential-data-hub does: images are encrypted elsewhere.
func (dataHub) WrapKey(context.Context, *api.KeyProviderKeyWrapProtocolInput) (*api.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, status.Error(codes.Unimplemented, "a guest wraps no keys")
}

// opUnwrap is an operation of ocicrypt's protocol: ocicrypt, docs/keyprovider.md.
const opUnwrap = "keyunwrap"

// UnWrapKey reads the packet from ocicrypt's JSON, and writes the layer's options as
// ocicrypt-rs does: an array of numbers, which Go's ocicrypt takes as well.
func (h dataHub) UnWrapKey(ctx context.Context, r *api.KeyProviderKeyWrapProtocolInput) (*api.KeyProviderKeyWrapProtocolOutput, error) {
	var in struct {
		Op     string `json:"op"`
		Unwrap struct {
			Annotation []byte `json:"annotation"` // base64
		} `json:"keyunwrapparams"`
	}
	if err := json.Unmarshal(r.KeyProviderKeyWrapProtocolInput, &in); err != nil {
		return nil, status.Error(codes.InvalidArgument, "want the JSON of ocicrypt's key provider protocol")
	}
	if in.Op != opUnwrap {
		return nil, status.Errorf(codes.InvalidArgument, "op %.40q: want %s", in.Op, opUnwrap)
	}
	if len(in.Unwrap.Annotation) == 0 {
		return nil, status.Error(codes.InvalidArgument, "keyunwrapparams: there is no annotation")
	}
	options, err := h.guest.UnwrapKey(ctx, in.Unwrap.Annotation)
	if err != nil {
		return nil, err
	}
	return &api.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: unwrapped(options)}, nil
}

func unwrapped(options []byte) []byte {
	numbers := make([]uint16, len(options)) // []byte would be base64
	for i, b := range options {
		numbers[i] = uint16(b)
	}
	out, err := json.Marshal(map[string]any{"keyunwrapresults": map[string]any{"optsdata": numbers}})
	if err != nil {
		panic(err) // numbers
	}
	return out
}
