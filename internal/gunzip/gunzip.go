// Package gunzip reads gzip streams, RFC 1952 and RFC 1951, in less processor time
// than the libraries for it: what bounds the pull of an image is to unpack its layers.
package gunzip

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	inSize    = 64 << 10  // bytes of input buffered; a power of two
	outSize   = 256 << 10 // bytes of output buffered, history included; a power of two
	window    = 32 << 10  // how far back a match may reach
	maxString = 512       // of a header's name and comment, bytes with the NUL; what Go's reader takes

	// inSlack is what one round of fast may load of the input: three times 8 bytes, each
	// begun at most 7 behind the one before. outSlack is what a round may write: three
	// literals, a match of 258, and to the end of a word of 16 begun in it.
	inSlack  = 24
	outSlack = 3 + 258 + 32
)

// The header's flags, RFC 1952, section 2.3.1. The text flag means nothing here.
const (
	flagHCRC    = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
	flagUnknown = 0xe0
)

// A Reader unpacks a stream of one or more members. It holds about 350 KiB, whatever
// the stream says.
type Reader struct {
	r    io.Reader
	rerr error // how r ended
	err  error // how the stream ended; given once the output is read
	step func(*Reader)

	in       [inSize + 8]byte
	pos, end int    // what of in is to be read
	off      int64  // of in[0] in the stream
	b        uint64 // bits taken from in before pos, the next one lowest
	nb       uint64 // their number

	out    [outSize + 16]byte
	read   int // what of out is the caller's
	w      int // what of out is written
	summed int // what of out is in crc and size
	start  int // of the member in out; no match reaches back beyond it
	crc    uint32
	size   uint32 // of the member, modulo 1<<32

	members int
	final   bool // the block is the member's last
	stored  int  // bytes left of a stored block
	fixed   bool // the tables are those of fixed codes
	lengths [maxLitLen + maxDist]uint8
	codes   [1 << codeBits]entry
	lits    [litTable]entry
	dists   [distTable]entry
}

// NewReader returns a reader of the gzip stream that r is: members to the end of r,
// at least one, and nothing else. It reads ahead. What Read gave is proven by its
// io.EOF only. An error names the byte of r where it was seen; one of r is wrapped.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: r, step: (*Reader).header}
}

func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.read == z.w {
		if z.err != nil {
			return 0, z.err
		}
		z.decode()
	}
	n := copy(p, z.out[z.read:z.w])
	z.read += n
	return n, nil
}

// decode makes output. It is called when all there was is read, and returns before it
// would wait for input with some in hand.
func (z *Reader) decode() {
	z.slide()
	for z.err == nil && z.w <= outSize-outSlack {
		if z.rerr == nil && z.end-z.pos < inSlack {
			if z.w > z.read {
				break
			}
			z.fill()
		}
		z.step(z)
	}
	z.sum()
}

// slide keeps the window of a buffer that is full.
func (z *Reader) slide() {
	by := z.w - window
	if z.w <= outSize-outSlack {
		return
	}
	copy(z.out[:window], z.out[by:z.w])
	z.start = max(0, z.start-by)
	z.w, z.read, z.summed = window, window, window
}

func (z *Reader) sum() {
	b := z.out[z.summed:z.w]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, b)
	z.size += uint32(len(b))
	z.summed = z.w
}

// unread puts whole bytes back from the bits.
func (z *Reader) unread() {
	z.pos -= int(z.nb >> 3)
	z.nb &= 7
	z.b &= 1<<z.nb - 1
}

// fill reads until there is input for a round of fast, or no more.
func (z *Reader) fill() {
	z.unread()
	z.off += int64(z.pos)
	z.end = copy(z.in[:], z.in[z.pos:z.end])
	z.pos = 0
	for idle := 0; z.end < inSlack && z.rerr == nil; idle++ {
		n, err := z.r.Read(z.in[z.end:inSize])
		z.end, z.rerr = z.end+n, err
		if n > 0 {
			idle = 0
		} else if err == nil && idle == 100 {
			z.rerr = io.ErrNoProgress
		}
	}
}

// refill takes input until there are 56 bits or more, or all that there are.
func (z *Reader) refill() {
	if z.end-z.pos < 8 && z.rerr == nil {
		z.fill()
	}
	for z.nb < 56 && z.pos < z.end {
		z.b |= uint64(z.in[z.pos]) << z.nb
		z.pos++
		z.nb += 8
	}
}

// bits takes n bits, at most 32: 0 with z.err set when there are not as many.
func (z *Reader) bits(n uint64) uint32 {
	if z.nb < n {
		z.refill()
	}
	if z.nb < n {
		z.short()
		return 0
	}
	v := uint32(z.b & (1<<n - 1))
	z.b >>= n
	z.nb -= n
	return v
}

// short is the error of a stream that needs more input than there is.
func (z *Reader) short() {
	err := z.rerr
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	z.fail("%w", err)
}

// fail keeps the first error.
func (z *Reader) fail(format string, args ...any) {
	if z.err == nil {
		at := z.off + int64(z.pos) - int64(z.nb>>3)
		z.err = fmt.Errorf("gunzip: byte %d: %w", at, fmt.Errorf(format, args...))
	}
}

// header begins a member, or ends the stream where one has ended.
func (z *Reader) header() {
	if z.refill(); z.nb == 0 && z.rerr == io.EOF && z.members > 0 {
		z.err = io.EOF
		return
	}
	var crc uint32
	next := func() byte {
		b := [1]byte{byte(z.bits(8))}
		crc = crc32.Update(crc, crc32.IEEETable, b[:])
		return b[0]
	}
	var fixed [10]byte // magic, method, flags, time, extra flags, system
	for i := range fixed {
		fixed[i] = next()
	}
	flags := fixed[3]
	switch {
	case z.err != nil:
	case fixed[0] != 0x1f || fixed[1] != 0x8b:
		z.fail("gzip header: magic is % x, want 1f 8b", fixed[:2])
	case fixed[2] != 8:
		z.fail("gzip header: method is %d, want 8", fixed[2])
	case flags&flagUnknown != 0:
		z.fail("gzip header: flags are %#02x, want none of %#02x", flags, flagUnknown)
	}
	if z.err == nil && flags&flagExtra != 0 {
		n := int(next()) | int(next())<<8
		for ; n > 0 && z.err == nil; n-- {
			next()
		}
	}
	for _, f := range []byte{flagName, flagComment} {
		for n := 1; z.err == nil && flags&f != 0 && next() != 0; n++ {
			if n == maxString {
				z.fail("gzip header: a name or comment of more than %d bytes", maxString)
			}
		}
	}
	if z.err == nil && flags&flagHCRC != 0 {
		if want, got := uint16(crc), uint16(z.bits(16)); got != want && z.err == nil {
			z.fail("gzip header: its checksum is %04x, want %04x", got, want)
		}
	}
	z.members++
	z.start, z.crc, z.size = z.w, 0, 0
	z.step = (*Reader).block
}

// trailer ends a member.
func (z *Reader) trailer() {
	z.sum()
	z.align()
	crc, size := z.bits(32), z.bits(32)
	switch {
	case z.err != nil:
	case crc != z.crc:
		z.fail("checksum is %08x, want %08x", z.crc, crc)
	case size != z.size:
		z.fail("checksum is right, but the size is %d, want %d", z.size, size)
	}
	z.step = (*Reader).header
}

// align drops what is left of a byte.
func (z *Reader) align() {
	z.b >>= z.nb & 7
	z.nb &^= 7
}

const errDistance = "a match begins before the data"

func load(b []byte) uint64     { return binary.LittleEndian.Uint64(b) }
func store(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }
