package kbs

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	josecipher "github.com/go-jose/go-jose/v4/cipher"
)

// Values in a Secret.
const (
	SecretVersion  = "0.1.0"
	SecretEnvelope = "envelope" // the secret itself, encrypted
	SecretVault    = "vault"    // the secret's name
	ProviderKBS    = "kbs"

	// WrapA256GCM is the only cipher of envelopes: guest-components has A256CTR besides,
	// which nothing authenticates.
	WrapA256GCM = "A256GCM"

	// An envelope's key is wrapped by AES-256 as in RFC 3394, by a key of 32 bytes that
	// the broker has, and Annotations say so. No release of guest-components gives
	// provider "kbs" a meaning for envelopes.
	AnnotationKeyWrap = "key_wrap"
	KeyWrapA256KW     = "A256KW"
)

// A Secret is what a sealed one says: guest-components,
// confidential-data-hub/docs/SEALED_SECRET.md.
type Secret struct {
	Version          string            `json:"version"`
	Type             string            `json:"type"`
	Name             string            `json:"name,omitempty"`           // of a vault secret: a URI
	KeyID            string            `json:"key_id,omitempty"`         // the rest is an envelope's: URI of the key that wraps EncryptedKey
	EncryptedKey     string            `json:"encrypted_key,omitempty"`  // base64
	EncryptedData    string            `json:"encrypted_data,omitempty"` // base64 of ciphertext and tag
	WrapType         string            `json:"wrap_type,omitempty"`
	IV               string            `json:"iv,omitempty"` // base64
	Provider         string            `json:"provider"`
	ProviderSettings map[string]string `json:"provider_settings"`
	Annotations      map[string]string `json:"annotations"`
}

// Check refuses what this guest has no use for.
func (s *Secret) Check() error {
	switch {
	case s.Version != SecretVersion:
		return fmt.Errorf("version %.40q: want %s", s.Version, SecretVersion)
	case !strings.EqualFold(s.Provider, ProviderKBS):
		return fmt.Errorf("provider %.40q: only %s is supported", s.Provider, ProviderKBS)
	case len(s.ProviderSettings) > 0:
		return errors.New("provider_settings: provider kbs has none")
	}
	switch s.Type {
	case SecretVault:
		return s.checkVault()
	case SecretEnvelope:
		return s.checkEnvelope()
	}
	return fmt.Errorf("type %.40q: want %s or %s", s.Type, SecretEnvelope, SecretVault)
}

func (s *Secret) checkVault() error {
	if s.KeyID+s.EncryptedKey+s.EncryptedData+s.WrapType+s.IV != "" {
		return errors.New("vault: has members of an envelope")
	}
	if len(s.Annotations) > 0 {
		return errors.New("vault: annotations: provider kbs has none")
	}
	if _, err := ParseURI(s.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	return nil
}

func (s *Secret) checkEnvelope() error {
	if s.Name != "" {
		return errors.New("envelope: has the name of a vault's secret")
	}
	if s.WrapType != WrapA256GCM {
		return fmt.Errorf("wrap_type %.40q: want %s", s.WrapType, WrapA256GCM)
	}
	if s.Annotations[AnnotationKeyWrap] != KeyWrapA256KW || len(s.Annotations) != 1 {
		return fmt.Errorf("annotations: want %s %q alone", AnnotationKeyWrap, KeyWrapA256KW)
	}
	if _, err := ParseURI(s.KeyID); err != nil {
		return fmt.Errorf("key_id: %w", err)
	}
	for _, f := range []struct {
		name, text string
		size, most int // bytes
	}{
		{"encrypted_key", s.EncryptedKey, 40, 40}, // RFC 3394: 8 more than the key
		{"iv", s.IV, 12, 12},
		{"encrypted_data", s.EncryptedData, 16, maxSealed}, // the tag
	} {
		b, err := decodeStd(f.text)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if len(b) < f.size || len(b) > f.most {
			return fmt.Errorf("%s: %d bytes, want %d to %d", f.name, len(b), f.size, f.most)
		}
	}
	return nil
}

// decodeStd decodes base64 with padding, in its one spelling.
func decodeStd(s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("want base64")
	}
	return b, nil
}

// open decrypts an envelope that was checked.
func (s *Secret) open(kek []byte) ([]byte, error) {
	if len(kek) != 32 {
		return nil, fmt.Errorf("key %s: %d bytes, want 32", s.KeyID, len(kek))
	}
	wrapped, err := decodeStd(s.EncryptedKey)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	key, err := josecipher.KeyUnwrap(block, wrapped)
	if err != nil {
		return nil, fmt.Errorf("key %s: not the one that wrapped this envelope's", s.KeyID)
	}
	defer clear(key)
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	iv, err := decodeStd(s.IV)
	if err != nil {
		return nil, err
	}
	data, err := decodeStd(s.EncryptedData)
	if err != nil {
		return nil, err
	}
	secret, err := gcm.Open(nil, iv, data, nil)
	if err != nil {
		return nil, errors.New("envelope: altered")
	}
	return secret, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// NewVault returns a secret that is the broker's under a URI.
func NewVault(uri string) (*Secret, error) {
	s := &Secret{Version: SecretVersion, Type: SecretVault, Name: uri, Provider: ProviderKBS}
	return s.finish()
}

// NewEnvelope encrypts a secret by key, which is wrapped by kek, the broker's under
// uri. Key has 32 bytes, iv 12, both random and of this one secret.
func NewEnvelope(secret, key, iv []byte, uri string, kek []byte) (*Secret, error) {
	if len(key) != 32 || len(iv) != 12 || len(kek) != 32 {
		return nil, fmt.Errorf("sealed secret: key, iv and wrapping key have %d, %d and %d bytes: want 32, 12 and 32", len(key), len(iv), len(kek))
	}
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	wrapper, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	wrapped, err := josecipher.KeyWrap(wrapper, key)
	if err != nil {
		return nil, err
	}
	std := base64.StdEncoding.EncodeToString
	s := &Secret{
		Version: SecretVersion, Type: SecretEnvelope, Provider: ProviderKBS,
		KeyID: uri, EncryptedKey: std(wrapped), IV: std(iv), WrapType: WrapA256GCM,
		EncryptedData: std(gcm.Seal(nil, iv, secret, nil)),
		Annotations:   map[string]string{AnnotationKeyWrap: KeyWrapA256KW},
	}
	return s.finish()
}

func (s *Secret) finish() (*Secret, error) {
	s.ProviderSettings = map[string]string{}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	return s, nil
}
