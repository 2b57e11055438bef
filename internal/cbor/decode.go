package cbor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
)

// Limits on what is read. Reading allocates nothing besides, and what is
// returned aliases the input.
const (
	maxDepth = 16
	maxPairs = 256 // of one map whose keys are looked at
)

// A Decoder reads items one behind the other. The first error stays; after it
// every method returns zeros, so that a caller may look at Err once, at the end.
type Decoder struct {
	b     []byte
	off   int
	depth int
	err   error
}

// NewDecoder reads b.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// Err is the first error, with the offset in the input.
func (d *Decoder) Err() error { return d.err }

// Fail makes err the error, unless there is one.
func (d *Decoder) Fail(format string, args ...any) {
	d.fail(d.off, format, args...)
}

func (d *Decoder) fail(at int, format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("cbor: offset %#x: %w", at, fmt.Errorf(format, args...))
		d.off = len(d.b)
	}
}

// End returns the error, or one that says that input is left over.
func (d *Decoder) End() error {
	if d.err == nil && d.off != len(d.b) {
		d.Fail("%d bytes behind the last item", len(d.b)-d.off)
	}
	return d.err
}

var errShort = errors.New("input ends within an item")

// head reads a major type and its argument. Of major type 7 only the simple
// values are known, not the floating-point numbers: what we read has none.
func (d *Decoder) head() (major byte, arg uint64) {
	at := d.off
	if d.err != nil || at >= len(d.b) {
		d.fail(at, "%w", errShort)
		return 0, 0
	}
	major, info := d.b[at]>>5, d.b[at]&0x1f
	if info == 31 {
		d.fail(at, "unsupported: indefinite length")
		return 0, 0
	}
	if info > 27 {
		d.fail(at, "additional information %d", info)
		return 0, 0
	}
	rest := d.b[at+1:]
	size := 0
	if info >= 24 {
		size = 1 << (info - 24)
	}
	if len(rest) < size {
		d.fail(at, "%w", errShort)
		return 0, 0
	}
	arg = uint64(info)
	switch size {
	case 1:
		arg = uint64(rest[0])
	case 2:
		arg = uint64(binary.BigEndian.Uint16(rest))
	case 4:
		arg = uint64(binary.BigEndian.Uint32(rest))
	case 8:
		arg = binary.BigEndian.Uint64(rest)
	}
	d.off += 1 + size
	return major, arg
}

var majorNames = [8]string{"an integer", "a negative integer", "a byte string", "a text string", "an array", "a map", "a tag", "a simple value"}

// expect reads a head of that major type.
func (d *Decoder) expect(major byte) uint64 {
	at := d.off
	got, arg := d.head()
	if d.err == nil && got != major {
		d.fail(at, "%s: want %s", majorNames[got], majorNames[major])
	}
	if d.err != nil {
		return 0
	}
	return arg
}

func (d *Decoder) next(major byte) bool {
	return d.err == nil && d.off < len(d.b) && d.b[d.off]>>5 == major
}

// IsInt, IsBytes, IsText, IsMap and IsTag say what the next item is.
func (d *Decoder) IsInt() bool   { return d.next(majorUint) || d.next(majorNegint) }
func (d *Decoder) IsBytes() bool { return d.next(majorBytes) }
func (d *Decoder) IsText() bool  { return d.next(majorText) }
func (d *Decoder) IsMap() bool   { return d.next(majorMap) }
func (d *Decoder) IsTag() bool   { return d.next(majorTag) }

// Int reads an integer.
func (d *Decoder) Int() int64 {
	at := d.off
	major, arg := d.head()
	switch {
	case major != majorUint && major != majorNegint:
		d.fail(at, "%s: want %s", majorNames[major], majorNames[majorUint])
		return 0
	case arg > math.MaxInt64:
		d.fail(at, "an integer of more than 63 bits")
		return 0
	case major == majorNegint:
		return -1 - int64(arg)
	}
	return int64(arg)
}

func (d *Decoder) take(n uint64) []byte {
	if d.err == nil && n > uint64(len(d.b)-d.off) {
		d.Fail("a string of %d bytes: %d left", n, len(d.b)-d.off)
	}
	if d.err != nil {
		return nil
	}
	v := d.b[d.off:][:n:n]
	d.off += int(n)
	return v
}

// Bytes reads a byte string.
func (d *Decoder) Bytes() []byte { return d.take(d.expect(majorBytes)) }

// Text reads a text string, which is UTF-8.
func (d *Decoder) Text() string {
	at := d.off
	v := d.take(d.expect(majorText))
	if !utf8.Valid(v) {
		d.fail(at, "a text string that is not UTF-8")
		return ""
	}
	return string(v)
}

// Tag reads a tag; the item that it is for is the next one.
func (d *Decoder) Tag() uint64 { return d.expect(majorTag) }

// enter goes one level down.
func (d *Decoder) enter() bool {
	if d.depth++; d.err == nil && d.depth > maxDepth {
		d.Fail("more than %d levels", maxDepth)
	}
	return d.err == nil
}

// Array reads an array, whose items f reads one at a time.
func (d *Decoder) Array(f func(i int)) {
	n := d.expect(majorArray)
	if n > uint64(len(d.b)-d.off) { // an item is a byte at least
		d.Fail("an array of %d items: %d bytes left", n, len(d.b)-d.off)
	}
	if d.enter() {
		for i := 0; uint64(i) < n && d.err == nil; i++ {
			f(i)
		}
	}
	d.depth--
}

// Map reads a map. f reads the value of each integer key, and returns false for
// one that it does not know, having read nothing; that one is skipped, as is the
// value of every key of another kind. A key that is there twice is an error.
func (d *Decoder) Map(f func(key int64) bool) {
	n := d.expect(majorMap)
	if n > maxPairs {
		d.Fail("a map of %d pairs: want at most %d", n, maxPairs)
	}
	if d.enter() {
		var seen []int64
		for range n {
			if !d.IsInt() {
				d.Skip()
				d.Skip()
				continue
			}
			at, key := d.off, d.Int()
			if slices.Contains(seen, key) {
				d.fail(at, "key %d is there twice", key)
				break
			}
			seen = append(seen, key)
			if before := d.off; d.err == nil && !f(key) && d.off == before {
				d.Skip()
			}
		}
	}
	d.depth--
}

// Skip reads one item, whatever it is.
func (d *Decoder) Skip() {
	at := d.off
	major, arg := d.head()
	if !d.enter() {
		d.depth--
		return
	}
	switch major {
	case majorBytes, majorText:
		d.take(arg)
	case majorArray, majorMap:
		if arg > uint64(len(d.b)-d.off) {
			d.fail(at, "%d items: %d bytes left", arg, len(d.b)-d.off)
		}
		for range arg {
			if d.err != nil {
				break
			}
			if d.Skip(); major == majorMap {
				d.Skip()
			}
		}
	case majorTag:
		d.Skip()
	}
	d.depth--
}

// Raw reads one item and returns its encoding.
func (d *Decoder) Raw() []byte {
	at := d.off
	d.Skip()
	if d.err != nil {
		return nil
	}
	return d.b[at:d.off:d.off]
}
