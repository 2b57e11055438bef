package xz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"
)

// Layout of the .xz container: "The .xz File Format", version 1.2.1, sections 2
// to 4. Integers are little-endian, sizes in bytes.
const (
	streamHeaderSize = 12 // magic, flags, CRC32 of the flags
	streamFooterSize = 12 // CRC32, backward size, flags, magic
	maxIndexSize     = 1 << 20
	maxBlockHeader   = 1024
	filterLZMA2      = 0x21
)

var (
	headerMagic = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	footerMagic = []byte("YZ")
)

// ErrUnsupported is returned for a well-formed file that uses a filter or check
// that this package does not have.
var ErrUnsupported = errors.New("not supported")

// checkID names the integrity check of a stream, section 2.1.1.2.
type checkID byte

func (c checkID) size() (int64, error) {
	switch c {
	case 0:
		return 0, nil
	case 1:
		return 4, nil
	case 4:
		return 8, nil
	case 10:
		return sha256.Size, nil
	}
	return 0, fmt.Errorf("check %#x: %w", byte(c), ErrUnsupported)
}

var crc64Table = crc64.MakeTable(crc64.ECMA)

// hash returns the check as a hash, nil for none.
func (c checkID) hash() hash.Hash {
	switch c {
	case 1:
		return crc32.NewIEEE()
	case 4:
		return crc64.New(crc64Table)
	case 10:
		return sha256.New()
	}
	return nil
}

// sum returns the check as it stands in the file. CRCs are little-endian there.
func (c checkID) sum(h hash.Hash) []byte {
	if h == nil {
		return nil
	}
	s := h.Sum(nil)
	if c != 10 {
		for i, j := 0, len(s)-1; i < j; i, j = i+1, j-1 {
			s[i], s[j] = s[j], s[i]
		}
	}
	return s
}

// A block is one independently decodable part of a file.
type block struct {
	check    checkID
	offset   int64 // in the file
	unpadded int64 // header, data and check
	out      int64 // offset of what it unpacks to
	size     int64 // of what it unpacks to
}

// readBlocks lists the blocks of a file, reading the indexes of its streams from
// the end of the file backwards. limit bounds the sum of the unpacked sizes,
// which is returned too. Padding between streams is not supported.
func readBlocks(r io.ReaderAt, size, limit int64) ([]block, int64, error) {
	var streams [][]block
	for end := size; end > 0 || len(streams) == 0; {
		s, start, err := readStream(r, end, limit)
		if err != nil {
			return nil, 0, err
		}
		streams, end = append(streams, s), start
	}
	slices.Reverse(streams)
	var total int64
	blocks := slices.Concat(streams...)
	for i := range blocks {
		if blocks[i].size > limit-total {
			return nil, 0, &LimitError{Limit: limit}
		}
		blocks[i].out = total
		total += blocks[i].size
	}
	return blocks, total, nil
}

// readStream lists the blocks of the stream that ends at end and returns where
// the stream starts.
func readStream(r io.ReaderAt, end, limit int64) ([]block, int64, error) {
	if end < streamHeaderSize+streamFooterSize {
		return nil, 0, errors.New("stream: truncated")
	}
	var foot, head [streamFooterSize]byte
	if _, err := r.ReadAt(foot[:], end-streamFooterSize); err != nil {
		return nil, 0, truncated(err)
	}
	flags := foot[8:10]
	if !bytes.Equal(foot[10:], footerMagic) || binary.LittleEndian.Uint32(foot[:]) != crc32.ChecksumIEEE(foot[4:10]) {
		return nil, 0, errors.New("stream footer: truncated or corrupt")
	}
	indexSize := (int64(binary.LittleEndian.Uint32(foot[4:])) + 1) * 4
	if indexSize > min(maxIndexSize, end-streamHeaderSize-streamFooterSize) {
		return nil, 0, fmt.Errorf("index: size %d is out of bounds", indexSize)
	}
	index := make([]byte, indexSize)
	indexAt := end - streamFooterSize - indexSize
	if _, err := r.ReadAt(index, indexAt); err != nil {
		return nil, 0, truncated(err)
	}
	if flags[0] != 0 || flags[1] > 0xf {
		return nil, 0, fmt.Errorf("stream flags %#x: %w", flags, ErrUnsupported)
	}
	blocks, packed, err := parseIndex(index, checkID(flags[1]), limit)
	if err != nil {
		return nil, 0, fmt.Errorf("index: %w", err)
	}
	start := indexAt - packed - streamHeaderSize
	if start < 0 {
		return nil, 0, errors.New("index: blocks are longer than the file")
	}
	if _, err := r.ReadAt(head[:], start); err != nil {
		return nil, 0, truncated(err)
	}
	if !bytes.Equal(head[:6], headerMagic) || !bytes.Equal(head[6:8], flags) ||
		binary.LittleEndian.Uint32(head[8:]) != crc32.ChecksumIEEE(head[6:8]) {
		return nil, 0, errors.New("stream header: corrupt")
	}
	for i := range blocks {
		blocks[i].offset += start + streamHeaderSize
	}
	return blocks, start, nil
}

