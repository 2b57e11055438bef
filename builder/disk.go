package builder

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/tree"
)

// runDisk makes image.raw: the ESP, and a verity root behind it.
func runDisk(ctx context.Context, w *work) error {
	r, err := w.ref("uki", "image.efi")
	if err != nil {
		return err
	}
	files := []tree.Entry{tree.File(disk.BootPath, 0o644, w.blob(r))}
	esp, err := disk.ESP(files, disk.ESPParams{Seed: w.Profile.Seed, Digest: r.Digest[:], Epoch: w.Profile.Epoch})
	if err != nil {
		return err
	}
	parts, err := w.rootPartitions()
	if err != nil {
		return err
	}
	defer w.closeOpened()
	d := disk.Disk{
		ID:         disk.ID(w.Profile.Seed, "disk", r.Digest[:]),
		Partitions: append([]disk.Partition{esp}, parts...),
		Multiple:   w.diskMultiple(),
	}
	return w.write(ctx, "image.raw", func(cw *cas.Writer) error { return disk.Write(cw, d) })
}

// rootPartitions are those of a verity root, named by its root hash. The caller
// closes what they read from.
func (w *work) rootPartitions() ([]disk.Partition, error) {
	if !w.Profile.Verity() {
		return nil, nil
	}
	root, err := w.root()
	if err != nil {
		return nil, err
	}
	r, err := root.parse()
	if err != nil {
		return nil, err
	}
	data, err := w.section("rootfs", "root.erofs")
	if err != nil {
		return nil, err
	}
	hash, err := w.section("verity", "root.verity")
	if err != nil {
		return nil, err
	}
	dataID, hashID := r.PartitionIDs()
	parts := disk.Root(gpt.FromUUID(dataID), gpt.FromUUID(hashID), data, hash)
	if !w.signedRoot() {
		return parts, nil
	}
	sig, err := w.signRootHash(root.RootHash)
	if err != nil {
		return nil, fmt.Errorf("root.verity_key: %w", err)
	}
	return append(parts, disk.RootSignature(disk.ID(w.Profile.Seed, "root verity signature", r.RootHash), sig)), nil
}

// rootSignature is what systemd reads in a partition of signatures: Discoverable
// Partitions Specification, "Verity".
type rootSignature struct {
	RootHash    string `json:"rootHash"`
	Fingerprint string `json:"certificateFingerprint"` // SHA-256 of the certificate, hex
	Signature   []byte `json:"signature"`              // PKCS #7
}

// signRootHash signs the root hash as the kernel wants it, in hexadecimal: Linux,
// drivers/md/dm-verity-verify-sig.c.
func (w *work) signRootHash(hash string) ([]byte, error) {
	signer, err := w.signer(w.Profile.Root.VerityKey, "root.verity_cert")
	if err != nil {
		return nil, err
	}
	sig, err := signer.SignDetached([]byte(hash))
	if err != nil {
		return nil, err
	}
	return json.Marshal(rootSignature{hash, fmt.Sprintf("%x", sha256.Sum256(signer.Cert.Raw)), sig})
}
