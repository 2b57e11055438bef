package verify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Product lines of AMD: each has a root of its own.
const (
	Milan = "Milan"
	Genoa = "Genoa"
	Turin = "Turin"
)

// Lines are the product lines whose roots are known.
var Lines = []string{Milan, Genoa, Turin}

// tcb is a TCB_VERSION: a security version number a byte; AMD 56860.
type tcb struct {
	line string
	raw  [8]byte
}

// tcbParts names the bytes that are in use, by product line.
func tcbParts(line string) map[string]int {
	if line == Turin {
		return map[string]int{"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
	}
	return map[string]int{"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
}

var partOrder = []string{"fmc", "bootloader", "tee", "snp", "microcode"}

func (t tcb) String() string {
	parts := tcbParts(t.line)
	var out []string
	for _, name := range partOrder {
		if i, ok := parts[name]; ok {
			out = append(out, fmt.Sprintf("%s=%d", name, t.raw[i]))
		}
	}
	for i, x := range t.raw { // none that is known has any
		used := false
		for _, j := range parts {
			used = used || i == j
		}
		if !used && x != 0 {
			out = append(out, fmt.Sprintf("byte%d=%d", i, x))
		}
	}
	return strings.Join(out, ",")
}

// Floor is the least security version numbers that are accepted, by name.
type Floor map[string]uint8

// ParseFloor reads "bootloader=4,snp=24,microcode=219". The names are fmc (Turin
// alone), bootloader, tee, snp and microcode.
func ParseFloor(s string) (Floor, error) {
	f := Floor{}
	for _, part := range strings.Split(s, ",") {
		name, number, ok := strings.Cut(part, "=")
		n, err := strconv.ParseUint(number, 10, 8)
		if !ok || err != nil || !slices.Contains(partOrder, name) {
			return nil, fmt.Errorf("verify: TCB floor: %q: want NAME=0 to 255, NAME one of %s", part, strings.Join(partOrder, ", "))
		}
		if _, twice := f[name]; twice {
			return nil, fmt.Errorf("verify: TCB floor: %s is there twice", name)
		}
		f[name] = uint8(n)
	}
	return f, nil
}

func (f Floor) String() string {
	var out []string
	for _, name := range partOrder {
		if n, ok := f[name]; ok {
			out = append(out, fmt.Sprintf("%s>=%d", name, n))
		}
	}
	return strings.Join(out, ",")
}

// above tells whether every part of t is at least as high. A part that the line
// does not have is never high enough.
func (f Floor) above(t tcb) error {
	parts := tcbParts(t.line)
	for _, name := range partOrder {
		least, asked := f[name]
		i, there := parts[name]
		switch {
		case !asked:
		case !there:
			return fmt.Errorf("a %s has no %s", t.line, name)
		case t.raw[i] < least:
			return fmt.Errorf("%s is %d", name, t.raw[i])
		}
	}
	return nil
}
