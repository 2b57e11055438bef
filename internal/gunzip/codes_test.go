package gunzip

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// bits is a writer of DEFLATE data, the first bit lowest: RFC 1951, section 3.1.1.
type bits struct {
	b []byte
	n int // of the last byte, that are free
}

func (w *bits) put(v, n int) {
	for i := range n {
		if w.n == 0 {
			w.b, w.n = append(w.b, 0), 8
		}
		w.b[len(w.b)-1] |= byte(v>>i&1) << (8 - w.n)
		w.n--
	}
}

// code puts a Huffman code, whose highest bit is first.
func (w *bits) code(v, n int) {
	for i := n - 1; i >= 0; i-- {
		w.put(v>>i&1, 1)
	}
}

func (w *bits) align()        { w.n = 0 }
func (w *bits) bytes() []byte { return w.b }

// codes are Huffman codes by the lengths of the symbols.
type codes struct{ lit, dist []int }

func fixed() codes {
	c := codes{make([]int, 288), make([]int, 32)}
	for i := range c.lit {
		switch {
		case i < 144, i >= 280:
			c.lit[i] = 8
		case i < 256:
			c.lit[i] = 9
		default:
			c.lit[i] = 7
		}
	}
	for i := range c.dist {
		c.dist[i] = 5
	}
	return c
}

// put puts a symbol's code, worked out for each anew by the rule of section 3.2.2:
// shorter codes first, and equally long ones by the symbol.
func put(w *bits, lengths []int, symbol int) {
	code, n := 0, lengths[symbol]
	for i, l := range lengths {
		switch {
		case l == 0:
		case l < n:
			code += 1 << (n - l)
		case l == n && i < symbol:
			code++
		}
	}
	w.code(code, n)
}

func (c codes) symbol(w *bits, s int) { put(w, c.lit, s) }

