package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/verity"
)

func newVerity(c *common) *cobra.Command {
	return group(&cobra.Command{
		Use:   "verity",
		Short: "Make and check dm-verity hash trees",
		Long: `Makes and checks dm-verity hash trees. Options and bytes are veritysetup's, but
nothing is random: without --salt there is no salt, and --uuid must be given
unless there is no superblock.`,
	}, newVerityFormat(c), newVerityVerify(c), newVerityDump(c))
}

// verityFlags are veritysetup's.
type verityFlags struct {
	hash, salt, uuid, rootFile   string
	dataBlock, hashBlock, format int
	dataBlocks                   uint64
	hashOffset                   int64
	noSuperblock                 bool
}

func (f *verityFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&f.hash, "hash", "h", "sha256", "hash algorithm: sha256 or sha512")
	fl.IntVar(&f.dataBlock, "data-block-size", 4096, "bytes: 512, 1024, 2048 or 4096")
	fl.IntVar(&f.hashBlock, "hash-block-size", 4096, "bytes: 512, 1024, 2048 or 4096")
	fl.Uint64Var(&f.dataBlocks, "data-blocks", 0, "blocks of the data (default: all of it)")
	fl.Int64Var(&f.hashOffset, "hash-offset", 0, "where superblock and tree begin in HASH, bytes")
	fl.StringVarP(&f.salt, "salt", "s", "-", "salt in hex, - for none")
	fl.IntVar(&f.format, "format", 1, "1, or 0 for the original of Chrome OS")
	fl.BoolVar(&f.noSuperblock, "no-superblock", false, "the tree alone")
	fl.Bool("help", false, "help for "+cmd.Name()) // -h is the algorithm, as in veritysetup
}

func newVerityFormat(c *common) *cobra.Command {
	f := &verityFlags{}
	cmd := &cobra.Command{
		Use:     "format DATA HASH",
		Short:   "Write the hash tree of DATA into HASH and print the root hash",
		Long:    "Writes superblock and hash tree of DATA into the file HASH. HASH may be DATA itself,\nwith --hash-offset behind the data.",
		Example: "  plinth verity format root.erofs root.hash --uuid 01234567-89ab-cdef-0123-456789abcdef --salt 00ff",
		Args:    cobra.ExactArgs(2),
		RunE:    func(cmd *cobra.Command, a []string) error { return c.verityFormat(cmd.Context(), f, a[0], a[1]) },
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.uuid, "uuid", "", "UUID of the superblock")
	cmd.Flags().StringVar(&f.rootFile, "root-hash-file", "", "write the root hash to this file, too")
	return cmd
}

func newVerityVerify(c *common) *cobra.Command {
	f := &verityFlags{}
	cmd := &cobra.Command{
		Use:   "verify DATA HASH ROOT_HASH",
		Short: "Check DATA and the tree in HASH against a root hash",
		Long: `Checks every block. The parameters come from the superblock, or from the options
with --no-superblock. Exit 7 names the first bad block and its level.`,
		Args: cobra.ExactArgs(3),
		RunE: func(_ *cobra.Command, a []string) error { return c.verityVerify(f, a[0], a[1], a[2]) },
	}
	f.add(cmd)
	return cmd
}

func newVerityDump(c *common) *cobra.Command {
	var offset int64
	cmd := &cobra.Command{
		Use:   "dump HASH",
		Short: "Print the superblock in HASH",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			f, _, err := openSized(a[0])
			if err != nil {
				return err
			}
			defer f.Close()
			s, err := superblock(f, offset)
			if err != nil {
				return fmt.Errorf("%s: %w", a[0], err)
			}
			v := viewVerity(s)
			if c.json {
				return printJSON(c.env.stdout, v)
			}
			return v.text(c.env.stdout)
		},
	}
	cmd.Flags().Int64Var(&offset, "hash-offset", 0, "where the superblock is, bytes")
	return cmd
}

