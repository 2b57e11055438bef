package vdisk

import (
	"encoding/binary"
	"io"
)

// Qcow2 writes a qcow2 image, version 3, uncompressed: QEMU,
// docs/interop/qcow2.rst. Order: header, refcounts, L1 table, L2 tables, data.
func Qcow2(w io.Writer, d Disk) error {
	if err := d.check("qcow2", sectorSize); err != nil {
		return err
	}
	used, err := d.used(cluster)
	if err != nil {
		return err
	}
	l := qcowLayout(used)
	out := &clusters{w: w}
	out.write(l.header(d.Size))
	out.write(l.refcountTable())
	l.refcounts(out)
	out.write(l.l1Table())
	l.l2Tables(out)
	buf := make([]byte, cluster)
	for i, u := range used {
		if !u {
			continue
		}
		if err := d.read(buf, int64(i)*cluster); err != nil {
			return err
		}
		out.write(buf)
	}
	return out.err
}

const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	perL2       = cluster / 8 // entries in an L2 table
	perRefcount = cluster / 2 // refcounts of 16 bits in a block
)

// qcow is where everything goes, in clusters.
type qcow struct {
	used           []bool
	l2             []bool // which L2 tables there are
	tables         uint64 // number of them
	data           uint64 // clusters of data
	refTableBlocks uint64
	refBlocks      uint64
	l1Blocks       uint64
}

func qcowLayout(used []bool) *qcow {
	q := &qcow{used: used, l2: make([]bool, (len(used)+perL2-1)/perL2)}
	for i, u := range used {
		if u {
			q.data++
			if !q.l2[i/perL2] {
				q.l2[i/perL2] = true
				q.tables++
			}
		}
	}
	q.l1Blocks = blocksFor(uint64(len(q.l2))*8, cluster)
	// The refcounts count themselves: grow until they fit.
	for {
		blocks := blocksFor(q.total(), perRefcount)
		table := blocksFor(blocks*8, cluster)
		if blocks == q.refBlocks && table == q.refTableBlocks {
			return q
		}
		q.refBlocks, q.refTableBlocks = blocks, table
	}
}

func blocksFor(n, per uint64) uint64 { return (n + per - 1) / per }

func (q *qcow) total() uint64 {
	return 1 + q.refTableBlocks + q.refBlocks + q.l1Blocks + q.tables + q.data
}

func (q *qcow) refBlock0() uint64 { return 1 + q.refTableBlocks }
func (q *qcow) l1() uint64        { return q.refBlock0() + q.refBlocks }
func (q *qcow) l2Table0() uint64  { return q.l1() + q.l1Blocks }
func (q *qcow) data0() uint64     { return q.l2Table0() + q.tables }

func (q *qcow) header(size int64) []byte {
	const length = 104
	b := append([]byte("QFI\xfb"), 0, 0, 0, 3)
	be := binary.BigEndian
	b = be.AppendUint64(b, 0) // backing file
	b = be.AppendUint32(b, 0)
	b = be.AppendUint32(b, clusterBits)
	b = be.AppendUint64(b, uint64(size))
	b = be.AppendUint32(b, 0) // encryption
	b = be.AppendUint32(b, uint32(len(q.l2)))
	b = be.AppendUint64(b, q.l1()<<clusterBits)
	b = be.AppendUint64(b, 1<<clusterBits) // refcount table
	b = be.AppendUint32(b, uint32(q.refTableBlocks))
	b = be.AppendUint32(b, 0) // snapshots
	b = be.AppendUint64(b, 0)
	b = append(b, make([]byte, 3*8)...) // features: none
	b = be.AppendUint32(b, 4)           // refcounts of 1<<4 bits
	b = be.AppendUint32(b, length)
	return b
}

func (q *qcow) refcountTable() []byte {
	b := make([]byte, 0, q.refTableBlocks*cluster)
	for i := range q.refBlocks {
		b = binary.BigEndian.AppendUint64(b, (q.refBlock0()+i)<<clusterBits)
	}
	return b[:cap(b)]
}

// refcounts writes the blocks of refcounts: every cluster is used once.
func (q *qcow) refcounts(w *clusters) {
	left := q.total()
	for range q.refBlocks {
		b := make([]byte, cluster)
		n := min(left, perRefcount)
		for i := range n {
			b[2*i+1] = 1
		}
		left -= n
		w.write(b)
	}
}

// copied marks an entry whose cluster has refcount one.
const copied = 1 << 63

func (q *qcow) l1Table() []byte {
	b := make([]byte, 0, q.l1Blocks*cluster)
	next := q.l2Table0()
	for _, there := range q.l2 {
		entry := uint64(0)
		if there {
			entry = next<<clusterBits | copied
			next++
		}
		b = binary.BigEndian.AppendUint64(b, entry)
	}
	return b[:cap(b)]
}

func (q *qcow) l2Tables(w *clusters) {
	next := q.data0()
	for t, there := range q.l2 {
		if !there {
			continue
		}
		b := make([]byte, 0, cluster)
		for i := t * perL2; i < min((t+1)*perL2, len(q.used)); i++ {
			entry := uint64(0)
			if q.used[i] {
				entry = next<<clusterBits | copied
				next++
			}
			b = binary.BigEndian.AppendUint64(b, entry)
		}
		w.write(b[:cap(b)])
	}
}

// clusters writes pieces, each filled with zeros to whole clusters.
type clusters struct {
	w   io.Writer
	err error
}

func (c *clusters) write(b []byte) {
	for _, part := range [][]byte{b, zeros[:-len(b)&(cluster-1)]} {
		if c.err == nil {
			_, c.err = c.w.Write(part)
		}
	}
}
