package uki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/plinth-os/plinth/internal/pe"
)

// Signer signs images: an RSA key and its certificate. UEFI's image
// verification ignores the certificate's validity dates, and so does this
// package, which has no clock.
type Signer struct {
	Key  crypto.Signer
	Cert *x509.Certificate
}

// LoadSigner reads a private key (PKCS #8 or PKCS #1) and a certificate, both
// in PEM. It refuses a pair that does not belong together and every key but
// RSA with 2048 to 4096 bits: UEFI 2.10, section 32.4.1, asks firmware for
// RSA-2048 with SHA-256, and builds of edk2 differ on whether they take ECDSA.
func LoadSigner(keyPEM, certPEM []byte) (*Signer, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("uki: certificate: no PEM block of type CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("uki: certificate: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("uki: certificate %q: is not for this key", cert.Subject)
	}
	return &Signer{Key: key, Cert: cert}, nil
}

func parseKey(keyPEM []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("uki: key: no PEM block")
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("PEM block of type %q: want PRIVATE KEY or RSA PRIVATE KEY, not encrypted", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("uki: key: %w", err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if _, ec := parsed.(*ecdsa.PrivateKey); ec {
		return nil, errors.New("uki: key: ECDSA: firmware need not take it: want RSA")
	} else if !ok {
		return nil, fmt.Errorf("uki: key: %T: want RSA", parsed)
	}
	if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
		return nil, fmt.Errorf("uki: key: RSA with %d bits: want 2048 to 4096", bits)
	}
	return key, nil
}

// maxSignature is more than a signature has: a certificate and 1 KiB.
const maxSignature = 1 << 20 // bytes

// Sign writes the image of size bytes in r to w with an Authenticode
// signature, its certificate table entry and its CheckSum. It reads the image
// three times and holds none of it. An image whose size is no multiple of 8 is
// padded with zeros first, which changes its digest; one that [Write] made
// never is. An image that is signed already is refused.
func Sign(w io.Writer, r io.ReaderAt, size int64, s *Signer) error {
	pad := make([]byte, -size&7)
	image := &padded{r, size, pad}
	f, err := pe.Parse(image, size+int64(len(pad)))
	if err != nil {
		return fmt.Errorf("uki: sign: %w", err)
	}
	if f.CertTable.Size != 0 {
		return errors.New("uki: sign: image is signed already")
	}
	if f.CertDir == 0 {
		return errors.New("uki: sign: image has no directory entry for certificates")
	}
	if f.Size() > math.MaxUint32-maxSignature {
		return fmt.Errorf("uki: sign: %d bytes and a signature: want less than 4 GiB", f.Size())
	}
	h := sha256.New()
	if err := f.WriteAuthenticode(h); err != nil {
		return err
	}
	signed, err := marshalSignature(h.Sum(nil), s)
	if err != nil {
		return err
	}
	table := winCertificate(signed)
	headers := make([]byte, f.SizeOfHeaders)
	if _, err := io.ReadFull(io.NewSectionReader(image, 0, f.Size()), headers); err != nil {
		return fmt.Errorf("uki: sign: headers: %w", err)
	}
	clear(headers[f.CheckSumField:][:4])
	binary.LittleEndian.PutUint32(headers[f.CertDir:], uint32(f.Size()))
	binary.LittleEndian.PutUint32(headers[f.CertDir+4:], uint32(len(table)))

	out := func() io.Reader {
		rest := io.NewSectionReader(image, int64(len(headers)), f.Size()-int64(len(headers)))
		return io.MultiReader(bytes.NewReader(headers), rest, bytes.NewReader(table))
	}
	var sum checkSum
	if _, err := io.Copy(&sum, out()); err != nil {
		return fmt.Errorf("uki: sign: %w", err)
	}
	binary.LittleEndian.PutUint32(headers[f.CheckSumField:], sum.value())
	if _, err := io.Copy(w, out()); err != nil {
		return fmt.Errorf("uki: sign: %w", err)
	}
	return nil
}

// winCertificate wraps a PKCS #7 signature in a WIN_CERTIFICATE: UEFI 2.10,
// section 32.2.4. dwLength leaves the padding to 8 bytes out.
func winCertificate(signed []byte) []byte {
	n := 8 + len(signed)
	b := make([]byte, (n+7)&^7)
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint16(b[4:], 0x0200) // WIN_CERT_REVISION_2_0
	binary.LittleEndian.PutUint16(b[6:], 0x0002) // WIN_CERT_TYPE_PKCS_SIGNED_DATA
	copy(b[8:], signed)
	return b
}

// padded is r with a few bytes behind it.
type padded struct {
	r    io.ReaderAt
	size int64
	pad  []byte
}

func (p *padded) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	if off < p.size {
		var err error
		n, err = p.r.ReadAt(b[:min(int64(len(b)), p.size-off)], off)
		if err != nil && err != io.EOF || off+int64(n) < p.size {
			return n, err
		}
	}
	n += copy(b[n:], p.pad[min(off+int64(n)-p.size, int64(len(p.pad))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// checkSum computes the CheckSum field of an image in which that field is
// zero: the 16-bit little-endian words added with end-around carry, plus the
// file's length.
type checkSum struct {
	sum, length uint64
	odd         byte
}

func (c *checkSum) Write(p []byte) (int, error) {
	n := len(p)
	if c.length%2 == 1 && n > 0 {
		c.sum += uint64(c.odd) | uint64(p[0])<<8
		p = p[1:]
	}
	for ; len(p) >= 2; p = p[2:] {
		c.sum += uint64(binary.LittleEndian.Uint16(p))
	}
	if len(p) == 1 {
		c.odd = p[0]
	}
	c.length += uint64(n)
	return n, nil
}

func (c *checkSum) value() uint32 {
	sum := c.sum
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint32(sum + c.length)
}

// VerifySignature checks that the image of size bytes in r carries a signature
// of cert's key over its SHA-256 Authenticode digest. It follows no chain:
// cert must be the signer's own. Validity dates are not looked at.
func VerifySignature(r io.ReaderAt, size int64, cert *x509.Certificate) error {
	f, err := pe.Parse(r, size)
	if err != nil {
		return fmt.Errorf("uki: verify: %w", err)
	}
	blobs, err := f.Certificates()
	if err != nil {
		return err
	}
	if len(blobs) == 0 {
		return errors.New("uki: verify: image is not signed")
	}
	h := sha256.New()
	if err := f.WriteAuthenticode(h); err != nil {
		return err
	}
	var errs []error
	for i, blob := range blobs {
		sig, err := parseSignature(blob)
		if err == nil {
			err = sig.verify(h.Sum(nil), cert)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("uki: signature %d: %w", i, err))
	}
	return errors.Join(errs...)
}
