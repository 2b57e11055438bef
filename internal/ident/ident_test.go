package ident

import (
	"encoding/hex"
	"testing"
)

// The values were made with Python 3.11:
//
//	import hmac
//	def d(seed, *parts):
//		m = b"".join(len(p).to_bytes(8, "big") + p for p in parts)
//		return hmac.new(seed, m, "sha256").digest()
//	u = bytearray(d(b"seed", b"disk", b"content")[:16])
//	u[6] = u[6] & 15 | 128; u[8] = u[8] & 63 | 128; u.hex()
func TestVectors(t *testing.T) {
	for _, tt := range []struct {
		content [][]byte
		uuid    string
		serial  uint32
	}{
		{nil, "585e653bcd37825ea8e1b97ed9e6eea2", 0x585e653b},
		{[][]byte{[]byte("content")}, "5dbb1afc9cbb82579fd5d8ecae0b9cfc", 0x5dbb1afc},
		{[][]byte{[]byte("con"), []byte("tent")}, "8e77ebbec2b981d1801cf436d54b8b6b", 0x8e77ebbe},
	} {
		u := UUID("seed", "disk", tt.content...)
		if got := hex.EncodeToString(u[:]); got != tt.uuid {
			t.Errorf("%q: UUID %s, want %s", tt.content, got, tt.uuid)
		}
		if got := Serial32("seed", "disk", tt.content...); got != tt.serial {
			t.Errorf("%q: serial %#x, want %#x", tt.content, got, tt.serial)
		}
	}
}
