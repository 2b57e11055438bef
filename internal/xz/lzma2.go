package xz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxChunk is the most that one LZMA2 chunk unpacks to, in bytes.
const maxChunk = 2 << 20

// maxPacked is the most that one LZMA2 chunk holds, in bytes.
const maxPacked = 64 << 10

// dictSize decodes the property byte of the LZMA2 filter, .xz format 5.3.1.
func dictSize(b byte) (int64, bool) {
	if b == 40 {
		return 1<<32 - 1, true
	}
	return (2 | int64(b&1)) << (b/2 + 11), b < 40
}

// lzma2 decodes the LZMA2 data of one block into a window.
type lzma2 struct {
	model  lzma
	packed [maxPacked + slack]byte

	dict  int                    // bytes that a match may reach back
	buf   []byte                 // holds the whole block, or slides over it
	pos   int                    // end of what is decoded, in buf
	start int                    // index of the last dictionary reset; negative once it slid out
	done  int                    // buf[:done] has been given to flush
	flush func(out []byte) error // takes decoded bytes in order

	needReset, needProps bool // nothing may be decoded before these came
}

// begin readies d for a block of the given unpacked size.
func (d *lzma2) begin(buf []byte, dict int, flush func([]byte) error) {
	d.buf, d.dict, d.flush = buf, dict, flush
	d.pos, d.start, d.done = 0, 0, 0
	d.needReset, d.needProps = true, true
}

// windowSize is the length of a buffer for a block: all of it, or enough that a
// dictionary is moved to its front only once per dictionary of output.
func windowSize(block, dict int64) int64 {
	return min(block, 2*dict+maxChunk)
}

// decode reads chunks until the end marker. The block must unpack to size bytes.
func (d *lzma2) decode(r io.Reader, size int64, canceled func() error) error {
	left := size
	for {
		if err := canceled(); err != nil {
			return err
		}
		n, err := d.chunk(r, left)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		left -= int64(n)
	}
	if left != 0 {
		return fmt.Errorf("block ends %d bytes early", left)
	}
	return d.drain()
}

func (d *lzma2) drain() error {
	err := d.flush(d.buf[d.done:d.pos])
	d.done = d.pos
	return err
}

// room makes space for n more bytes behind pos.
func (d *lzma2) room(n int) error {
	if d.pos+n <= len(d.buf) {
		return nil
	}
	if err := d.drain(); err != nil {
		return err
	}
	shift := d.pos - min(d.pos, d.dict)
	copy(d.buf, d.buf[shift:d.pos])
	d.pos, d.done, d.start = d.pos-shift, d.pos-shift, d.start-shift
	return nil
}

// chunk decodes one chunk and returns its unpacked size, 0 for the end marker.
// The control byte is described in liblzma's lzma2_decoder.c; the format has no
// other document.
func (d *lzma2) chunk(r io.Reader, left int64) (int, error) {
	var head [6]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return 0, truncated(err)
	}
	control := head[0]
	switch {
	case control == 0:
		return 0, nil
	case control > 2 && control < 0x80:
		return 0, fmt.Errorf("LZMA2 control byte %#x: %w", control, errCorrupt)
	}
	rest := head[1:3]
	if control >= 0xc0 {
		rest = head[1:6]
	} else if control >= 0x80 {
		rest = head[1:5]
	}
	if _, err := io.ReadFull(r, rest); err != nil {
		return 0, truncated(err)
	}
	size := int(binary.BigEndian.Uint16(head[1:])) + 1
	if control >= 0x80 {
		size += int(control&0x1f) << 16
	}
	if int64(size) > left {
		return 0, errors.New("block is longer than its index says")
	}
	if err := d.room(size); err != nil {
		return 0, err
	}
	if control == 1 || control >= 0xe0 {
		d.start, d.needReset, d.needProps = d.pos, false, true
	}
	if d.needReset {
		return 0, fmt.Errorf("first chunk does not reset the dictionary: %w", errCorrupt)
	}
	if control < 0x80 {
		return size, d.stored(r, size)
	}
	if err := d.reset(control, head[5]); err != nil {
		return 0, err
	}
	return size, d.lzma(r, int(binary.BigEndian.Uint16(head[3:]))+1, size)
}

func (d *lzma2) stored(r io.Reader, size int) error {
	if _, err := io.ReadFull(r, d.buf[d.pos:d.pos+size]); err != nil {
		return truncated(err)
	}
	d.pos += size
	return nil
}

// reset does what an LZMA chunk's control byte says about the model.
func (d *lzma2) reset(control, props byte) error {
	if control >= 0xc0 {
		if !d.model.setProps(props) {
			return fmt.Errorf("LZMA properties byte %#x: %w", props, errCorrupt)
		}
		d.needProps = false
	}
	if d.needProps {
		return fmt.Errorf("LZMA chunk without properties: %w", errCorrupt)
	}
	if control >= 0xa0 {
		d.model.reset()
	}
	return nil
}

// lzma decodes a chunk of packed bytes into size bytes. The first five packed
// bytes are the range decoder's state.
func (d *lzma2) lzma(r io.Reader, packed, size int) error {
	if _, err := io.ReadFull(r, d.packed[:packed]); err != nil {
		return truncated(err)
	}
	if packed < 5 || d.packed[0] != 0 {
		return errCorrupt
	}
	in := d.packed[:packed+slack]
	clear(in[packed:])
	rd := rangeDecoder{rng: 1<<32 - 1, code: binary.BigEndian.Uint32(in[1:]), pos: 5, in: in}
	err := d.model.decode(&rd, d.buf, d.start, d.dict, d.pos, d.pos+size)
	d.pos += size
	return err
}

func truncated(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errors.New("truncated")
	}
	return err
}
