package eventlog

import "encoding/binary"

// cursor reads little-endian fields from hostile bytes. Once a field does not
// fit, short stays true and every further field is zero.
type cursor struct {
	b     []byte
	off   int
	short bool
}

func (c *cursor) take(n uint64) []byte {
	if c.short || n > uint64(len(c.b)-c.off) {
		c.short = true
		return nil
	}
	p := c.b[c.off:][:n:n]
	c.off += int(n)
	return p
}

func (c *cursor) u8() uint8 {
	if p := c.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if p := c.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if p := c.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (c *cursor) rest() []byte { return c.take(uint64(len(c.b) - c.off)) }

// done is true when every field fitted and nothing is left over.
func (c *cursor) done() bool { return !c.short && c.off == len(c.b) }
