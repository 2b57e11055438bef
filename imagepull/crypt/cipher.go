package crypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/ctxio"
)

// ErrHMAC is the error of a layer that is not the one that was encrypted.
var ErrHMAC = errors.New("crypt: the HMAC of the encrypted layer is wrong")

// Decrypt returns the plain layer. It gives EOF only when the HMAC over all that
// came from r, and the digest of all that it gave, are those of the key; until
// then nobody has vouched for a single byte, and none may be used.
func (k *Key) Decrypt(r io.Reader) (io.Reader, error) {
	stream, err := k.stream()
	if err != nil {
		return nil, err
	}
	return &decrypter{k: k, r: r, stream: stream, mac: hmac.New(sha256.New, k.key), plain: sha256.New()}, nil
}

func (k *Key) stream() (cipher.Stream, error) {
	block, err := aes.NewCipher(k.key)
	if err != nil {
		return nil, err
	}
	return cipher.NewCTR(block, k.nonce), nil
}

type decrypter struct {
	k          *Key
	r          io.Reader
	stream     cipher.Stream
	mac, plain hash.Hash
}

func (d *decrypter) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.mac.Write(p[:n])
	d.stream.XORKeyStream(p[:n], p[:n])
	d.plain.Write(p[:n])
	if err != io.EOF {
		return n, err
	}
	if !hmac.Equal(d.mac.Sum(nil), d.k.hmac) {
		return n, ErrHMAC
	}
	if got := fmt.Sprintf("sha256:%x", d.plain.Sum(nil)); got != d.k.Digest {
		return n, fmt.Errorf("crypt: decrypted layer is %s: want %s", got, d.k.Digest)
	}
	return n, io.EOF
}

// A Wrapper makes a packet for one recipient.
type Wrapper interface {
	Scheme() string
	Wrap(key []byte, random io.Reader) ([]byte, error)
}

// Encrypt writes a layer encrypted and returns the annotations of its descriptor.
// digest is that of the plain layer. random gives the key: two calls with the same
// bytes would encrypt alike.
func Encrypt(ctx context.Context, w io.Writer, plain io.Reader, digest string, random io.Reader, to ...Wrapper) (map[string]string, error) {
	secret := make([]byte, 32+16)
	if _, err := io.ReadFull(random, secret); err != nil {
		return nil, err
	}
	k := &Key{Digest: digest, key: secret[:32], nonce: secret[32:]}
	stream, err := k.stream()
	if err != nil {
		return nil, err
	}
	mac, sum := hmac.New(sha256.New, k.key), sha256.New()
	out := cipher.StreamWriter{S: stream, W: io.MultiWriter(w, mac)}
	if _, err := io.Copy(out, io.TeeReader(ctxio.Reader(ctx, plain), sum)); err != nil {
		return nil, err
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); got != digest {
		return nil, fmt.Errorf("crypt: the layer is %s: want %s", got, digest)
	}
	return k.annotations(mac.Sum(nil), random, to)
}

func (k *Key) annotations(mac []byte, random io.Reader, to []Wrapper) (map[string]string, error) {
	pub, err := json.Marshal(public{cipherName, mac, map[string][]byte{}})
	if err != nil {
		return nil, err
	}
	secret, err := json.Marshal(private{k.key, k.Digest, map[string][]byte{"nonce": k.nonce}})
	if err != nil {
		return nil, err
	}
	packets := map[string][]string{}
	for _, w := range to {
		b, err := w.Wrap(secret, random)
		if err != nil {
			return nil, fmt.Errorf("crypt: %s: %w", w.Scheme(), err)
		}
		packets[w.Scheme()] = append(packets[w.Scheme()], base64.StdEncoding.EncodeToString(b))
	}
	if len(packets) == 0 {
		return nil, errors.New("crypt: no recipient: nobody could decrypt the layer")
	}
	out := map[string]string{annotationPublic: base64.StdEncoding.EncodeToString(pub)}
	for scheme, list := range packets {
		out[annotationKeys+scheme] = strings.Join(slices.Clip(list), ",")
	}
	return out, nil
}
