package qemu

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A word is one argument, and the line that it begins on.
type word struct {
	text string
	line int
}

// A command is what a shell would run. Its fault counts only when it is QEMU's:
// a log has free text around the command.
type command struct {
	words []word
	fault error
}

// maxWords bounds the arguments of one command; libvirt makes some hundred.
const maxWords = 4096

// commandWords returns the arguments of the one QEMU command in text, without
// the program.
func commandWords(text string) ([]word, error) {
	commands, err := splitCommands(text)
	if err != nil {
		return nil, err
	}
	return arguments(commands)
}

func splitCommands(text string) ([]command, error) {
	if strings.ContainsRune(text, 0) {
		words, err := nulWords(text)
		return []command{{words: words}}, err
	}
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if argumentPerLine(text) {
		words, err := lineWords(text)
		return []command{{words: words}}, err
	}
	return shellCommands(text)
}

func tooMany(line int) error { return fmt.Errorf("line %d: more than %d arguments", line, maxWords) }

// arguments picks QEMU's command out of several. What stands before the program
// (variables, sudo, a shell's prompt) is dropped.
func arguments(commands []command) ([]word, error) {
	var found []word
	for _, c := range commands {
		w := c.words
		n := slices.IndexFunc(w, func(w word) bool { return program(w.text) })
		switch {
		case len(w) > 0 && strings.HasPrefix(w[0].text, "-"):
			n = -1
		case n < 0 || n+1 == len(w) || !strings.HasPrefix(w[n+1].text, "-"):
			continue
		}
		switch {
		case c.fault != nil:
			return nil, c.fault
		case found != nil:
			return nil, fmt.Errorf("two QEMU commands, on lines %d and %d: keep one", found[0].line, w[0].line)
		}
		found = w[n+1:]
	}
	if found == nil {
		return nil, errors.New("no QEMU command in it")
	}
	return found, nil
}

// nulWords splits what /proc/PID/cmdline holds.
func nulWords(text string) (out []word, err error) {
	for s := range strings.SplitSeq(strings.TrimSuffix(text, "\x00"), "\x00") {
		if len(out) == maxWords {
			return nil, tooMany(1)
		}
		out = append(out, word{s, 1})
	}
	return out, nil
}

// argumentPerLine tells that form from a shell's: no line is continued, and at
// least two lines begin with a dash.
func argumentPerLine(text string) bool {
	dashes := 0
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasSuffix(line, `\`) {
			return false
		}
		if strings.HasPrefix(strings.TrimLeft(line, " \t"), "-") {
			dashes++
		}
	}
	return dashes >= 2
}

// lineWords splits text with an argument, or an option and its value, a line.
func lineWords(text string) (out []word, err error) {
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimLeft(line, " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if len(out) >= maxWords {
			return nil, tooMany(n)
		}
		value, more := line, true
		if line[0] == '-' {
			var name string
			name, value, more = strings.Cut(line, " ")
			out = append(out, word{name, n})
		}
		if !more {
			continue
		}
		if value, err = unquoted(strings.TrimLeft(value, " \t"), n); err != nil {
			return nil, err
		}
		out = append(out, word{value, n})
	}
	return out, nil
}

// unquoted takes the quotes from a value that begins with one.
func unquoted(s string, line int) (string, error) {
	if s == "" || (s[0] != '\'' && s[0] != '"') {
		return s, nil
	}
	c, err := shellCommands(s)
	switch {
	case err != nil:
	case len(c) != 1 || len(c[0].words) != 1:
		err = errors.New("line 1: more than one word")
	default:
		err = c[0].fault
	}
	if err != nil {
		_, what, _ := strings.Cut(err.Error(), ": ") // the line is ours
		return "", fmt.Errorf("line %d: %s", line, what)
	}
	return c[0].words[0].text, nil
}

// A shell splits text into commands of words, as POSIX 2.3 has it, as far as a
// command line needs it.
type shell struct {
	text     string
	at       int // offset of the next byte
	line     int
	commands []command
	command  command // the one that is being read
	count    int     // of words in all commands
	current  []byte
	begun    int  // line that the current word began on; 0: in no word
	redirect bool // the next word is a file for output, no argument
}

func shellCommands(text string) ([]command, error) {
	s := &shell{text: text, line: 1}
	for s.at < len(s.text) {
		if err := s.step(); err != nil {
			return nil, err
		}
		if s.count > maxWords {
			return nil, tooMany(s.line)
		}
	}
	s.endCommand()
	return s.commands, nil
}

// step reads one byte outside of quotes, and what belongs to it.
func (s *shell) step() error {
	c := s.next()
	switch {
	case c == ' ' || c == '\t':
		s.endWord()
	case c == '\n':
		s.endCommand()
		s.line++
	case strings.IndexByte(";&|", c) >= 0:
		s.endCommand()
	case c == '<' || c == '>':
		s.redirection()
	case c == '(' || c == ')' || c == '`' || c == '$' || (c == '~' && s.begun == 0):
		s.unexpanded(c)
	case c == '#' && s.begun == 0:
		s.comment()
	case c == '\\':
		s.escaped()
	case c == '\'' || c == '"':
		return s.quoted(c)
	default:
		s.add(c)
	}
	return nil
}

