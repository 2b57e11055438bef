package profiles

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// kind is what a key holds.
type kind int

const (
	kindString kind = iota
	kindInteger
	kindBool
	kindList   // of strings or integers
	kindTable  // with a fixed set of keys
	kindMap    // table whose keys the profile chooses
	kindTables // list of tables that one of their keys tells apart
)

// key describes a key of the format, or an element of one that holds several.
type key struct {
	name     string
	path     string // dotted, [] after the name of a list of tables, * for a key of a map
	kind     kind
	doc      string
	format   format
	enum     []string
	only     []string
	min, max int64
	bounded  bool // min and max apply
	fallback *node

	id, required, nonempty, unique bool

	elem   *key   // of kindList, kindMap and kindTables
	fields []*key // of kindTable, and of the elem of kindTables, in order of the struct
	index  int    // field of the struct
	goType reflect.Type

	excludes map[string]bool
}

// format is the form of a string: a pattern for the schema, a check for what no pattern says, or both.
type format struct {
	name    string
	says    string // what the value is, after "want"
	pattern *regexp.Regexp
	check   func(string) bool
	host    bool // a path on the building host, unless it is a URI of the broker
}

func (f format) ok(s string) bool {
	return (f.pattern == nil || f.pattern.MatchString(s)) && (f.check == nil || f.check(s))
}

