package crypt

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"github.com/go-jose/go-jose/v4"
)

// What ocicrypt wraps with: keywrap/jwe. The first two are for RSA.
var (
	keyAlgorithms     = []jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256, jose.ECDH_ES_A256KW}
	contentEncryption = []jose.ContentEncryption{jose.A256GCM}
)

// JWE opens packets for one's own private keys, RSA or EC. RFC 7516.
func JWE(keys ...crypto.PrivateKey) Unwrapper { return jweUnwrapper{keys} }

type jweUnwrapper struct{ keys []crypto.PrivateKey }

func (jweUnwrapper) Scheme() string { return SchemeJWE }

func (u jweUnwrapper) Unwrap(_ context.Context, b []byte) ([]byte, error) {
	obj, err := jose.ParseEncryptedJSON(string(b), keyAlgorithms, contentEncryption)
	if err != nil {
		return nil, err
	}
	for _, k := range u.keys {
		if _, _, plain, err := obj.DecryptMulti(k); err == nil {
			return plain, nil
		}
	}
	return nil, errors.New("for none of the private keys")
}

// ForJWE wraps for the owner of a private key, RSA or EC.
func ForJWE(key crypto.PublicKey) Wrapper { return jweWrapper{key} }

type jweWrapper struct{ key crypto.PublicKey }

func (jweWrapper) Scheme() string { return SchemeJWE }

func (w jweWrapper) Wrap(key []byte, _ io.Reader) ([]byte, error) {
	var alg jose.KeyAlgorithm
	switch w.key.(type) {
	case *rsa.PublicKey:
		alg = jose.RSA_OAEP
	case *ecdsa.PublicKey:
		alg = jose.ECDH_ES_A256KW
	default:
		return nil, fmt.Errorf("key of type %T: want RSA or EC", w.key)
	}
	e, err := jose.NewMultiEncrypter(jose.A256GCM, []jose.Recipient{{Algorithm: alg, Key: w.key}}, nil)
	if err != nil {
		return nil, err
	}
	obj, err := e.Encrypt(key)
	if err != nil {
		return nil, err
	}
	return []byte(obj.FullSerialize()), nil
}
