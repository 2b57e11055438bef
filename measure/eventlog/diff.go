package eventlog

import (
	"bytes"
	"fmt"
	"slices"
)

// The kinds of a Difference.
const (
	Missing = "missing" // want has it, got has not
	Extra   = "extra"   // got has it, want has not
	Changed = "changed" // the same thing with another digest
	Moved   = "moved"   // the same digest at another place in the register's order
)

// Difference is one event in which two lists differ.
type Difference struct {
	Register int
	Index    int // among the register's events: of got when Extra, else of want
	Kind     string
	Want     *Event // nil when Extra
	Got      *Event // nil when Missing
}

// String names what differs: "register 4: event 2: changed: image /EFI/BOOT/BOOTX64.EFI".
func (d Difference) String() string {
	e := d.Want
	if e == nil {
		e = d.Got
	}
	name := e.Name
	if name == "" {
		name = e.Type.String()
	}
	s := fmt.Sprintf("register %d: event %d: %s: %s", d.Register, d.Index, d.Kind, name)
	if d.Kind == Changed && d.Got.Name != "" && d.Got.Name != name {
		s += ", now " + d.Got.Name
	}
	return s
}

// Diff compares two lists register by register in one bank: events that the
// longest common subsequence of digests leaves over are paired by digest, then by
// name, then by type between the same neighbours. NO_ACTION events, which extend
// nothing, are left out. The result is ordered by register and place.
func Diff(want, got []Event, alg Alg) []Difference {
	w, g := byRegister(want), byRegister(got)
	var out []Difference
	for _, r := range registers(w, g) {
		d := differ{register: r, want: w[r], got: g[r], alg: alg}
		out = append(out, d.run()...)
	}
	return out
}

func byRegister(events []Event) map[int][]*Event {
	m := map[int][]*Event{}
	for i := range events {
		if e := &events[i]; e.Type != NoAction {
			m[e.Register] = append(m[e.Register], e)
		}
	}
	return m
}

func registers(maps ...map[int][]*Event) []int {
	var rs []int
	for _, m := range maps {
		for r := range m {
			rs = append(rs, r)
		}
	}
	slices.Sort(rs)
	return slices.Compact(rs)
}

// differ compares the events of one register.
type differ struct {
	register  int
	want, got []*Event
	alg       Alg
	out       []Difference
}

// leftover is an event outside the common subsequence; gap counts the common
// events before it.
type leftover struct{ index, gap int }

func (d *differ) run() []Difference {
	w, g := d.leftovers()
	digest := func(e *Event) string { return string(e.Digest(d.alg)) }
	name := func(e *Event) string { return e.Name }
	kind := func(e *Event) string { return e.Type.String() }
	w, g = d.pair(Moved, w, g, digest, false)
	w, g = d.pair(Changed, w, g, name, false)
	w, g = d.pair(Changed, w, g, kind, true)
	for _, l := range w {
		d.add(Missing, l.index, d.want[l.index], nil)
	}
	for _, l := range g {
		d.add(Extra, l.index, nil, d.got[l.index])
	}
	slices.SortStableFunc(d.out, func(a, b Difference) int { return a.Index - b.Index })
	return d.out
}

func (d *differ) add(kind string, index int, want, got *Event) {
	d.out = append(d.out, Difference{d.register, index, kind, want, got})
}

// pair matches leftovers with equal keys in order, between the same neighbours
// only if near is set, and returns those without a partner. An empty key matches
// nothing.
func (d *differ) pair(kind string, w, g []leftover, key func(*Event) string, near bool) (restW, restG []leftover) {
	type place struct {
		key string
		gap int
	}
	at := func(l leftover, e *Event) place {
		if near {
			return place{key(e), l.gap}
		}
		return place{key: key(e)}
	}
	waiting := map[place][]leftover{}
	for _, l := range g {
		p := at(l, d.got[l.index])
		waiting[p] = append(waiting[p], l)
	}
	taken := map[int]bool{}
	for _, l := range w {
		p := at(l, d.want[l.index])
		if p.key == "" || len(waiting[p]) == 0 {
			restW = append(restW, l)
			continue
		}
		partner := waiting[p][0]
		waiting[p] = waiting[p][1:]
		taken[partner.index] = true
		d.add(kind, l.index, d.want[l.index], d.got[partner.index])
	}
	for _, l := range g {
		if !taken[l.index] {
			restG = append(restG, l)
		}
	}
	return restW, restG
}

// maxCells bounds the table of the longest common subsequence. A register of
// more events than a real log has is compared without it, by the pairing alone.
const maxCells = 1 << 22

// leftovers returns the indices of want and of got outside a longest common
// subsequence.
func (d *differ) leftovers() (w, g []leftover) {
	n, m := len(d.want), len(d.got)
	var length [][]uint16 // [i][j]: common subsequence of want[i:] and got[j:]
	if (n+1)*(m+1) <= maxCells {
		length = d.lengths(n, m)
	}
	i, j, gap := 0, 0, 0
	for i < n || j < m {
		switch {
		case i < n && j < m && d.equal(i, j):
			i, j, gap = i+1, j+1, gap+1
		case j == m || i < n && (length == nil || length[i+1][j] >= length[i][j+1]):
			w = append(w, leftover{i, gap})
			i++
		default:
			g = append(g, leftover{j, gap})
			j++
		}
	}
	return w, g
}

func (d *differ) lengths(n, m int) [][]uint16 {
	length := make([][]uint16, n+1)
	length[n] = make([]uint16, m+1)
	for i := n - 1; i >= 0; i-- {
		length[i] = make([]uint16, m+1)
		for j := m - 1; j >= 0; j-- {
			if d.equal(i, j) {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	return length
}

func (d *differ) equal(i, j int) bool {
	a, b := d.want[i].Digest(d.alg), d.got[j].Digest(d.alg)
	return a != nil && bytes.Equal(a, b)
}
