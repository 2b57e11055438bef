// Package ident derives identifiers, so that none is random: equal seed,
// purpose and content give the equal identifier on every machine.
package ident

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// UUID derives a UUID from the seed of a profile, what the UUID is for, and the
// content (or digests of it) that it identifies. It is the first 16 bytes of an
// HMAC-SHA256 with version 8 and the variant set, RFC 9562 section 5.8, in the
// big-endian order of that document.
func UUID(seed, purpose string, content ...[]byte) [16]byte {
	u := [16]byte(derive(seed, purpose, content)[:16])
	u[6] = u[6]&0x0f | 8<<4
	u[8] = u[8]&0x3f | 2<<6
	return u
}

// Serial32 derives a 32-bit serial number, such as a FAT volume's, in the same
// way. It is never zero.
func Serial32(seed, purpose string, content ...[]byte) uint32 {
	return max(1, binary.BigEndian.Uint32(derive(seed, purpose, content)))
}

// Salt derives 32 bytes in the same way.
func Salt(seed, purpose string, content ...[]byte) [32]byte {
	return [32]byte(derive(seed, purpose, content))
}

// derive returns HMAC-SHA256 with the seed as key over purpose and content, each
// behind its length (64 bits, big-endian), so that no two lists give one message.
func derive(seed, purpose string, content [][]byte) []byte {
	mac := hmac.New(sha256.New, []byte(seed))
	for _, part := range append([][]byte{[]byte(purpose)}, content...) {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		mac.Write(part)
	}
	return mac.Sum(nil)
}
