package rootfs

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"

	"github.com/plinth-os/plinth/internal/tree"
	"golang.org/x/sync/errgroup"
)

// digest reads every file once, on all cores: equal files are stored once, and
// the bills of materials name their digests. SHA-1 is there because SPDX 2.3
// section 8.4 asks for it.
func (b *build) digest() error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, n := range b.nodes {
		if n.Type() != tree.TypeFile || n.inode.hashed {
			continue
		}
		n.inode.hashed = true
		g.Go(func() error {
			if err := n.inode.hash(); err != nil {
				return fmt.Errorf("rootfs: %s: %s: %w", n.owner(), n.Path, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// hash fills in the digests. One that is known already must be right.
func (i *inode) hash() error {
	s1, s256 := sha1.New(), sha256.New()
	if err := i.blob.Copy(io.MultiWriter(s1, s256)); err != nil {
		return err
	}
	sum := [32]byte(s256.Sum(nil))
	if i.blob.Digest != [32]byte{} && i.blob.Digest != sum {
		return fmt.Errorf("sha256 is %x, want %x", sum, i.blob.Digest)
	}
	i.blob.Digest, i.sha1 = sum, [20]byte(s1.Sum(nil))
	return nil
}

// digestGenerated does the same for what was made here.
func (b *build) digestGenerated() error {
	for name, n := range b.at {
		if n.Type() != tree.TypeFile || n.inode.hashed {
			continue
		}
		n.inode.hashed = true
		if err := n.inode.hash(); err != nil {
			return fmt.Errorf("rootfs: %s: %w", name, err)
		}
	}
	return nil
}
