// Package rdseed takes random numbers from the processor, which is the only source
// in a confidential guest that the host neither feeds nor sees.
package rdseed

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Size is the size of a seed, in bytes: 256 bits of entropy.
const Size = 32

// ErrNone is the error of Fill where the processor has neither instruction.
var ErrNone = errors.New("rdseed: the processor has neither RDSEED nor RDRAND")

// Fill puts 256 bits of entropy into out alone, for those who clear it after use. It
// returns the instruction that they are from: RDSEED or, where that is missing or does
// not answer, RDRAND. With an error out is not to be used.
func Fill(out *[Size]byte) (from string, err error) {
	return gather(out, sources())
}

// A source is an instruction. It answers with a number, or that it has none now.
type source struct {
	name  string
	word  func() (uint64, bool)
	words int // for one seed
}

// How many numbers of 64 bits make one seed. RDSEED's have full entropy. RDRAND's
// come of a generator that is seeded with 128 bits at least once in 511 numbers of
// 128 bits, so that 512 of those hold one fresh seed: a half of ours.
// Intel Digital Random Number Generator Software Implementation Guide, sections
// 3.2.3 and 4.2.5.
const (
	seedWords = 2 * Size / 8         // twice what is counted
	randWords = 2 * 512 * (128 / 64) // two seeds of 128 bits
)

// tries bounds how often an instruction is asked for one number. Others may use it
// up: all processors share what RDSEED gives. The guide, section 5.3.1, has no
// number for RDSEED; this is a matter of milliseconds.
const tries = 10_000

// gather takes a seed from the first source that gives one.
func gather(out *[Size]byte, sources []source) (from string, err error) {
	if len(sources) == 0 {
		return "", ErrNone
	}
	var errs []error
	for _, s := range sources {
		err := s.seed(out)
		if err == nil {
			return s.name, nil
		}
		errs = append(errs, fmt.Errorf("rdseed: %s: %w", s.name, err))
	}
	return "", errors.Join(errs...)
}

// seed condenses a source's numbers.
func (s source) seed(out *[Size]byte) error {
	h := sha256.New()
	var last uint64
	for i := range s.words {
		w, err := s.next()
		if err != nil {
			return err
		}
		// Processors are known that answer with one number for ever (AMD families 15h
		// and 16h after sleep) or with zero (AMD-SB-7055). A sound one repeats itself, or
		// gives either of these two, once in 2^62 numbers.
		if w == 0 || w == ^uint64(0) || i > 0 && w == last {
			return fmt.Errorf("number %d is %#016x: it is broken", i, w)
		}
		last = w
		h.Write(binary.LittleEndian.AppendUint64(nil, w))
	}
	h.Sum(out[:0])
	return nil
}

// next asks until there is a number.
func (s source) next() (uint64, error) {
	for range tries {
		if w, ok := s.word(); ok {
			return w, nil
		}
		pause()
	}
	return 0, fmt.Errorf("no answer in %d tries", tries)
}
