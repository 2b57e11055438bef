package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/plinth-os/plinth/builder"
)

// reporter prints progress on stderr.
type reporter struct {
	mu     sync.Mutex
	w      io.Writer
	mode   string // live, plain, json or none
	more   bool   // plain lines for downloads, too
	active []string
	state  map[string]builder.Event
	drawn  int // lines of the live block on the screen
	last   time.Time
}

// newReporter chooses the form: "auto" is live on a terminal, else plain lines.
func (c *common) newReporter() (*reporter, error) {
	mode := c.progress
	switch mode {
	case "auto":
		mode = "plain"
		if c.env.terminal && c.env.getenv("CI") == "" {
			mode = "live"
		}
	case "plain", "json", "none":
	default:
		return nil, usagef("--progress is %q: want auto, plain, json or none", mode)
	}
	if c.quiet {
		mode = "none"
	}
	return &reporter{w: c.env.stderr, mode: mode, more: c.verbose, state: map[string]builder.Event{}}, nil
}

// event is handed to builder.Run; it is called from many goroutines.
func (r *reporter) event(e builder.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.mode {
	case "json":
		json.NewEncoder(r.w).Encode(e)
	case "plain":
		if line := plainLine(e); line != "" {
			fmt.Fprintln(r.w, line)
		} else if r.more && e.Total > 0 && e.Bytes == e.Total {
			fmt.Fprintf(r.w, "%-10s %s  %s\n", e.Step, e.Message, size(e.Total))
		}
	case "live":
		r.live(e)
	}
}

// notice prints a line that is no step.
func (r *reporter) notice(format string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.mode {
	case "json":
		json.NewEncoder(r.w).Encode(builder.Event{State: "notice", Message: fmt.Sprintf(format, a...)})
	case "plain", "live":
		r.erase()
		fmt.Fprintf(r.w, "plinth: "+format+"\n", a...)
	}
}

func plainLine(e builder.Event) string {
	switch e.State {
	case "start":
		return fmt.Sprintf("%-10s %s", e.Step, e.Message)
	case "done":
		return fmt.Sprintf("%-10s done  %10s  %6.2fs", e.Step, size(e.Bytes), e.Elapsed.Seconds())
	case "cached":
		return fmt.Sprintf("%-10s cached%10s", e.Step, size(e.Bytes))
	case "failed", "stopped":
		return fmt.Sprintf("%-10s %s after %.2fs", e.Step, e.State, e.Elapsed.Seconds())
	}
	return ""
}

// live keeps one line a running step at the bottom of the screen; a finished
// step becomes an ordinary line above them.
func (r *reporter) live(e builder.Event) {
	switch e.State {
	case "start":
		r.active = append(r.active, e.Step)
		r.state[e.Step] = e
	case "progress":
		if _, ok := r.state[e.Step]; !ok {
			r.active = append(r.active, e.Step)
		}
		r.state[e.Step] = e
		if e.Total > 0 && e.Bytes == e.Total {
			r.remove(e.Step) // a download has no other end
		} else if time.Since(r.last) < 80*time.Millisecond {
			return
		}
	default:
		r.erase()
		r.remove(e.Step)
		fmt.Fprintln(r.w, plainLine(e))
	}
	r.draw()
}

func (r *reporter) remove(step string) {
	delete(r.state, step)
	for i, s := range r.active {
		if s == step {
			r.active = append(r.active[:i], r.active[i+1:]...)
			return
		}
	}
}

func (r *reporter) erase() {
	if r.drawn > 0 {
		fmt.Fprintf(r.w, "\x1b[%dA\x1b[J", r.drawn)
		r.drawn = 0
	}
}

func (r *reporter) draw() {
	r.erase()
	for _, s := range r.active {
		e := r.state[s]
		text := e.Message
		if e.State == "progress" {
			text = size(e.Bytes)
			if e.Total > 0 {
				text += " of " + size(e.Total)
			}
			text = strings.TrimSpace(e.Message + " " + text)
		}
		fmt.Fprintf(r.w, "%-10s %.60s\n", s, text)
	}
	r.drawn = len(r.active)
	r.last = time.Now()
}

// size prints bytes for people.
func size(n int64) string {
	const unit = 1024
	switch {
	case n < unit:
		return fmt.Sprintf("%d B", n)
	case n < unit*unit:
		return fmt.Sprintf("%.1f KiB", float64(n)/unit)
	case n < unit*unit*unit:
		return fmt.Sprintf("%.1f MiB", float64(n)/(unit*unit))
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(unit*unit*unit))
}
