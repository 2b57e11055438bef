package sign

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParseKey reads a private key in PEM: PKCS #8, or the older forms of EC and RSA.
// Whatever else the file holds is named: it is a common slip to give the public
// key, the certificate or an encrypted key.
func ParseKey(b []byte) (*Key, error) {
	block, err := keyBlock(b)
	if err != nil {
		return nil, err
	}
	var parsed any
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, &KeyError{Err: fmt.Errorf("%s: %w", block.Type, err)}
	}
	s, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, &KeyError{Err: fmt.Errorf("%T: cannot sign", parsed)}
	}
	k, err := New(s)
	if err != nil {
		return nil, &KeyError{Err: err}
	}
	return k, nil
}

// keyBlock returns the only private key of a PEM file.
func keyBlock(b []byte) (*pem.Block, error) {
	var key *pem.Block
	var other string
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, encrypted()
			}
			if key != nil {
				return nil, &KeyError{Err: errors.New("two private keys in one file: want one")}
			}
			key = block
		case "ENCRYPTED PRIVATE KEY":
			return nil, encrypted()
		case "EC PARAMETERS": // "openssl ecparam -genkey" puts them first
		default:
			other = block.Type
		}
	}
	switch {
	case key != nil:
		return key, nil
	case other == "OPENSSH PRIVATE KEY":
		return nil, &KeyError{Err: errors.New("a key in OpenSSH's own form"), hint: `"ssh-keygen -p -m PKCS8 -f COPY" rewrites a copy of it`}
	case other != "":
		return nil, &KeyError{Err: fmt.Errorf("a PEM file with a %s: want a private key", other), hint: "name the file with the private half"}
	case bytes.HasPrefix(b, []byte{0x30}):
		return nil, &KeyError{Err: errors.New("DER: want PEM"), hint: `"openssl pkey -inform DER -in FILE" writes PEM`}
	}
	return nil, &KeyError{Err: errors.New("no PEM block")}
}

func encrypted() error {
	return &KeyError{Err: errors.New("the private key is encrypted, and nothing here asks for a passphrase"),
		hint: `"openssl pkey -in FILE" writes it in the clear, for instance to a file on a tmpfs; or keep it in a token and name that by a pkcs11: URI`}
}

// ParseChain reads certificates in PEM, that of the key first, each signed by the
// next.
func ParseChain(b []byte, k *Key) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("sign: certificates: a PEM block of type %q: want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("sign: certificate %d: %w", len(chain), err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("sign: certificates: no PEM block of type CERTIFICATE")
	}
	pub, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("sign: certificate %q: is not for this key: the key's comes first", chain[0].Subject)
	}
	for i, c := range chain[1:] {
		if err := chain[i].CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("sign: certificate %q: is not signed by the next, %q: %w", chain[i].Subject, c.Subject, err)
		}
	}
	return chain, nil
}
