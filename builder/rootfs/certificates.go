package rootfs

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/plinth-os/plinth/internal/tree"
)

// Where certificates of authorities are, and where programs look for them:
// update-ca-certificates(8).
const (
	certsConf   = "etc/ca-certificates.conf"
	certsShared = "usr/share/ca-certificates"
	certsLocal  = "usr/local/share/ca-certificates"
	certsDir    = "etc/ssl/certs"
	certsBundle = certsDir + "/ca-certificates.crt"
)

// certificates makes the bundle of the authorities that are trusted, and the
// directory that OpenSSL looks them up in by the hash of their names. Those in
// /usr/share are trusted when /etc/ca-certificates.conf lists them, or all when
// there is no such file; those in /usr/local/share always.
func (b *build) certificates() error {
	shared, err := b.sharedCerts()
	if err != nil {
		return err
	}
	names := append(shared, b.walk(certsLocal, ".crt")...)
	if len(names) == 0 {
		return nil
	}
	var bundle bytes.Buffer
	certs := map[string][]byte{} // by the name of the link
	for _, name := range names {
		text, err := b.read(name)
		if err != nil {
			return err
		}
		if text == nil {
			b.note("", "/%s lists %s, which is not there", certsConf, path.Base(name))
			continue
		}
		bundle.Write(text)
		if !bytes.HasSuffix(text, []byte("\n")) {
			bundle.WriteByte('\n')
		}
		link := certsDir + "/" + linkName(path.Base(name)) + ".pem"
		b.make(tree.Symlink(link, "/"+name))
		certs[path.Base(link)] = text
	}
	b.make(tree.File(certsBundle, 0o644, tree.Bytes(bundle.Bytes())))
	return b.hashLinks(certs)
}

// linkName is what update-ca-certificates makes of the name of a certificate.
func linkName(base string) string {
	return strings.NewReplacer(" ", "_", "(", "=", ")", "=", ",", "_").Replace(strings.TrimSuffix(base, ".crt"))
}

// sharedCerts returns the paths of the trusted certificates in /usr/share.
func (b *build) sharedCerts() ([]string, error) {
	conf, err := b.read(certsConf)
	if err != nil {
		return nil, err
	}
	if conf == nil {
		return b.walk(certsShared, ".crt"), nil
	}
	var out []string
	for line := range strings.Lines(string(conf)) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && line[0] != '#' && line[0] != '!' {
			out = append(out, path.Join(certsShared, line))
		}
	}
	return out, nil
}

// walk returns the files below dir whose names end in suffix, sorted.
func (b *build) walk(dir, suffix string) []string {
	var out []string
	for _, base := range b.list(dir) {
		name := dir + "/" + base
		n := b.at[name]
		switch {
		case n != nil && n.Type() == tree.TypeSymlink && b.get(name) == nil: // dangling, or to a directory
		case b.isDir(name):
			out = append(out, b.walk(name, suffix)...)
		case strings.HasSuffix(base, suffix):
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// hashLinks makes the links by which OpenSSL finds an authority: the hash of its
// name, and a number for those that share it; openssl-rehash(1).
func (b *build) hashLinks(certs map[string][]byte) error {
	seen := map[[32]byte]bool{}
	count := map[uint32]int{}
	names := make([]string, 0, len(certs))
	for name := range certs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		block, rest := pem.Decode(certs[name])
		if block == nil || block.Type != "CERTIFICATE" {
			b.note("", "/%s/%s: no PEM certificate, not found by the hash of its name", certsDir, name)
			continue
		}
		if next, _ := pem.Decode(rest); next != nil {
			continue // openssl rehash passes over files of several
		}
		if sum := sha256.Sum256(block.Bytes); seen[sum] {
			continue
		} else {
			seen[sum] = true
		}
		h, err := subjectHash(block.Bytes)
		if err != nil {
			b.note("", "/%s/%s: not found by the hash of its name: %v", certsDir, name, err)
			continue
		}
		b.make(tree.Symlink(fmt.Sprintf("%s/%08x.%d", certsDir, h, count[h]), name))
		count[h]++
	}
	return nil
}

// subjectHash is OpenSSL's X509_NAME_hash: the first four bytes, little-endian, of
// the SHA-1 of the name in a canonical form, without its outermost header.
func subjectHash(der []byte) (uint32, error) {
	name, err := subjectOf(der)
	if err != nil {
		return 0, err
	}
	h := sha1.New()
	for _, set := range name {
		canonical, err := canonicalSet(set.Bytes)
		if err != nil {
			return 0, err
		}
		h.Write(canonical)
	}
	return binary.LittleEndian.Uint32(h.Sum(nil)), nil
}

// subjectOf returns the sets of pairs that the subject of a certificate consists
// of. It is a parser of its own because that of crypto/x509 refuses old roots, for
// their serial numbers for instance.
func subjectOf(der []byte) ([]asn1.RawValue, error) {
	var certificate struct{ TBS, Algorithm, Signature asn1.RawValue }
	if _, err := asn1.Unmarshal(der, &certificate); err != nil {
		return nil, err
	}
	var fields []asn1.RawValue // version if not 1, number, algorithm, issuer, validity, subject
	if _, err := asn1.Unmarshal(certificate.TBS.FullBytes, &fields); err != nil {
		return nil, err
	}
	if len(fields) > 0 && fields[0].Class == asn1.ClassContextSpecific && fields[0].Tag == 0 {
		fields = fields[1:]
	}
	if len(fields) < 5 {
		return nil, errors.New("certificate without a subject")
	}
	var name []asn1.RawValue
	_, err := asn1.Unmarshal(fields[4].FullBytes, &name)
	return name, err
}

// attribute is an AttributeTypeAndValue, RFC 5280 section 4.1.2.4.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

func canonicalSet(content []byte) ([]byte, error) {
	var members [][]byte
	for len(content) > 0 {
		var a attribute
		var err error
		if content, err = asn1.Unmarshal(content, &a); err != nil {
			return nil, err
		}
		if a.Value, err = canonicalString(a.Value); err != nil {
			return nil, err
		}
		m, err := asn1.Marshal(a)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	slices.SortFunc(members, bytes.Compare)
	return asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: bytes.Join(members, nil)})
}

// canonicalString makes UTF-8 of the string types, in lower case as far as ASCII
// goes, without blanks at the ends and with one between words. Other types stay.
func canonicalString(v asn1.RawValue) (asn1.RawValue, error) {
	const t61, universal, bmp = 20, 28, 30
	var text string
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String:
		text = string(v.Bytes)
	case t61: // taken as Latin-1
		var s strings.Builder
		for _, c := range v.Bytes {
			s.WriteRune(rune(c))
		}
		text = s.String()
	case bmp:
		if len(v.Bytes)%2 != 0 {
			return v, fmt.Errorf("string of 16-bit characters has %d bytes", len(v.Bytes))
		}
		var units []uint16
		for i := 0; i < len(v.Bytes); i += 2 {
			units = append(units, binary.BigEndian.Uint16(v.Bytes[i:]))
		}
		text = string(utf16.Decode(units))
	case universal:
		if len(v.Bytes)%4 != 0 {
			return v, fmt.Errorf("string of 32-bit characters has %d bytes", len(v.Bytes))
		}
		var s strings.Builder
		for i := 0; i < len(v.Bytes); i += 4 {
			s.WriteRune(rune(binary.BigEndian.Uint32(v.Bytes[i:])))
		}
		text = s.String()
	default:
		return v, nil
	}
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' })
	lower := strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, strings.Join(words, " "))
	return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(lower)}, nil
}
