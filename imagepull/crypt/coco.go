package crypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Keys finds key-encryption keys, 32 bytes, by what a packet calls them:
// "kbs:///repository/type/tag". The guest asks its broker.
type Keys func(ctx context.Context, id string) ([]byte, error)

// A packet is what an annotation of the provider attestation-agent holds: version 1
// has the first four members, version 2 the others as well. guest-components,
// confidential-data-hub/hub/src/image/annotation_packet.
type packet struct {
	ID       string `json:"kid"`
	Wrapped  []byte `json:"wrapped_data"`
	IV       []byte `json:"iv,omitempty"`
	WrapType string `json:"wrap_type,omitempty"`

	Version     string          `json:"version,omitempty"`
	Provider    string          `json:"provider,omitempty"`
	Settings    json.RawMessage `json:"provider_settings,omitempty"`
	Annotations json.RawMessage `json:"annotations,omitempty"`
}

// How the layer's key is wrapped.
const (
	wrapGCM = "A256GCM"
	wrapCTR = "A256CTR" // no tag: what it opens is proven by the layer's HMAC alone
)

const (
	packetVersion = "0.1.0"
	packetKBS     = "kbs"
)

// CoCo opens packets with keys that a broker has.
func CoCo(keys Keys) Unwrapper { return cocoUnwrapper{keys} }

type cocoUnwrapper struct{ keys Keys }

func (cocoUnwrapper) Scheme() string { return SchemeCoCo }

func (u cocoUnwrapper) Unwrap(ctx context.Context, b []byte) ([]byte, error) {
	var p packet
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("packet: %w", err)
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("packet: %w", err)
	}
	kek, err := u.keys(ctx, p.resource())
	if err != nil {
		return nil, err
	}
	if len(kek) != 32 {
		return nil, fmt.Errorf("key %s: %d bytes: want 32", p.resource(), len(kek))
	}
	plain, err := p.open(kek)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", p.resource(), err)
	}
	return plain, nil
}

func (p *packet) check() error {
	switch {
	case p.Version != "" && p.Version != packetVersion:
		return fmt.Errorf("version %q: want %s", p.Version, packetVersion)
	case p.Provider != "" && p.Provider != packetKBS:
		return fmt.Errorf("provider %q: only %s is supported", p.Provider, packetKBS)
	case p.ID == "":
		return errors.New("no kid")
	}
	return nil
}

// resource returns the key's name. An old key provider wrote the scheme twice.
func (p *packet) resource() string {
	const scheme = "kbs:///"
	return strings.Replace(p.ID, scheme+scheme, scheme, 1)
}

func (p *packet) open(kek []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	switch p.WrapType {
	case wrapGCM:
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		if len(p.IV) != gcm.NonceSize() {
			return nil, fmt.Errorf("%s: iv of %d bytes: want %d", wrapGCM, len(p.IV), gcm.NonceSize())
		}
		return gcm.Open(nil, p.IV, p.Wrapped, nil)
	case wrapCTR:
		if len(p.IV) != aes.BlockSize {
			return nil, fmt.Errorf("%s: iv of %d bytes: want %d", wrapCTR, len(p.IV), aes.BlockSize)
		}
		plain := make([]byte, len(p.Wrapped))
		cipher.NewCTR(block, p.IV).XORKeyStream(plain, p.Wrapped)
		return plain, nil
	}
	return nil, fmt.Errorf("wrap_type %q: want %s or %s", p.WrapType, wrapGCM, wrapCTR)
}

// ForCoCo wraps for guests that get the key of that name from their broker. The
// packet is of version 1, which all of them read.
func ForCoCo(id string, kek []byte) Wrapper { return cocoWrapper{id, kek} }

type cocoWrapper struct {
	id  string
	kek []byte
}

func (cocoWrapper) Scheme() string { return SchemeCoCo }

func (w cocoWrapper) Wrap(key []byte, random io.Reader) ([]byte, error) {
	if len(w.kek) != 32 {
		return nil, fmt.Errorf("key %s: %d bytes: want 32", w.id, len(w.kek))
	}
	block, err := aes.NewCipher(w.kek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, gcm.NonceSize())
	if _, err := io.ReadFull(random, iv); err != nil {
		return nil, err
	}
	return json.Marshal(packet{ID: w.id, Wrapped: gcm.Seal(nil, iv, key, nil), IV: iv, WrapType: wrapGCM})
}