// unexpanded notes what a shell would put something else in place of.
func (s *shell) unexpanded(c byte) {
	if s.command.fault == nil {
		s.command.fault = fmt.Errorf("line %d: %q is not expanded: write out what it stands for, or put it in single quotes", s.line, c)
	}
	s.add(c)
}

func (s *shell) next() byte {
	c := s.text[s.at]
	s.at++
	return c
}

func (s *shell) add(b ...byte) {
	if s.begun == 0 {
		s.begun = s.line
	}
	s.current = append(s.current, b...)
}

func (s *shell) endWord() {
	if s.begun != 0 && !s.redirect {
		s.command.words = append(s.command.words, word{string(s.current), s.begun})
		s.count++
	}
	if s.begun != 0 {
		s.redirect = false
	}
	s.current, s.begun = s.current[:0], 0
}

func (s *shell) endCommand() {
	s.endWord()
	s.redirect = false
	if len(s.command.words) > 0 {
		s.commands = append(s.commands, s.command)
	}
	s.command = command{}
}

// redirection drops "2>&1" and "> file".
func (s *shell) redirection() {
	if strings.Trim(string(s.current), "0123456789") == "" {
		s.current, s.begun = s.current[:0], 0 // the descriptor's number
	}
	s.endWord()
	for s.at < len(s.text) && strings.IndexByte("<>&", s.text[s.at]) >= 0 {
		s.at++
	}
	s.redirect = true
}

func (s *shell) comment() {
	n := strings.IndexByte(s.text[s.at:], '\n')
	if n < 0 {
		n = len(s.text) - s.at
	}
	s.at += n
}

// escaped is what follows a backslash outside of quotes.
func (s *shell) escaped() {
	if s.at == len(s.text) {
		s.add('\\')
		return
	}
	if c := s.next(); c != '\n' {
		s.add(c)
		return
	}
	s.line++ // a continued line
}

// quoted reads up to the closing quote.
func (s *shell) quoted(quote byte) error {
	begun := s.line
	s.add() // "" is a word
	for s.at < len(s.text) {
		c := s.next()
		switch {
		case c == quote:
			return nil
		case quote == '"' && (c == '$' || c == '`'):
			s.unexpanded(c)
			continue
		case quote == '"' && c == '\\' && s.at < len(s.text) && strings.IndexByte("$`\"\\\n", s.text[s.at]) >= 0:
			if c = s.next(); c == '\n' {
				s.line++
				continue
			}
		case c == '\n':
			s.line++
		}
		s.add(c)
	}
	return fmt.Errorf("line %d: the quote %c is never closed", begun, quote)
}
