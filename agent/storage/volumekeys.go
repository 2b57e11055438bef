package storage

import (
	"crypto/hkdf"
	"crypto/sha256"
)

// What the keys of a volume are derived for: HKDF's info, RFC 5869. They are written
// down in docs/attestation.md, by which a disk can be prepared or rescued elsewhere.
const (
	infoCipher     = "plinth volume: dm-crypt aes-xts-plain64"
	infoTag        = "plinth volume: dm-integrity internal_hash"
	infoSuperblock = "plinth volume: dm-integrity journal_mac"
)

// volumeKeys derives the keys of a volume by HKDF-SHA-256 without salt. The caller
// clears them.
func volumeKeys(secret []byte) (*keys, error) {
	k := &keys{make([]byte, 32), make([]byte, 32), make([]byte, 64)}
	for _, x := range []struct {
		to   []byte
		info string
	}{{k.cipher, infoCipher}, {k.tag, infoTag}, {k.superblock, infoSuperblock}} {
		b, err := hkdf.Key(sha256.New, secret, nil, x.info, len(x.to))
		if err != nil {
			k.clear()
			return nil, err
		}
		copy(x.to, b)
		clear(b)
	}
	return k, nil
}
