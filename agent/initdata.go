package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/plinth-os/plinth/initdata"
)

// initdataWait is how long the agent looks for a device that may never come: where
// there is none, the boot goes on without.
const initdataWait = 2 * time.Second

// initdataMagic is what Kata's devices begin with.
var initdataMagic = []byte("initdata")

// readInitdata returns the document that the guest was given, nil where no disk has
// one. The device is read once: what is parsed later is what was measured.
func (s *State) readInitdata(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, initdataWait)
	defer cancel()
	for {
		b, err := s.initdataDisk()
		if b != nil || err != nil {
			return b, err
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// initdataDisk looks at all disks. Two with a document are refused: which of them
// counts would be for the host to say.
func (s *State) initdataDisk() (raw []byte, err error) {
	from := ""
	for _, d := range s.disks() {
		b, err := readDevice(d.path)
		if err != nil || b == nil {
			continue // not there yet, or another disk
		}
		if from != "" {
			return nil, fmt.Errorf("%s and %s both have a document", from, d.path)
		}
		from = d.path
		if raw, err = initdata.FromDevice(b); err != nil {
			return nil, fmt.Errorf("%s: %w", d.path, err)
		}
	}
	if from != "" && raw == nil {
		raw = []byte{} // an empty document is one, and no good
	}
	return raw, nil
}

// readDevice returns the beginning of a disk that has a document, as much as a
// document can take, and nil of another disk.
func readDevice(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	head := make([]byte, len(initdataMagic))
	if _, err := io.ReadFull(f, head); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || err == nil && !bytes.Equal(head, initdataMagic) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	rest, err := io.ReadAll(io.LimitReader(f, initdata.MaxFile))
	return append(head, rest...), err
}
