// Package gpt reads GUID partition tables and gives the bytes of one that
// firmware measures. What writes them is builder/disk.
//
// Format: UEFI Specification 2.10, chapter 5, "GUID Partition Table (GPT) Disk
// Layout". All numbers on disk are little-endian.
package gpt

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// A GUID is a globally unique identifier as it lies on disk: the first three
// of its five groups are little-endian.
type GUID [16]byte

// FromUUID returns the GUID whose text is that of the UUID u, which is in the
// big-endian order of RFC 9562.
func FromUUID(u [16]byte) GUID {
	return GUID{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]}
}

// ParseGUID parses the textual form, 8-4-4-4-12 hexadecimal digits of either
// case.
func ParseGUID(text string) (GUID, error) {
	var u [16]byte
	digits := strings.ReplaceAll(text, "-", "")
	hex.Decode(u[:], []byte(digits[:min(len(digits), 32)])) // what is wrong shows when it is written again
	if !strings.EqualFold(FromUUID(u).String(), text) {
		return GUID{}, fmt.Errorf("gpt: GUID %q: want 8-4-4-4-12 hexadecimal digits", text)
	}
	return FromUUID(u), nil
}

// MustGUID is ParseGUID for constants: it panics on what is no GUID.
func MustGUID(text string) GUID {
	g, err := ParseGUID(text)
	if err != nil {
		panic(err)
	}
	return g
}

// String returns the textual form in lower case.
func (g GUID) String() string {
	u := FromUUID(g) // swapping is its own inverse
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// MarshalText gives the textual form.
func (g GUID) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// A Partition is one used entry of a table.
type Partition struct {
	Type, ID    GUID
	First, Last uint64 // LBA, inclusive
	Attributes  uint64
	Name        string // at most 36 UTF-16 units
}

// A Table is a partition table.
type Table struct {
	DiskID                  GUID
	SectorSize              int         // bytes
	Sectors                 uint64      // of the disk
	FirstUsable, LastUsable uint64      // LBA, inclusive
	Partitions              []Partition // used entries, in their order
}
