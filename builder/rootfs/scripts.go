package rootfs

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// Maintainer scripts are read, not run: what a first installation would do, as
// far as it shows in the text, is said in notes.

// scriptArgs are the first arguments of the scripts of a first installation; the
// second is empty. Debian Policy 6.5.
var scriptArgs = []struct{ name, arg string }{{"preinst", "install"}, {"postinst", "configure"}}

// imitated are packages whose scripts have no more to do: layout.go, accounts.go
// and certificates.go do it.
var imitated = map[string]bool{"base-files": true, "base-passwd": true, "ca-certificates": true, "libc-bin": true}

// A command of a script; a word that is no plain text is as the script has it.
type command struct {
	script string
	words  []string
}

// harmless are commands that change nothing, that only matter when a package is
// changed in place, or whose work is done here or not needed: a service manager
// to tell, byte code to compile, a cache to write.
var harmless = wordSet(`[ test : true false echo printf exit return set shift read cd local export unset trap break continue . source
	command which type hash umask wait dpkg dpkg-query dpkg-vendor dpkg-maintscript-helper dpkg-trigger dpkg-architecture
	grep egrep fgrep sed awk gawk mawk cut tr sort uniq head tail cat ls id getent stat readlink realpath dirname basename find wc cmp diff
	md5sum sha256sum date uname expr mktemp xargs ps pidof sleep sync tty mountpoint debconf-escape pathfind
	rm rmdir deb-systemd-helper deb-systemd-invoke systemctl invoke-rc.d update-rc.d service runlevel ischroot kill killall
	py3compile py3clean pypy3compile pypy3clean pycompile pyclean ldconfig systemd-sysusers systemd-tmpfiles update-ca-certificates install-info restorecon
	busctl dbus-send getcap getfacl ucfr update-menus update-icon-caches shadowconfig systemd-machine-id-setup`)

func wordSet(text string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(text) {
		set[w] = true
	}
	return set
}

// readScripts fills in the commands of the packages' scripts.
func (b *build) readScripts() {
	for _, p := range b.packages {
		for _, s := range scriptArgs {
			text := p.Control[s.name]
			if len(text) == 0 {
				continue
			}
			if first, _, _ := bytes.Cut(text, []byte("\n")); !bytes.Contains(first, []byte("sh")) {
				b.note(p.Name, "%s is no shell script and was not read", s.name)
				continue
			}
			commands, err := readScript(s.name, s.arg, text)
			if err != nil {
				b.note(p.Name, "%s was not understood: %v", s.name, err)
			}
			p.commands = append(p.commands, commands...)
		}
	}
}

// scripts notes what the scripts of the packages would do that is not done.
func (b *build) scripts() error {
	for _, p := range b.packages {
		if imitated[p.Name] {
			continue
		}
		for _, c := range p.commands {
			if !b.done(c) {
				b.note(p.Name, "%s would run: %.200s", c.script, strings.Join(c.words, " "))
			}
		}
		b.noteAlternatives(p)
	}
	return nil
}

// noteAlternatives names the links that update-alternatives would make, where the
// tree has none: of several targets that of the highest priority.
func (b *build) noteAlternatives(p *pkg) {
	targets, priorities := map[string]string{}, map[string]int{}
	for _, c := range p.commands {
		link, target, priority, ok := c.alternative()
		if !ok || b.get(link) != nil || b.get(target) == nil {
			continue
		}
		if old, has := priorities[link]; !has || priority > old {
			targets[link], priorities[link] = target, priority
		}
	}
	for link, target := range targets { // notes are sorted in the end
		b.note(p.Name, "root.alternatives can have %q = %q", link, target)
	}
}

// done reports whether the tree has what a command makes, or does without.
func (b *build) done(c command) bool {
	args := c.operands()
	switch name := path.Base(c.words[0]); name {
	case "sed":
		return !slices.ContainsFunc(c.words, func(w string) bool { return strings.HasPrefix(w, "-i") })
	case "update-alternatives", "dpkg-divert":
		return true // with a note of its own; applied before
	case "dpkg-statoverride":
		return slices.Contains(c.words, "--list") || slices.Contains(c.words, "--remove")
	case "adduser", "useradd", "addgroup", "groupadd":
		return b.hasAccount(args)
	case "mkdir", "touch", "install", "cp", "mv", "ln":
		return len(args) > 0 && path.IsAbs(args[len(args)-1]) && (b.get(args[len(args)-1]) != nil || b.isDir(args[len(args)-1]))
	default:
		if len(args) > 0 && path.Base(args[0]) == "py_compile.py" {
			return true // byte code
		}
		return harmless[name] || strings.HasPrefix(name, "db_")
	}
}

// hasAccount reports whether one of the arguments names a user or group there is.
func (b *build) hasAccount(args []string) bool {
	passwd, err1 := b.lines(passwdFile)
	group, err2 := b.lines(groupFile)
	return err1 == nil && err2 == nil && slices.ContainsFunc(args, func(a string) bool { return passwd.names[a] || group.names[a] })
}