// formats are the forms that the struct tags name. Patterns keep to what RE2 and ECMAScript share.
var formats = makeFormats(
	format{name: "name", says: "lower-case letters, digits and ._+-, a letter or digit first", pattern: regexp.MustCompile(`^[a-z0-9][a-z0-9._+-]*$`)},
	format{name: "profile", says: "the name of a profile or a path that ends in .toml", check: printable},
	format{name: "line", says: "a line of text", check: printable},
	format{name: "argument", says: "one kernel argument in ASCII, blanks only within double quotes", pattern: regexp.MustCompile(`^([!#-~]|"[ !#-~]*")+$`)},
	format{name: "suite", says: "letters, digits and ._/-, a letter or digit first", pattern: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*$`)},
	format{name: "url", says: "an http or https URL", pattern: regexp.MustCompile(`^https?://[!-~]+$`)},
	format{name: "sha256", says: "64 lower-case hexadecimal digits", pattern: regexp.MustCompile(`^[0-9a-f]{64}$`)},
	format{name: "digest", says: "sha256: and 64 lower-case hexadecimal digits", pattern: regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)},
	format{name: "repository", says: "HOST/NAME or HOST:PORT/NAME, without tag and digest", pattern: regexp.MustCompile(`^([A-Za-z0-9-]+([.][A-Za-z0-9-]+)+|localhost)(:[0-9]{1,5})?(/[a-z0-9]+(([.]|_{1,2}|-+)[a-z0-9]+)*)+$`)},
	format{name: "package", says: "the name of a Debian package", pattern: regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+$`)},
	format{name: "file", says: "the path of a file", check: printable, host: true},
	format{name: "member", says: "a path in the package, without a leading slash", check: func(s string) bool { return fs.ValidPath(s) && s != "." && printable(s) }},
	format{name: "guest", says: "an absolute path without . or .. parts", pattern: regexp.MustCompile(`^/`), check: func(s string) bool { return s != "/" && path.Clean(s) == s && printable(s) }},
	format{name: "target", says: "a path", check: printable},
	format{name: "pattern", says: "an absolute path, in which * and ? may stand", pattern: regexp.MustCompile(`^/`), check: func(s string) bool { return s != "/" && path.Clean(s) == s && printable(s) }},
	format{name: "account", says: "lower-case letters, digits, _ and -, a letter or _ first, at most 32", pattern: regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)},
	format{name: "comment", says: "a line of text without a colon", check: func(s string) bool { return printable(s) && !strings.Contains(s, ":") }},
	format{name: "mode", says: `octal digits in quotes, as in "0644"`, pattern: regexp.MustCompile(`^0[0-7]{3,4}$`)},
	format{name: "owner", says: `numbers, as in "0:0"`, pattern: regexp.MustCompile(`^[0-9]{1,9}:[0-9]{1,9}$`)},
	format{name: "module", says: "the name or alias of a module", pattern: regexp.MustCompile(`^[?]?[A-Za-z0-9][A-Za-z0-9_:*.,-]*$`)},
	format{name: "word", says: "text without a NUL", check: func(s string) bool { return !strings.Contains(s, "\x00") }},
	format{name: "variable", says: "the name of an environment variable", pattern: regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)},
	format{name: "phase", says: "lower-case letters, digits and -", pattern: regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)},
	format{name: "phases", says: "phases joined by colons", pattern: regexp.MustCompile(`^[a-z0-9][a-z0-9-]*(:[a-z0-9][a-z0-9-]*)*$`)},
	format{name: "machine", says: `"q35" or one of its versions, as in "pc-q35-7.2"`, pattern: regexp.MustCompile(`^(q35|pc-q35-[0-9]+[.][0-9]+)$`)},
	format{name: "bits", says: `a number of 64 bits in quotes, as in "0x30000"`, pattern: regexp.MustCompile(`^0x(0|[1-9a-f][0-9a-f]{0,15})$`)},
	format{name: "hex16", says: "16 bytes in lower-case hexadecimal", pattern: regexp.MustCompile(`^[0-9a-f]{32}$`)},
	format{name: "hex48", says: "48 bytes in lower-case hexadecimal", pattern: regexp.MustCompile(`^[0-9a-f]{96}$`)},
	format{name: "key", says: "kbs:///REPOSITORY/TYPE/TAG", pattern: regexp.MustCompile(`^kbs:///[A-Za-z0-9._-]+/[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$`)},
	format{name: "policy", says: "the path of a file, or kbs:///REPOSITORY/TYPE/TAG", check: func(s string) bool { return printable(s) && (!brokered(s) || resource(s)) }, host: true},
	format{name: "resource", says: "kbs:///REPOSITORY/TYPE/TAG, or kbs://HOST/REPOSITORY/TYPE/TAG", pattern: resourcePattern},
	format{name: "resources", says: "kbs:///REPOSITORY/TYPE/TAG, kbs:///REPOSITORY/TYPE/ or kbs:///REPOSITORY/", pattern: regexp.MustCompile(`^kbs:///([A-Za-z0-9_-][A-Za-z0-9._-]*/([A-Za-z0-9_-][A-Za-z0-9._-]*/([A-Za-z0-9_-][A-Za-z0-9._-]*)?)?)?$`)},
	format{name: "secret", says: "kbs:///REPOSITORY/TYPE/TAG, or sealed. and what plinth secret seal writes behind it", pattern: regexp.MustCompile(`^(kbs://[!-~]+|sealed[.][A-Za-z0-9_-]+[.][A-Za-z0-9_-]+[.][A-Za-z0-9_-]+)$`), check: func(s string) bool { return !brokered(s) || resource(s) }},
	format{name: "broker", says: "https://HOST:PORT, without a path", pattern: regexp.MustCompile(`^https?://([A-Za-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?$`)},
	format{name: "handle", says: `a persistent handle in quotes, as in "0x81010002"`, pattern: regexp.MustCompile(`^0x81[0-9a-f]{6}$`)},
	format{name: "cidr", says: "an address and the length of its network, as in 192.0.2.7/24", check: func(s string) bool { p, err := netip.ParsePrefix(s); return err == nil && p.String() == s }},
	format{name: "ip", says: "an IP address, as in 192.0.2.1", check: func(s string) bool { a, err := netip.ParseAddr(s); return err == nil && a.Zone() == "" }},
	format{name: "serial", says: "the serial number of a disk: letters, digits and ._-, at most 20", pattern: regexp.MustCompile(`^[A-Za-z0-9._-]{1,20}$`)},
	format{name: "label", says: "lower-case letters, digits and -, at most 63", pattern: regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)},
	format{name: "image", says: "docker://HOST/REPOSITORY with a tag or a digest, or oci-archive:/dev/disk/by-id/virtio-SERIAL", pattern: regexp.MustCompile(`^(docker://[!-~]+|oci-archive:/dev/disk/by-id/virtio-[!-~]+)$`)},
	format{name: "user", says: "USER or USER:GROUP", pattern: regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}[$]?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}[$]?)?$`)},
	format{name: "port", says: "GUEST:CONTAINER or GUEST:CONTAINER/udp, ports from 1 to 65535", pattern: regexp.MustCompile(`^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}(/(tcp|udp))?$`), check: func(s string) bool { _, guest, container := Port(s); return max(guest, container) <= 65535 }},
	format{name: "capability", says: "a capability, as in CAP_NET_ADMIN", pattern: regexp.MustCompile(`^CAP_[A-Z_]+$`)},
	format{name: "cdi", says: "a device, as in vendor.example/class=name", pattern: regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*$`)},
	format{name: "cpu", says: "a QEMU CPU model", pattern: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._,+=-]*$`)},
)

func makeFormats(list ...format) map[string]format {
	m := map[string]format{}
	for _, f := range list {
		m[f.name] = f
	}
	return m
}

// Port reads a port of Workload.Ports.
func Port(s string) (protocol string, guest, container int) {
	ports, protocol, _ := strings.Cut(s, "/")
	g, c, _ := strings.Cut(ports, ":")
	guest, _ = strconv.Atoi(g) // the format was checked when it was read
	container, _ = strconv.Atoi(c)
	return protocol, guest, container
}

var resourcePattern = regexp.MustCompile(`^kbs://(([A-Za-z0-9-]+([.][A-Za-z0-9-]+)*|\[[0-9a-f:]+\])(:[0-9]{1,5})?)?/[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// brokered tells a name at the broker from a path.
func brokered(s string) bool { return strings.HasPrefix(s, "kbs://") }

// resource tells whether s is the name of a secret at a broker.
func resource(s string) bool { return resourcePattern.MatchString(s) }

