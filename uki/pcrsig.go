package uki

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"

	_ "crypto/sha1" // a bank that a TPM may still have
	_ "crypto/sha512"
)

// pcrPolicy is one signed policy of a .pcrsig section, in the order of fields
// in which systemd-measure writes them.
type pcrPolicy struct {
	PCRs                 []int  `json:"pcrs"`
	PublicKeyFingerprint string `json:"pkfp"` // SHA-256 of the key's PKCS #1 RSAPublicKey
	Policy               string `json:"pol"`
	Signature            []byte `json:"sig"` // base64
}

// banks gives each bank the TPM_ALG_ID that a policy names it by and the hash
// that its signatures use.
var banks = map[string]struct {
	alg  uint16
	hash crypto.Hash
}{
	"sha1":   {0x0004, crypto.SHA1},
	"sha256": {0x000b, crypto.SHA256},
	"sha384": {0x000c, crypto.SHA384},
	"sha512": {0x000d, crypto.SHA512},
}

// PCRSignature returns the content of a .pcrsig section: for each bank and
// each of its values of PCR 11, in the order given (one value a boot phase), a
// TPM policy that demands this value, signed by key.
//
// It writes what "systemd-measure sign --json=short" of systemd 252 to 257
// writes. As there, a signature uses the bank's own hash although the policy
// digest is SHA-256 in every bank; systemd's own readers take the sha256 bank
// alone.
func PCRSignature(key *rsa.PrivateKey, values map[string][][]byte) ([]byte, error) {
	fingerprint := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	out := map[string][]pcrPolicy{}
	for name, list := range values {
		bank, ok := banks[name]
		if !ok {
			return nil, fmt.Errorf("uki: .pcrsig: bank %q: want sha1, sha256, sha384 or sha512", name)
		}
		for _, value := range list {
			if len(value) != bank.hash.Size() {
				return nil, fmt.Errorf("uki: .pcrsig: bank %s: value of %d bytes: want %d", name, len(value), bank.hash.Size())
			}
			policy := policyPCR11(bank.alg, value)
			h := bank.hash.New()
			h.Write(policy[:])
			sig, err := rsa.SignPKCS1v15(nil, key, bank.hash, h.Sum(nil))
			if err != nil {
				return nil, fmt.Errorf("uki: .pcrsig: %w", err)
			}
			out[name] = append(out[name], pcrPolicy{
				PCRs:                 []int{11},
				PublicKeyFingerprint: hex.EncodeToString(fingerprint[:]),
				Policy:               hex.EncodeToString(policy[:]),
				Signature:            sig,
			})
		}
	}
	b, err := json.Marshal(out) // keys of a map are sorted
	return append(b, '\n'), err
}

// policyPCR11 is the digest of a SHA-256 policy session after TPM2_PolicyPCR
// with PCR 11 of one bank: TPM 2.0 Library Part 3, section 23.7.
func policyPCR11(bank uint16, value []byte) [32]byte {
	const policyPCR = 0x0000017f // TPM_CC_PolicyPCR
	b := make([]byte, 32)        // the empty policy
	b = binary.BigEndian.AppendUint32(b, policyPCR)
	b = binary.BigEndian.AppendUint32(b, 1)    // TPML_PCR_SELECTION: count
	b = binary.BigEndian.AppendUint16(b, bank) // TPMS_PCR_SELECTION: hash
	b = append(b, 3, 0, 1<<(11-8), 0)          // sizeofSelect, 24 registers
	digest := sha256.Sum256(value)
	return sha256.Sum256(append(b, digest[:]...))
}
