package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/unpack"
)

// A Store keeps what was proven: layers, which images share, by the digests of
// their tars; trees of layers by chain ID. Package store keeps them in a directory
// of a host, the guest in memory or on a disk that it encrypts.
type Store interface {
	// Stage begins a pull. Until the stage ends, what Layer and Tree tell stays true.
	Stage(ctx context.Context) (Stage, error)
	// Layer returns a layer that was published, nil for one that was not.
	Layer(diffID digest.Digest) (*unpack.Layer, error)
	// Tree tells whether the tree of a chain was published.
	Tree(chainID digest.Digest) (bool, error)
	// Free is how much more fits, bytes.
	Free() (int64, error)
}

// A Stage is where one pull leaves what is not proven yet. Nobody else sees any of
// it before Publish, and nothing of it is left after Discard.
type Stage interface {
	// Content takes the content of a layer's files, in whole blocks. Close says that
	// it is complete, or that nothing more comes of a pull that failed. Several are
	// written at a time, each by one goroutine, and none twice.
	Content(diffID digest.Digest) (io.WriteCloser, error)
	// Tree takes the EROFS image of the whole tree, whose devices are the contents of
	// the layers that Pulled.Devices names. It is not asked for where the store has
	// the tree.
	Tree() (io.WriteCloser, error)
	// Publish makes all of it visible, or nothing. It ends the stage where it
	// succeeds.
	Publish(p *Pulled) error
	// Discard gives up what was not published. It does nothing after Publish.
	Discard() error
}

// A Pulled image was proven: signature and policy, every digest, every diff ID,
// every HMAC.
type Pulled struct {
	Image
	Manifest []byte
	Raw      []byte // the image's configuration as it came
	Settings v1.Image
	DiffIDs  []digest.Digest // bottom first
	ChainID  digest.Digest
	Layers   []*unpack.Layer // beside DiffIDs
	Devices  []int           // which of Layers are the devices of the tree's EROFS, in order
	Fetched  int64           // bytes of the configuration and of layers that were read from where the image is
}

// A SpaceError says that an image does not fit.
type SpaceError struct {
	Needed    int64 // bytes, at least
	Available int64 // bytes, before anything was written
	Err       error // nil where nothing was tried
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("no space: at least %d bytes needed, %d bytes available", e.Needed, e.Available)
}

func (e *SpaceError) Unwrap() error { return e.Err }

// full tells whether an error is that of a file system without room.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Nowhere is a Store that keeps nothing: an image that is pulled there is proven,
// and that is all.
type Nowhere struct{}

// Stage implements Store.
func (Nowhere) Stage(context.Context) (Stage, error) { return nowhere{}, nil }

// Layer implements Store.
func (Nowhere) Layer(digest.Digest) (*unpack.Layer, error) { return nil, nil }

// Tree implements Store.
func (Nowhere) Tree(digest.Digest) (bool, error) { return false, nil }

// Free implements Store.
func (Nowhere) Free() (int64, error) { return math.MaxInt64, nil }

type nowhere struct{}

func (nowhere) Content(digest.Digest) (io.WriteCloser, error) { return nothing{io.Discard}, nil }
func (nowhere) Tree() (io.WriteCloser, error)                 { return nothing{io.Discard}, nil }
func (nowhere) Publish(*Pulled) error                         { return nil }
func (nowhere) Discard() error                                { return nil }

type nothing struct{ io.Writer }

func (nothing) Close() error { return nil }
