package unpack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// A Layer is what the tar of one layer says of its files. It does not change.
type Layer struct {
	blocks  uint32
	stats   Stats
	records []byte // one after the other; see encoder
}

// Blocks is how many blocks the content of the layer's files has.
func (l *Layer) Blocks() uint32 { return l.blocks }

// Stats counts what the tar brought.
func (l *Layer) Stats() Stats { return l.stats }

// layerMagic begins the binary form of a layer; the digit is its version.
const layerMagic = "plinth layer 1\n"

func (s *Stats) fields() []*int64 {
	return []*int64{&s.Entries, &s.Bytes, &s.Whiteouts, &s.Dropped, &s.Stream, &s.Trailing}
}

// MarshalBinary writes a layer in a form of our own: the magic, the number of
// blocks, the fields of Stats, the records. Numbers are varints; equal tars give
// equal bytes.
func (l *Layer) MarshalBinary() ([]byte, error) {
	b := append(make([]byte, 0, len(layerMagic)+64+len(l.records)), layerMagic...)
	b = binary.AppendUvarint(b, uint64(l.blocks))
	for _, f := range l.stats.fields() {
		b = binary.AppendUvarint(b, uint64(*f))
	}
	return append(b, l.records...), nil
}

// UnmarshalBinary reads what MarshalBinary wrote, and refuses a layer that Read
// would not have made, but for Limits: Tree.Apply holds it to these.
func (l *Layer) UnmarshalBinary(b []byte) error {
	rest, ok := strings.CutPrefix(string(b), layerMagic)
	if !ok {
		return errors.New("unpack: layer: the beginning is not that of a layer")
	}
	d := decoder{b: []byte(rest)}
	out := Layer{blocks: d.uint32()}
	for _, f := range out.stats.fields() {
		*f = int64(d.number(math.MaxInt64))
	}
	out.records = d.b
	if d.err == nil {
		d.err = out.verify()
	}
	if d.err != nil {
		return fmt.Errorf("unpack: layer: %w", d.err)
	}
	*l = out
	return nil
}

// verify reads all records.
func (l *Layer) verify() error {
	limits := Limits{}.defaults()
	d := decoder{b: l.records}
	var r record
	var s Stats
	for d.more() {
		s.Entries++
		if err := d.next(&r); err != nil {
			return fmt.Errorf("record %d: %w", s.Entries, err)
		}
		if err := r.verify(&limits); err != nil {
			return fmt.Errorf("record %d: %q: %w", s.Entries, r.name, err)
		}
		if s.Bytes = sum(s.Bytes, r.size); r.kind == kindWhiteout || r.kind == kindOpaque {
			s.Whiteouts++
		}
	}
	if s.Entries != l.stats.Entries || s.Bytes != l.stats.Bytes || s.Whiteouts != l.stats.Whiteouts || d.first != uint64(l.blocks) {
		return fmt.Errorf("%d records with %d bytes in %d blocks and %d whiteouts: want %d with %d in %d and %d",
			s.Entries, s.Bytes, d.first, s.Whiteouts, l.stats.Entries, l.stats.Bytes, l.blocks, l.stats.Whiteouts)
	}
	return nil
}

// verify refuses a record that Read does not write.
func (r *record) verify(l *Limits) error {
	if types[r.kind] == 0 && !slices.Contains([]byte{kindHardLink, kindWhiteout, kindOpaque, kindNote, kindNothing}, r.kind) {
		return fmt.Errorf("kind %q", r.kind)
	}
	if err := r.check(l); err != nil {
		return err
	}
	if r.kind == kindSymlink && r.mode != 0o777 || r.mode > permissions || r.nsec >= 1e9 || r.uid == math.MaxUint32 || r.gid == math.MaxUint32 || r.major > maxMajor || r.minor > maxMinor {
		return errors.New("a number is out of range")
	}
	before, mode := maps.Clone(r.attrs), r.mode
	if err := r.normalize(); err != nil {
		return err
	}
	for name := range r.attrs {
		if dropped(name) {
			return fmt.Errorf("attribute %q", name)
		}
	}
	if mode != r.mode || !maps.EqualFunc(before, r.attrs, slices.Equal) {
		return errors.New("attributes and mode contradict one another")
	}
	return r.verifyRuns()
}

func (r *record) verifyRuns() error {
	var blocks uint64
	for i, run := range r.runs {
		if i > 0 && run.hole == 0 || run.data == 0 && i < len(r.runs)-1 {
			return fmt.Errorf("run %d is empty", i)
		}
		blocks += uint64(run.hole) + uint64(run.data)
	}
	if want := blockCount(r.size); blocks != want {
		return fmt.Errorf("%d blocks: want %d", blocks, want)
	}
	return nil
}

// blockCount is how many blocks hold size bytes.
func blockCount(size int64) uint64 { return (uint64(size) + BlockSize - 1) / BlockSize }