// params are those that the flags name, for data of a size.
func (f *verityFlags) params(size int64) (verity.Params, error) {
	p := verity.Params{
		Algorithm: verity.Algorithm(f.hash), DataBlockSize: f.dataBlock, HashBlockSize: f.hashBlock,
		DataBlocks: f.dataBlocks, Format: f.format,
	}
	if p.DataBlocks == 0 && f.dataBlock > 0 {
		if size%int64(f.dataBlock) != 0 {
			return p, usagef("%d bytes of data: not a multiple of --data-block-size %d", size, f.dataBlock)
		}
		p.DataBlocks = uint64(size) / uint64(f.dataBlock)
	}
	var err error
	if f.salt != "-" {
		if p.Salt, err = hex.DecodeString(f.salt); err != nil {
			return p, usagef("--salt: %w", err)
		}
	}
	if err := p.Check(); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

// treeStart is where the tree begins in the hash file, bytes.
func (f *verityFlags) treeStart(hashBlock int) (int64, error) {
	size := int64(hashBlock)
	switch {
	case f.hashOffset < 0 || f.noSuperblock && f.hashOffset%size != 0:
		return 0, usagef("--hash-offset %d: want a multiple of --hash-block-size %d", f.hashOffset, hashBlock)
	case f.noSuperblock:
		return f.hashOffset, nil
	case f.hashOffset%verity.SuperblockSize != 0:
		return 0, usagef("--hash-offset %d: want a multiple of %d", f.hashOffset, verity.SuperblockSize)
	}
	return (f.hashOffset + verity.SuperblockSize + size - 1) / size * size, nil
}

func (c *common) verityFormat(ctx context.Context, f *verityFlags, dataPath, hashPath string) error {
	data, size, err := openSized(dataPath)
	if err != nil {
		return err
	}
	defer data.Close()
	p, err := f.params(size)
	if err != nil {
		return err
	}
	if p.DataSize() > size {
		return usagef("%s: %d bytes: less than --data-blocks %d of %d bytes", dataPath, size, p.DataBlocks, p.DataBlockSize)
	}
	start, err := f.treeStart(p.HashBlockSize)
	if err != nil {
		return err
	}
	s := &verity.Superblock{Params: p}
	if !f.noSuperblock {
		if s.UUID, err = parseUUID(f.uuid); err != nil {
			return err
		}
	}
	root, err := f.write(hashPath, start, interruptible{ctx, data}, s, dataPath)
	if err != nil {
		return err
	}
	if f.rootFile != "" {
		if err := builder.WriteFile(f.rootFile, []byte(hex.EncodeToString(root))); err != nil {
			return err
		}
	}
	v := viewVerity(s)
	v.RootHash = hex.EncodeToString(root)
	if f.noSuperblock {
		v.UUID = ""
	}
	if c.json {
		return printJSON(c.env.stdout, v)
	}
	return v.text(c.env.stdout)
}

// An interruptible reader fails once its context is done.
type interruptible struct {
	ctx context.Context
	io.ReaderAt
}

func (i interruptible) ReadAt(p []byte, off int64) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.ReaderAt.ReadAt(p, off)
}

// write makes a file that appears when it is whole. One that is there, or a device,
// may hold more than the tree, the data for instance: it is written in place.
func (f *verityFlags) write(path string, start int64, data io.ReaderAt, s *verity.Superblock, dataPath string) (root []byte, err error) {
	out, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = builder.ReplaceFile(path, func(out *os.File) (err error) {
			root, err = f.fill(out, start, data, s)
			return err
		})
		return root, err
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if same, err := sameFile(out, dataPath); err != nil {
		return nil, err
	} else if same && f.hashOffset < s.DataSize() {
		return nil, usagef("%s is the data, too: --hash-offset %d would overwrite it; want at least %d", path, f.hashOffset, s.DataSize())
	}
	return f.fill(out, start, data, s)
}

// fill writes the tree, and last the superblock: a tree that is not whole has none.
func (f *verityFlags) fill(out io.WriterAt, start int64, data io.ReaderAt, s *verity.Superblock) ([]byte, error) {
	root, err := verity.Format(io.NewOffsetWriter(out, start), data, s.Params)
	if err != nil || f.noSuperblock {
		return root, err
	}
	b, err := s.Marshal()
	if err != nil {
		return nil, err
	}
	b = append(b, make([]byte, start-f.hashOffset-int64(len(b)))...)
	_, err = out.WriteAt(b, f.hashOffset)
	return root, err
}

