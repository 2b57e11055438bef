package cas

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBlobRoundTrip(t *testing.T) {
	s := open(t)
	for _, want := range [][]byte{nil, []byte("a"), bytes.Repeat([]byte("x"), 3<<20)} {
		a, err := s.Put(want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.PutReader(context.Background(), bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		if a != b || a.Digest != sha256.Sum256(want) || a.Size != int64(len(want)) {
			t.Errorf("%d bytes: Put %v, PutReader %v", len(want), a, b)
		}
		got, err := s.ReadFile(a.Digest)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: read %d bytes, %v", len(want), len(got), err)
		}
	}
}

func TestWriteAtHashesTheFile(t *testing.T) {
	s := open(t)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, c := range []struct {
		off  int64
		text string
	}{{6, "world"}, {0, "hello "}} {
		if _, err := w.WriteAt([]byte(c.text), c.off); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.Commit(context.Background())
	if err != nil || r.Digest != sha256.Sum256([]byte("hello world")) {
		t.Fatalf("Commit: %v, %v", r, err)
	}
}

func TestAbortAndSweepLeaveNothing(t *testing.T) {
	s := open(t)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir); err != nil { // must not touch a live writer's file
		t.Fatal(err)
	}
	if n := temps(t, s); n != 1 {
		t.Fatalf("%d temporary files with one writer at work", n)
	}
	w.Abort()
	dead := filepath.Join(s.dir, tempDir, "killed")
	if err := os.WriteFile(dead, []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if n := temps(t, s); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}

func temps(t *testing.T, s *Store) int {
	t.Helper()
	e, err := os.ReadDir(filepath.Join(s.dir, tempDir))
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestDamageIsNoticed(t *testing.T) {
	s := open(t)
	want := []byte("kernel")
	for name, read := range map[string]func(*Store, Ref) error{
		"Open":     func(s *Store, r Ref) error { f, err := s.Open(r); f.Close(); return err },
		"ReadFile": func(s *Store, r Ref) error { _, err := s.ReadFile(r.Digest); return err },
	} {
		for _, content := range []string{"kernal", "ker", "kernels"} {
			r, err := s.Put(want)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.blobPath(r.Digest), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			other, err := Open(s.dir) // as another process would
			if err != nil {
				t.Fatal(err)
			}
			var damaged *DamagedError
			if err := read(other, r); !errors.As(err, &damaged) || damaged.Want != r.Digest || damaged.Got != Sum([]byte(content)) {
				t.Errorf("%s of %q: %v", name, content, err)
			}
			if other.Has(r.Digest) {
				t.Errorf("%s of %q: the damaged blob is still there", name, content)
			}
		}
	}
	// A blob of the wrong size is replaced when it is stored again.
	r, err := s.Put(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.blobPath(r.Digest), []byte("ker"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r2, err := s.Put(want); err != nil || r2 != r || !s.Holds(r) {
		t.Errorf("Put did not mend a short blob: %v, %v", r2, err)
	}

	key := Sum([]byte("step"))
	if err := s.SaveResult(key, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.resultPath(key), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadResult(key); !errors.Is(err, ErrNotFound) {
		t.Errorf("LoadResult of a damaged file: %v", err)
	}
}

func TestMissing(t *testing.T) {
	s := open(t)
	d := Sum([]byte("nothing"))
	_, err1 := s.ReadFile(d)
	_, err2 := s.LoadResult(d)
	_, err3 := s.Open(Ref{Digest: d})
	for _, err := range []error{err1, err2, err3} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	}
}

func TestLockExcludes(t *testing.T) {
	s := open(t)
	unlock, err := s.Lock(context.Background(), "step")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, "step"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second Lock: %v", err)
	}
	unlock()
	unlock, err = s.Lock(context.Background(), "step")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestConcurrentWritersOfOneBlob(t *testing.T) {
	s := open(t)
	body := bytes.Repeat([]byte("module"), 50000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Open(s.dir); err != nil {
				t.Error(err)
			}
			if _, err := s.PutReader(context.Background(), bytes.NewReader(body)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s.ReadFile(Sum(body)); err != nil {
		t.Error(err)
	}
	if n := temps(t, s); n != 0 {
		t.Errorf("%d temporary files left", n)
	}
}

func TestParseDigest(t *testing.T) {
	good := Sum(nil).String()
	if _, err := ParseDigest(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", good[:63], good + "0", strings.ToUpper(good), strings.Repeat("g", 64)} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) succeeded", bad)
		}
	}
}
