package sign

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/plinth-os/plinth/internal/cbor"
)

// Labels of protected headers: RFC 9052 section 3.1, RFC 9360, and the CoRIM
// draft (draft-ietf-rats-corim, COSE_Sign1-corim).
const (
	labelAlg         = 1
	labelContentType = 3
	labelKeyID       = 4
	labelCoRIMMeta   = 8
	labelX5Chain     = 33
)

const (
	tagCOSESign1 = 18
	corimType    = "application/rim+cbor"
)

// CoRIMParams is what the signer of a CoRIM says beside it.
type CoRIMParams struct {
	Signer   string              // name; "" takes the certificate's subject, else the key's ID
	NotAfter int64               // until when the signature is good, in seconds since 1970; 0: not said
	Chain    []*x509.Certificate // as ParseChain returns it; may be empty
}

// SignCOSE returns a CoRIM within a COSE_Sign1, the signed form of a CoRIM.
// payload is the unsigned form, tag 501.
func SignCOSE(payload []byte, k *Key, p CoRIMParams) ([]byte, error) {
	protected, err := corimHeader(k, p)
	if err != nil {
		return nil, err
	}
	sig, err := k.SignRaw(sigStructure(protected, payload))
	if err != nil {
		return nil, fmt.Errorf("%w: COSE", err)
	}
	b := cbor.AppendArray(cbor.AppendTag(nil, tagCOSESign1), 4)
	b = cbor.AppendBytes(b, protected)
	b = cbor.AppendMap(b, 0)
	b = cbor.AppendBytes(b, payload)
	return cbor.AppendBytes(b, sig), nil
}

// corimHeader is the protected header. It says the certificates as well: a
// verifier need not take anything that is not signed.
func corimHeader(k *Key, p CoRIMParams) ([]byte, error) {
	id, err := k.ID()
	if err != nil {
		return nil, err
	}
	pairs := 4
	if len(p.Chain) > 0 {
		pairs++
	}
	b := cbor.AppendMap(nil, pairs)
	b = cbor.AppendInt(cbor.AppendInt(b, labelAlg), k.alg.COSE)
	b = cbor.AppendText(cbor.AppendInt(b, labelContentType), corimType)
	b = cbor.AppendBytes(cbor.AppendInt(b, labelKeyID), id)
	b = cbor.AppendBytes(cbor.AppendInt(b, labelCoRIMMeta), corimMeta(p, id))
	switch len(p.Chain) {
	case 0:
	case 1:
		b = cbor.AppendBytes(cbor.AppendInt(b, labelX5Chain), p.Chain[0].Raw)
	default:
		b = cbor.AppendArray(cbor.AppendInt(b, labelX5Chain), len(p.Chain))
		for _, c := range p.Chain {
			b = cbor.AppendBytes(b, c.Raw)
		}
	}
	return b, nil
}

// corimMeta is a corim-meta-map: the signer's name, and until when it stands for
// what it signed.
func corimMeta(p CoRIMParams, id []byte) []byte {
	name := p.Signer
	if name == "" && len(p.Chain) > 0 {
		name = p.Chain[0].Subject.String()
	}
	if name == "" {
		name = fmt.Sprintf("key %x", id)
	}
	pairs := 1
	if p.NotAfter != 0 {
		pairs++
	}
	b := cbor.AppendMap(nil, pairs)
	b = cbor.AppendText(cbor.AppendInt(cbor.AppendMap(cbor.AppendInt(b, 0), 1), 0), name)
	if p.NotAfter != 0 {
		b = cbor.AppendInt(cbor.AppendTag(cbor.AppendInt(cbor.AppendMap(cbor.AppendInt(b, 1), 1), 1), 1), p.NotAfter)
	}
	return b
}

// sigStructure is what is signed: RFC 9052 section 4.4, without external data.
func sigStructure(protected, payload []byte) []byte {
	b := cbor.AppendText(cbor.AppendArray(nil, 4), "Signature1")
	b = cbor.AppendBytes(b, protected)
	b = cbor.AppendBytes(b, nil)
	return cbor.AppendBytes(b, payload)
}

// rawECDSA turns an ASN.1 signature into r and s.
func rawECDSA(pub *ecdsa.PublicKey, sig []byte) ([]byte, error) {
	var v struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(sig, &v); err != nil || len(rest) != 0 {
		return nil, errors.New("sign: ECDSA signature is not ASN.1")
	}
	n := orderBytes(pub)
	if v.R.Sign() < 0 || v.S.Sign() < 0 || v.R.BitLen() > 8*n || v.S.BitLen() > 8*n {
		return nil, errors.New("sign: ECDSA signature is out of range")
	}
	out := make([]byte, 2*n)
	v.R.FillBytes(out[:n])
	v.S.FillBytes(out[n:])
	return out, nil
}

func orderBytes(pub *ecdsa.PublicKey) int { return (pub.Curve.Params().N.BitLen() + 7) / 8 }

// asn1ECDSA is rawECDSA the other way.
func asn1ECDSA(pub *ecdsa.PublicKey, raw []byte) ([]byte, error) {
	n := orderBytes(pub)
	if len(raw) != 2*n {
		return nil, fmt.Errorf("sign: ECDSA signature of %d bytes: want %d", len(raw), 2*n)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:])})
}