func sameFile(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b), err
}

func parseUUID(s string) ([16]byte, error) {
	g, err := gpt.ParseGUID(s)
	if err != nil || len(s) != 36 {
		return [16]byte{}, usagef("--uuid %q: want 01234567-89ab-cdef-0123-456789abcdef, or --no-superblock", s)
	}
	return gpt.FromUUID(g), nil // swapping is its own inverse
}

func (c *common) verityVerify(f *verityFlags, dataPath, hashPath, rootHash string) error {
	root, err := hex.DecodeString(rootHash)
	if err != nil {
		return usagef("ROOT_HASH: %w", err)
	}
	data, size, err := openSized(dataPath)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, treeSize, err := openSized(hashPath)
	if err != nil {
		return err
	}
	defer tree.Close()
	var p verity.Params
	if f.noSuperblock {
		p, err = f.params(size)
	} else {
		var s *verity.Superblock
		if s, err = superblock(tree, f.hashOffset); err == nil {
			p = s.Params
		} else {
			err = mismatchError{fmt.Errorf("%s: %w", hashPath, err)}
		}
	}
	if err != nil {
		return err
	}
	start, err := f.treeStart(p.HashBlockSize)
	if err != nil {
		return err
	}
	if err := verity.Verify(data, io.NewSectionReader(tree, start, max(treeSize-start, 0)), p, root); err != nil {
		return mismatchError{fmt.Errorf("%s: %w", dataPath, err)}
	}
	_, err = fmt.Fprintf(c.env.stdout, "%s: ok\n", dataPath)
	return err
}

func superblock(r io.ReaderAt, off int64) (*verity.Superblock, error) {
	b := make([]byte, verity.SuperblockSize)
	if n, err := r.ReadAt(b, off); err != nil && err != io.EOF {
		return nil, err
	} else if n < len(b) {
		return nil, verity.ErrNoSuperblock
	}
	return verity.ParseSuperblock(b)
}

// A verityView is a superblock, for people and as JSON.
type verityView struct {
	UUID          string `json:"uuid,omitempty"` // none without a superblock
	HashType      int    `json:"hash_type"`
	DataBlocks    uint64 `json:"data_blocks"`
	DataBlockSize int    `json:"data_block_size"`
	HashBlocks    uint64 `json:"hash_blocks"`
	HashBlockSize int    `json:"hash_block_size"`
	Algorithm     string `json:"hash_algorithm"`
	Salt          string `json:"salt"`
	RootHash      string `json:"root_hash,omitempty"`
}

func viewVerity(s *verity.Superblock) verityView {
	return verityView{
		UUID:     gpt.FromUUID(s.UUID).String(),
		HashType: s.Format, DataBlocks: s.DataBlocks, DataBlockSize: s.DataBlockSize, HashBlocks: s.TreeBlocks(),
		HashBlockSize: s.HashBlockSize, Algorithm: string(s.Algorithm), Salt: hex.EncodeToString(s.Salt),
	}
}

func (v verityView) text(w io.Writer) error {
	salt := v.Salt
	if salt == "" {
		salt = "-"
	}
	if v.UUID != "" {
		if _, err := fmt.Fprintf(w, "UUID:            \t%s\n", v.UUID); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "Hash type:       \t%d\nData blocks:     \t%d\nData block size: \t%d [bytes]\n"+
		"Hash blocks:     \t%d\nHash block size: \t%d [bytes]\nHash algorithm:  \t%s\nSalt:            \t%s\n",
		v.HashType, v.DataBlocks, v.DataBlockSize, v.HashBlocks, v.HashBlockSize, v.Algorithm, salt)
	if err == nil && v.RootHash != "" {
		_, err = fmt.Fprintf(w, "Root hash:      \t%s\n", v.RootHash)
	}
	return err
}
