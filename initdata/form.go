package initdata

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

// AnnotationName is that of the pod's annotation.
const AnnotationName = "io.katacontainers.config.hypervisor.cc_init_data"

// MaxAnnotation is the size of an annotation's value, in bytes: Kubernetes allows
// 256 KiB for the names and values of all annotations of an object.
const MaxAnnotation = 256<<10 - len(AnnotationName)

// Form is how a document is delivered.
type Form string

// The forms.
const (
	Plain      Form = "toml"
	Annotated  Form = "annotation" // base64 of gzip, of a pod
	Device     Form = "device"     // a block device, of Kata's agent
	Compressed Form = "gzip"       // what the two hold; Encode does not write it alone
)

// Forms are those that Encode writes.
var Forms = []Form{Plain, Annotated, Device}

const (
	magic  = "initdata"
	sector = 512 // bytes: a block device has whole ones
)

// deviceHeader is what the device begins with; gzip follows, then zeros to the end
// of the sector. Kata Containers, src/agent/src/initdata.rs; little-endian.
type deviceHeader struct {
	Magic [8]byte // "initdata"
	Size  uint64  // of the gzip data, bytes
}

const headerSize = 16

// maxPacked is the size of gzip data, in bytes. Nobody needs more for a document:
// where it cannot be made smaller, gzip adds 5 bytes to 64 KiB.
const maxPacked = MaxSize + MaxSize>>12

// MaxFile is the size of a file in any form, in bytes; a device may be larger, but
// nothing is behind that.
const MaxFile = headerSize + maxPacked*4/3 + sector

// ErrNoDevice: a block device that holds something else.
var ErrNoDevice = errors.New("initdata: device: it does not begin with \"initdata\"")

// Encode writes a document as it is delivered in a form. The gzip header holds no
// time and no name.
func Encode(raw []byte, f Form) ([]byte, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("initdata: %d bytes: want at most %d", len(raw), MaxSize)
	}
	switch f {
	case Plain:
		return raw, nil
	case Annotated:
		return annotation(raw)
	case Device:
		return device(raw)
	}
	return nil, fmt.Errorf("initdata: form %q: want toml, annotation or device", f)
}

func annotation(raw []byte) ([]byte, error) {
	packed, err := pack(raw)
	if err != nil {
		return nil, err
	}
	b := base64.StdEncoding.AppendEncode(nil, packed)
	if len(b) > MaxAnnotation {
		return nil, fmt.Errorf("initdata: annotation: %d bytes: Kubernetes takes at most %d; shorten the policy", len(b), MaxAnnotation)
	}
	return b, nil
}

func device(raw []byte) ([]byte, error) {
	packed, err := pack(raw)
	if err != nil {
		return nil, err
	}
	b := append([]byte(magic), binary.LittleEndian.AppendUint64(nil, uint64(len(packed)))...)
	b = append(b, packed...)
	return append(b, make([]byte, -len(b)&(sector-1))...), nil
}

// Decode finds out the form of b, which may be a device's beginning, and returns
// the document in it.
func Decode(b []byte) (raw []byte, f Form, err error) {
	switch {
	case bytes.HasPrefix(b, []byte(magic)):
		raw, err = FromDevice(b)
		return raw, Device, err
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		raw, err = unpack(b)
		return raw, Compressed, err
	case bytes.HasPrefix(b, []byte("H4sI")): // base64 of gzip's first bytes, deflate
		raw, err = FromAnnotation(b)
		return raw, Annotated, err
	}
	return b, Plain, nil
}

// FromAnnotation reads the value of an annotation.
func FromAnnotation(b []byte) ([]byte, error) {
	b = bytes.TrimSpace(b)
	if max := base64.StdEncoding.EncodedLen(maxPacked); len(b) > max {
		return nil, fmt.Errorf("initdata: annotation: %d bytes: want at most %d", len(b), max)
	}
	packed, err := base64.StdEncoding.Strict().AppendDecode(nil, b)
	if err != nil {
		return nil, fmt.Errorf("initdata: annotation: %w", err)
	}
	return unpack(packed)
}

// FromDevice reads a block device, or its beginning. ErrNoDevice says that it is
// another.
func FromDevice(b []byte) ([]byte, error) {
	if !bytes.HasPrefix(b, []byte(magic)) {
		return nil, ErrNoDevice
	}
	var h deviceHeader
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return nil, fmt.Errorf("initdata: device: it ends after %d bytes: want %d", len(b), headerSize)
	}
	rest := uint64(len(b) - headerSize)
	switch {
	case h.Size > maxPacked:
		return nil, fmt.Errorf("initdata: device: offset 0x8: size %d: want at most %d", h.Size, maxPacked)
	case h.Size > rest:
		return nil, fmt.Errorf("initdata: device: offset 0x8: size %d: %d bytes are left", h.Size, rest)
	}
	return unpack(b[headerSize:][:h.Size])
}

func pack(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(raw); err != nil {
		return nil, err
	}
	err = z.Close()
	clear(b.Bytes()[4:8]) // MTIME: the writer puts the year 1 there where it is given no time
	return b.Bytes(), err
}

// unpack reads one gzip member, and refuses bytes behind it: some readers would
// go on with them, and others stop.
func unpack(packed []byte) ([]byte, error) {
	r := bytes.NewReader(packed)
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("initdata: gzip: %w", err)
	}
	z.Multistream(false)
	raw, err := io.ReadAll(io.LimitReader(z, MaxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("initdata: gzip: %w", err)
	case len(raw) > MaxSize:
		return nil, fmt.Errorf("initdata: gzip: more than %d bytes in %d", MaxSize, len(packed))
	case r.Len() > 0:
		return nil, fmt.Errorf("initdata: gzip: offset %#x: %d bytes behind the data", len(packed)-r.Len(), r.Len())
	}
	return raw, nil
}