func printable(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// table is the profile itself, the key that all others are below of.
var table = sync.OnceValue(func() *key {
	return structKey(&key{kind: kindTable, goType: reflect.TypeFor[Profile]()})
})

// structKey fills in the fields of k from the tags of its type.
func structKey(k *key) *key {
	for i := range k.goType.NumField() {
		f := k.goType.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("toml"), ","); f.IsExported() && name != "-" {
			k.fields = append(k.fields, fieldKey(f, i, k.path))
		}
	}
	for _, f := range k.fields { // exclusion goes both ways
		for name := range f.excludes {
			k.field(name).excludes[f.name] = true
		}
	}
	return k
}

// fieldKey reads the tags of one field. A wrong tag is a mistake in this package, hence a panic; the tests read every tag.
func fieldKey(f reflect.StructField, index int, parent string) *key {
	name, options, _ := strings.Cut(f.Tag.Get("toml"), ",")
	k := &key{name: name, path: join(parent, name), doc: f.Tag.Get("doc"), index: index, goType: f.Type, excludes: map[string]bool{}}
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "id":
			k.id = true
		case "required":
			k.required = true
		case "nonempty":
			k.nonempty = true
		case "unique":
			k.unique = true
		}
	}
	for _, e := range strings.Fields(f.Tag.Get("excludes")) {
		k.excludes[e] = true
	}
	k.setType(f)
	if text := f.Tag.Get("default"); text != "" {
		k.fallback = defaultNode(text)
	}
	return k
}

func (k *key) setType(f reflect.StructField) {
	switch f.Type.Kind() {
	case reflect.Struct:
		k.kind = kindTable
		structKey(k)
	case reflect.Map:
		k.kind = kindMap
		k.format = formatOf(f)
		k.elem = elemKey(k, k.path+".*")
	case reflect.Slice:
		if f.Type.Elem().Kind() == reflect.Struct {
			k.kind = kindTables
			k.elem = elemKey(k, k.path+"[]")
			return
		}
		k.kind = kindList
		k.elem = elemKey(k, k.path)
		k.elem.setValue(f)
	default:
		k.setValue(f)
	}
}

// elemKey describes an element of k.
func elemKey(k *key, path string) *key {
	e := &key{path: path, goType: k.goType.Elem(), doc: k.doc, kind: scalarKind(k.goType.Elem())}
	if e.goType.Kind() == reflect.Struct {
		e.kind = kindTable
		structKey(e)
	} else if k.kind == kindMap {
		e.format = formats["word"]
	}
	return e
}

// setValue reads the tags that bound a scalar.
func (k *key) setValue(f reflect.StructField) {
	k.kind = scalarKind(k.goType)
	k.format = formatOf(f)
	if enum := f.Tag.Get("enum"); enum != "" {
		k.enum = strings.Split(enum, "|")
	}
	if only := f.Tag.Get("only"); only != "" {
		k.only = strings.Split(only, "|")
	}
	if f.Tag.Get("max") != "" {
		k.min, k.max, k.bounded = mustInt(f, "min"), mustInt(f, "max"), true
	}
}

func scalarKind(t reflect.Type) kind {
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		return kindInteger
	case reflect.Bool:
		return kindBool
	}
	return kindString
}

func formatOf(f reflect.StructField) format {
	name := f.Tag.Get("format")
	if _, ok := formats[name]; !ok && name != "" {
		panic(fmt.Sprintf("profiles: %s: no format %q", f.Name, name))
	}
	return formats[name]
}

func mustInt(f reflect.StructField, tag string) int64 {
	n, err := strconv.ParseInt(f.Tag.Get(tag), 10, 64)
	if err != nil {
		panic(fmt.Sprintf("profiles: %s: %s: %v", f.Name, tag, err))
	}
	return n
}

func defaultNode(text string) *node {
	var faults faultList
	n := parse([]byte("v = "+text), Origin{Source: "default"}, &faults).table["v"]
	if len(faults.list) > 0 {
		panic("profiles: default " + text + ": " + lines(faults.list))
	}
	return n
}

// field returns the key of that name, or nil.
func (k *key) field(name string) *key {
	for _, f := range k.fields {
		if f.name == name {
			return f
		}
	}
	return nil
}

// idField returns the key that tells apart the tables of a list.
func (k *key) idField() *key {
	for _, f := range k.elem.fields {
		if f.id {
			return f
		}
	}
	panic("profiles: " + k.path + ": no key has ,id")
}

func (k *key) names() []string {
	names := make([]string, len(k.fields))
	for i, f := range k.fields {
		names[i] = f.name
	}
	return names
}

// walk calls f for k and every key below it, in the order of the structs.
func (k *key) walk(f func(*key)) {
	f(k)
	if k.elem != nil && len(k.elem.fields) > 0 {
		k.elem.walk(f)
	}
	for _, c := range k.fields {
		c.walk(f)
	}
}

func join(parent, name string) string {
	if parent == "" {
		return name
	}
	return parent + "." + name
}
