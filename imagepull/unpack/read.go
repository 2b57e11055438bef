package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/internal/readahead"
)

// Read takes a layer apart, an uncompressed tar stream. The content of its files
// goes to content, in whole blocks, in order; Layer.Blocks says how many. It reads
// layer to its end, so that a reader that checks a digest there has its say: until
// Read has returned, nothing of what it wrote is proven.
//
// layer is read by a goroutine that is gone when Read returns; its Read must
// return once ctx is done. Memory is some 2 MiB, and what Limits.Kept says.
func Read(ctx context.Context, layer io.Reader, content io.Writer, b *Budget) (*Layer, error) {
	m := &meter{ctx: ctx, r: layer, budget: b}
	src := readahead.New(m, aheadSize, aheadSize)
	r := &reader{budget: b, layer: &Layer{}, content: newContent(ctx, content)}
	err := r.read(ctx, src)
	src.Stop()
	r.layer.stats.Stream = m.read
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	r.layer.blocks, r.layer.records = uint32(r.content.blocks), r.encoder.b
	return r.layer, nil
}

type reader struct {
	budget  *Budget
	layer   *Layer
	content *content
	encoder encoder
}

func (r *reader) read(ctx context.Context, src io.Reader) error {
	in := tar.NewReader(src)
	s := &r.layer.stats
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // an odd name is no error: it is cleaned
			return fmt.Errorf("behind entry %d: %w", s.Entries, err)
		}
		s.Entries++
		if err := r.budget.takeEntry(); err != nil {
			return err
		}
		if err := r.entry(h, in); err != nil {
			return &EntryError{s.Entries, h.Name, err}
		}
	}
	if err := r.drain(src); err != nil {
		return err
	}
	return r.content.flush()
}

func (r *reader) entry(h *tar.Header, in io.Reader) error {
	rec, err := newRecord(h, &r.budget.limits, &r.layer.stats)
	if err != nil {
		return err
	}
	if rec.kind == kindFile {
		if err := r.file(rec, sparse(h), in); err != nil {
			return err
		}
	}
	before := len(r.encoder.b)
	r.encoder.add(rec)
	return r.budget.takeKept(int64(len(r.encoder.b) - before))
}

func (r *reader) file(rec *record, sparse bool, in io.Reader) error {
	if err := r.budget.takeBytes(rec.size); err != nil {
		return err
	}
	r.layer.stats.Bytes += rec.size
	if !sparse {
		return r.content.copy(rec, in)
	}
	if err := r.budget.takeKept(indexSize * int64(blockCount(rec.size)/uint64(piece(rec.size)/BlockSize))); err != nil {
		return err
	}
	return r.content.copyHoles(rec, in)
}

// sparse says whether a file was packed with holes, which it gets again.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// drain reads what follows the end mark: zeros of a tar's last record, or what
// some packers leave there.
func (r *reader) drain(src io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		for p := buf[:n]; len(p) > 0; p = p[min(BlockSize, len(p)):] {
			if b := p[:min(BlockSize, len(p))]; !zero(b) {
				r.layer.stats.Trailing += notZero(b)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("behind the last entry: %w", err)
		}
	}
}

func notZero(p []byte) (n int64) {
	for _, b := range p {
		if b != 0 {
			n++
		}
	}
	return n
}
