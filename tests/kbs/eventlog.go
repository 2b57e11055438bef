package kbs

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// imaPCR is extended by the kernel: CONFIG_IMA_MEASURE_PCR_IDX.
const imaPCR = 10

// An event is one of a register.
type event struct {
	kind   string // EV_IPL
	text   string // what can be read of its data
	digest []byte
}

func (e event) String() string {
	if e.text == "" {
		return e.kind
	}
	return fmt.Sprintf("%s %q", e.kind, e.text)
}

// replay replays an event log to the registers and returns the events of each.
func (b *Broker) replay(text string, pcrs [][]byte) (map[int][]event, error) {
	events, err := replayLog(text, pcrs)
	if b.Off[CheckLog] {
		return events, nil
	}
	return events, err
}

// replayLog returns with an error what could be read of the log.
func replayLog(text string, pcrs [][]byte) (map[int][]event, error) {
	raw, err := decode64("event_log", text)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	parsed, err := tcg.ParseEventLog(raw, tcg.ParseOpts{})
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	events := map[int][]event{}
	for _, e := range parsed.Events(register.HashSHA256) {
		if e.Type != tcg.NoAction {
			events[e.Index] = append(events[e.Index], event{e.Type.TCGString(), readable(e.Data), e.Digest})
		}
	}
	var mrs []register.MR
	var silent []string
	for n, value := range pcrs {
		mrs = append(mrs, register.FakeMR{Index: n, Digest: value, DigestAlg: crypto.SHA256})
		// go-eventlog passes over a register without events. Nothing is said of the
		// one that the kernel's IMA keeps a log of its own for.
		if len(events[n]) == 0 && n != imaPCR && !bytes.Equal(value, initial(n)) {
			silent = append(silent, fmt.Sprintf("pcr%d", n))
		}
	}
	if len(silent) > 0 {
		return events, fmt.Errorf("log: %s: extended, and the log has no event of it", strings.Join(silent, ", "))
	}
	_, err = parsed.Verify(mrs)
	var replay tcg.ReplayError
	if errors.As(err, &replay) {
		slices.Sort(replay.InvalidMRs)
		names := make([]string, len(replay.InvalidMRs))
		for i, n := range replay.InvalidMRs {
			names[i] = fmt.Sprintf("pcr%d", n)
		}
		return events, fmt.Errorf("log: %s: the log does not replay to what is quoted", strings.Join(names, ", "))
	}
	if err != nil {
		return events, fmt.Errorf("log: %w", err)
	}
	return events, nil
}

// initial is a register that nobody has extended: TCG PC Client Platform TPM Profile,
// section 4.6, of a machine without a dynamic launch.
func initial(n int) []byte {
	if 17 <= n && n <= 22 {
		return bytes.Repeat([]byte{0xff}, 32)
	}
	return make([]byte, 32)
}

// readable is the text in an event's data, "" when there is none: UTF-16, ASCII with
// or without a NUL, or a tagged event of CoCo's runtime log.
func readable(data []byte) string {
	const tag = "LEAA" // and u32 size; kbs/docs/confidential-containers-eventlog.md
	if rest, ok := bytes.CutPrefix(data, []byte(tag)); ok && len(rest) >= 4 {
		data = rest[4:]
	}
	if text := printable(string(bytes.TrimRight(data, "\x00"))); text != "" {
		return text
	}
	if len(data)%2 != 0 {
		return ""
	}
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(data[2*i:])
	}
	return printable(strings.TrimRight(string(utf16.Decode(units)), "\x00"))
}

// printable is s, cut to 160 characters, or "" when it has others than ASCII's.
func printable(s string) string {
	for _, c := range s {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return s[:min(len(s), 160)]
}
