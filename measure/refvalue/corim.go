package refvalue

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/plinth-os/plinth/internal/cbor"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// Tags of CBOR items, draft-ietf-rats-corim.
const (
	tagTime      = 1
	tagCOSESign1 = 18
	tagUUID      = 37
	tagCoRIM     = 501 // unsigned-corim-map
	tagCoMID     = 506
	tagBytes     = 560
	tagOldCoRIM  = 500 // around either form, in drafts before the present one
	tagOldSigned = 502
	roleCreator  = 1 // manifest-creator
)

// CoRIMParams is what a CoRIM says besides the values.
type CoRIMParams struct {
	ID     string // of the CoRIM; "" makes a UUID of its content
	Entity string // who made it; "" leaves that out
}

// A Digest is a digest with its algorithm.
type Digest struct {
	Algorithm int64 // IANA's Named Information registry: 1 SHA-256, 7 SHA-384, 8 SHA-512
	Value     []byte
}

func digestAlgorithm(size int) int64 {
	switch size {
	case 32:
		return 1
	case 48:
		return 7
	case 64:
		return 8
	}
	return 0
}

func digestSize(algorithm int64) int {
	switch algorithm {
	case 1:
		return 32
	case 7:
		return 48
	case 8:
		return 64
	}
	return 0
}

func compareDigests(a, b Digest) int {
	return cmp.Or(cmp.Compare(a.Algorithm, b.Algorithm), bytes.Compare(a.Value, b.Value))
}

// ErrNothing: no value of the set has a place in the form asked for.
var ErrNothing = errors.New("no value of the set has a place in it")

// CoRIM returns the set as a CoRIM with one CoMID of reference triples: the
// unsigned tagged form, which Trustee's RVPS reads. CoRIMNames tells its names
// there, and what is left out. Identifiers follow from the content, so that the
// same set gives the same bytes.
func (s *Set) CoRIM(p CoRIMParams) ([]byte, error) {
	env, ok := environments[s.TEE]
	if !ok {
		return nil, fmt.Errorf("refvalue: CoRIM: the set is for TEE %q: want one of %v", s.TEE, TEEs)
	}
	var list []*measurement
	for _, v := range s.Values {
		if m, why := measurementOf(v); why == "" {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("refvalue: CoRIM: %w", ErrNothing)
	}
	triples := appendTriples(nil, env.vendor, env.model, list)
	tag := appendCoMID(nil, uuid5(namespace, triples), triples)
	return appendCoRIM(nil, p, s.expiry(), tag), nil
}

// CoRIMMessage returns the message that registers a CoRIM, signed or not, with
// Trustee's RVPS. RVPS looks at no signature.
func CoRIMMessage(corim []byte) ([]byte, error) {
	if _, err := ParseCoRIM(corim); err != nil {
		return nil, err
	}
	return strictjson.Marshal(message{Version: rvpsVersion, Type: "corim", Payload: base64.StdEncoding.EncodeToString(corim)})
}

// expiry is when the set expires, in seconds since 1970; 0 when it does not say.
func (s *Set) expiry() int64 {
	if s.Expires.IsZero() {
		return 0
	}
	return s.Expires.Unix()
}

// appendTriples writes a triples-map of one reference triple.
func appendTriples(b []byte, vendor, model string, list []*measurement) []byte {
	b = cbor.AppendInt(cbor.AppendMap(b, 1), 0) // reference-triples
	b = cbor.AppendArray(cbor.AppendArray(b, 1), 2)
	b = cbor.AppendInt(cbor.AppendMap(b, 1), 0) // environment-map: class
	b = cbor.AppendMap(b, 2)
	b = cbor.AppendText(cbor.AppendInt(b, 1), vendor)
	b = cbor.AppendText(cbor.AppendInt(b, 2), model)
	b = cbor.AppendArray(b, len(list))
	for _, m := range list {
		b = m.append(b)
	}
	return b
}

// append writes a measurement-map.
func (m *measurement) append(b []byte) []byte {
	b = cbor.AppendMap(b, 2)
	b = cbor.AppendText(cbor.AppendInt(b, 0), m.mkey)
	b = cbor.AppendMap(cbor.AppendInt(b, 1), 1) // mval
	if m.raw != nil {
		return cbor.AppendBytes(cbor.AppendTag(cbor.AppendInt(b, 4), tagBytes), m.raw)
	}
	b = cbor.AppendArray(cbor.AppendInt(b, 2), len(m.digests))
	for _, d := range m.digests {
		b = cbor.AppendBytes(cbor.AppendInt(cbor.AppendArray(b, 2), d.Algorithm), d.Value)
	}
	return b
}

// appendCoMID writes a concise-mid-tag.
func appendCoMID(b []byte, id [16]byte, triples []byte) []byte {
	b = cbor.AppendMap(b, 2)
	b = cbor.AppendInt(b, 1) // tag-identity
	b = cbor.AppendBytes(cbor.AppendInt(cbor.AppendMap(b, 1), 0), id[:])
	return append(cbor.AppendInt(b, 4), triples...)
}

// appendCoRIM writes a tagged unsigned-corim-map. An identifier that is not given
// is made of all the rest.
func appendCoRIM(b []byte, p CoRIMParams, expires int64, comid []byte) []byte {
	pairs := 2
	rest := cbor.AppendArray(cbor.AppendInt(nil, 1), 1) // tags
	rest = cbor.AppendBytes(cbor.AppendTag(rest, tagCoMID), comid)
	if expires != 0 {
		pairs++
		rest = cbor.AppendInt(cbor.AppendMap(cbor.AppendInt(rest, 4), 1), 1) // rim-validity: not-after
		rest = cbor.AppendInt(cbor.AppendTag(rest, tagTime), expires)
	}
	if p.Entity != "" {
		pairs++
		rest = cbor.AppendMap(cbor.AppendArray(cbor.AppendInt(rest, 5), 1), 2)
		rest = cbor.AppendText(cbor.AppendInt(rest, 0), p.Entity)
		rest = cbor.AppendInt(cbor.AppendArray(cbor.AppendInt(rest, 2), 1), roleCreator)
	}
	b = cbor.AppendInt(cbor.AppendMap(cbor.AppendTag(b, tagCoRIM), pairs), 0) // id
	if p.ID != "" {
		b = cbor.AppendText(b, p.ID)
	} else {
		id := uuid5(namespace, rest)
		b = cbor.AppendBytes(b, id[:])
	}
	return append(b, rest...)
}

// namespaceURL is that of RFC 9562 section 6.6; namespace is ours in it.
var (
	namespaceURL = [16]byte{0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}
	namespace    = uuid5(namespaceURL, []byte(PredicateType))
)

// uuid5 makes a UUID of version 5: RFC 9562 section 5.5. It identifies, and
// protects nothing.
func uuid5(space [16]byte, name []byte) [16]byte {
	h := sha1.New()
	h.Write(space[:])
	h.Write(name)
	u := [16]byte(h.Sum(nil)[:16])
	u[6] = u[6]&0x0f | 5<<4
	u[8] = u[8]&0x3f | 2<<6
	return u
}
