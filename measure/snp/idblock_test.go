package snp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// testKey makes a P-384 key from a number in hexadecimal.
func testKey(t testing.TB, scalar string) *ecdsa.PrivateKey {
	t.Helper()
	b, err := hex.DecodeString(scalar)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rfcKey is the key of RFC 6979, A.2.6.
const rfcKey = "6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d896d5724e4c70a825f872c9ea60d2edf5"

func authorKey(t testing.TB) *ecdsa.PrivateKey { return testKey(t, strings.Repeat("17", 48)) }

// TestDeterministicSignature: RFC 6979, A.2.6, with SHA-384.
func TestDeterministicSignature(t *testing.T) {
	for message, want := range map[string][2]string{
		"sample": {
			"94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c81a648152e44acf96e36dd1e80fabe46",
			"99ef4aeb15f178cea1fe40db2603138f130e740a19624526203b6351d0a3a94fa329c145786e679e7b82c71a38628ac8",
		},
		"test": {
			"8203b63d3c853e8d77227fb377bcf7b7b772e97892a80f36ab775d509d7a5feb0542a7f0812998da8f1dd3ca3cf023db",
			"ddd0760448d42d8a43af45af836fce4de8be06b485e9b61b827c2f13173923e06a739f040649a667bf3b828246baa5a5",
		},
	} {
		key := testKey(t, rfcKey)
		s, err := sign(key, []byte(message))
		if err != nil {
			t.Fatal(err)
		}
		if r, s := hex.EncodeToString(s.R[:]), hex.EncodeToString(s.S[:]); r != want[0] || s != want[1] {
			t.Errorf("%s: r %s, s %s, want %s, %s", message, r, s, want[0], want[1])
		}
		if !s.verify(&key.PublicKey, []byte(message)) || s.verify(&key.PublicKey, []byte(message+"s")) {
			t.Errorf("%s: signature of another message", message)
		}
	}
}

// idBlockVectors: the launch digest and the ID block that other tools made of it.
func TestIDBlockVectors(t *testing.T) {
	var ssm struct {
		Digest string `json:"launch_digest_b64"`
		Block  string `json:"id_block_b64"`
	}
	readJSON(t, &ssm, "sev-snp-measure", "id_block_vector.json")
	ours := IDBlock{Digest: [48]byte(unbase64(t, ssm.Digest)), Policy: DefaultPolicy}
	if got := ours.Marshal(); !bytes.Equal(got[:], unbase64(t, ssm.Block)) {
		t.Errorf("sev-snp-measure: %x, want %x", got, unbase64(t, ssm.Block))
	}
	v := readVirteeBlock(t)
	ours.Digest = unhex48(t, v.Inputs.Digest)
	if got := ours.Marshal(); !bytes.Equal(got[:], unbase64(t, v.Block)) {
		t.Errorf("virtee: %x, want %x", got, unbase64(t, v.Block))
	}
}

type virteeBlock struct {
	Inputs struct {
		Digest string `json:"launch_digest"`
	}
	Block  string `json:"expected_id_block_b64"`
	Key    string `json:"expected_id_key_digest_b64"`
	Author string `json:"expected_auth_key_digest_b64"`
}

func readVirteeBlock(t *testing.T) virteeBlock {
	t.Helper()
	var file struct {
		IDBlock virteeBlock `json:"id_block"`
	}
	readJSON(t, &file, "virtee-sev", "vectors.json")
	return file.IDBlock
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestIDAuthVectors reads the ID authentication information that virtee's tool
// made: its signatures and key digests, and every field in its place.
func TestIDAuthVectors(t *testing.T) {
	v := readVirteeBlock(t)
	auth := readVector(t, "virtee-sev", "measurement", "test_auth_block.bin")
	a, err := ParseIDAuth(auth)
	if err != nil {
		t.Fatal(err)
	}
	if got := KeyDigest(a.Key); !bytes.Equal(got[:], unbase64(t, v.Key)) {
		t.Errorf("ID key digest %x, want %x", got, unbase64(t, v.Key))
	}
	if got := KeyDigest(a.Author); !bytes.Equal(got[:], unbase64(t, v.Author)) {
		t.Errorf("author key digest %x, want %x", got, unbase64(t, v.Author))
	}
	block, err := ParseIDBlock(unbase64(t, v.Block))
	if err != nil {
		t.Fatal(err)
	}
	for file, s := range map[string]ECDSASignature{"test_id_sig.bin": a.Signature, "test_auth_sig.bin": a.AuthorSignature} {
		want := readVector(t, "virtee-sev", "measurement", file)
		if got := append(littleEndian(s.R), littleEndian(s.S)...); !bytes.Equal(got, want[:len(got)]) {
			t.Errorf("%s: %x, want %x", file, got, want)
		}
	}
	if err := VerifyIDAuth(block, auth); err != nil {
		t.Error(err)
	}
}

// TestSignIDBlock signs, reads back, and moves each signed byte.
func TestSignIDBlock(t *testing.T) {
	id, author := testKey(t, rfcKey), authorKey(t)
	b := &IDBlock{Digest: [48]byte{1, 2, 3}, FamilyID: [16]byte{4}, ImageID: [16]byte{15: 5}, SVN: 6, Policy: DefaultPolicy}
	auth, err := SignIDBlock(b, id, author)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := SignIDBlock(b, id, author); !bytes.Equal(auth, again) {
		t.Error("a second signature has other bytes")
	}
	if err := VerifyIDAuth(b, auth); err != nil {
		t.Error(err)
	}
	wire := b.Marshal()
	if back, err := ParseIDBlock(wire[:]); err != nil || *back != *b {
		t.Errorf("read back: %+v, %v", back, err)
	}
	for at := range wire {
		moved := wire
		moved[at] ^= 1
		// The version is fixed and the policy has reserved bits: such a block is
		// refused before.
		if m, err := ParseIDBlock(moved[:]); err == nil && VerifyIDAuth(m, auth) == nil {
			t.Errorf("byte %#x of the ID block: still signed", at)
		}
	}
	other, err := SignIDBlock(b, author, id)
	if err != nil {
		t.Fatal(err)
	}
	mixed := slices.Clone(auth)
	copy(mixed[0x680:0xc84], other[0x680:0xc84])
	if err := VerifyIDAuth(b, mixed); err == nil || !strings.Contains(err.Error(), "0x680") {
		t.Errorf("author's signature of another key: %v", err)
	}
}

func TestSignIDBlockAlone(t *testing.T) {
	id := testKey(t, rfcKey)
	b := &IDBlock{Policy: DefaultPolicy}
	auth, err := SignIDBlock(b, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(auth[0x680:], func(c byte) bool { return c != 0 }); i >= 0 || auth[4] != 0 {
		t.Errorf("no author: byte %#x is set", 0x680+i)
	}
	a, err := ParseIDAuth(auth)
	if err != nil || a.Author != nil || KeyDigest(a.Key) != KeyDigest(&id.PublicKey) {
		t.Errorf("%+v, %v", a, err)
	}
	if err := VerifyIDAuth(b, auth); err != nil {
		t.Error(err)
	}
	p256, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"P-256":        func() error { _, err := SignIDBlock(b, p256, nil); return err },
		"author P-256": func() error { _, err := SignIDBlock(b, id, p256); return err },
		"no key":       func() error { _, err := SignIDBlock(b, nil, id); return err },
		"policy":       func() error { _, err := SignIDBlock(&IDBlock{}, id, nil); return err },
	} {
		if call() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestIDAuthRefused: a byte in a reserved place, or a value out of range.
func TestIDAuthRefused(t *testing.T) {
	auth, err := SignIDBlock(&IDBlock{Policy: DefaultPolicy}, testKey(t, rfcKey), authorKey(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		at    int
		value byte
		want  string
	}{
		{0x000, 2, "algorithm of the ID key at 0x0: 2"},
		{0x004, 2, "algorithm of the author key at 0x4: 2"},
		{0x004, 0, "byte at 0x680"},
		{0x008, 1, "byte at 0x8:"},
		{0x03f, 1, "byte at 0x3f"},
		{0x070, 1, "byte at 0x70"}, // r beyond 48 bytes
		{0x0d0, 1, "byte at 0xd0"}, // behind s
		{0x23f, 1, "byte at 0x23f"},
		{0x240, 1, "curve at 0x240: 1"},
		{0x244, auth[0x244] ^ 1, "key at 0x240"}, // not on the curve
		{0x274, 1, "byte at 0x274"},
		{0x2d4, 1, "byte at 0x2d4"},
		{0x644, 1, "byte at 0x644"},
		{0x67f, 1, "byte at 0x67f"},
		{0x880, 3, "curve at 0x880: 3"},
		{0xc83, 1, "byte at 0xc83"},
		{0xc84, 1, "byte at 0xc84"},
		{0xfff, 1, "byte at 0xfff"},
	} {
		b := slices.Clone(auth)
		b[row.at] = row.value
		if _, err := ParseIDAuth(b); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("byte %#x is %#x: %v, want %q", row.at, row.value, err, row.want)
		}
	}
	for _, n := range []int{0, 4095, 4097} {
		if _, err := ParseIDAuth(make([]byte, n)); err == nil {
			t.Errorf("%d bytes: no error", n)
		}
	}
}

func TestIDBlockRefused(t *testing.T) {
	b := (&IDBlock{Policy: DefaultPolicy}).Marshal()
	for name, edit := range map[string]func([]byte) []byte{
		"version at 0x50: 2":      func(b []byte) []byte { b[0x50] = 2; return b },
		"bit 17":                  func(b []byte) []byte { b[0x5a] = 0; return b },
		"bits 0x8000000000000000": func(b []byte) []byte { b[0x5f] = 0x80; return b },
		"95 bytes":                func(b []byte) []byte { return b[:95] },
		"97 bytes":                func(b []byte) []byte { return append(b, 0) },
	} {
		if _, err := ParseIDBlock(edit(slices.Clone(b[:]))); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}

// TestIDAuthOrder: r and s are little-endian in 72 bytes each: by hand.
func TestIDAuthOrder(t *testing.T) {
	id := testKey(t, rfcKey)
	auth, err := SignIDBlock(&IDBlock{Policy: DefaultPolicy}, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	number := func(at int) *big.Int {
		b := slices.Clone(auth[at : at+72])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	// The public point of RFC 6979, A.2.6.
	for at, want := range map[int]string{
		0x244: "ec3a4e415b4e19a4568618029f427fa5da9a8bc4ae92e02e06aae5286b300c64def8f0ea9055866064a254515480bc13",
		0x28c: "8015d9b72d7d57244ea8ef9ac0c621896708a59367f9dfb9f54ca84b3f1c9db1288b231c3ae0d4fe7344fd2533264720",
	} {
		if got := number(at).Text(16); got != want {
			t.Errorf("at %#x: %s, want %s", at, got, want)
		}
	}
	s := ECDSASignature{}
	number(0x40).FillBytes(s.R[:])
	number(0x88).FillBytes(s.S[:])
	block := (&IDBlock{Policy: DefaultPolicy}).Marshal()
	if !s.verify(&id.PublicKey, block[:]) {
		t.Error("the signature at 0x40 is not one of the block")
	}
}
