package profiles

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// validate is a second opinion on a document: the part of JSON Schema that Schema uses, and nothing of the parser.
// A keyword that it does not know is an error.
func validate(schema, v any) error {
	if b, ok := schema.(bool); ok {
		if !b {
			return fmt.Errorf("%v: not allowed", v)
		}
		return nil
	}
	s := schema.(map[string]any)
	for keyword, arg := range s {
		if err := keywordHolds(s, keyword, arg, v); err != nil {
			return fmt.Errorf("%s: %w", keyword, err)
		}
	}
	return nil
}

func keywordHolds(s map[string]any, keyword string, arg, v any) error {
	table, _ := v.(map[string]any)
	list, _ := v.([]any)
	text, isText := v.(string)
	number, isNumber := v.(float64)
	fail := fmt.Errorf("%v: want %v", v, arg)
	switch keyword {
	case "$schema", "title", "description", "default":
	case "type":
		ok := map[string]bool{"object": table != nil, "array": list != nil || reflect.ValueOf(v).Kind() == reflect.Slice, "string": isText, "integer": isNumber && number == float64(int64(number)), "boolean": v == true || v == false}
		if !ok[arg.(string)] {
			return fail
		}
	case "properties":
		for name, sub := range arg.(map[string]any) {
			if child, ok := table[name]; ok {
				if err := validate(sub, child); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	case "additionalProperties":
		properties, _ := s["properties"].(map[string]any)
		for name, child := range table {
			if _, ok := properties[name]; !ok {
				if err := validate(arg, child); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	case "propertyNames":
		for name := range table {
			if err := validate(arg, name); err != nil {
				return err
			}
		}
	case "required":
		for _, name := range arg.([]any) {
			if _, ok := table[name.(string)]; !ok && table != nil {
				return fail
			}
		}
	case "items":
		for _, e := range list {
			if err := validate(arg, e); err != nil {
				return err
			}
		}
	case "minItems":
		if list != nil && len(list) < int(arg.(float64)) {
			return fail
		}
	case "uniqueItems":
		for i, e := range list {
			if slices.ContainsFunc(list[:i], func(f any) bool { return reflect.DeepEqual(e, f) }) {
				return fail
			}
		}
	case "enum":
		if !slices.Contains(arg.([]any), v) {
			return fail
		}
	case "pattern":
		if isText && !regexp.MustCompile(arg.(string)).MatchString(text) {
			return fail
		}
	case "minimum":
		if isNumber && number < arg.(float64) {
			return fail
		}
	case "maximum":
		if isNumber && number > arg.(float64) {
			return fail
		}
	case "not":
		if validate(arg, v) == nil {
			return fail
		}
	case "allOf":
		for _, sub := range arg.([]any) {
			if err := validate(sub, v); err != nil {
				return err
			}
		}
	case "anyOf":
		var errs []error
		for _, sub := range arg.([]any) {
			err := validate(sub, v)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return fmt.Errorf("none of %v", errs)
	default:
		return fmt.Errorf("unknown keyword")
	}
	return nil
}

// jsonOf reads TOML with a decoder of its own and gives what encoding/json would.
func jsonOf(t testing.TB, text string) any {
	t.Helper()
	var v any
	if err := toml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	v = nil
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSchema(t *testing.T) {
	var schema any
	text := Schema()
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if string(Schema()) != string(text) {
		t.Error("two calls give two texts")
	}
	for _, name := range Builtin() {
		if err := validate(schema, jsonOf(t, string(stock(name).data))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validate(schema, jsonOf(t, string(Template("x")))); err != nil {
		t.Errorf("template: %v", err)
	}
	if err := validate(schema, jsonOf(t, strings.ReplaceAll(everything, "schema = 1\n", ""))); err == nil {
		t.Error("a profile without schema: accepted")
	}
	for _, text := range append([]string{everything}, guestOnly...) {
		if err := validate(schema, jsonOf(t, text)); err != nil {
			t.Errorf("every key: %v", err)
		}
	}
	for _, c := range faultRows {
		if c.beyond {
			continue
		}
		if err := validate(schema, jsonOf(t, withHead(c.text))); err == nil {
			t.Errorf("%s: the parser refuses it, the schema does not", c.name)
		}
	}
}

// everything gives every key of the format.
var everything = `schema = 1
extends = "vtpm"
arch = "amd64"
platform = "vtpm"
seed = "x"
epoch = 1767225600
cmdline = ["a"]
initdata = "i"
[sources.a]
suite = "sid"
components = ["main"]
mirror = ["http://mirror.example"]
keyring = "k.pgp"
check_valid_until = false
not_automatic = true
[sources.b]
debs = "d"
[kernel]
package = "linux"
suite = "sid"
modules = { append = ["a", "pci:v00001AF4d*"], remove = ["virtio_blk"] }
[stub]
package = "systemd-boot-efi"
suite = "sid"
[firmware]
package = "ovmf"
suite = "sid"
code = "a"
vars = "b"
[initrd]
compression = "gzip"
level = 9
[root]
kind = "verity"
packages = ["ca-certificates"]
bare = ["base-files"]
exclude = ["/usr/share/man/**"]
overlay = true
on_corruption = "restart"
hash = "sha512"
verity_key = "k"
verity_cert = "c"
alternatives = { "/usr/bin/awk" = "/usr/bin/mawk" }
[[users]]
name = "u"
uid = 5
group = "g"
comment = "U"
home = "/var/u"
shell = "/bin/sh"
groups = ["g"]
[[groups]]
name = "g"
gid = 6
[[files]]
path = "/a"
text = "a"
mode = "0600"
owner = "1:1"
[[files]]
path = "/l"
link = "a"
[[files]]
path = "/d"
dir = true
[[files]]
path = "/b"
source = "b"
sha256 = "` + zeros + `"
[[files]]
path = "/u"
url = "https://files.example.com/u"
sha256 = "` + zeros + `"
[[layers]]
name = "a"
digest = "sha256:` + zeros + `"
source = "a.tar"
paths = ["/usr/**"]
strip = 1
to = "/opt"
owner = "0:0"
[[layers]]
name = "b"
digest = "sha256:` + zeros + `"
layout = "b"
[[layers]]
name = "c"
digest = "sha256:` + zeros + `"
registry = "registry.example.com/team/c"
[[services]]
name = "s"
exec = ["/b", ""]
env = { A = "" }
after = "/run/s.sock"
restart = "failure"
[agent]
phases = ["ready"]
fw_cfg = true
debug = true
shell = true
test_keys = { "kbs:///a/b/c" = "AA==" }
[network]
dhcp = true
dns = ["192.0.2.1", "2001:db8::1"]
mtu = 1400
[workloads]
from = "image"
policy = "p"
admit = ["plain+signed"]
registries = "r"
registries_d = ["d"]
cas = "c"
proxy = "http://192.0.2.2:3128"
no_proxy = "example.com"
auth = "kbs:///a/b/c"
image_service = true
max_size = 1
max_files = 1
memory = 16
event_pcr = 15
pcr_23 = true
[[workload]]
name = "a"
image = "docker://registry.example.com/a:1"
command = ["/b", ""]
args = ["c"]
env = { A = "" }
dir = "/d"
user = "e:f"
mounts = [
  { path = "/g", source = "/h" }, { path = "/i", tmpfs = 1 }, { path = "/v", volume = "v" }, { path = "/s", secret = "kbs://kbs.example.com:8443/a/b/c" },
  { path = "/t", secret = "sealed.e30.e30.AA" },
]
ports = ["80:8080", "80:53/udp"]
network = "nat"
memory = 1
milli_cpu = 1
pids = 1
capabilities = ["CAP_NET_ADMIN"]
scratch = 1
devices = ["vendor.example/class=name"]
restart = "failure"
output = "console"
exec = true
[workload.api]
resources = ["kbs:///a/b/c", "kbs:///a/b/", "kbs:///a/"]
evidence = true
token = true
tee_key = true
measure = true
[[workload]]
name = "b"
image = "oci-archive:/dev/disk/by-id/virtio-b"
archive = "b.tar"
read_only = true
[attestation]
tee = "tpm"
brokers = [{ url = "https://kbs.example.com:8443", cas = "c" }, { url = "https://[2001:db8::1]" }]
key = "RSA-OAEP-256"
hashes = ["sha512", "sha256"]
ak_handle = "0x81010002"
services = true
[[volume]]
name = "v"
disk = "v0"
key = "kbs:///a/b/c"
integrity = true
filesystem = "ext4"
format = true
[[volume]]
name = "w"
disk = "w0"
[secure_boot]
key = "k"
cert = "c"
enroll = true
pk = "p"
kek = ["k"]
db = ["d"]
[pcr_policy]
key = "k"
banks = ["sha1", "sha256"]
phases = ["ready"]
[machine]
type = "pc-q35-7.2"
cpu = "EPYC-v4"
vcpus = [1]
memory = 512
path = "uki"
[outputs]
kinds = ["raw"]
`

// guestOnly gives the keys that are for platforms other than vtpm, each with what the platform wants.
var guestOnly = []string{`schema = 1
extends = "snp"
[firmware.generic]
package = "ovmf"
suite = "sid"
code = "a"
vars = "b"
[snp]
vcpu_types = ["EPYC-v4"]
policy = "0x30000"
guest_features = "0x21"
host_era = "6.6"
family_id = "000102030405060708090a0b0c0d0e0f"
image_id = "000102030405060708090a0b0c0d0e0f"
guest_svn = 7
`, `schema = 1
extends = "tdx"
[firmware.generic]
code_file = "a"
vars_file = "b"
[secure_boot]
setup_mode = true
[tdx]
attributes = "0x10000000"
xfam = "0xe742e7"
mr_config_id = "` + strings.Repeat("0a", 48) + `"
mr_owner = "` + strings.Repeat("0b", 48) + `"
mr_owner_config = "` + strings.Repeat("0c", 48) + `"
[network]
addresses = ["192.0.2.7/24"]
gateways = ["192.0.2.1"]
[workloads]
from = "initdata"
disk = "images"
policy_file = "p"
[attestation]
from_initdata = true
`}

// zeros is a SHA-256 in hexadecimal.
var zeros = strings.Repeat("0", 64)

// notEverything are keys that exclude one that everything gives.
var notEverything = []string{"kernel.file", "kernel.modules_dir", "stub.file", "firmware.code_file", "firmware.vars_file"}

// leaves returns the path of every key that holds a value, in the order of the format.
func leaves() []*key {
	var list []*key
	table().walk(func(k *key) {
		if k.name != "" && k.kind != kindTable && k.kind != kindTables && (k.kind != kindMap || k.elem.kind != kindTable) {
			list = append(list, k)
		}
	})
	return list
}

func TestEverything(t *testing.T) {
	given := map[string]bool{}
	index := regexp.MustCompile(`\[[0-9]+\]`)
	for _, text := range append([]string{everything}, guestOnly...) {
		p, err := load(text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range p.Explain() {
			name := index.ReplaceAllString(v.Key, "[]")
			name = regexp.MustCompile(`^sources\.[ab]\.`).ReplaceAllString(name, "sources.*.")
			name = strings.TrimSuffix(strings.TrimSuffix(name, "./usr/bin/awk"), ".kbs:///a/b/c")
			given[strings.TrimSuffix(strings.TrimSuffix(name, "[]"), ".A")] = true
		}
	}
	for _, k := range leaves() {
		if !given[k.path] && !slices.Contains(notEverything, k.path) {
			t.Errorf("%s is not tried", k.path)
		}
	}
}

// The table is sound: what a tag says wrong would show in a user's hands only.
func TestTable(t *testing.T) {
	used := map[string]bool{}
	table().walk(func(k *key) {
		e := k
		if k.kind == kindList {
			e = k.elem
		}
		used[k.format.name], used[e.format.name] = true, true
		if k.name == "" {
			return
		}
		if k.doc == "" || !strings.HasSuffix(k.doc, ".") {
			t.Errorf("%s: doc %q: want a sentence", k.path, k.doc)
		}
		if k.name != strings.ToLower(k.name) || strings.Contains(k.name, "-") {
			t.Errorf("%s: want lower case and underscores", k.path)
		}
		if e.kind == kindInteger && !e.bounded {
			t.Errorf("%s: no bounds: a number of 65 bits would pass", k.path)
		}
		for _, o := range e.only {
			if e.enum != nil && !slices.Contains(e.enum, o) {
				t.Errorf("%s: only %s: not in the enum", k.path, o)
			}
		}
		if k.fallback != nil {
			var faults faultList
			if !(&checker{&faults, ""}).check(k.fallback, k, k.path) || len(faults.list) > 0 {
				t.Errorf("%s: default: %s", k.path, lines(faults.list))
			}
		}
		for name := range k.excludes {
			if k.fallback != nil && k.required {
				t.Errorf("%s: required, and excluded by %s", k.path, name)
			}
		}
	})
	for name := range formats {
		if !used[name] {
			t.Errorf("format %s: no key has it", name)
		}
	}
}
