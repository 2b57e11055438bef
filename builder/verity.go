package builder

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/builder/rootfs"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/ctxio"
	"github.com/plinth-os/plinth/internal/erofs"
	"github.com/plinth-os/plinth/internal/ident"
	"github.com/plinth-os/plinth/verity"
)

// runVerity makes root.verity, a superblock and the hash tree behind it, with
// roothash, root.json, and the bills of materials, which name the root hash.
func runVerity(ctx context.Context, w *work) error {
	data, size, err := w.open("rootfs", "root.erofs")
	if err != nil {
		return err
	}
	defer data.Close() // read only
	root, err := w.verityParams(size)
	if err != nil {
		return err
	}
	err = w.write(ctx, "root.verity", func(cw *cas.Writer) error { return w.hashTree(cw, ctxio.ReaderAt(ctx, data), root) })
	if err != nil {
		return err
	}
	if err := w.put("roothash", fmt.Appendf(nil, "%x", root.RootHash)); err != nil {
		return err
	}
	if err := w.putJSON(rootOutput, newRoot(root)); err != nil {
		return err
	}
	return w.putSBOM(root)
}

// verityParams decides on the tree over a root of size bytes. The root hash is
// not known yet.
func (w *work) verityParams(size int64) (*verity.Root, error) {
	data, err := w.ref("rootfs", "root.erofs")
	if err != nil {
		return nil, err
	}
	salt := ident.Salt(w.Profile.Seed, "root verity salt", data.Digest[:])
	return &verity.Root{
		Params: verity.Params{
			Algorithm:     verity.Algorithm(w.Profile.Root.Hash),
			DataBlockSize: erofs.BlockSize, HashBlockSize: erofs.BlockSize,
			DataBlocks: uint64(size / erofs.BlockSize), Salt: salt[:], Format: 1,
		},
		HashStart:    1, // the superblock fills the first block
		OnCorruption: verity.OnCorruption(w.Profile.Root.OnCorruption),
	}, nil
}

// hashTree writes the content of the hash partition and fills in the root hash.
// No guest reads the superblock; veritysetup does.
func (w *work) hashTree(out io.WriterAt, data io.ReaderAt, root *verity.Root) (err error) {
	tree := io.NewOffsetWriter(out, int64(root.HashStart)*int64(root.HashBlockSize))
	if root.RootHash, err = verity.Format(tree, data, root.Params); err != nil {
		return err
	}
	s := verity.Superblock{Params: root.Params, UUID: ident.UUID(w.Profile.Seed, "root verity", root.RootHash)}
	b, err := s.Marshal()
	if err != nil {
		return err
	}
	_, err = out.WriteAt(append(b, make([]byte, root.HashBlockSize-len(b))...), 0)
	return err
}

// putSBOM lists what is in the root, under its root hash.
func (w *work) putSBOM(root *verity.Root) error {
	v, err := w.inventory()
	if err != nil {
		return err
	}
	r, err := w.ref("rootfs", "root.erofs")
	if err != nil {
		return err
	}
	return w.putInventory(v, rootfs.Document{
		ImageFile: "root.erofs", ImageSHA256: r.Digest.String(), RootHash: fmt.Sprintf("%x", root.RootHash),
	})
}

// putInventory makes the bills of materials.
func (w *work) putInventory(v *rootfs.Inventory, d rootfs.Document) error {
	d.Name, d.Epoch, d.Seed, d.Tool = w.Profile.Name, w.Profile.Epoch, w.Profile.Seed, "plinth"
	spdx, err := v.SPDX(d)
	if err != nil {
		return err
	}
	cyclone, err := v.CycloneDX(d)
	if err != nil {
		return err
	}
	return errors.Join(w.put("sbom.spdx.json", spdx), w.put("sbom.cdx.json", cyclone))
}
