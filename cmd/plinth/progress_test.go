package main

import (
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/builder"
)

// events are a short build with a download in it.
var events = []builder.Event{
	{Step: "kernel", State: "start", Message: "take the kernel"},
	{Step: "fetch", State: "progress", Message: "linux-image", Bytes: 1 << 20, Total: 2 << 20},
	{Step: "fetch", State: "progress", Message: "linux-image", Bytes: 2 << 20, Total: 2 << 20},
	{Step: "kernel", State: "done", Bytes: 1536, Elapsed: 1500 * time.Millisecond},
	{Step: "stub", State: "cached", Bytes: 10},
	{Step: "uki", State: "failed", Elapsed: time.Second},
	{Step: "disk", State: "stopped", Elapsed: time.Second},
}

func report(t *testing.T, c common) string {
	t.Helper()
	var b strings.Builder
	c.env.stderr = &b
	r, err := c.newReporter()
	if err != nil {
		t.Fatal(err)
	}
	r.notice("profile %s", "demo")
	for _, e := range events {
		r.event(e)
	}
	return b.String()
}

func noEnv(string) string { return "" }

func TestProgress(t *testing.T) {
	const plain = `plinth: profile demo
kernel     take the kernel
kernel     done     1.5 KiB    1.50s
stub       cached      10 B
uki        failed after 1.00s
disk       stopped after 1.00s
`
	for _, c := range []struct {
		name   string
		common common
		want   string
	}{
		{"plain", common{env: &env{getenv: noEnv}, progress: "plain"}, plain},
		{"auto without a terminal", common{env: &env{getenv: noEnv}, progress: "auto"}, plain},
		{"auto in CI", common{env: &env{getenv: func(string) string { return "1" }, terminal: true}, progress: "auto"}, plain},
		{"verbose", common{env: &env{getenv: noEnv}, progress: "plain", verbose: true},
			strings.Replace(plain, "kernel     done", "fetch      linux-image  2.0 MiB\nkernel     done", 1)},
		{"none", common{env: &env{getenv: noEnv}, progress: "none"}, ""},
		{"quiet", common{env: &env{getenv: noEnv}, progress: "plain", quiet: true}, ""},
	} {
		if got := report(t, c.common); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
	if got := report(t, common{env: &env{getenv: noEnv}, progress: "json"}); strings.Count(got, "\n") != len(events)+1 ||
		!strings.Contains(got, `{"step":"kernel","state":"done","bytes":1536,"elapsed_ns":1500000000}`) {
		t.Errorf("json: %s", got)
	}
}

// On a terminal a running step has a line at the bottom, and what is left at the
// end is what plain lines would have been, without beginnings.
func TestLiveProgress(t *testing.T) {
	got := screen(report(t, common{env: &env{getenv: noEnv, terminal: true}, progress: "auto"}))
	const want = `plinth: profile demo
kernel     done     1.5 KiB    1.50s
stub       cached      10 B
uki        failed after 1.00s
disk       stopped after 1.00s
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// screen is what a terminal shows that knows cursor-up and erase-below.
func screen(out string) string {
	var lines []string
	for part := range strings.SplitAfterSeq(out, "\n") {
		for strings.HasPrefix(part, "\x1b[") {
			up, rest, _ := strings.Cut(part[2:], "A\x1b[J")
			lines = lines[:len(lines)-int(up[0]-'0')]
			part = rest
		}
		if part != "" {
			lines = append(lines, part)
		}
	}
	return strings.Join(lines, "")
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 35 << 20: "35.0 MiB", 5 << 29: "2.50 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
