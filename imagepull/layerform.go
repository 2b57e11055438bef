package imagepull

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/internal/gunzip"
)

// A form is how a layer's tar is packed.
type form struct {
	compression string // "", gzip or zstd
	encrypted   bool
}

// The media types of layers, without what stands for the compression. What is not
// distributable is fetched like the rest, and never from the addresses that the
// descriptor may name. OCI Image Specification, layer.md; Docker's image manifest
// version 2, schema 2.
var layerTypes = []string{
	"application/vnd.oci.image.layer.v1.tar",
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
}

// formOf reads a layer's media type. It is held to that: bytes that are packed in
// another way are refused, not guessed at.
func formOf(mediaType string) (form, error) {
	plain, encrypted := crypt.Encrypted(mediaType)
	for _, compression := range []string{"", "gzip", "zstd"} {
		base := plain
		if compression != "" {
			var ok bool
			if base, ok = cutCompression(plain, compression); !ok {
				continue
			}
		}
		if slices.Contains(layerTypes, base) {
			return form{compression, encrypted}, nil
		}
	}
	return form{}, fmt.Errorf("media type %q: not a layer of an image", mediaType)
}

// cutCompression takes "+gzip" off OCI's media types, ".gzip" off Docker's.
func cutCompression(mediaType, compression string) (string, bool) {
	if base, ok := strings.CutSuffix(mediaType, "+"+compression); ok {
		return base, strings.HasPrefix(mediaType, "application/vnd.oci.")
	}
	base, ok := strings.CutSuffix(mediaType, "."+compression)
	return base, ok && strings.HasPrefix(mediaType, "application/vnd.docker.")
}

// maxWindow is how far back a zstd frame may refer, bytes: what RFC 8878, section
// 3.1.1.1.2, recommends to support and not to exceed.
const maxWindow = 8 << 20

// unpacked returns the tar. A gzip stream may have several members, a zstd stream
// several frames, and ones to skip; anything else behind the last is an error, zeros
// too.
func (f form) unpacked(r io.Reader) (io.ReadCloser, error) {
	switch f.compression {
	case "gzip":
		return io.NopCloser(gunzip.NewReader(r)), nil
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
