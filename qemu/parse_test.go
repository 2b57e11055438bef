package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c)": "7.2.22",
		"QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)":                           "11.1.3",
		"QEMU emulator version 10.1.0-rc1":                                              "10.1.0",
		"TPM emulator version 0.7.1, Copyright (c) 2014-2021 IBM Corp.":                 "0.7.1",
		"bash: no such program":                                                         "",
		"":                                                                              "",
	} {
		got, err := parseVersion("x", out)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", out, got, err, want)
		}
	}
}

func TestLastLines(t *testing.T) {
	for _, test := range []struct {
		in   string
		n    int
		want []string
	}{
		{"", 3, nil},
		{"a\r\nb\n\n \nc", 2, []string{"b", "c"}},
		{"\x1b[2J\x1b[01;01H\x1b[=3hBds\tDxe\x1b[0m\r\n", 3, []string{"Bds Dxe"}},
		{"\x1b]52;c;AAAA\x07x\x1b]0;t\x1b\\y", 3, []string{"xy"}},
		{"a\x1bb\x00\u202e\xff", 3, []string{"ab\ufffd"}},
	} {
		if got := lastLines(test.in, test.n); !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.in, got, test.want)
		}
	}
}

func FuzzLastLines(f *testing.F) {
	f.Add("\x1b[2J\x1b[01;01HBdsDxe: loading\r\n\x1b]0;title\x07[    0.000000] Linux version\n")
	f.Fuzz(func(t *testing.T, s string) {
		lines := lastLines(s, 5)
		if len(lines) > 5 {
			t.Errorf("%d lines: want at most 5", len(lines))
		}
		for _, line := range lines {
			if line == "" || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("line %q of %q", line, s)
			}
		}
	})
}

func TestTail(t *testing.T) {
	tail := &tail{limit: 4}
	for _, step := range []struct{ write, want string }{
		{"", ""}, {"ab", "ab"}, {"cd", "abcd"}, {"e", "bcde"}, {"0123456789", "6789"}, {"", "6789"},
	} {
		if n, err := tail.Write([]byte(step.write)); n != len(step.write) || err != nil {
			t.Errorf("write %q: %d, %v", step.write, n, err)
		}
		if got := tail.String(); got != step.want {
			t.Errorf("after %q: got %q, want %q", step.write, got, step.want)
		}
	}
}

func TestReadFrame(t *testing.T) {
	whole := append(be(uint32(5)), "12345and more"...)
	for _, r := range []func() *bytes.Reader{func() *bytes.Reader { return bytes.NewReader(whole) }} {
		if b, err := readFrame(iotest.OneByteReader(r())); string(b) != "12345" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
	for n := range 9 {
		if _, err := readFrame(bytes.NewReader(whole[:n])); !errors.Is(err, errShort) {
			t.Errorf("%d bytes: got %v, want errShort", n, err)
		}
	}
	if b, err := readFrame(bytes.NewReader(append(be(uint32(MaxReport)), make([]byte, MaxReport)...))); len(b) != MaxReport || err != nil {
		t.Errorf("largest: got %d bytes, %v", len(b), err)
	}
	if _, err := readFrame(bytes.NewReader(be(uint32(MaxReport + 1)))); err == nil || errors.Is(err, errShort) {
		t.Errorf("too large: got %v", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		doc, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again := append(binary.BigEndian.AppendUint32(nil, uint32(len(doc))), doc...); !bytes.HasPrefix(b, again) {
			t.Errorf("%x: got %x", b, doc)
		}
	})
}

// greeting and the rest are from a QEMU 7.2.22.
const (
	greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18+b3"}, "capabilities": ["oob"]}}`
	answer   = `{"return": {"status": "internal-error", "singlestep": false, "running": false}, "id": 3}`
	refusal  = `{"id": 4, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}`
	event    = `{"timestamp": {"seconds": 1795253399, "microseconds": 921236}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}`
)

func TestReadMessages(t *testing.T) {
	var got []message
	keep := func(m message) error { got = append(got, m); return nil }
	if err := readMessages(strings.NewReader(greeting+"\r\n"+answer+"\r\n"+refusal+"\n"+event), keep); err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got[0].Greeting == nil || got[1].ID != 3 || got[1].Return == nil || got[2].Error.Class != "CommandNotFound" ||
		shutdown(got[3].Data).state != "shut down: host-qmp-quit" {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"]\n", "{\n", `{"id": "x"}`, strings.Repeat(" ", maxQMPLine+1)} {
		if err := readMessages(strings.NewReader(bad), keep); err == nil {
			t.Errorf("%.20q: got no error", bad)
		}
	}
}

func FuzzReadMessages(f *testing.F) {
	f.Add([]byte(greeting + "\n" + answer + "\n" + refusal + "\n" + event + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMonitor(nil, 0)
		n := 0
		readMessages(bytes.NewReader(b), func(msg message) error {
			n++
			return m.dispatch(msg, func(msg message) { shutdown(msg.Data) })
		})
		if lines := bytes.Count(b, []byte("\n")) + 1; n > lines || len(m.answers) > cap(m.answers) {
			t.Errorf("%d messages in %d lines", n, lines)
		}
	})
}