// operands are the words that are no options.
func (c command) operands() []string {
	var out []string
	for _, w := range c.words[1:] {
		if !strings.HasPrefix(w, "-") {
			out = append(out, w)
		}
	}
	return out
}

// alternative returns what update-alternatives --install LINK NAME PATH PRIORITY
// would link.
func (c command) alternative() (link, target string, priority int, ok bool) {
	i := slices.Index(c.words, "--install")
	if path.Base(c.words[0]) != "update-alternatives" || i < 0 || len(c.words) < i+5 {
		return "", "", 0, false
	}
	link, target = c.words[i+1], c.words[i+3]
	priority, err := strconv.Atoi(c.words[i+4])
	return link, target, priority, err == nil && path.IsAbs(link) && path.IsAbs(target)
}

// A diversion moves a file of every package but one.
type diversion struct{ by, path string }

// diversions returns those that scripts ask dpkg-divert for, by path.
func (b *build) diversions() (map[string]diversion, error) {
	b.readScripts()
	out := map[string]diversion{}
	for _, p := range b.packages {
		for _, c := range p.commands {
			from, to, ok := c.diversion()
			if !ok {
				continue
			}
			from, err := b.links.place(from)
			if err == nil {
				to, err = b.links.place(to)
			}
			if err != nil {
				return nil, fmt.Errorf("rootfs: package %s: diversion: %w", p.Name, err)
			}
			if old, dup := out[from]; dup && old.by != p.Name {
				return nil, fmt.Errorf("rootfs: /%s: packages %s and %s both divert it", from, old.by, p.Name)
			}
			out[from] = diversion{p.Name, to}
		}
	}
	return out, nil
}

func (c command) diversion() (from, to string, ok bool) {
	if path.Base(c.words[0]) != "dpkg-divert" || slices.Contains(c.words, "--remove") {
		return "", "", false
	}
	for i := 1; i < len(c.words); i++ {
		switch w := c.words[i]; {
		case w == "--divert" && i+1 < len(c.words):
			to = c.words[i+1]
			i++
		case strings.HasPrefix(w, "--divert="):
			to = w[len("--divert="):]
		case w == "--package" || w == "--instdir" || w == "--admindir" || w == "--root":
			i++
		case !strings.HasPrefix(w, "-"):
			from = w
		}
	}
	return from, to, path.IsAbs(from) && path.IsAbs(to)
}

// readScript returns the commands that the text of a script shows for the first
// argument arg and an empty second one.
func readScript(name, arg string, text []byte) ([]command, error) {
	f, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(text), name)
	if err != nil {
		return nil, err
	}
	r := &scriptReader{script: name, arg: arg, functions: map[string]*syntax.Stmt{}, busy: map[string]bool{}}
	r.statements(f.Stmts)
	return r.commands, nil
}

// A scriptReader goes over a script. Where a condition is not known it takes both
// ways.
type scriptReader struct {
	script, arg string
	functions   map[string]*syntax.Stmt
	busy        map[string]bool // functions that are being read
	calls       int
	commands    []command
}

// Bounds for hostile scripts: function calls that are followed, and commands kept.
const (
	maxCalls    = 1000
	maxCommands = 10000
)

func (r *scriptReader) statements(stmts []*syntax.Stmt) {
	for _, s := range stmts {
		r.statement(s)
	}
}

func (r *scriptReader) statement(s *syntax.Stmt) {
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		r.call(c)
	case *syntax.BinaryCmd:
		r.statement(c.X)
		known := r.truth(c.X)
		if c.Op == syntax.AndStmt && known == no || c.Op == syntax.OrStmt && known == yes {
			return
		}
		r.statement(c.Y)
	case *syntax.IfClause:
		r.ifClause(c)
	case *syntax.CaseClause:
		r.caseClause(c)
	case *syntax.WhileClause:
		r.statements(c.Cond)
		r.statements(c.Do)
	case *syntax.ForClause:
		r.statements(c.Do)
	case *syntax.Block:
		r.statements(c.Stmts)
	case *syntax.Subshell:
		r.statements(c.Stmts)
	case *syntax.FuncDecl:
		r.functions[c.Name.Value] = c.Body
	}
}

func (r *scriptReader) call(c *syntax.CallExpr) {
	if len(c.Args) == 0 || len(r.commands) >= maxCommands {
		return
	}
	words := make([]string, len(c.Args))
	for i, w := range c.Args {
		words[i] = text(w)
	}
	body, ok := r.functions[words[0]]
	if !ok {
		r.commands = append(r.commands, command{r.script, words})
		return
	}
	if r.calls++; r.busy[words[0]] || r.calls > maxCalls {
		return
	}
	r.busy[words[0]] = true
	arg := r.arg
	r.arg = "" // $1 is the function's now
	r.statement(body)
	r.arg = arg
	r.busy[words[0]] = false
}

