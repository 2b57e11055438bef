package xz

import "errors"

// LZMA as LZMA2 carries it: no end marker, lc+lp at most 4. The names follow
// the LZMA specification (Igor Pavlov, lzma-specification.txt, 2015).
const (
	probBits   = 11
	probInit   = 1 << (probBits - 1)
	probMove   = 5
	probZero   = 1<<probBits - 1<<probMove + 1 // p - (p-probZero)>>probMove == p + (1<<probBits-p)>>probMove
	rangeTop   = 1 << 24
	maxPosBits = 4
	maxLiteral = 0x300 << 4 // lc+lp <= 4

	matchMinLen     = 2
	startPosModel   = 4
	endPosModel     = 14
	alignBits       = 4
	specialPosition = 1 + 128 - endPosModel
)

var errCorrupt = errors.New("corrupt LZMA data")

// prob is the probability of a 0 bit, of 1<<probBits.
type prob = uint16

type lengthCoder struct {
	choice, choice2 prob
	low, mid        [1 << maxPosBits][8]prob
	high            [256]prob
}

// lzma is the decoder's model, kept from chunk to chunk until a reset.
type lzma struct {
	lc, lp, pb             uint
	state                  uint
	rep0, rep1, rep2, rep3 uint32

	isMatch    [12][1 << maxPosBits]prob
	isRep      [12]prob
	isRepG0    [12]prob
	isRepG1    [12]prob
	isRepG2    [12]prob
	isRep0Long [12][1 << maxPosBits]prob
	posSlot    [4][64]prob
	posSpecial [specialPosition]prob
	posAlign   [1 << alignBits]prob
	matchLen   lengthCoder
	repLen     lengthCoder
	literal    [maxLiteral]prob
}

// setProps takes the properties byte (pb*5+lp)*9+lc.
func (z *lzma) setProps(b byte) bool {
	if b >= 9*5*5 {
		return false
	}
	z.lc, z.lp, z.pb = uint(b%9), uint(b/9%5), uint(b/45)
	return z.lc+z.lp <= 4
}

func fill(p []prob) {
	for i := range p {
		p[i] = probInit
	}
}

func (c *lengthCoder) reset() {
	c.choice, c.choice2 = probInit, probInit
	for i := range c.low {
		fill(c.low[i][:])
		fill(c.mid[i][:])
	}
	fill(c.high[:])
}

func (z *lzma) reset() {
	z.state, z.rep0, z.rep1, z.rep2, z.rep3 = 0, 0, 0, 0, 0
	for i := range z.isMatch {
		fill(z.isMatch[i][:])
		fill(z.isRep0Long[i][:])
	}
	for i := range z.posSlot {
		fill(z.posSlot[i][:])
	}
	for _, p := range [][]prob{z.isRep[:], z.isRepG0[:], z.isRepG1[:], z.isRepG2[:], z.posSpecial[:], z.posAlign[:]} {
		fill(p)
	}
	z.matchLen.reset()
	z.repLen.reset()
	fill(z.literal[:0x300<<(z.lc+z.lp)])
}

// rangeDecoder reads one chunk. in is longer than the chunk by slack bytes, so
// that one symbol may run past the end before the caller looks.
type rangeDecoder struct {
	rng, code uint32
	pos       int
	in        []byte
}

// slack is more than one symbol can consume: a match codes at most 48 bits that
// each shift in at most one byte.
const slack = 64

func (r *rangeDecoder) bit(p *prob) uint32 {
	if r.rng < rangeTop {
		r.rng <<= 8
		r.code = r.code<<8 | uint32(r.in[r.pos])
		r.pos++
	}
	bound := (r.rng >> probBits) * uint32(*p)
	if r.code < bound {
		r.rng = bound
		*p += (1<<probBits - *p) >> probMove
		return 0
	}
	r.rng -= bound
	r.code -= bound
	*p -= *p >> probMove
	return 1
}

