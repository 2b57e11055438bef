package gunzip

// block begins one.
func (z *Reader) block() {
	if z.final {
		z.final = false
		z.trailer()
		return
	}
	z.final = z.bits(1) == 1
	switch kind := z.bits(2); {
	case z.err != nil:
	case kind == 0:
		z.beginStored()
	case kind == 1:
		z.beginFixed()
	case kind == 2:
		z.beginDynamic()
	default:
		z.fail("a block of type 3, which is none")
	}
}

func (z *Reader) beginStored() {
	z.align()
	n, not := z.bits(16), z.bits(16)
	if z.err == nil && n != ^not&0xffff {
		z.fail("stored block: size is %#04x, its complement %#04x", n, not)
	}
	z.stored = int(n)
	z.step = (*Reader).copyStored
}

func (z *Reader) copyStored() {
	z.unread()
	if z.stored == 0 {
		z.step = (*Reader).block
		return
	}
	n := copy(z.out[z.w:outSize], z.in[z.pos:min(z.end, z.pos+z.stored)])
	if n == 0 {
		z.short()
	}
	z.w, z.pos, z.stored = z.w+n, z.pos+n, z.stored-n
}

// beginFixed sets the codes of RFC 1951, section 3.2.6.
func (z *Reader) beginFixed() {
	z.step = (*Reader).symbols
	if z.fixed {
		return
	}
	for i := range maxLitLen {
		switch {
		case i < 144, i >= 280:
			z.lengths[i] = 8
		case i < 256:
			z.lengths[i] = 9
		default:
			z.lengths[i] = 7
		}
	}
	for i := range maxDist {
		z.lengths[maxLitLen+i] = 5
	}
	build(z.lits[:], litBits, z.lengths[:maxLitLen], litSymbols[:])
	build(z.dists[:], distBits, z.lengths[maxLitLen:], distSymbols[:])
	z.fixed = true
}

// codeOrder is how the lengths of the codes for code lengths come.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// beginDynamic reads the codes of a block: RFC 1951, section 3.2.7.
func (z *Reader) beginDynamic() {
	z.fixed = false
	lits, dists, codes := int(z.bits(5))+257, int(z.bits(5))+1, int(z.bits(4))+4
	if lits > 286 || dists > 30 {
		z.fail("%d codes of literals and lengths, %d of distances: want at most 286, 30", lits, dists)
		return
	}
	var lengths [len(codeOrder)]uint8
	for _, i := range codeOrder[:codes] {
		lengths[i] = uint8(z.bits(3))
	}
	if !build(z.codes[:], codeBits, lengths[:], codeSymbols[:]) {
		z.fail("code lengths: not a Huffman code")
	}
	z.readLengths(lits + dists)
	switch {
	case z.err != nil:
	case z.lengths[256] == 0:
		z.fail("block: no code for its end")
	case !build(z.lits[:], litBits, z.lengths[:lits], litSymbols[:]):
		z.fail("literals and lengths: not a Huffman code")
	case !build(z.dists[:], distBits, z.lengths[lits:lits+dists], distSymbols[:]):
		z.fail("distances: not a Huffman code")
	}
	z.step = (*Reader).symbols
}

func (z *Reader) readLengths(total int) {
	for i := 0; i < total && z.err == nil; {
		e, _, ok := z.next(z.codes[:], codeBits)
		if !ok {
			return
		}
		n, length := 1, uint8(e.value())
		switch length {
		case 16:
			n = 3 + int(z.bits(2))
			if i == 0 {
				z.fail("code lengths: the first repeats one before")
				return
			}
			length = z.lengths[i-1]
		case 17:
			n, length = 3+int(z.bits(3)), 0
		case 18:
			n, length = 11+int(z.bits(7)), 0
		}
		if n > total-i {
			z.fail("code lengths: %d, want %d", i+n, total)
			return
		}
		for ; n > 0; n-- {
			z.lengths[i] = length
			i++
		}
	}
}

// take uses up an entry's bits.
func (z *Reader) take(e entry) bool {
	switch {
	case e.used() > z.nb, z.nb == 0:
		z.short()
	case e&isOther != 0 && e&(isEnd|isPointer) == 0:
		z.fail("bits that are no code")
	default:
		z.b >>= e.used()
		z.nb -= e.used()
		return true
	}
	return false
}

// next takes a symbol from a table, and returns the bits as they were before its code.
func (z *Reader) next(table []entry, root int) (e entry, b uint64, ok bool) {
	if z.nb < maxCode+13 {
		z.refill()
	}
	e = table[z.b&(1<<root-1)]
	if e&isPointer != 0 {
		if !z.take(e) {
			return e, 0, false
		}
		e = table[e.value()+z.b&(1<<(e>>8&15)-1)]
	}
	b = z.b
	return e, b, z.take(e)
}

