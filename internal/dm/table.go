package dm

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Verity is the table of a dm-verity device: Documentation,
// device-mapper/verity.rst.
type Verity struct {
	Format                       int    // 1, or 0
	Data, Hash                   string // devices, "/dev/vda2" or "254:2"
	DataBlockSize, HashBlockSize int    // bytes
	DataBlocks                   uint64
	HashStart                    uint64 // first block of the tree, in hash blocks
	Algorithm                    string
	RootHash, Salt               []byte
	Options                      []string // "panic_on_corruption"
}

// Target returns the table's one line.
func (v *Verity) Target() Target {
	salt := hex.EncodeToString(v.Salt)
	if salt == "" {
		salt = "-"
	}
	words := []string{
		strconv.Itoa(v.Format), v.Data, v.Hash, strconv.Itoa(v.DataBlockSize), strconv.Itoa(v.HashBlockSize),
		strconv.FormatUint(v.DataBlocks, 10), strconv.FormatUint(v.HashStart, 10), v.Algorithm, hex.EncodeToString(v.RootHash), salt,
	}
	return Target{
		Length: v.DataBlocks * uint64(v.DataBlockSize) / SectorSize, Type: "verity",
		Params: strings.Join(append(words, options(v.Options)...), " "),
	}
}

// options puts the number of options before them.
func options(o []string) []string {
	if len(o) == 0 {
		return nil
	}
	return append([]string{strconv.Itoa(len(o))}, o...)
}

// ParseVerity reads the parameters of a verity target, as Target and the kernel
// write them.
func ParseVerity(params string) (*Verity, error) {
	f := strings.Fields(params)
	if len(f) < 10 {
		return nil, fmt.Errorf("dm: verity: %d words: want at least 10", len(f))
	}
	v := &Verity{Data: f[1], Hash: f[2], Algorithm: f[7]}
	for _, x := range []struct {
		to   *int
		text string
	}{{&v.Format, f[0]}, {&v.DataBlockSize, f[3]}, {&v.HashBlockSize, f[4]}} {
		n, err := strconv.ParseUint(x.text, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("dm: verity: %q: want a number", x.text)
		}
		*x.to = int(n)
	}
	var err error
	if v.DataBlocks, err = strconv.ParseUint(f[5], 10, 64); err != nil {
		return nil, fmt.Errorf("dm: verity: %q: want a number", f[5])
	}
	if v.HashStart, err = strconv.ParseUint(f[6], 10, 64); err != nil {
		return nil, fmt.Errorf("dm: verity: %q: want a number", f[6])
	}
	if v.RootHash, err = hex.DecodeString(f[8]); err != nil {
		return nil, fmt.Errorf("dm: verity: root hash %q: %w", f[8], err)
	}
	if f[9] != "-" {
		if v.Salt, err = hex.DecodeString(f[9]); err != nil {
			return nil, fmt.Errorf("dm: verity: salt %q: %w", f[9], err)
		}
	}
	if v.Options = f[10:]; len(v.Options) == 0 {
		v.Options = nil
		return v, nil
	}
	if n, err := strconv.Atoi(v.Options[0]); err != nil || n != len(v.Options)-1 {
		return nil, fmt.Errorf("dm: verity: %q: want the number of the options behind it, %d", v.Options[0], len(v.Options)-1)
	}
	if v.Options = v.Options[1:]; len(v.Options) == 0 {
		v.Options = nil
	}
	return v, nil
}

// Crypt is the table of a dm-crypt device: Documentation,
// device-mapper/dm-crypt.rst.
type Crypt struct {
	Cipher  string // "aes-xts-plain64"
	Key     []byte // used until the device was created; the caller clears it
	Device  string
	Sectors uint64
	Options []string
}

// Target returns the table's one line.
func (c *Crypt) Target() Target {
	words := []string{c.Cipher, keyMark, "0", c.Device, "0"}
	return Target{Length: c.Sectors, Type: "crypt", Params: strings.Join(append(words, options(c.Options)...), " "), keys: &[][]byte{c.Key}}
}

// Integrity is the table of a dm-integrity device: Documentation,
// device-mapper/dm-integrity.rst.
type Integrity struct {
	Device  string
	Start   uint64 // sectors before it that stay as they are
	TagSize int    // bytes for each block
	Mode    string // "D" without a journal, "J", "B", "R"
	Sectors uint64
	Keyed   []Keyed
	Options []string // "fix_hmac"
}

// Keyed is an option with an algorithm that takes a key.
type Keyed struct {
	Option, Algorithm string // "journal_mac", "hmac(sha256)"
	Key               []byte // used until the device was created; the caller clears it
}

// Target returns the table's one line.
func (i *Integrity) Target() Target {
	words := []string{i.Device, strconv.FormatUint(i.Start, 10), strconv.Itoa(i.TagSize), i.Mode, strconv.Itoa(len(i.Keyed) + len(i.Options))}
	keys := make([][]byte, len(i.Keyed))
	for n, k := range i.Keyed {
		words = append(words, k.Word())
		keys[n] = k.Key
	}
	return Target{Length: i.Sectors, Type: "integrity", Params: strings.Join(append(words, i.Options...), " "), keys: &keys}
}

// Word is how the option stands in Target.Params.
func (k Keyed) Word() string { return k.Option + ":" + k.Algorithm + ":" + keyMark }

// A Linear target is a range of another device.
type Linear struct {
	Device string
	Offset uint64 // sectors
}

// Target returns the line of a table for a range of the device.
func (l Linear) Target(start, length uint64) Target {
	return Target{Start: start, Length: length, Type: "linear", Params: l.Device + " " + strconv.FormatUint(l.Offset, 10)}
}