// tree decodes bits most significant first and returns 1<<bits + value.
func (r *rangeDecoder) tree(p []prob, bits uint) uint32 {
	m := uint32(1)
	for range bits {
		m = m<<1 | r.bit(&p[m])
	}
	return m
}

// reverse decodes bits least significant first; p[1] is the tree's root.
func (r *rangeDecoder) reverse(p []prob, bits uint) uint32 {
	m, v := uint32(1), uint32(0)
	for i := range bits {
		b := r.bit(&p[m])
		m = m<<1 | b
		v |= b << i
	}
	return v
}

func (r *rangeDecoder) direct(bits uint) uint32 {
	v := uint32(0)
	for range bits {
		if r.rng < rangeTop {
			r.rng <<= 8
			r.code = r.code<<8 | uint32(r.in[r.pos])
			r.pos++
		}
		r.rng >>= 1
		r.code -= r.rng
		mask := 0 - r.code>>31 // all ones when the subtraction borrowed
		r.code += r.rng & mask
		v = v<<1 + mask + 1
	}
	return v
}

func (c *lengthCoder) decode(r *rangeDecoder, posState uint) uint32 {
	if r.bit(&c.choice) == 0 {
		return matchMinLen + r.tree(c.low[posState][:], 3) - 8
	}
	if r.bit(&c.choice2) == 0 {
		return matchMinLen + 8 + r.tree(c.mid[posState][:], 3) - 8
	}
	return matchMinLen + 16 + r.tree(c.high[:], 8) - 256
}

func (z *lzma) distance(r *rangeDecoder, length uint32) uint32 {
	slot := r.tree(z.posSlot[min(length-matchMinLen, 3)][:], 6) - 64
	if slot < startPosModel {
		return slot
	}
	direct := uint(slot>>1 - 1)
	d := (2 | slot&1) << direct
	if slot < endPosModel {
		return d + r.reverse(z.posSpecial[d-slot:], direct)
	}
	d += r.direct(direct-alignBits) << alignBits
	return d + r.reverse(z.posAlign[:], alignBits)
}

// literal decodes one byte. The branches of a bit-by-bit decoder are as
// unpredictable as the data, so the choice is made by mask instead: for data
// that hardly compresses, such as .ko.xz files, this is where the time goes.
func (r *rangeDecoder) literal(p *[0x300]prob) byte {
	rng, code, pos := r.rng, r.code, r.pos
	sym := uint32(1)
	for sym < 0x100 {
		if rng < rangeTop {
			rng <<= 8
			code = code<<8 | uint32(r.in[pos])
			pos++
		}
		v := uint32(p[sym])
		bound := (rng >> probBits) * v
		zero := uint32(int64(uint64(code)-uint64(bound)) >> 63) // all ones for a 0 bit
		rng = bound&zero | (rng-bound)&^zero
		code -= bound &^ zero
		p[sym] = prob(v - uint32(int32(v-zero&probZero)>>probMove))
		sym = sym<<1 + 1 + zero
	}
	r.rng, r.code, r.pos = rng, code, pos
	return byte(sym)
}

// matchedLiteral decodes a byte that follows a match; match is the byte that
// would have continued it.
func (r *rangeDecoder) matchedLiteral(p *[0x300]prob, match byte) byte {
	rng, code, pos := r.rng, r.code, r.pos
	sym, m, offs := uint32(1), uint32(match), uint32(0x100)
	for sym < 0x100 {
		if rng < rangeTop {
			rng <<= 8
			code = code<<8 | uint32(r.in[pos])
			pos++
		}
		m <<= 1
		bit := m & offs
		i := offs + bit + sym
		v := uint32(p[i])
		bound := (rng >> probBits) * v
		zero := uint32(int64(uint64(code)-uint64(bound)) >> 63)
		rng = bound&zero | (rng-bound)&^zero
		code -= bound &^ zero
		p[i] = prob(v - uint32(int32(v-zero&probZero)>>probMove))
		sym = sym<<1 + 1 + zero
		offs &= bit ^ zero // stays set while the decoded bit equals the match's
	}
	r.rng, r.code, r.pos = rng, code, pos
	return byte(sym)
}

