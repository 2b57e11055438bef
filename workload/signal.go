package workload

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// signals are those of Linux in the order of their numbers, from 1: signal(7),
// "Signal numbering for standard signals", x86 and ARM.
var signals = []string{
	"SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE",
	"SIGKILL", "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT",
	"SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU",
	"SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
}

// Real-time signals: SIGRTMIN of the C library, which keeps the first two, and
// SIGRTMAX.
const (
	rtMin = 34
	rtMax = 64
)

// stopSignal brings what an image says to one spelling. Images have names with and
// without SIG, and numbers.
func stopSignal(s string) (string, error) {
	if s == "" {
		return "SIGTERM", nil
	}
	name := strings.ToUpper(s)
	if n, err := strconv.Atoi(s); err == nil && 1 <= n && n <= len(signals) {
		name = signals[n-1]
	} else if err == nil {
		name = fmt.Sprintf("SIGRTMIN+%d", n-rtMin)
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if number(name) == 0 {
		return "", fmt.Errorf("the image's stop signal %.100q: not one", s)
	}
	return name, nil
}

// Signal is the number of StopSignal.
func (e *Effective) Signal() int { return number(e.StopSignal) }

// number is 0 for what is no signal.
func number(name string) int {
	if i := slices.Index(signals, name); i >= 0 {
		return i + 1
	}
	for _, base := range []struct {
		name string
		n    int
	}{{"SIGRTMIN", rtMin}, {"SIGRTMAX", rtMax}} {
		rest, ok := strings.CutPrefix(name, base.name)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				return 0
			}
		}
		if n := base.n + offset; rtMin <= n && n <= rtMax {
			return n
		}
	}
	return 0
}
