package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A clock is that of the time of day, which the host set before the guest began.
type clock interface {
	now() (time.Time, error)
	set(time.Time) error
}

// realtime is the kernel's.
type realtime struct{}

func (realtime) now() (time.Time, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return time.Unix(ts.Unix()), err
}

func (realtime) set(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// setClock sees to it that the guest never lives before its image was built: what
// has run out by then stays so, whatever the host says the time is. A clock that is
// ahead cannot be told from a right one; what must not depend on that uses times
// that somebody signed.
func setClock(_ context.Context, s *State) error {
	return s.advance(realtime{}, time.Unix(s.Config.Epoch, 0))
}

// advance sets a clock that shows less than t. One that shows more stays: time does
// not go backwards in a guest.
func (s *State) advance(c clock, t time.Time) error {
	now, err := c.now()
	if err != nil {
		return err
	}
	if !now.Before(t) {
		return nil
	}
	if err := c.set(t); err != nil {
		return fmt.Errorf("%s is before %s: set: %w", stamp(now), stamp(t), err)
	}
	s.logf("clock: %s is before the image's %s, which it is set to", stamp(now), stamp(t))
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