// The least lengths and distances, and their extra bits: the tables of section 3.2.5.
var (
	lengthBase  = []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = []int{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = []int{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = []int{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
)

func (c codes) match(w *bits, length, dist int) {
	i := len(lengthBase) - 1
	for lengthBase[i] > length {
		i--
	}
	c.symbol(w, 257+i)
	w.put(length-lengthBase[i], lengthExtra[i])
	for i = len(distBase) - 1; distBase[i] > dist; {
		i--
	}
	put(w, c.dist, i)
	w.put(dist-distBase[i], distExtra[i])
}

// header puts the codes. Those of code lengths are 16 of 4 bits: no repetitions.
func (c codes) header(w *bits) {
	w.put(2, 2)
	w.put(len(c.lit)-257, 5)
	w.put(len(c.dist)-1, 5)
	w.put(15, 4)
	for _, s := range codeOrder {
		if s < 16 {
			w.put(4, 3)
		} else {
			w.put(0, 3)
		}
	}
	for _, l := range append(c.lit[:len(c.lit):len(c.lit)], c.dist...) {
		w.code(l, 4)
	}
}

// finish adds deflated data and what belongs behind it to a header.
func finish(header, deflated []byte) []byte {
	// Of bad data, the sum of what can be read.
	content, _ := io.ReadAll(flate.NewReader(bytes.NewReader(deflated)))
	b := append(bytes.Clone(header), deflated...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(content))
	return binary.LittleEndian.AppendUint32(b, uint32(len(content)))
}

func stream(deflated []byte) []byte {
	return finish([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated)
}

// randomLengths makes a complete code for n symbols, of up to 15 bits: a tree whose
// leaves are split until there are enough.
func randomLengths(rng *rand.Rand, n int) []int {
	leaves := []int{0}
	deep := rng.IntN(2) == 0
	for len(leaves) < n {
		i := rng.IntN(len(leaves))
		if deep && leaves[len(leaves)-1] < 15 {
			i = len(leaves) - 1
		}
		if leaves[i] < 15 {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	rng.Shuffle(n, func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	return leaves
}

// TestMatches: every length at every distance near, and at both ends of every
// distance code, by fixed codes and by others.
func TestMatches(t *testing.T) {
	var dists []int
	for d := range 40 {
		dists = append(dists, d+1)
	}
	for i, d := range distBase {
		dists = append(dists, d, d+1<<distExtra[i]-1)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for name, c := range map[string]codes{
		"fixed": fixed(),
		"other": {lit: randomLengths(rng, 286), dist: randomLengths(rng, 30)},
	} {
		var w bits
		w.put(0, 3)
		w.align()
		w.b = append(w.b, 0, 0x80, 0xff, 0x7f)
		for range 32 << 10 {
			w.b = append(w.b, byte(rng.Uint32()))
		}
		w.put(1, 1)
		if name == "fixed" {
			w.put(1, 2)
		} else {
			c.header(&w)
		}
		for length := 3; length <= 258; length++ {
			for _, d := range dists {
				c.match(&w, length, d)
				if rng.IntN(3) == 0 {
					c.symbol(&w, rng.IntN(256))
				}
			}
		}
		c.symbol(&w, 256)
		if err := same(t, name, stream(w.bytes())); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCodes: complete codes of any shape.
func TestCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for round := range 200 {
		var w bits
		for block := range 3 {
			c := codes{lit: randomLengths(rng, 257+rng.IntN(30)), dist: randomLengths(rng, 2+rng.IntN(29))}
			w.put(block/2, 1)
			c.header(&w)
			for range 100 {
				c.symbol(&w, rng.IntN(256))
				if s := rng.IntN(len(c.dist)); len(c.lit) > 257 && s < 6 {
					c.symbol(&w, 257)
					put(&w, c.dist, s)
					w.put(0, distExtra[s])
				}
			}
			c.symbol(&w, 256)
		}
		// Where the first match comes too early, both say so.
		same(t, fmt.Sprintf("round %d", round), stream(w.bytes()))
	}
}

// TestBadCodes: codes that are incomplete, over-subscribed, of one symbol, of none.
func TestBadCodes(t *testing.T) {
	one := func(n, at, length int) []int {
		c := make([]int, n)
		c[at] = length
		return c
	}
	two := one(257, 256, 1)
	two['a'] = 1
	changed := func(n, add int) []int {
		c := randomLengths(rand.New(rand.NewPCG(9, uint64(n))), n)
		for i := range c {
			if c[i]+add > 0 && c[i]+add < 16 {
				c[i] += add
				break
			}
		}
		return c
	}
	for _, row := range []struct {
		name string
		c    codes
		data []int // symbols, -1: the bit that is no code; 257 takes a distance of one bit, 0, 258 one of 1
		ok   bool
	}{
		{"end only", codes{one(257, 256, 1), one(1, 0, 0)}, []int{256}, true},
		{"end only, and a bit that is no code", codes{one(257, 256, 1), one(1, 0, 0)}, []int{-1, 256}, false},
		{"end of two bits", codes{one(257, 256, 2), one(1, 0, 0)}, []int{256}, false},
		{"no end", codes{one(257, 'a', 1), one(1, 0, 0)}, []int{'a', 'a'}, false},
		{"no code", codes{one(257, 256, 0), one(1, 0, 0)}, nil, false},
		{"two", codes{two, one(1, 0, 0)}, []int{'a', 'a', 256}, true},
		{"one distance", codes{append(two[:257:257], 2)[:258], one(1, 0, 1)}, []int{'a', 256}, false},
		{"a distance of one bit", codes{lengths3(), one(1, 0, 1)}, []int{'a', 257, 256}, true},
		{"a distance that is no code", codes{lengths3(), one(1, 0, 1)}, []int{'a', 258, 256}, false},
		{"a distance of two bits", codes{lengths3(), one(1, 0, 2)}, []int{'a', 257, 256}, false},
		{"a distance of none", codes{lengths3(), one(1, 0, 0)}, []int{'a', 256}, true},
		{"a match without distances", codes{lengths3(), one(1, 0, 0)}, []int{'a', 257, 256}, false},
		{"distance symbol 29 alone", codes{lengths3(), one(30, 29, 1)}, []int{'a', 257, 256}, false},
		{"incomplete", codes{changed(286, 1), randomLengths(rand.New(rand.NewPCG(1, 1)), 30)}, []int{256}, false},
		{"over-subscribed", codes{changed(286, -1), randomLengths(rand.New(rand.NewPCG(1, 1)), 30)}, []int{256}, false},
		{"incomplete distances", codes{two, changed(30, 1)}, []int{256}, false},
		{"over-subscribed distances", codes{two, changed(30, -1)}, []int{256}, false},
	} {
		for _, tail := range []int{0, 64} { // read by slow, and by fast
			var w bits
			w.put(1, 1)
			row.c.header(&w)
			for _, s := range row.data {
				switch {
				case s < 0:
					w.put(1, 1)
				case s >= 257:
					row.c.symbol(&w, 257)
					w.put(s-257, 1)
				case row.c.lit[s] > 0:
					row.c.symbol(&w, s)
				}
			}
			b := stream(w.bytes())
			if tail > 0 {
				b = append(b, stream(append([]byte{1, 64, 0, 0xbf, 0xff}, make([]byte, 64)...))...)
			}
			if err := same(t, row.name, b); (err == nil) != row.ok {
				t.Errorf("%s, %d bytes behind: %v", row.name, tail, err)
			}
		}
	}
}

// lengths3 is a code of a literal, the end and the least length.
func lengths3() []int {
	c := make([]int, 258)
	c['a'], c[256], c[257] = 1, 2, 2
	return c
}

// repeating puts the codes like header, by a random code and with repetitions where
// they can be, from literals on to distances too. When bad, a length is
// another, or one too many.
func (c codes) repeating(w *bits, rng *rand.Rand, bad bool) {
	own := randomLengths(rng, 19)
	for slices.Max(own) > 7 {
		own = randomLengths(rng, 19)
	}
	w.put(2, 2)
	w.put(len(c.lit)-257, 5)
	w.put(len(c.dist)-1, 5)
	w.put(15, 4)
	all := append(c.lit[:len(c.lit):len(c.lit)], c.dist...)
	kind, wrong := rng.IntN(3), rng.IntN(len(codeOrder))
	for i, s := range codeOrder {
		n := own[s]
		if bad && kind == 0 && i == wrong {
			n = (n + 1) % 8
		}
		w.put(n, 3)
	}
	if i := rng.IntN(len(all)); bad && kind == 1 {
		all[i] = (all[i] + 1) % 16
	}
	for i := 0; i < len(all); {
		l, n := all[i], 1
		for i+n < len(all) && all[i+n] == l {
			n++
		}
		if bad && kind == 2 && i+n == len(all) {
			n++ // one too many
		}
		switch {
		case l == 0 && n >= 11:
			n = min(n, 138)
			put(w, own, 18)
			w.put(n-11, 7)
		case l == 0 && n >= 3:
			n = min(n, 10)
			put(w, own, 17)
			w.put(n-3, 3)
		case i > 0 && all[i-1] == l && n >= 3:
			n = min(n, 6)
			put(w, own, 16)
			w.put(n-3, 2)
		default:
			n = 1
			put(w, own, l)
		}
		i += n
	}
}

// TestRepeatedCodes: the verdict on code lengths with repetitions, many of them bad.
func TestRepeatedCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 11))
	good := 0
	for round := range 1000 {
		used := randomLengths(rng, 3+rng.IntN(25))
		c := codes{make([]int, 257+rng.IntN(30)), make([]int, 1+rng.IntN(30))}
		c.lit[256], used = used[0], used[1:]
		for at := rng.IntN(256 - len(used)); len(used) > 0; used = used[1:] {
			c.lit[at] = used[0]
			at++
		}
		if len(c.dist) > 1 {
			copy(c.dist, randomLengths(rng, 2+rng.IntN(len(c.dist)-1)))
		}
		var w bits
		w.put(1, 1)
		c.repeating(&w, rng, round%2 == 1)
		for s, n := range c.lit[:257] {
			if n > 0 {
				c.symbol(&w, s)
			}
		}
		err := same(t, fmt.Sprintf("round %d", round), stream(w.bytes()))
		if err == nil {
			good++
		} else if round%2 == 0 {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if good > 750 {
		t.Errorf("%d of 1000 are streams: want fewer", good)
	}
	t.Logf("%d of 1000 are streams", good)
}

// TestWindow: a match reaches back 32 KiB, through any number of slides, and not
// into the member before.
func TestWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 13))
	build := func(dist, before int) []byte {
		var w bits
		for n := before; n > 0; {
			k := min(n, 65535)
			w.put(0, 3)
			w.align()
			w.b = append(w.b, byte(k), byte(k>>8), ^byte(k), ^byte(k>>8))
			for range k {
				w.b = append(w.b, byte(rng.Uint32()))
			}
			n -= k
		}
		w.put(3, 3)
		fixed().match(&w, 258, dist)
		fixed().symbol(&w, 256)
		return w.bytes()
	}
	for _, before := range []int{1, 7, 8, 32767, 32768, outSize - outSlack - 1, outSize - outSlack, outSize - 1, outSize, outSize + 1, 1_000_000} {
		for _, dist := range []int{1, 7, 8, 32767, 32768} {
			for _, tail := range [][]byte{nil, stream([]byte{3, 0}), stream(build(1, 100))} {
				b := stream(build(dist, before))
				b = append(b, tail...)
				err := same(t, fmt.Sprintf("%d back after %d", dist, before), b)
				if len(tail) != 18 && (err == nil) != (dist <= before) {
					t.Errorf("%d back after %d: %v", dist, before, err)
				}
				for _, first := range []int{40_000, outSize - outSlack - 400} {
					same(t, fmt.Sprintf("%d back after %d, behind %d", dist, before, first), append(stream(build(1, first)), b...))
				}
			}
		}
	}
}
