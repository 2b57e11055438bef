package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// An inclusion is the proof that an entry is in a log: RFC 9162, section 2.1.3.
type inclusion struct {
	Index      number   `json:"logIndex"`
	Root       []byte   `json:"rootHash"`
	Size       number   `json:"treeSize"`
	Hashes     [][]byte `json:"hashes"`
	Checkpoint struct {
		Note string `json:"envelope"`
	} `json:"checkpoint"`
}

// check checks that the entry is in the tree, and that a log has signed its root.
func (p *inclusion) check(body []byte, logs []signer) error {
	if err := p.signedBy(logs); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	root, err := p.rootOf(sha256.Sum256(append([]byte{0}, body...)))
	if err != nil {
		return err
	}
	if !bytes.Equal(root, p.Root) {
		return fmt.Errorf("it leads to %x: the tree's root is %x", root, p.Root)
	}
	return nil
}

// rootOf goes up from a leaf: section 2.1.3.2.
func (p *inclusion) rootOf(leaf [sha256.Size]byte) ([]byte, error) {
	at, last := int64(p.Index), int64(p.Size)-1
	if at < 0 || at > last {
		return nil, fmt.Errorf("entry %d of %d", at, p.Size)
	}
	h := leaf[:]
	for _, sibling := range p.Hashes {
		switch {
		case last == 0 || len(sibling) != sha256.Size:
			return nil, errors.New("it does not fit the tree's size")
		case at&1 == 1 || at == last:
			h = node(sibling, h)
			for at&1 == 0 && at != 0 {
				at, last = at>>1, last>>1
			}
		default:
			h = node(h, sibling)
		}
		at, last = at>>1, last>>1
	}
	if last != 0 {
		return nil, errors.New("it ends below the root")
	}
	return h, nil
}

func node(left, right []byte) []byte {
	h := sha256.New()
	h.Write([]byte{1})
	h.Write(left)
	h.Write(right)
	return h.Sum(nil)
}

// signedBy checks the checkpoint: a note whose first lines are who signs, the size
// and the root. C2SP, tlog-checkpoint.md and signed-note.md.
func (p *inclusion) signedBy(logs []signer) error {
	text, signatures, ok := strings.Cut(p.Checkpoint.Note, "\n\n")
	text += "\n" // is signed, too
	lines := strings.SplitN(text, "\n", 4)
	if !ok || len(lines) < 4 {
		return errors.New("want a note of three lines or more, and signatures")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || !bytes.Equal(root, p.Root) || lines[1] != strconv.FormatInt(int64(p.Size), 10) {
		return fmt.Errorf("it is of another tree: size %.20q, root %.100q", lines[1], lines[2])
	}
	for line := range strings.SplitSeq(signatures, "\n") {
		name, sig, _ := strings.Cut(strings.TrimPrefix(line, "— "), " ")
		b, err := base64.StdEncoding.DecodeString(sig)
		if err != nil || name == "" || len(b) <= keyHint {
			continue
		}
		if anyVerifies(logs, []byte(text), b[keyHint:]) {
			return nil
		}
	}
	return errors.New("signed by no trusted log")
}

// keyHint is how many bytes before a note's signature hint at its key.
const keyHint = 4