func (r *scriptReader) ifClause(c *syntax.IfClause) {
	for c != nil {
		known := maybe
		if len(c.Cond) > 0 {
			r.statements(c.Cond)
			known = r.truth(c.Cond[len(c.Cond)-1])
		} else if c.Then != nil {
			known = yes // else
		}
		if known != no {
			r.statements(c.Then)
		}
		if known == yes {
			return
		}
		c = c.Else
	}
}

func (r *scriptReader) caseClause(c *syntax.CaseClause) {
	first := text(c.Word) == `"$1"` || text(c.Word) == "$1"
	for _, item := range c.Items {
		if first && r.arg != "" {
			if slices.ContainsFunc(item.Patterns, func(w *syntax.Word) bool { return plain(w) == r.arg || plain(w) == "*" }) {
				r.statements(item.Stmts)
				return
			}
			continue
		}
		r.statements(item.Stmts)
	}
}

// text prints a word, without quotes when it is plain text.
func text(w *syntax.Word) string {
	if s := plain(w); s != "" {
		return s
	}
	var buf strings.Builder
	if err := syntax.NewPrinter(syntax.SingleLine(true)).Print(&buf, w); err != nil {
		return "?"
	}
	return strings.Join(strings.Fields(buf.String()), " ")
}

// plain returns the text of a word that has no expansions, "" for others. The
// variable that stands for the root of the installation is the root.
func plain(w *syntax.Word) string {
	var out strings.Builder
	if !plainParts(&out, w.Parts) {
		return ""
	}
	return out.String()
}

func plainParts(out *strings.Builder, parts []syntax.WordPart) bool {
	for _, p := range parts {
		switch p := p.(type) {
		case *syntax.Lit:
			out.WriteString(p.Value)
		case *syntax.SglQuoted:
			out.WriteString(p.Value)
		case *syntax.DblQuoted:
			if !plainParts(out, p.Parts) {
				return false
			}
		case *syntax.ParamExp:
			if p.Param == nil || p.Param.Value != "DPKG_ROOT" {
				return false
			}
		default:
			return false
		}
	}
	return true
}

type answer int

const (
	maybe answer = iota
	yes
	no
)

func known(ok bool) answer {
	if ok {
		return yes
	}
	return no
}

func (a answer) not() answer {
	switch a {
	case yes:
		return no
	case no:
		return yes
	}
	return maybe
}

// truth tells how a condition ends, where it depends on the script's arguments
// alone.
func (r *scriptReader) truth(s *syntax.Stmt) answer {
	a := maybe
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		a = r.test(c)
	case *syntax.BinaryCmd:
		x, y := r.truth(c.X), r.truth(c.Y)
		switch {
		case c.Op == syntax.AndStmt && (x == no || y == no):
			a = no
		case c.Op == syntax.AndStmt && x == yes:
			a = y
		case c.Op == syntax.OrStmt && (x == yes || y == yes):
			a = yes
		case c.Op == syntax.OrStmt && x == no:
			a = y
		}
	case *syntax.Subshell:
		if len(c.Stmts) == 1 {
			a = r.truth(c.Stmts[0])
		}
	case *syntax.Block:
		if len(c.Stmts) == 1 {
			a = r.truth(c.Stmts[0])
		}
	}
	if s.Negated {
		return a.not()
	}
	return a
}

// test evaluates [ ] and dpkg --compare-versions.
func (r *scriptReader) test(c *syntax.CallExpr) answer {
	var words []string
	for _, w := range c.Args {
		words = append(words, text(w))
	}
	if len(words) == 0 || r.arg == "" {
		return maybe
	}
	switch words[0] {
	case "true":
		return yes
	case "false":
		return no
	case "[":
		if len(words) > 1 {
			return r.compare(words[1 : len(words)-1])
		}
	case "test":
		return r.compare(words[1:])
	case "dpkg":
		if len(words) == 5 && words[1] == "--compare-versions" && second(words[2]) {
			// An empty version is before all others, with -nl behind them.
			switch words[3] {
			case "lt", "le", "ne", "gt-nl", "ge-nl":
				return yes
			}
			return no
		}
	}
	return maybe
}

// second reports whether a word is the second argument, the version that was
// configured before: none.
func second(w string) bool {
	return slices.Contains([]string{"$2", `"$2"`, "${2}", `"${2}"`, "$2-", `"${2:-}"`, `"${2-}"`}, w)
}

func first(w string) bool { return slices.Contains([]string{"$1", `"$1"`, "${1}", `"${1}"`}, w) }

func (r *scriptReader) compare(w []string) answer {
	switch {
	case len(w) == 2 && w[0] == "-n" && second(w[1]), len(w) == 1 && second(w[0]):
		return no
	case len(w) == 2 && w[0] == "-z" && second(w[1]):
		return yes
	case len(w) != 3 || w[1] != "=" && w[1] != "!=" && w[1] != "==":
		return maybe
	}
	a := maybe
	switch {
	case first(w[0]):
		a = known(w[2] == r.arg)
	case second(w[0]):
		a = known(w[2] == "" || w[2] == `""`)
	}
	if w[1] == "!=" {
		return a.not()
	}
	return a
}