// An encoder writes records. A name is written as what differs from the one
// before it.
type encoder struct {
	b    []byte
	last string
}

func (e *encoder) number(n uint64) { e.b = binary.AppendUvarint(e.b, n) }

func (e *encoder) text(s string) {
	e.number(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) add(r *record) {
	e.b = append(e.b, r.kind)
	shared := 0
	for shared < min(len(e.last), len(r.name)) && e.last[shared] == r.name[shared] {
		shared++
	}
	e.number(uint64(shared))
	e.text(r.name[shared:])
	e.last = r.name
	switch r.kind {
	case kindHardLink:
		e.text(r.target)
		return
	case kindWhiteout, kindOpaque, kindNote, kindNothing:
		return
	}
	e.number(uint64(r.mode))
	e.number(uint64(r.uid))
	e.number(uint64(r.gid))
	e.b = binary.AppendVarint(e.b, r.sec)
	e.number(uint64(r.nsec))
	e.number(uint64(len(r.attrs)))
	for _, name := range slices.Sorted(maps.Keys(r.attrs)) {
		e.text(name)
		e.text(string(r.attrs[name]))
	}
	switch r.kind {
	case kindSymlink:
		e.text(r.target)
	case kindChar, kindBlock:
		e.number(uint64(r.major))
		e.number(uint64(r.minor))
	case kindFile:
		e.number(uint64(r.size))
		e.number(uint64(len(r.runs)))
		for _, run := range r.runs {
			e.number(uint64(run.hole))
			e.number(uint64(run.data))
		}
	}
}

// A decoder reads records.
type decoder struct {
	b     []byte
	last  string
	first uint64 // block of the content that the next file begins at
	err   error
}

var errRecord = errors.New("the record is cut off, or something in it is not what Read writes")

func (d *decoder) more() bool { return len(d.b) > 0 }

func (d *decoder) number(most uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > most || n > 1 && d.b[n-1] == 0 { // the shortest form alone
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 { return uint32(d.number(math.MaxUint32)) }

func (d *decoder) fail() {
	d.b = nil
	if d.err == nil {
		d.err = errRecord
	}
}

// bytes are the next ones, after their number.
func (d *decoder) bytes() []byte {
	n := d.number(uint64(len(d.b)))
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

// next reads one record into r, whose runs are valid up to the next call.
func (d *decoder) next(r *record) error {
	*r = record{kind: d.b[0], runs: r.runs[:0]}
	d.b = d.b[1:]
	shared := d.number(uint64(len(d.last)))
	tail := d.bytes()
	if len(tail) > pathMax {
		d.fail()
		return d.err
	}
	r.name = d.last[:shared] + string(tail)
	if d.last = r.name; !cleanFrom(r.name, int(shared)) {
		d.fail()
	}
	switch r.kind {
	case kindHardLink:
		r.target = string(d.bytes())
	case kindWhiteout, kindOpaque, kindNote, kindNothing:
	default:
		d.describe(r)
	}
	return d.err
}

// cleanFrom tells whether a name is a clean one without a whiteout in it; up to
// an offset it has the beginning of one that is.
func cleanFrom(name string, off int) bool {
	if name == "" {
		return true
	}
	for part := range strings.SplitSeq(name[strings.LastIndexByte(name[:off], '/')+1:], "/") {
		if part == "" || part == "." || part == ".." || strings.HasPrefix(part, whiteoutPrefix) {
			return false
		}
	}
	return true
}

func (d *decoder) describe(r *record) {
	r.mode, r.uid, r.gid = d.uint32(), d.uint32(), d.uint32()
	v, n := binary.Varint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.fail()
		return
	}
	d.b = d.b[n:]
	r.sec, r.nsec = v, d.uint32()
	d.attributes(r)
	switch r.kind {
	case kindSymlink:
		r.target = string(d.bytes())
	case kindChar, kindBlock:
		r.major, r.minor = d.uint32(), d.uint32()
	case kindFile:
		d.content(r)
	}
}

func (d *decoder) attributes(r *record) {
	last := ""
	for n := d.number(uint64(len(d.b))); n > 0 && d.err == nil; n-- {
		name := string(d.bytes())
		if name <= last {
			d.fail()
			return
		}
		if r.attrs == nil {
			r.attrs = make(map[string][]byte)
		}
		r.attrs[name], last = slices.Clone(d.bytes()), name
	}
}

func (d *decoder) content(r *record) {
	r.size = int64(d.number(maxFile))
	r.first = uint32(d.first)
	for n := d.number(uint64(len(d.b))); n > 0 && d.err == nil; n-- {
		run := run{d.uint32(), d.uint32()}
		r.runs = append(r.runs, run)
		d.first += uint64(run.data)
	}
	if d.first > math.MaxUint32 {
		d.fail()
	}
}
