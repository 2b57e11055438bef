package gunzip

const (
	maxLitLen = 288 // symbols of literals and lengths, the two that are never used included
	maxDist   = 32  // symbols of distances, likewise
	maxCode   = 15  // bits of a code

	// What the first lookup takes of the bits, and entries of a table with those that the
	// first leads to: for 288 symbols and 11 bits at most 2342, for 32 and 8 at most 402
	// (zlib's examples/enough.c counts them). Rounded up, so that a mask is a bounds check.
	litBits   = 11
	distBits  = 8
	codeBits  = 7 // the longest code of code lengths: there is no second lookup
	litTable  = 4096
	distTable = 512
)

// An entry of a table is what the next bits mean:
//
//	bits 0-5    number of bits that are used up: the code and, of a length or distance, its extra bits
//	bits 8-11   number of bits of the code; of a pointer, number of bits of the second lookup
//	bit 13      a pointer to a second table
//	bit 14      the end of the block
//	bit 15      neither literal, length nor distance: one of those two, or no code at all
//	bits 16-30  the literal, the least length or distance, the index of the second table
//	bit 31      a literal
type entry uint32

const (
	isPointer = entry(1 << 13)
	isEnd     = entry(1 << 14)
	isOther   = entry(1 << 15)
	isLiteral = entry(1 << 31)
	perBit    = entry(1<<8 | 1) // what a bit of code adds
)

func (e entry) used() uint64  { return uint64(e & 63) }
func (e entry) value() uint64 { return uint64(e >> 16 & 0x7fff) }

// with is the value and the extra bits, which b has behind the code.
func (e entry) with(b uint64) uint64 {
	return e.value() + b&(1<<(e&63)-1)>>(e>>8&15)
}

// The entries of the symbols, to which build adds the code: RFC 1951, section 3.2.5.
var (
	litSymbols  = litEntries()
	distSymbols = distEntries()
	codeSymbols = codeEntries()
)

func litEntries() (s [maxLitLen]entry) {
	for i := range s {
		s[i] = isOther
	}
	for i := range 256 {
		s[i] = isLiteral | entry(i)<<16
	}
	s[256] = isOther | isEnd
	base := entry(3)
	for i := range 28 {
		extra := max(0, i/4-1)
		s[257+i] = base<<16 | entry(extra)
		base += 1 << extra
	}
	s[285] = 258 << 16
	return s
}

func distEntries() (s [maxDist]entry) {
	base := entry(1)
	for i := range s {
		extra := max(0, i/2-1)
		s[i] = base<<16 | entry(extra)
		base += 1 << extra
	}
	s[30], s[31] = isOther, isOther
	return s
}

func codeEntries() (s [19]entry) {
	for i := range s {
		s[i] = entry(i) << 16
	}
	return s
}

// build makes the table of the canonical Huffman code that has these lengths; the first
// lookup is of root bits. A code must be complete, but for none and for a single one of
// one bit, which zlib and Go take too: what they leave open is no code.
func build(table []entry, root int, lengths []uint8, symbols []entry) bool {
	var count, next [maxCode + 2]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	left, codes := 1, 0
	for n := 1; n <= maxCode; n++ {
		next[n] = codes
		codes += count[n]
		if left = left<<1 - count[n]; left < 0 {
			return false
		}
	}
	if left > 0 && codes > 0 && (codes > 1 || count[1] == 0) {
		return false
	}
	var sorted [maxLitLen]uint16 // by code
	for i, n := range lengths {
		if n > 0 {
			sorted[next[n]] = uint16(i)
			next[n]++
		}
	}
	if left > 0 {
		table[0], table[1] = isOther, isOther
		if codes > 0 {
			table[0] = symbols[sorted[0]] + perBit
		}
		for n := 2; n < 1<<root; n *= 2 {
			copy(table[n:2*n], table[:n])
		}
		return true
	}
	fill(table, root, sorted[:codes], &count, symbols)
	return true
}

// fill writes the table of a complete code. Codes come with their first bit lowest, so
// they are counted from the highest down. A table for one bit more is the one before,
// twice.
func fill(table []entry, root int, sorted []uint16, count *[maxCode + 2]int, symbols []entry) {
	code := 0
	for n := 1; n <= root; n++ {
		half := 1 << (n - 1)
		copy(table[half:2*half], table[:half])
		for _, s := range sorted[:count[n]] {
			table[code] = symbols[s] + entry(n)*perBit
			code = following(code, n)
		}
		sorted = sorted[count[n]:]
	}
	first, end := -1, 1<<root // the bits that lead to the second table, and where it ends
	size, start := 0, 0
	for n := root + 1; n <= maxCode; n++ {
		for i, s := range sorted[:count[n]] {
			if code&(1<<root-1) != first {
				first, start = code&(1<<root-1), end
				bits := n - root
				for room := 1<<bits - (count[n] - i); room > 0; bits++ {
					room = room<<1 - count[root+bits+1]
				}
				size = 1 << bits
				end += size
				table[first] = isOther | isPointer | entry(start)<<16 | entry(bits)<<8 | entry(root)
			}
			for j := code >> root; j < size; j += 1 << (n - root) {
				table[start+j] = symbols[s] + entry(n-root)*perBit
			}
			code = following(code, n)
		}
		sorted = sorted[count[n]:]
	}
}

// following adds one to a code of n bits, of which the highest counts least.
func following(code, n int) int {
	bit := 1 << (n - 1)
	for code&bit != 0 {
		code ^= bit
		bit >>= 1
	}
	return code | bit
}
