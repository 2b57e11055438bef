package kbs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A tagged item of CBOR.
type tagged struct {
	tag  uint64
	item any
}

// decode reads one item of CBOR and what is behind it: RFC 8949, definite lengths
// only. Integers are int64, strings []byte and string, arrays []any, maps
// map[any]any with integers and texts as keys.
func decode(b []byte, depth int) (item any, rest []byte, err error) {
	if depth > 64 {
		return nil, nil, errors.New("cbor: nested too deeply")
	}
	if len(b) == 0 {
		return nil, nil, errors.New("cbor: no item")
	}
	major, info := b[0]>>5, b[0]&31
	n, b, err := argument(info, b[1:])
	if err != nil {
		return nil, nil, err
	}
	if (major == 2 || major == 3 || major == 4 || major == 5) && n > uint64(len(b)) {
		return nil, nil, fmt.Errorf("cbor: %d items or bytes: %d are left", n, len(b))
	}
	switch major {
	case 0:
		return int64(n), b, nil
	case 1:
		return -1 - int64(n), b, nil
	case 2:
		return b[:n:n], b[n:], nil
	case 3:
		return string(b[:n]), b[n:], nil
	case 4:
		list := []any{}
		for range n {
			if item, b, err = decode(b, depth+1); err != nil {
				return nil, nil, err
			}
			list = append(list, item)
		}
		return list, b, nil
	case 5:
		return decodeMap(b, n, depth)
	case 6:
		if item, b, err = decode(b, depth+1); err != nil {
			return nil, nil, err
		}
		return tagged{n, item}, b, nil
	}
	return nil, nil, fmt.Errorf("cbor: major type %d, %d", major, n)
}

func decodeMap(b []byte, n uint64, depth int) (any, []byte, error) {
	m := map[any]any{}
	for range n {
		key, rest, err := decode(b, depth+1)
		if err != nil {
			return nil, nil, err
		}
		switch key.(type) {
		case int64, string:
		default:
			return nil, nil, fmt.Errorf("cbor: a key of type %T", key)
		}
		if _, ok := m[key]; ok {
			return nil, nil, fmt.Errorf("cbor: key %v is there twice", key)
		}
		if m[key], b, err = decode(rest, depth+1); err != nil {
			return nil, nil, err
		}
	}
	return m, b, nil
}

// argument is the number in the head of an item.
func argument(info byte, b []byte) (uint64, []byte, error) {
	if info < 24 {
		return uint64(info), b, nil
	}
	size := map[byte]int{24: 1, 25: 2, 26: 4, 27: 8}[info]
	if size == 0 || len(b) < size {
		return 0, nil, fmt.Errorf("cbor: additional information %d, %d bytes left", info, len(b))
	}
	var n [8]byte
	copy(n[8-size:], b[:size])
	return binary.BigEndian.Uint64(n[:]), b[size:], nil
}
