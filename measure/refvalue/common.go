package refvalue

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// A Register names a register in one bank.
type Register struct {
	Name string `json:"register"` // "pcr4", "rtmr1"
	Bank string `json:"bank"`
}

// A Boot is what the registers held after one boot.
type Boot struct {
	Name   string
	Values map[Register]string // lower-case hex
	Log    *eventlog.Log       // what explains them; nil: not known
}

// An Agreement is a register that several boots have the same value in.
type Agreement struct {
	Register
	Value   string   `json:"value"`
	Trivial string   `json:"trivial,omitempty"` // why it says nothing; "" when it means something
	Holds   string   `json:"holds,omitempty"`   // what the register is for
	Events  []string `json:"events,omitempty"`  // that lead to the value, where a log tells
}

// Shared is what several boots have in common. Every register that all of them
// have is in Same or in Differ.
type Shared struct {
	Same   []Agreement `json:"same"`
	Differ []Register  `json:"differ"`
	Some   []Register  `json:"some"` // of some boots only: not compared
}

// Common compares boots. That a register is the same in all says that nothing
// which differed between them is measured there, and no more: where it means
// anything, it may still be the firmware that it means.
func Common(boots []Boot) *Shared {
	out := &Shared{Same: []Agreement{}, Differ: []Register{}, Some: []Register{}}
	in, values := map[Register]int{}, map[Register]map[string]bool{}
	for _, b := range boots {
		for r, v := range b.Values {
			if values[r] == nil {
				values[r] = map[string]bool{}
			}
			in[r]++
			values[r][v] = true
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(in), compareRegisters) {
		switch {
		case in[r] < len(boots):
			out.Some = append(out.Some, r)
		case len(values[r]) > 1:
			out.Differ = append(out.Differ, r)
		default:
			out.Same = append(out.Same, agreement(r, boots))
		}
	}
	return out
}

func agreement(r Register, boots []Boot) Agreement {
	a := Agreement{Register: r, Value: boots[0].Values[r], Holds: holds(r.Name)}
	a.Trivial = TrivialDigest(r.Bank, a.Value)
	for _, b := range boots {
		if a.Events = b.explain(r); a.Events != nil {
			break
		}
	}
	return a
}

// explain names the events of a register, in their order, if they lead to its value.
func (b *Boot) explain(r Register) (out []string) {
	alg, err := eventlog.ParseAlg(r.Bank)
	if b.Log == nil || err != nil {
		return nil
	}
	values, err := b.Log.Replay(alg)
	if err != nil {
		return nil
	}
	explained := false
	for n, v := range values {
		explained = explained || b.Log.RegisterName(n) == r.Name && hex.EncodeToString(v) == b.Values[r]
	}
	if !explained {
		return nil
	}
	for i := range b.Log.Events {
		e := &b.Log.Events[i]
		if e.Type == eventlog.NoAction || b.Log.RegisterName(e.Register) != r.Name || e.Digest(alg) == nil {
			continue
		}
		name := e.Name
		if name == "" {
			name = e.Type.String()
		}
		out = append(out, name)
	}
	return out
}

// Replayed returns the values that the registers of a log end with, in all its
// banks. A register that nothing extended is not among them.
func Replayed(l *eventlog.Log) (map[Register]string, error) {
	out := map[Register]string{}
	for _, alg := range l.Algs {
		if alg.Hash() == 0 { // of a bank that no verifier reads
			continue
		}
		values, err := l.Replay(alg)
		if err != nil {
			return nil, err
		}
		for r, v := range values {
			out[Register{l.RegisterName(r), alg.String()}] = hex.EncodeToString(v)
		}
	}
	return out, nil
}

func holds(name string) string {
	digits := strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return ""
	}
	if strings.HasPrefix(name, "rtmr") {
		return (&eventlog.Log{CC: true}).RegisterHolds(n + 1)
	}
	return (&eventlog.Log{}).RegisterHolds(n)
}

// compareRegisters orders by bank, then by kind and number.
func compareRegisters(a, b Register) int {
	if c := strings.Compare(a.Bank, b.Bank); c != 0 {
		return c
	}
	if c := len(a.Name) - len(b.Name); c != 0 && strings.TrimRight(a.Name, "0123456789") == strings.TrimRight(b.Name, "0123456789") {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// MaxRegisters bounds what ParseRegisters reads, in bytes.
const MaxRegisters = 1 << 20

var (
	bankLine     = regexp.MustCompile(`(?i)^(sha1|sha256|sha384|sha512)\s*:$`)
	registerLine = regexp.MustCompile(`(?i)^(?:pcr)?\s*[-_]?\s*\[?([0-9]{1,2})\]?\s*[:=]\s*(?:0x)?([0-9a-f][0-9a-f ]*)$`)
	analyzeLine  = regexp.MustCompile(`^([0-9]{1,2})\s+[a-z-]+\s+([0-9a-f]{40,})$`) // systemd-analyze pcrs, less its heading
)

// ParseRegisters reads PCR values as people keep them: what tpm2_pcrread prints,
// lines as "PCR 7: 0123..." or "PCR-07: 01 23 ...", and the table of
// systemd-analyze pcrs. Without a heading the length tells the bank. Empty lines
// and those that begin with # are passed over.
func ParseRegisters(b []byte) (map[Register]string, error) {
	if len(b) > MaxRegisters {
		return nil, fmt.Errorf("refvalue: registers: %d bytes: want at most %d", len(b), MaxRegisters)
	}
	out, bank := map[Register]string{}, ""
	for i, line := range bytes.Split(b, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' || strings.HasPrefix(text, "NR ") {
			continue
		}
		if m := bankLine.FindStringSubmatch(text); m != nil {
			bank = strings.ToLower(m[1])
			continue
		}
		r, v, err := parseRegister(text, bank)
		if err != nil {
			return nil, fmt.Errorf("refvalue: registers: line %d: %w", i+1, err)
		}
		if old, ok := out[r]; ok && old != v {
			return nil, fmt.Errorf("refvalue: registers: line %d: %s, %s: a second value", i+1, r.Name, r.Bank)
		}
		out[r] = v
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("refvalue: registers: %d bytes, and no register in them", len(b))
	}
	return out, nil
}

// parseRegister reads one line under the heading of a bank, or under none.
func parseRegister(text, bank string) (Register, string, error) {
	m := registerLine.FindStringSubmatch(text)
	if m == nil {
		m = analyzeLine.FindStringSubmatch(text)
	}
	if m == nil {
		return Register{}, "", fmt.Errorf("%.40q: want a register and its value, as PCR07: and hex digits", text)
	}
	value, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
	if err != nil {
		return Register{}, "", fmt.Errorf("PCR %s: %w", m[1], err)
	}
	number, _ := strconv.Atoi(m[1])
	if number >= 24 { // of a PC client TPM
		return Register{}, "", fmt.Errorf("PCR %d: want 0 to 23", number)
	}
	for _, alg := range []eventlog.Alg{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384, eventlog.SHA512} {
		if len(value) == alg.Size() && (bank == "" || bank == alg.String()) {
			return Register{fmt.Sprintf("pcr%d", number), alg.String()}, hex.EncodeToString(value), nil
		}
	}
	if bank == "" {
		return Register{}, "", fmt.Errorf("PCR %d: %d bytes: no bank has digests of that length", number, len(value))
	}
	return Register{}, "", fmt.Errorf("PCR %d: %d bytes under the heading %s", number, len(value), bank)
}
