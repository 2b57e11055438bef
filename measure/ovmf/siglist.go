package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Types of signature lists: UEFI 2.10, section 32.4.1.
var (
	CertX509   = mustGUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072") // a certificate in DER
	CertSHA256 = mustGUID("c1c41626-504c-4092-aca9-41f936934328") // an image's Authenticode digest
)

// SignatureList is an EFI_SIGNATURE_LIST: signatures of one type and, but for
// certificates of their own list each, of one size.
type SignatureList struct {
	Type       GUID
	Header     []byte
	Signatures []Signature
}

// Signature is an EFI_SIGNATURE_DATA.
type Signature struct {
	Owner GUID // who put it there
	Data  []byte
}

const (
	listHeaderSize  = 28 // GUID, u32 list size, u32 header size, u32 signature size
	ownerSize       = 16
	maxSignatureLen = 1 << 20 // bytes, of a whole variable
)

// ParseSignatureLists reads the data of PK, KEK, db or dbx.
func ParseSignatureLists(b []byte) ([]SignatureList, error) {
	if len(b) > maxSignatureLen {
		return nil, fmt.Errorf("ovmf: signature lists: %d bytes: want at most %d", len(b), maxSignatureLen)
	}
	var lists []SignatureList
	for at := 0; at < len(b); {
		l, size, err := parseSignatureList(b[at:])
		if err != nil {
			return nil, fmt.Errorf("ovmf: signature list at %#x: %w", at, err)
		}
		lists = append(lists, l)
		at += size
	}
	return lists, nil
}

func parseSignatureList(b []byte) (l SignatureList, size int, err error) {
	if len(b) < listHeaderSize {
		return l, 0, fmt.Errorf("%d bytes: want a header of %d", len(b), listHeaderSize)
	}
	le := binary.LittleEndian
	total, header, each := uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:])), uint64(le.Uint32(b[24:]))
	if total > uint64(len(b)) || listHeaderSize+header+each > total || each <= ownerSize {
		return l, 0, fmt.Errorf("%d bytes with a header of %d and signatures of %d, in %d", total, header, each, len(b))
	}
	body := b[listHeaderSize+header : total]
	if uint64(len(body))%each != 0 {
		return l, 0, fmt.Errorf("%d bytes of signatures of %d", len(body), each)
	}
	l = SignatureList{Type: GUID(b[:16]), Header: b[listHeaderSize:][:header:header]}
	for ; len(body) > 0; body = body[each:] {
		l.Signatures = append(l.Signatures, Signature{GUID(body[:ownerSize]), body[ownerSize:each:each]})
	}
	return l, int(total), nil
}

// AppendSignatureList writes l after b. Its signatures must have one size.
func AppendSignatureList(b []byte, l SignatureList) ([]byte, error) {
	if len(l.Signatures) == 0 || len(l.Signatures[0].Data) == 0 {
		return nil, errors.New("ovmf: signature list: want a signature")
	}
	each := ownerSize + len(l.Signatures[0].Data)
	total := listHeaderSize + len(l.Header) + each*len(l.Signatures)
	if total > maxSignatureLen {
		return nil, fmt.Errorf("ovmf: signature list: %d bytes: want at most %d", total, maxSignatureLen)
	}
	le := binary.LittleEndian
	b = append(b, l.Type[:]...)
	b = le.AppendUint32(b, uint32(total))
	b = le.AppendUint32(b, uint32(len(l.Header)))
	b = le.AppendUint32(b, uint32(each))
	b = append(b, l.Header...)
	for _, s := range l.Signatures {
		if ownerSize+len(s.Data) != each {
			return nil, fmt.Errorf("ovmf: signature list: signatures of %d and %d bytes", each, ownerSize+len(s.Data))
		}
		b = append(append(b, s.Owner[:]...), s.Data...)
	}
	return b, nil
}
