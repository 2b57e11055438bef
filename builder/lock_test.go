package builder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/tests/synthetic"
)

const ownFile = "[[files]]\npath = \"/a\"\nsource = \"a.bin\"\n"

func (s *site) lockText() string {
	s.t.Helper()
	b, err := os.ReadFile(s.LockPath)
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// relock makes a lock as "plinth lock" does.
func (s *site) relock(text string, update []string, all bool) *source.Lock {
	s.t.Helper()
	_, l, err := s.Relock(context.Background(), s.profile(text), update, all)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// newer adds a newer version of a package to the folder.
func (s *site) newer(name string) {
	s.t.Helper()
	s.write("debs/"+name+"_9_amd64.deb", synthetic.Deb(name, "9", "", nil))
}

func version(l *source.Lock, name string) string {
	for _, p := range l.Packages {
		if p.Name == name {
			return p.Version
		}
	}
	return ""
}

// The first build writes the lock; from then on nothing enters that it does not
// name.
func TestLockIsObeyed(t *testing.T) {
	s := newSite(t)
	first := s.spec(s.profile("")).Lock
	if s.lockText() == "" || version(first, "motd") != "1" || version(first, "motd-text") != "1" {
		t.Fatalf("the first build: %+v", first)
	}
	text := s.lockText()
	s.newer("motd")
	if l := s.spec(s.profile("")).Lock; version(l, "motd") != "1" || s.lockText() != text {
		t.Error("a newer version entered without being asked for")
	}
	_, err := s.Spec(context.Background(), s.profile("", "root.packages=ovmf"), Guest{})
	var lock *source.LockError
	if !errors.As(err, &lock) || s.lockText() != text {
		t.Errorf("another wish: %v", err)
	}
}

func TestLocked(t *testing.T) {
	s := newSite(t)
	s.write("a.bin", []byte("one"))
	s.Locked = true
	var lock *source.LockError
	if _, err := s.Spec(context.Background(), s.profile(""), Guest{}); !errors.As(err, &lock) || s.lockText() != "" {
		t.Errorf("no lock: %v", err)
	}
	s.Locked = false
	s.spec(s.profile(ownFile))
	text := s.lockText()
	s.Locked = true
	s.spec(s.profile(ownFile))
	s.write("a.bin", []byte("two"))
	if _, err := s.Spec(context.Background(), s.profile(ownFile), Guest{}); !errors.As(err, &lock) || !strings.Contains(err.Error(), "+ file files /a") {
		t.Errorf("a changed file: %v", err)
	}
	if s.lockText() != text {
		t.Error("the lock was written")
	}
}

// Local files are the user's own: the lock follows them and says so.
func TestLockFollowsLocalFiles(t *testing.T) {
	s := newSite(t)
	s.write("a.bin", []byte("one"))
	s.spec(s.profile(ownFile))
	s.newer("motd")
	s.write("a.bin", []byte("two"))
	spec := s.spec(s.profile(ownFile))
	if len(s.notices) != 1 || !strings.Contains(s.notices[0], "local files changed") {
		t.Errorf("notices %q", s.notices)
	}
	onDisk, err := ReadLock(s.LockPath)
	if err != nil || onDisk.Files[0] != spec.Lock.Files[0] || version(onDisk, "motd") != "1" {
		t.Errorf("%+v, %v", onDisk, err)
	}
}

func TestRelock(t *testing.T) {
	s := newSite(t)
	s.relock("", nil, false)
	s.newer("motd")
	s.newer("motd-text")
	for _, c := range []struct {
		update     []string
		all        bool
		motd, text string
	}{
		{nil, false, "1", "1"},
		{[]string{"motd-text"}, false, "1", "9"},
		{nil, true, "9", ""}, // version 9 of motd depends on nothing
	} {
		l := s.relock("", c.update, c.all)
		if version(l, "motd") != c.motd || version(l, "motd-text") != c.text {
			t.Errorf("update %v, all %t: motd %q, motd-text %q, want %q and %q", c.update, c.all, version(l, "motd"), version(l, "motd-text"), c.motd, c.text)
		}
	}
}

func TestCheckLockWritesNothing(t *testing.T) {
	s := newSite(t)
	s.write("a.bin", []byte("one"))
	if err := s.CheckLock(context.Background(), s.profile(ownFile)); err == nil || s.lockText() != "" {
		t.Errorf("no lock: %v", err)
	}
	s.relock(ownFile, nil, false)
	text := s.lockText()
	if err := s.CheckLock(context.Background(), s.profile(ownFile)); err != nil {
		t.Error(err)
	}
	s.write("a.bin", []byte("two"))
	if err := s.CheckLock(context.Background(), s.profile(ownFile)); err == nil || s.lockText() != text {
		t.Errorf("a changed file: %v", err)
	}
}

func TestReadLock(t *testing.T) {
	s := newSite(t)
	if l, err := ReadLock(s.LockPath); l != nil || err != nil {
		t.Errorf("no file: %v, %v", l, err)
	}
	s.write("tiny.lock", []byte("{}"))
	_, err := ReadLock(s.LockPath)
	wantError(t, err, s.LockPath+": source: lock: ")
	_, err = ReadLock(s.dir)
	wantError(t, err, "is a directory")
}

func TestRecordPath(t *testing.T) {
	w := Workplace{LockPath: filepath.Join("a.b", "vtpm.lock")}
	if got, want := w.RecordPath(), filepath.Join("a.b", "vtpm.platform.json"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	err := ReplaceFile(path, func(f *os.File) error {
		if !IsTemp(filepath.Base(f.Name())) || IsTemp("f") || IsTemp(".hidden") {
			t.Errorf("%s: IsTemp does not tell it", f.Name())
		}
		f.WriteString("half")
		return failed
	})
	b, _ := os.ReadFile(path)
	entries, _ := os.ReadDir(dir)
	if !errors.Is(err, failed) || string(b) != "one" || len(entries) != 1 {
		t.Errorf("%v, content %q, %d files", err, b, len(entries))
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o644 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}
