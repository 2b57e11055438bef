package disk

import (
	"bytes"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/gpt"
)

// Root returns the partitions of a root file system and of its hash tree, in this
// order. Their GUIDs are what a guest finds them by: see verity.Root.
func Root(dataID, hashID gpt.GUID, data, hash *io.SectionReader) []Partition {
	return []Partition{
		{Type: TypeRoot, ID: dataID, Name: "root-x86-64", Attributes: AttrReadOnly, Size: data.Size(), Content: copyOf(data)},
		{Type: TypeRootVerity, ID: hashID, Name: "root-x86-64-verity", Attributes: AttrReadOnly, Size: hash.Size(), Content: copyOf(hash)},
	}
}

// RootSignature returns the partition that holds a signature of the root hash,
// zeros behind it.
func RootSignature(id gpt.GUID, sig []byte) Partition {
	return Partition{
		Type: TypeRootSig, ID: id, Name: "root-x86-64-verity-sig", Attributes: AttrReadOnly, Size: int64(len(sig)),
		Content: copyOf(io.NewSectionReader(bytes.NewReader(sig), 0, int64(len(sig)))),
	}
}

// copyOf writes what r holds.
func copyOf(r *io.SectionReader) func(io.WriterAt) error {
	return func(w io.WriterAt) error {
		// Large pieces: each write looks for zeros and goes to a file.
		n, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(w, 0)}, io.NewSectionReader(r, 0, r.Size()), make([]byte, 1<<20))
		if err == nil && n != r.Size() {
			err = fmt.Errorf("content has %d bytes: want %d", n, r.Size())
		}
		return err
	}
}
