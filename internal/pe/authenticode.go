package pe

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// WriteAuthenticode writes the bytes that an Authenticode digest covers, in
// order: the headers without the CheckSum field and the certificate directory
// entry, the sections by file offset, and what follows them without the
// certificate table. One pass serves any number of digests.
//
// It does what firmware does (edk2 DxeTpm2MeasureBootLib, Tcg2Dxe), which is
// the text of the specification: nothing is padded to 8 bytes, and the bytes
// after the sections begin at the number of bytes hashed so far, whether or
// not there is a gap between two sections.
func (f *File) WriteAuthenticode(w io.Writer) error {
	headers := int64(f.SizeOfHeaders)
	afterSum := f.CheckSumField + 4
	spans := []span{{0, f.CheckSumField}}
	if f.CertDir != 0 {
		spans = append(spans, span{afterSum, f.CertDir}, span{f.CertDir + 8, headers})
	} else {
		spans = append(spans, span{afterSum, headers})
	}
	hashed := headers
	for _, s := range f.byOffset() {
		spans = append(spans, span{int64(s.Offset), int64(s.Offset) + int64(s.RawSize)})
		hashed += int64(s.RawSize)
	}
	if end := f.size - int64(f.CertTable.Size); f.CertDir != 0 && hashed < f.size && end < hashed {
		return fmt.Errorf("pe: certificate table: %#x bytes: only %#x follow the sections", f.CertTable.Size, f.size-hashed)
	} else if end > hashed {
		spans = append(spans, span{hashed, end})
	}
	for _, s := range spans {
		if _, err := io.CopyN(w, io.NewSectionReader(f.r, s.from, s.to-s.from), s.to-s.from); err != nil {
			return fmt.Errorf("pe: authenticode: %w", err)
		}
	}
	return nil
}

// span is a half-open range of file offsets.
type span struct{ from, to int64 }

// byOffset returns the sections that have raw data, by file offset. Equal
// offsets keep the table's order.
func (f *File) byOffset() []Section {
	sections := slices.DeleteFunc(slices.Clone(f.Sections), func(s Section) bool { return s.RawSize == 0 })
	slices.SortStableFunc(sections, func(a, b Section) int { return cmp.Compare(a.Offset, b.Offset) })
	return sections
}

// The certificate table: UEFI 2.10, section 32.2.4 (WIN_CERTIFICATE).
const (
	certHeaderSize    = 8
	certTypePKCS7     = 0x0002 // WIN_CERT_TYPE_PKCS_SIGNED_DATA
	maxCertTableBytes = 1 << 20
)

// Certificates returns the PKCS#7 signatures of the certificate table in
// order; entries of another type are left out. An image without a table gives
// none and no error.
func (f *File) Certificates() ([][]byte, error) {
	if f.CertTable.Size == 0 {
		return nil, nil
	}
	if f.CertTable.Size > maxCertTableBytes {
		return nil, fmt.Errorf("pe: certificate table: %d bytes: want at most %d", f.CertTable.Size, maxCertTableBytes)
	}
	table, err := f.read("certificate table", int64(f.CertTable.Offset), int64(f.CertTable.Size))
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for len(table) > 0 {
		if len(table) < certHeaderSize {
			return nil, fmt.Errorf("pe: certificate table: %d bytes after the last entry", len(table))
		}
		n := int64(binary.LittleEndian.Uint32(table)) // dwLength, header included
		if n < certHeaderSize || n > int64(len(table)) {
			return nil, fmt.Errorf("pe: certificate table: entry of %d bytes: %d are left", n, len(table))
		}
		if binary.LittleEndian.Uint16(table[6:]) == certTypePKCS7 {
			certs = append(certs, table[certHeaderSize:n])
		}
		table = table[min((n+7)&^7, int64(len(table))):]
	}
	return certs, nil
}
