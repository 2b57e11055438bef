package source

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/plinth-os/plinth/internal/cas"
)

// A verifier passes bytes on and gives EOF only if they have the wanted size and
// digest. A size of -1 is one that nobody knows.
type verifier struct {
	r    io.Reader
	want cas.Ref
	what string
	hash hash.Hash
	size int64
}

func newVerifier(r io.Reader, want cas.Ref, what string) *verifier {
	return &verifier{r: r, want: want, what: what, hash: sha256.New()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.size += int64(n)
	if v.want.Size >= 0 && (v.size > v.want.Size || err == io.EOF && v.size < v.want.Size) {
		return n, v.fail("size is %d bytes, want %d", v.size, v.want.Size)
	}
	if err == io.EOF {
		if got := cas.Digest(v.hash.Sum(nil)); got != v.want.Digest {
			return n, v.fail("sha256 is %s, want %s", got, v.want.Digest)
		}
	}
	return n, err
}

func (v *verifier) fail(format string, args ...any) error {
	return &VerifyError{What: v.what, Problem: fmt.Sprintf(format, args...)}
}
