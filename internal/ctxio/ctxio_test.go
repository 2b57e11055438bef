package ctxio

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestDone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, at := Reader(ctx, strings.NewReader("text")), ReaderAt(ctx, strings.NewReader("text"))
	b := make([]byte, 2)
	if n, err := io.ReadFull(r, b); n != 2 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := at.ReadAt(b, 1); n != 2 || err != nil || string(b) != "ex" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	cancel()
	if n, err := r.Read(b); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := at.ReadAt(b, 0); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("got %d, %v", n, err)
	}
}