// decode fills out[pos:end] from the chunk in r, which must end exactly there.
// The dictionary was reset at index start, which is negative when that byte has
// left the buffer; a match reaches back at most dictSize bytes.
func (z *lzma) decode(r *rangeDecoder, out []byte, start, dictSize, pos, end int) error {
	posMask, lpMask := uint(1)<<z.pb-1, uint(1)<<z.lp-1
	limit := len(r.in) - slack
	base := max(start, 0)
	for pos < end {
		if r.pos > limit {
			return errCorrupt
		}
		posState := uint(pos-start) & posMask
		if r.bit(&z.isMatch[z.state][posState]) == 0 {
			prev := byte(0)
			if pos > base {
				prev = out[pos-1]
			}
			i := (uint(pos-start)&lpMask)<<z.lc | uint(prev)>>(8-z.lc)
			p := (*[0x300]prob)(z.literal[0x300*i:])
			if z.state < 7 {
				out[pos] = r.literal(p)
			} else {
				if int64(z.rep0) >= int64(pos-base) {
					return errCorrupt
				}
				out[pos] = r.matchedLiteral(p, out[pos-int(z.rep0)-1])
			}
			pos++
			z.state = literalState[z.state]
			continue
		}
		n, err := z.match(r, posState)
		if err != nil {
			return err
		}
		dist := int64(z.rep0) + 1
		if dist > int64(min(pos-base, dictSize)) || int(n) > end-pos {
			return errCorrupt
		}
		copyMatch(out, pos, int(dist), int(n))
		pos += int(n)
	}
	if r.rng < rangeTop {
		r.rng <<= 8
		r.code = r.code<<8 | uint32(r.in[r.pos])
		r.pos++
	}
	if r.pos != limit || r.code != 0 {
		return errCorrupt
	}
	return nil
}

var literalState = [12]uint{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}

// match decodes a match or repeated match after its isMatch bit: it leaves the
// distance, minus 1, in rep0 and returns the length.
func (z *lzma) match(r *rangeDecoder, posState uint) (uint32, error) {
	s := z.state
	if r.bit(&z.isRep[s]) == 0 {
		z.rep3, z.rep2, z.rep1 = z.rep2, z.rep1, z.rep0
		n := z.matchLen.decode(r, posState)
		z.rep0 = z.distance(r, n)
		z.state = afterState(s, 7)
		return n, nil
	}
	if r.bit(&z.isRepG0[s]) == 0 {
		if r.bit(&z.isRep0Long[s][posState]) == 0 {
			z.state = afterState(s, 9)
			return 1, nil
		}
	} else if r.bit(&z.isRepG1[s]) == 0 {
		z.rep0, z.rep1 = z.rep1, z.rep0
	} else if r.bit(&z.isRepG2[s]) == 0 {
		z.rep0, z.rep1, z.rep2 = z.rep2, z.rep0, z.rep1
	} else {
		z.rep0, z.rep1, z.rep2, z.rep3 = z.rep3, z.rep0, z.rep1, z.rep2
	}
	n := z.repLen.decode(r, posState)
	z.state = afterState(s, 8)
	return n, nil
}

// afterState is the state after a match (7), long rep (8) or short rep (9).
func afterState(s, kind uint) uint {
	if s < 7 {
		return kind
	}
	if kind == 7 {
		return 10
	}
	return 11
}

func copyMatch(out []byte, pos, dist, n int) {
	src := out[pos-dist : pos]
	dst := out[pos : pos+n]
	if n <= 16 || dist < 8 {
		for i := range dst {
			dst[i] = out[pos-dist+i]
		}
		return
	}
	for len(dst) > 0 {
		k := copy(dst, src)
		dst = dst[k:]
		src = out[pos-dist : pos-dist+len(src)+k] // the repeated period doubles
	}
}
