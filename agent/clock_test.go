package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"golang.org/x/sys/unix"
)

// fakeClock stands still.
type fakeClock struct {
	time            time.Time
	readErr, setErr error
	sets            int
}

func (c *fakeClock) now() (time.Time, error) { return c.time, c.readErr }

func (c *fakeClock) set(t time.Time) error {
	if c.setErr == nil {
		c.time = t
	}
	c.sets++
	return c.setErr
}

func TestClock(t *testing.T) {
	epoch := time.Unix(1767225600, 0) // 2026-01-01T00:00:00Z
	for _, tt := range []struct {
		name string
		from time.Time
		want time.Time
		sets int
	}{
		{"before the first day", time.Unix(-1, 0), epoch, 1},
		{"a second before", epoch.Add(-time.Second), epoch, 1},
		{"a nanosecond before", epoch.Add(-1), epoch, 1},
		{"at it", epoch, epoch, 0},
		{"after it", epoch.Add(time.Hour), epoch.Add(time.Hour), 0},
	} {
		s, _ := newGuest(t, config.Config{})
		c := &fakeClock{time: tt.from}
		if err := s.advance(c, epoch); err != nil || !c.time.Equal(tt.want) || c.sets != tt.sets {
			t.Errorf("%s: got %s after %d sets, %v, want %s after %d", tt.name, c.time, c.sets, err, tt.want, tt.sets)
		}
		said := strings.Contains(s.console.(*lockedBuffer).String(), "2026-01-01T00:00:00Z")
		if said != (tt.sets > 0) {
			t.Errorf("%s: said so: %v", tt.name, said)
		}
	}
}

func TestClockFails(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	wantError(t, s.advance(&fakeClock{readErr: unix.EFAULT}, time.Unix(1, 0)), "bad address")
	err := s.advance(&fakeClock{time: time.Unix(0, 0), setErr: unix.EPERM}, time.Unix(5, 0))
	wantError(t, err, "1970-01-01T00:00:00Z is before 1970-01-01T00:00:05Z: set: operation not permitted")
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want EPERM in it", err)
	}
}

// readOnly is the kernel's clock, but nothing sets it: a test must not, whatever the
// code under it does.
type readOnly struct {
	realtime
	sets int
}

func (c *readOnly) set(time.Time) error { c.sets++; return nil }

// TestClockOfKernel reads the real one.
func TestClockOfKernel(t *testing.T) {
	before := time.Now()
	now, err := realtime{}.now()
	if err != nil || now.Before(before.Add(-time.Second)) || now.After(time.Now().Add(time.Second)) {
		t.Errorf("got %s, %v, want about %s", now, err, before)
	}
	s, _ := newGuest(t, config.Config{})
	c := &readOnly{}
	if err := s.advance(c, before.Add(-time.Hour)); err != nil || c.sets != 0 {
		t.Errorf("a time that has passed: %d sets, %v", c.sets, err)
	}
	if err := s.advance(c, before.Add(time.Hour)); err != nil || c.sets != 1 {
		t.Errorf("a time to come: %d sets, %v", c.sets, err)
	}
}
