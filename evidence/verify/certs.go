package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds on what a host may put into a table of certificates: a key of a hundred
// thousand bits takes seconds to try. A real table has at most seven entries of
// two KiB.
const (
	maxEntries     = 16
	maxCertificate = 4 << 10 // bytes
)

// A GUIDed entry of the certificate table: GUID, offset and length; AMD 56421,
// guest request of a report with certificates. GUIDs are stored as RFC 4122
// writes them.
const entrySize = 24

// tableGUIDs are the entries that hold a certificate. The zero GUID with a length
// is what go-sev-guest writes for the intermediate of a VLEK.
var tableGUIDs = []string{
	"63da758de6644564adc5f4b93be8accd", // VCEK
	"a8074bc2a25a483eaae639c045a0b8a1", // VLEK
	"4ab7b379bbac4fe4a02f05aef327c782", // ASK
	"c0b406a4a803495297433fb6014cd0ae", // ARK
	"00000000000000000000000000000000",
}

// parseTable reads a table of certificates. base is where it begins in what the
// user gave. Entries of other kinds are left out.
func parseTable(b []byte, base int) ([]*x509.Certificate, error) {
	const object = "certificate table"
	var out []*x509.Certificate
	for i := 0; ; i++ {
		at := i * entrySize
		if i == maxEntries || at+entrySize > len(b) {
			return nil, malformed(object, base+at, "no end after %d entries", i)
		}
		entry := b[at:][:entrySize]
		if notZero(entry) < 0 {
			return out, nil
		}
		offset, length := int64(binary.LittleEndian.Uint32(entry[16:])), int64(binary.LittleEndian.Uint32(entry[20:]))
		if offset+length > int64(len(b)) {
			return nil, malformed(object, base+at, "entry %d: offset %d, length %d: the table has %d bytes", i, offset, length, len(b))
		}
		if length == 0 || !slices.Contains(tableGUIDs, hex.EncodeToString(entry[:16])) {
			continue
		}
		cert, err := parseCertificate(b[offset:][:length])
		if err != nil {
			return nil, malformed(object, base+int(offset), "entry %d: %v", i, err)
		}
		out = append(out, cert)
	}
}

func parseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, fmt.Errorf("certificate of %d bytes: want at most %d", len(der), maxCertificate)
	}
	return x509.ParseCertificate(der)
}

const pemBegin = "-----BEGIN "

// ParseCertificates reads certificates in any of the forms in which they are
// handed around: PEM blocks, one in DER, or the table that a guest gets with an
// SNP report (auxblob of configfs-tsm).
func ParseCertificates(b []byte) ([]*x509.Certificate, error) {
	switch {
	case bytes.Contains(b, []byte(pemBegin)):
		return parsePEM(b)
	case len(b) > 0 && b[0] == 0x30: // an ASN.1 SEQUENCE
		cert, err := parseCertificate(b)
		if err != nil {
			return nil, fmt.Errorf("verify: certificate: %w", err)
		}
		return []*x509.Certificate{cert}, nil
	}
	return parseTable(b, 0)
}

// parsePEM reads CERTIFICATE blocks and leaves others out.
func parsePEM(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		if len(out) == maxEntries {
			return nil, fmt.Errorf("verify: PEM: more than %d certificates", maxEntries)
		}
		cert, err := parseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("verify: PEM: certificate %d: %w", len(out)+1, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, errors.New("verify: PEM: no certificate in it")
	}
	return out, nil
}

// ParseCRL reads a revocation list in DER or PEM.
func ParseCRL(b []byte) (*x509.RevocationList, error) {
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	crl, err := x509.ParseRevocationList(b)
	if err != nil {
		return nil, fmt.Errorf("verify: revocation list: %w", err)
	}
	return crl, nil
}

// Decode returns the bytes of evidence that may be text: hexadecimal or base64,
// either alphabet, with or without padding, in lines or not. What is no text is
// returned as it is: a report and a quote both have zero bytes.
func Decode(b []byte) ([]byte, error) {
	if bytes.Contains(b, []byte(pemBegin)) {
		return nil, errors.New("verify: PEM: want the evidence itself, as bytes, hexadecimal or base64")
	}
	const alphabet = "0123456789abcdefABCDEFghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ+/-_= \t\r\n"
	if bytes.ContainsFunc(b, func(r rune) bool { return !strings.ContainsRune(alphabet, r) }) {
		return b, nil
	}
	text := strings.Join(strings.Fields(string(b)), "")
	if out, err := hex.DecodeString(text); err == nil {
		return out, nil
	}
	text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
	out, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("verify: text that is neither hexadecimal nor base64: %w", err)
	}
	return out, nil
}

// selfSigned tells whether a certificate names itself as its issuer.
func selfSigned(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// pools splits certificates into roots and what may stand between. Only those
// given as roots are trusted.
func pools(roots, others []*x509.Certificate) (trusted, between *x509.CertPool) {
	trusted, between = x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		if selfSigned(c) {
			trusted.AddCert(c)
		} else {
			between.AddCert(c)
		}
	}
	for _, c := range others {
		if !selfSigned(c) {
			between.AddCert(c)
		}
	}
	return trusted, between
}

// chainNames writes a chain for people, leaf first.
func chainNames(chain []*x509.Certificate) string {
	var out []string
	for _, c := range chain {
		out = append(out, c.Subject.CommonName)
	}
	return strings.Join(out, " <- ")
}