// symbols unpacks a block until it ends, or input or room for output do.
func (z *Reader) symbols() {
	if z.end-z.pos >= inSlack {
		z.fast()
	} else {
		z.slow()
	}
}

// slow unpacks one symbol at the end of the input.
func (z *Reader) slow() {
	e, b, ok := z.next(z.lits[:], litBits)
	switch {
	case !ok:
	case e&isLiteral != 0:
		z.out[z.w] = byte(e >> 16)
		z.w++
	case e&isEnd != 0:
		z.step = (*Reader).block
	default:
		length := int(e.with(b))
		if e, b, ok = z.next(z.dists[:], distBits); !ok {
			return
		}
		dist := int(e.with(b))
		if dist > z.w-z.start {
			z.fail(errDistance)
			return
		}
		for ; length > 0; length-- {
			z.out[z.w] = z.out[z.w-dist]
			z.w++
		}
	}
}

// fast is slow for many symbols, as long as there are inSlack bytes of input and room
// for outSlack of output, so that it looks at neither in between. Its bits are refilled
// by whole words: those above the count are of the byte at pos already, so that a word
// more leaves them as they are. Of the count, only the lower 6 bits mean something. The
// masks of indexes change nothing; they are cheaper than a bounds check.
func (z *Reader) fast() {
	const inMask, outMask = inSize - 1, outSize - 1
	in, out, lits, dists := &z.in, &z.out, &z.lits, &z.dists
	b, nb := z.b, z.nb
	pos, w := uint64(z.pos), uint64(z.w)
	inEnd, start := uint64(z.end-inSlack), uint64(z.start)
	var e entry
	far := false
	for pos <= inEnd && w <= outSize-outSlack {
		i := pos & inMask
		b |= load(in[i:i+8]) << (nb & 63)
		pos += ^nb >> 3 & 7
		nb |= 56
		e = lits[b%(1<<litBits)]
		if e&isLiteral != 0 { // three of at most 11 bits leave 23: a length has 20
			b >>= e & 63
			nb -= uint64(e)
			out[w&outMask] = byte(e >> 16)
			w++
			e = lits[b%(1<<litBits)]
			if e&isLiteral != 0 {
				b >>= e & 63
				nb -= uint64(e)
				out[w&outMask] = byte(e >> 16)
				w++
				e = lits[b%(1<<litBits)]
				if e&isLiteral != 0 {
					b >>= e & 63
					nb -= uint64(e)
					out[w&outMask] = byte(e >> 16)
					w++
					continue
				}
			}
		}
		if e&isOther != 0 {
			if e&isPointer != 0 {
				b >>= litBits
				nb -= litBits
				e = lits[(e.value()+b&(1<<(e>>8&15)-1))%litTable]
			}
			if e&isLiteral != 0 {
				b >>= e & 63
				nb -= uint64(e)
				out[w&outMask] = byte(e >> 16)
				w++
				continue
			}
			if e&isOther != 0 {
				break
			}
		}
		length := e.with(b)
		b >>= e & 63
		nb -= uint64(e)
		if nb&63 < maxCode+13 {
			i := pos & inMask
			b |= load(in[i:i+8]) << (nb & 63)
			pos += ^nb >> 3 & 7
			nb |= 56
		}
		e = dists[b%(1<<distBits)]
		if e&isOther != 0 {
			if e&isPointer == 0 {
				break
			}
			b >>= distBits
			nb -= distBits
			e = dists[(e.value()+b&(1<<(e>>8&15)-1))%distTable]
			if e&isOther != 0 {
				break
			}
		}
		dist := e.with(b)
		b >>= e & 63
		nb -= uint64(e)
		if dist > w-start {
			far = true
			break
		}
		s, end := w-dist, w+length
		switch {
		case dist >= 16:
			for {
				i, j := w&outMask, s&outMask
				copy(out[i:i+16], out[j:j+16])
				if w += 16; w >= end {
					break
				}
				s += 16
			}
		case dist >= 8:
			for {
				i, j := w&outMask, s&outMask
				store(out[i:i+8], load(out[j:j+8]))
				if w += 8; w >= end {
					break
				}
				s += 8
			}
		default:
			j := s & outMask
			v := load(out[j:j+8]) & (1<<(dist*8) - 1)
			v |= v << (dist * 8)
			v |= v << (dist * 16)
			v |= v << (dist * 32)
			for stride := 8 - 8%dist; w < end; w += stride {
				i := w & outMask
				store(out[i:i+8], v)
			}
		}
		w, e = end, 0
	}
	z.pos, z.w, z.nb = int(pos), int(w), nb&63
	z.b = b & (1<<z.nb - 1)
	switch {
	case far:
		z.fail(errDistance)
	case e&isOther != 0 && z.take(e):
		z.step = (*Reader).block
	}
}
