package storage

import (
	"math/rand/v2"
	"testing"
)

// TestSpace takes and gives back at random, against a list of every block.
func TestSpace(t *testing.T) {
	const blocks = 1000
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newSpace(blocks)
		var owner [blocks]int
		var held []extent
		for step := 1; step <= 2000; step++ {
			if r.IntN(2) == 0 && len(held) > 0 {
				i := r.IntN(len(held))
				e := held[i]
				if k := r.Uint64N(e.blocks + 1); r.IntN(3) == 0 && k > 0 && k < e.blocks { // a part of it
					held[i] = extent{e.start, e.blocks - k}
					e = extent{e.end() - k, k}
				} else {
					held = append(held[:i], held[i+1:]...)
				}
				for b := e.start; b < e.end(); b++ {
					owner[b] = 0
				}
				s.give(e)
			} else {
				want := 1 + r.Uint64N(100)
				e := s.take(want)
				if e.blocks > want || e.blocks == 0 && s.blocks() > 0 {
					t.Fatalf("seed %d: asked for %d, got %+v of %+v", seed, want, e, s.free)
				}
				for b := e.start; b < e.end(); b++ {
					if owner[b] != 0 {
						t.Fatalf("seed %d: block %d was given twice", seed, b)
					}
					owner[b] = step
				}
				if e.blocks > 0 {
					held = append(held, e)
				}
			}
			checkSpace(t, &s, owner[:])
		}
	}
}

func checkSpace(t *testing.T, s *space, owner []int) {
	t.Helper()
	free := map[uint64]bool{}
	for i, e := range s.free {
		if e.blocks == 0 || i > 0 && s.free[i-1].end() >= e.start {
			t.Fatalf("free: %+v", s.free)
		}
		for b := e.start; b < e.end(); b++ {
			free[b] = true
		}
	}
	for b, o := range owner {
		if free[uint64(b)] != (o == 0) {
			t.Fatalf("block %d: free %v, owner %d", b, free[uint64(b)], o)
		}
	}
}

func TestSpaceTakesWhatFits(t *testing.T) {
	s := space{[]extent{{0, 5}, {10, 20}, {40, 8}}}
	for _, x := range []struct {
		want uint64
		got  extent
	}{{8, extent{10, 8}}, {30, extent{18, 12}}, {8, extent{40, 8}}, {4, extent{0, 4}}, {9, extent{4, 1}}, {1, extent{}}, {0, extent{}}} {
		if got := s.take(x.want); got != x.got {
			t.Errorf("asked for %d: %+v, want %+v", x.want, got, x.got)
		}
	}
}

// TestGivingTwice is a mistake of this package, and of nobody else's making.
func TestGivingTwice(t *testing.T) {
	for _, e := range []extent{{0, 1}, {4, 2}, {9, 3}, {0, 30}, {12, 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v was taken", e)
				}
			}()
			s := space{[]extent{{0, 5}, {10, 5}}}
			s.give(e)
		}()
	}
}
