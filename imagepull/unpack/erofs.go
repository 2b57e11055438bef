package unpack

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"slices"

	"github.com/plinth-os/plinth/internal/erofs"
)

// Write writes the tree as an EROFS image. Files' content is on devices, which
// the layers' contents are: Devices says which, and tags, beside it and of at most
// 64 bytes each, what the image calls them. Times are those of the layers, to the
// nanosecond; holes stay holes. Equal layers, uuid and tags give equal bytes.
func (t *Tree) Write(w io.Writer, uuid [16]byte, tags []string) error {
	if t.err != nil {
		return t.err
	}
	layers := t.Devices()
	if len(tags) != len(layers) {
		return fmt.Errorf("unpack: %d tags for %d devices", len(tags), len(layers))
	}
	c := converter{devices: make([]int, len(t.layers)), linked: make(map[*inode]*erofs.Node)}
	p := erofs.Params{UUID: uuid} // the time 0 is the most frequent one that layers do not say
	for i, n := range layers {
		c.devices[n] = i
		p.Devices = append(p.Devices, erofs.Device{Tag: tags[i], Blocks: t.layers[n].blocks})
	}
	if err := erofs.WriteNodes(&until{t.ctx, w}, c.node(t.root), p); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// until is a writer that fails once its context is done.
type until struct {
	ctx context.Context
	w   io.Writer
}

func (u *until) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(p)
}

type converter struct {
	devices []int // by number of the layer
	linked  map[*inode]*erofs.Node
}

func (c *converter) node(n *inode) *erofs.Node {
	if out := c.linked[n]; out != nil {
		return out
	}
	out := &erofs.Node{
		Mode: n.mode, UID: n.uid, GID: n.gid, Major: n.major, Minor: n.minor,
		Time: erofs.Time{Sec: n.sec, Nsec: n.nsec}, Target: n.target, Xattrs: n.attrs,
		Size: n.size, Chunks: c.chunks(n),
	}
	if n.linked {
		c.linked[n] = out
	}
	if n.dir == nil {
		return out
	}
	out.Kids = make([]erofs.Name, 0, len(n.kids))
	for _, name := range slices.Sorted(maps.Keys(n.kids)) {
		out.Kids = append(out.Kids, erofs.Name{Name: name, Node: c.node(n.kids[name].inode)})
	}
	return out
}

// chunks says where the content of a file is: one chunk of it all, or, of a file
// with holes, chunks so large that each is data or a hole as a whole.
func (c *converter) chunks(n *inode) erofs.Chunks {
	if n.size == 0 {
		return erofs.Chunks{}
	}
	runs, total := n.runs, uint32(blockCount(n.size))
	if runs == nil {
		runs = []run{{0, total}}
	}
	var ends uint32 // of all holes and data, but for the last
	at := uint32(0)
	for _, r := range runs {
		for _, k := range []uint32{r.hole, r.data} {
			if at += k; at < total {
				ends |= at
			}
		}
	}
	blocks := uint64(1) << bits.TrailingZeros32(ends)
	if ends == 0 {
		blocks = 1 << min(bits.Len32(total-1), 31) // as much as EROFS takes
	}
	out := erofs.Chunks{Size: int(blocks) * BlockSize}
	next := n.first
	for _, r := range runs {
		for k := uint64(0); k < uint64(r.hole); k += blocks {
			out.At = append(out.At, erofs.Chunk{Device: erofs.Hole})
		}
		for k := uint64(0); k < uint64(r.data); k += blocks {
			out.At = append(out.At, erofs.Chunk{Device: c.devices[n.from-1], Block: next + uint32(k)})
		}
		next += r.data
	}
	return out
}
