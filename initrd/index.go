package initrd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/plinth-os/plinth/internal/xz"
)

const (
	maxModule  = 256 << 20 // bytes of one unpacked module
	maxBuiltin = 64 << 20  // bytes of a modules.builtin file
)

// Modules is an index over a kernel's module directory. Distributions run depmod
// when a kernel is installed, so a package has no modules.dep: the modules
// themselves say what they need. They are unpacked when asked for.
type Modules struct {
	fsys    fs.FS
	files   map[string][]string // by module name: paths; more than one is refused when asked for
	builtin map[string]bool     // by module name
	own     []alias             // of what is built in
	aliases map[string][]alias  // by path, of the files that were looked into
}

type alias struct{ pattern, module string }

// IndexModules indexes the module directory fsys, that which holds
// modules.builtin and kernel/. Modules may be plain, .xz or .zst. Without
// modules.builtin and modules.builtin.modinfo nothing is known to be built in.
func IndexModules(fsys fs.FS) (*Modules, error) {
	m := &Modules{fsys: fsys, files: map[string][]string{}, builtin: map[string]bool{}, aliases: map[string][]alias{}}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, ok := moduleName(p); ok {
			m.files[name] = append(m.files[name], p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("initrd: modules: %w", err)
	}
	if err := m.readBuiltin(); err != nil {
		return nil, fmt.Errorf("initrd: modules: %w", err)
	}
	return m, nil
}

// BuiltIn reports whether the kernel itself has the module of that name, which is
// no alias. Without modules.builtin it has none.
func (m *Modules) BuiltIn(name string) bool { return m.builtin[canonical(name)] }

// moduleName returns the name of the module in the file p.
func moduleName(p string) (name string, ok bool) {
	base := path.Base(p)
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst"} {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return canonical(name), true
		}
	}
	return "", false
}

func (m *Modules) readBuiltin() error {
	// A line per module: kernel/fs/ext4/ext4.ko
	b, err := readLimited(m.fsys, "modules.builtin", maxBuiltin)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if name, ok := moduleName(lines.Text()); ok {
			m.builtin[name] = true
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("modules.builtin: %w", err)
	}
	// Their .modinfo, each field behind the module's name: ext4.alias=fs-ext4, NUL
	b, err = readLimited(m.fsys, "modules.builtin.modinfo", maxBuiltin)
	if err != nil {
		return err
	}
	for field := range bytes.SplitSeq(b, []byte{0}) {
		name, rest, _ := strings.Cut(string(field), ".")
		if pattern, ok := strings.CutPrefix(rest, "alias="); ok {
			m.own = append(m.own, alias{canonicalAlias(pattern), canonical(name)})
		}
	}
	return nil
}

// readLimited reads a file, or nothing if it does not exist.
func readLimited(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}

// load unpacks the module in the file p and reads what it says of itself.
func (m *Modules) load(p string) ([]byte, *modinfo, error) {
	b, err := readLimited(m.fsys, p, maxModule)
	if err == nil {
		b, err = unpack(p, b)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p, err)
	}
	info, err := parseModinfo(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p, err)
	}
	return b, info, nil
}

func unpack(p string, b []byte) ([]byte, error) {
	switch path.Ext(p) {
	case ".xz":
		return xz.Unpack(b, maxModule)
	case ".zst":
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(b, nil)
	}
	return b, nil
}

// lookup returns the modules that a name or alias stands for, sorted. builtin
// says that the kernel itself has it.
//
// Names come before aliases, what is built in before files, and files of a like
// name before all others, which are looked at only if thorough is set. So hardly
// a lookup unpacks more than a few modules. Where several modules carry an alias
// modprobe loads them all; this finds at least one.
func (m *Modules) lookup(name string, thorough bool) (modules []string, builtin bool, err error) {
	name = canonicalAlias(name)
	if len(m.files[name]) > 0 {
		return []string{name}, false, nil
	}
	if m.builtin[name] || len(match(m.own, name)) > 0 {
		return nil, true, nil
	}
	for _, paths := range [][]string{m.alike(name), slices.Concat(slices.Collect(maps.Values(m.files))...)} {
		if err := m.readAliases(paths); err != nil {
			return nil, false, err
		}
		var carried []alias
		for _, p := range paths {
			carried = append(carried, m.aliases[p]...)
		}
		if modules = match(carried, name); len(modules) > 0 || !thorough {
			break
		}
	}
	return modules, false, nil
}

// alike returns the files of modules whose name shares a word with an alias:
// crc32c_generic and crc32c_intel with crypto-crc32c.
func (m *Modules) alike(name string) []string {
	var out []string
	for other, paths := range m.files {
		if slices.ContainsFunc(words(other), func(w string) bool { return slices.Contains(words(name), w) }) {
			out = append(out, paths...)
		}
	}
	return out
}

func words(name string) []string { return strings.Split(canonical(name), "_") }

// match returns the modules with an alias that matches name, sorted.
func match(aliases []alias, name string) []string {
	var out []string
	for _, a := range aliases {
		if a.pattern == name || matches(a.pattern, name) {
			out = append(out, a.module)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// matches is fnmatch(3) without flags. The stars of path.Match stop at slashes.
func matches(pattern, name string) bool {
	if !strings.ContainsAny(pattern, "*?[") {
		return false
	}
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00"))
	return ok && err == nil
}

// readAliases looks into modules, unless that was done before. For all modules
// of a distribution's kernel, xz-compressed, it takes seconds.
func (m *Modules) readAliases(paths []string) error {
	found := make([][]alias, len(paths))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range paths {
		if m.aliases[p] != nil {
			continue
		}
		g.Go(func() error {
			_, info, err := m.load(p)
			if err != nil {
				return err
			}
			name, _ := moduleName(p)
			found[i] = []alias{} // not nil, even if there are none
			for _, a := range info.aliases {
				found[i] = append(found[i], alias{a, name})
			}
			return nil
		})
	}
	err := g.Wait()
	for i, p := range paths {
		if found[i] != nil {
			m.aliases[p] = found[i]
		}
	}
	return err
}
