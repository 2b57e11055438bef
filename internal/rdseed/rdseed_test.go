package rdseed

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// count is a source whose numbers are 1, 2, 3 and so on, with gaps before each.
func count(name string, words, gaps int) source {
	n, gap := uint64(0), 0
	return source{name, func() (uint64, bool) {
		if gap < gaps {
			gap++
			return 0, false
		}
		gap = 0
		n++
		return n, true
	}, words}
}

func TestSeedIsHashOfAllNumbers(t *testing.T) {
	for _, words := range []int{seedWords, randWords} {
		h := sha256.New()
		for i := range words {
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(i+1)))
		}
		var got [Size]byte
		from, err := gather(&got, []source{count("X", words, 3)})
		if err != nil || from != "X" || got != [32]byte(h.Sum(nil)) {
			t.Errorf("%d words: got %x of %s, %v", words, got, from, err)
		}
	}
}

// TestEntropy does the sum of the guide by hand: 256 bits are counted.
func TestEntropy(t *testing.T) {
	if seedWords*64 < 256 {
		t.Errorf("RDSEED: %d bits, want 256", seedWords*64)
	}
	if randWords*64/(512*128)*128 < 256 {
		t.Errorf("RDRAND: %d numbers hold less than two seeds of 128 bits", randWords)
	}
}

func TestFaults(t *testing.T) {
	stuck := func(v uint64) func() (uint64, bool) { return func() (uint64, bool) { return v, true } }
	later := func(v uint64) func() (uint64, bool) { // sound at first
		n := uint64(0)
		return func() (uint64, bool) {
			n++
			if n > 3 {
				return v, true
			}
			return n, true
		}
	}
	for _, tt := range []struct {
		name string
		word func() (uint64, bool)
		want string
	}{
		{"silent", func() (uint64, bool) { return 7, false }, "X: no answer in 10000 tries"},
		{"zero", stuck(0), "number 0 is 0x0000000000000000: it is broken"},
		{"ones", stuck(math.MaxUint64), "number 0 is 0xffffffffffffffff: it is broken"},
		{"one number", stuck(5), "number 1 is 0x0000000000000005: it is broken"},
		{"later zero", later(0), "number 3 is"},
		{"later one number", later(3), "number 3 is"},
	} {
		var seed, want [Size]byte
		from, err := gather(&seed, []source{{"X", tt.word, seedWords}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || from != "" || seed != [Size]byte{} {
			t.Errorf("%s: got %x of %q, %v, want %q", tt.name, seed, from, err, tt.want)
		}
		// The next source steps in, and nothing of the broken one is used.
		from, err = gather(&seed, []source{{"X", tt.word, seedWords}, count("Y", seedWords, 0)})
		_, _ = gather(&want, []source{count("Y", seedWords, 0)})
		if err != nil || from != "Y" || seed != want {
			t.Errorf("%s: second source: got %x of %q, %v", tt.name, seed, from, err)
		}
	}
}

func TestNone(t *testing.T) {
	if _, err := gather(new([Size]byte), nil); !errors.Is(err, ErrNone) {
		t.Errorf("got %v, want ErrNone", err)
	}
}

// TestProcessor asks the real instructions and looks at what no sound generator
// gives: too many or too few ones, or a byte that is too common. Each bound is six
// standard deviations wide: a sound one fails once in a hundred million runs.
func TestProcessor(t *testing.T) {
	list := sources()
	if len(list) == 0 {
		testenv.Missing(t, "rdseed", "neither RDSEED nor RDRAND")
	}
	for _, s := range list {
		const n = 4096
		ones := 0
		var histogram [256]int
		for range n {
			w, err := s.next()
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			ones += bits.OnesCount64(w)
			for b := range 8 {
				histogram[byte(w>>(8*b))]++
			}
		}
		if d := math.Abs(float64(ones) - n*32); d > 6*math.Sqrt(n*64)/2 {
			t.Errorf("%s: %d ones in %d bits", s.name, ones, n*64)
		}
		mean := float64(n*8) / 256
		for b, got := range histogram {
			if math.Abs(float64(got)-mean) > 6*math.Sqrt(mean) {
				t.Errorf("%s: byte %#02x is there %d times, want about %.0f", s.name, b, got, mean)
			}
		}
	}
	var a, b [Size]byte
	from, err := Fill(&a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = Fill(&b); err != nil || a == b || a == [Size]byte{} {
		t.Errorf("%s: seeds %x and %x, %v", from, a, b, err)
	}
}