// parseIndex parses an index whole, section 4. Offsets in the result count from
// the first block; packed is the length of all blocks with their padding.
func parseIndex(b []byte, check checkID, limit int64) (blocks []block, packed int64, err error) {
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(body) {
		return nil, 0, errors.New("CRC32 differs")
	}
	if body[0] != 0 {
		return nil, 0, errors.New("indicator is not zero")
	}
	body = body[1:]
	count, body, err := vli(body)
	if err != nil || count > uint64(len(body)/2) {
		return nil, 0, errors.New("number of records is out of bounds")
	}
	for range count {
		var unpadded, size uint64
		if unpadded, body, err = vli(body); err == nil {
			size, body, err = vli(body)
		}
		// 1<<62 keeps the sums below from overflowing.
		if err != nil || unpadded < 5 || unpadded > 1<<62 || int64(unpadded) > 1<<62-packed {
			return nil, 0, errors.New("record is out of bounds")
		}
		if size > uint64(limit) {
			return nil, 0, &LimitError{Limit: limit}
		}
		blocks = append(blocks, block{check: check, offset: packed, unpadded: int64(unpadded), size: int64(size)})
		packed += (int64(unpadded) + 3) &^ 3
	}
	if len(body) > 3 || len(bytes.Trim(body, "\x00")) > 0 {
		return nil, 0, errors.New("padding is not zero")
	}
	return blocks, packed, nil
}

// vli decodes a variable-length integer, section 1.2: at most nine bytes of seven
// bits, least significant first, in the shortest form.
func vli(b []byte) (uint64, []byte, error) {
	var v uint64
	for i, c := range b[:min(len(b), 9)] {
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				break
			}
			return v, b[i+1:], nil
		}
	}
	return 0, nil, errors.New("bad integer")
}

// A blockHeader is what section 3.1 holds that the decoder needs.
type blockHeader struct {
	size int64 // of the header itself
	dict int64
}

// readBlockHeader parses a block header, which may repeat sizes that the index
// has: they must agree.
func readBlockHeader(r io.Reader, b block) (blockHeader, error) {
	var raw [maxBlockHeader]byte
	if _, err := io.ReadFull(r, raw[:1]); err != nil {
		return blockHeader{}, truncated(err)
	}
	n := (int(raw[0]) + 1) * 4
	if _, err := io.ReadFull(r, raw[1:n]); err != nil || raw[0] == 0 {
		return blockHeader{}, errors.New("block header: truncated")
	}
	body := raw[1 : n-4]
	if binary.LittleEndian.Uint32(raw[n-4:]) != crc32.ChecksumIEEE(raw[:n-4]) {
		return blockHeader{}, errors.New("block header: CRC32 differs")
	}
	check, err := b.check.size()
	if err != nil {
		return blockHeader{}, err
	}
	flags := body[0]
	if flags&0x3f != 0 { // reserved bits, or more than one filter
		return blockHeader{}, fmt.Errorf("block flags %#x: %w", flags, ErrUnsupported)
	}
	body = body[1:]
	for _, f := range []struct {
		bit  byte
		want int64
	}{{0x40, b.unpadded - int64(n) - check}, {0x80, b.size}} {
		if flags&f.bit == 0 {
			continue
		}
		var v uint64
		if v, body, err = vli(body); err != nil || int64(v) != f.want {
			return blockHeader{}, errors.New("block header: sizes differ from the index")
		}
	}
	dict, err := parseFilter(body)
	return blockHeader{size: int64(n), dict: dict}, err
}

// parseFilter takes the one filter that is supported and returns its dictionary
// size.
func parseFilter(body []byte) (int64, error) {
	if len(body) < 3 {
		return 0, errors.New("block header: truncated")
	}
	if body[0] != filterLZMA2 {
		return 0, fmt.Errorf("filter %#x: %w", body[0], ErrUnsupported)
	}
	dict, ok := dictSize(body[2])
	if body[1] != 1 || !ok || len(bytes.Trim(body[3:], "\x00")) > 0 {
		return 0, errors.New("block header: bad LZMA2 properties")
	}
	return dict, nil
}
