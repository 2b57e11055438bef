package profiles

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func sprint(v ...any) string { return strings.TrimSuffix(fmt.Sprintln(v...), "\n") }

// faultRows are profiles with the faults that each must give. A text that does not begin with "schema" has head before it,
// so its lines count from 3.
var faultRows = []struct {
	name, text string
	want       []string
	beyond     bool // what no JSON Schema can tell
}{
	{name: "unknown key", text: `sedd = "x"`, want: []string{`3:1: sedd: unknown key; did you mean "seed"?`}},
	{name: "unknown key, nothing near", text: `colour = "x"`, want: []string{`3:1: colour: unknown key`}},
	{name: "unknown key in a table", text: "[kernel]\n pakcage = \"x\"", want: []string{`4:2: kernel.pakcage: unknown key; did you mean "package"?`}},
	{name: "unknown table", text: "[machin]\nmemory = 1", want: []string{`3:2: machin: unknown key; did you mean "machine"?`}},
	{name: "key of another table", text: "vcpus = [1]", want: []string{`3:1: vcpus: unknown key; did you mean machine.vcpus?`}},
	{name: "key below a table", text: "[machine]\nseed = 'x'", want: []string{`4:1: machine.seed: unknown key; did you mean seed? It belongs above the first [table]`}},
	{name: "unknown key, quoted and dotted", text: `machine."me.mo" . x = 1`, want: []string{`3:9: machine.me.mo: unknown key`}},
	{name: "unknown key in an inline table", text: "machine = { memory = 512, cpus = 1 }", want: []string{`3:27: machine.cpus: unknown key; did you mean "cpu"?`}},
	{name: "unknown key in a list of tables", text: "[[files]]\npath = '/x'\ntext = ''\n[[files]]\npath = '/y'\ntext = ''\nmod = '0644'", want: []string{`9:1: files[1].mod: unknown key; did you mean "mode"?`}},
	{name: "column in characters", text: `machine = { cpu = "ü", x = 1 }`, want: []string{`3:19: machine.cpu: "ü": want a QEMU CPU model`, `3:24: machine.x: unknown key`}},

	{name: "integer for string", text: "seed = 12", want: []string{`3:8: seed: is an integer: want a string; write "12"`}},
	{name: "octal integer for mode", text: "[[files]]\npath = '/x'\ntext = ''\nmode = 0o755", want: []string{`6:8: files[0].mode: is an integer: want a string; write "0755"`}},
	{name: "boolean for string", text: "seed = true", want: []string{`3:8: seed: is a boolean: want a string; write "true"`}},
	{name: "date for string", text: "seed = 2026-01-01", want: []string{`3:8: seed: is a float or date: want a string; write "2026-01-01"`}, beyond: true},
	{name: "string for integer", text: `epoch = "1767225600"`, want: []string{`3:9: epoch: is a string: want an integer; write 1767225600`}},
	{name: "words for integer", text: `epoch = "now"`, want: []string{`3:9: epoch: is a string: want an integer`}},
	{name: "float for integer", text: `machine.memory = 1.5`, want: []string{`3:18: machine.memory: is a float or date: want an integer`}},
	{name: "string for boolean", text: `agent.debug = "true"`, want: []string{`3:15: agent.debug: is a string: want a boolean; write true`}},
	{name: "integer for boolean", text: `agent.debug = 1`, want: []string{`3:15: agent.debug: is an integer: want a boolean`}},
	{name: "string for list", text: `cmdline = "quiet"`, want: []string{`3:11: cmdline: is a string: want a list; write ["quiet"]`}},
	{name: "integer for list", text: `machine.vcpus = 2`, want: []string{`3:17: machine.vcpus: is an integer: want a list; write [2]`}},
	{name: "list for string", text: `seed = ["a"]`, want: []string{`3:8: seed: is a list: want a string`}},
	{name: "list for table", text: `kernel = [1]`, want: []string{`3:10: kernel: is a list: want a table`}},
	{name: "string for table", text: `kernel = "x"`, want: []string{`3:10: kernel: is a string: want a table`}},
	{name: "string for source", text: `sources.debian = "trixie"`, want: []string{`3:18: sources.debian: is a string: want a table`}},
	{name: "integer in a list of strings", text: "cmdline = [\n  'a', # one\n  7,\n]", want: []string{`5:3: cmdline: is an integer: want a string; write "7"`}},
	{name: "list in a list", text: `cmdline = [["a"]]`, want: []string{`3:11: cmdline: is a list: want a string`}},
	{name: "table for list of tables", text: "[files]\npath = '/x'", want: []string{`4:1: files.path: unknown key: want a list, or a table with append and remove`}},
	{name: "string in a list of tables", text: `files = ["x"]`, want: []string{`3:10: files[0]: is a string: want a table`}},
	{name: "integer in env", text: "[[services]]\nname = 'a'\nexec = ['/a']\nenv = { A = 1 }", want: []string{`6:13: services[0].env.A: is an integer: want a string; write "1"`}},
	{name: "two headers for a plain list", text: "[[cmdline]]\na = 1", want: []string{`3:3: cmdline: is a table: want a string`}},

	{name: "network without an address", text: "[network]\nmtu = 1400", want: []string{`3:2: network: dhcp or addresses is missing; write dhcp = true`}, beyond: true},
	{name: "address with dhcp", text: "[network]\ndhcp = true\naddresses = ['192.0.2.7/24']", want: []string{`5:1: network.addresses: cannot stand beside network.dhcp; keep one of the two`}},
	{name: "address without a length", text: "network.addresses = ['192.0.2.7']", want: []string{`3:22: network.addresses: "192.0.2.7": want an address and the length of its network, as in 192.0.2.7/24`}, beyond: true},
	{name: "two gateways", text: "[network]\naddresses = ['192.0.2.7/24']\ngateways = ['192.0.2.1', '2001:db8::1', '192.0.2.2']", want: []string{`5:41: network.gateways: "192.0.2.2": there is another one of its family`}, beyond: true},
	{name: "workload without a source", text: "[[workload]]\nname = 'a'", want: []string{`3:3: workload: is for workloads.from "image"; write from = "image" under [workloads]`}, beyond: true},
	{name: "workloads without a source", text: "[workloads]\npolicy = 'p'", want: []string{`3:2: workloads.from: is missing; write from = "image"`}, beyond: true},
	{name: "no workloads", text: "workloads.from = 'image'", want: []string{`3:1: workloads: has no workload to run, and image_service is off; add [[workload]]`}, beyond: true},
	{name: "policy beside initdata", text: "[workloads]\nfrom = 'initdata'\npolicy = 'p'", want: []string{`5:10: workloads.policy: the initdata says it, for workloads.from is "initdata"; write it in workloads.json`}, beyond: true},
	{name: "workload without an image", text: "workloads.from = 'image'\n[[workload]]\nname = 'a'", want: []string{`4:3: workload[0].image: is missing`}, beyond: true},
	{name: "workload without a network", text: "workloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'", want: []string{`6:9: workload[0].image: "docker://r.example/a:1": the guest has no network; add [network] with dhcp = true`}, beyond: true},
	{name: "disk without an archive", text: "workloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'oci-archive:/dev/disk/by-id/virtio-a'", want: []string{`4:3: workload[0].archive: is missing: what image will the disk hold?`}, beyond: true},
	{name: "archive of a registry", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\narchive = 'a'\nimage = 'docker://r.example/a:1'", want: []string{`7:11: workload[0].archive: is for an image on a disk, oci-archive:`}, beyond: true},
	{name: "port twice", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nports = ['80:80', '80:8080/tcp', '80:80/udp']\nimage = 'docker://r.example/a:1'", want: []string{`7:19: workload[0].ports: port 80/tcp of the guest leads to a already`}, beyond: true},
	{name: "port beyond 65535", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nports = ['65535:65536']\nimage = 'docker://r.example/a:1'", want: []string{`7:10: workload[0].ports: "65535:65536": want GUEST:CONTAINER or GUEST:CONTAINER/udp, ports from 1 to 65535`}, beyond: true},
	{name: "ports without a network", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nports = ['80:80']\nnetwork = 'none'\nimage = 'docker://r.example/a:1'", want: []string{`7:9: workload[0].ports: the container has no network`}, beyond: true},
	{name: "mount of nothing", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nmounts = [{ path = '/m' }]\nimage = 'docker://r.example/a:1'", want: []string{`7:11: workload[0].mounts[0]: source is missing, or tmpfs, volume or secret`}, beyond: true},
	{name: "scratch of what is read-only", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nread_only = true\nscratch = 1\nimage = 'docker://r.example/a:1'", want: []string{`8:1: workload[0].scratch: cannot stand beside workload[0].read_only; keep one of the two`}},
	{name: "memory and disk", text: "[workloads]\nfrom = 'initdata'\nmemory = 16\ndisk = 'd'", want: []string{`6:1: workloads.disk: cannot stand beside workloads.memory; keep one of the two`}},
	{name: "register that something else uses", text: "[workloads]\nfrom = 'initdata'\nevent_pcr = 11", want: []string{`5:13: workloads.event_pcr: 11: want 14 to 15`}},
	{name: "test keys without debug", text: "agent.test_keys = { 'kbs:///a/b/c' = 'AA==' }", want: []string{`3:19: agent.test_keys: wants agent.debug; add debug = true`}, beyond: true},
	{name: "test key in another encoding", text: "agent.debug = true\nagent.test_keys = { 'kbs:///a/b/c' = 'x' }", want: []string{`4:38: agent.test_keys.kbs:///a/b/c: want base64`}, beyond: true},
	{name: "attestation that says nothing", text: "[attestation]", want: []string{`3:2: attestation: says nothing; write tee = "tpm"`}, beyond: true},
	{name: "broker of initdata that nobody reads", text: "network.dhcp = true\nattestation.from_initdata = true", want: []string{`4:29: attestation.from_initdata: wants workloads.from "initdata": else the guest reads no initdata; write from = "initdata" under [workloads]`}, beyond: true},
	{name: "unknown TEE", text: "attestation.tee = 'sev'", want: []string{`3:19: attestation.tee: "sev": want "tpm", "snp", "tdx", "az-snp-vtpm", "az-tdx-vtpm" or "sample"`}},
	{name: "TEE of another platform", text: "schema = 1\nextends = 'tdx'\nattestation.tee = 'snp'", want: []string{`3:19: attestation.tee: "snp": platform "tdx" has tdx`}, beyond: true},
	{name: "sample without debug", text: "attestation.tee = 'sample'", want: []string{`3:19: attestation.tee: "sample" proves nothing: it wants agent.debug; add agent.debug = true`}, beyond: true},
	{name: "attestation without a network", text: "attestation.brokers = [{ url = 'https://kbs.example' }]", want: []string{`3:1: attestation: the guest has no network; add [network] with dhcp = true`}, beyond: true},
	{name: "Azure without a network", text: "attestation.tee = 'az-snp-vtpm'", want: []string{`3:1: attestation: the guest has no network; add [network] with dhcp = true`}, beyond: true},
	{name: "broker with a path", text: "network.dhcp = true\nattestation.brokers = [{ url = 'https://kbs.example/kbs' }]", want: []string{`4:32: attestation.brokers[0].url: "https://kbs.example/kbs": want https://HOST:PORT, without a path`}},
	{name: "broker without TLS", text: "network.dhcp = true\nattestation.brokers = [{ url = 'http://kbs.example' }]", want: []string{`4:32: attestation.brokers[0].url: "http://kbs.example": without TLS it wants agent.debug; write https`}, beyond: true},
	{name: "broker twice", text: "network.dhcp = true\nattestation.brokers = [{ url = 'https://a' }, { url = 'https://a' }]", want: []string{`4:55: attestation.brokers[1].url: "https://a" is in the list already: p.toml:4:32; keep one of the two`}, beyond: true},
	{name: "broker in both", text: "network.dhcp = true\n[attestation]\nfrom_initdata = true\nbrokers = [{ url = 'https://a' }]", want: []string{`6:1: attestation.brokers: cannot stand beside attestation.from_initdata; keep one of the two`}},
	{name: "handle that is none", text: "attestation.ak_handle = '0x80000000'", want: []string{`3:25: attestation.ak_handle: "0x80000000": want a persistent handle in quotes, as in "0x81010002"`}},
	{name: "handle without a TPM", text: "schema = 1\nextends = 'tdx'\nattestation.ak_handle = '0x81010002'", want: []string{`3:25: attestation.ak_handle: is for tee "tpm"`}, beyond: true},
	{name: "hash twice", text: "attestation.hashes = ['sha256', 'sha256']", want: []string{`3:33: attestation.hashes: "sha256" is in the list already: p.toml:3:23; keep one of the two`}},
	{name: "volume without a disk", text: "[[volume]]\nname = 'v'", want: []string{`3:3: volume[0].disk: is missing`}, beyond: true},
	{name: "two volumes on a disk", text: "[[volume]]\nname = 'v'\ndisk = 'd'\n[[volume]]\nname = 'w'\ndisk = 'd'", want: []string{`8:8: volume[1].disk: "d" is that of volume v already`}, beyond: true},
	{name: "volume on the disk of images", text: "workloads = { from = 'initdata', disk = 'd' }\n[[volume]]\nname = 'v'\ndisk = 'd'", want: []string{`6:8: volume[0].disk: "d" is that of workloads.disk already`}, beyond: true},
	{name: "volume on an image", text: "workloads.from = 'image'\n[[volume]]\nname = 'v'\ndisk = 'd'\n[[workload]]\nname = 'a'\narchive = 'a'\nimage = 'oci-archive:/dev/disk/by-id/virtio-d:x'", want: []string{`6:8: volume[0].disk: "d" is that of workload a already`}, beyond: true},
	{name: "volume's key without a broker", text: "[[volume]]\nname = 'v'\ndisk = 'd'\nkey = 'kbs:///a/b/c'", want: []string{`6:7: volume[0].key: "kbs:///a/b/c": the guest has no broker; add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`}, beyond: true},
	{name: "two volumes by a key", text: "network.dhcp = true\nattestation.brokers = [{ url = 'https://a' }]\n[[volume]]\nname = 'v'\ndisk = 'd'\nkey = 'kbs:///a/b/c'\n[[volume]]\nname = 'w'\ndisk = 'e'\nkey = 'kbs:///a/b/c'", want: []string{`12:7: volume[1].key: "kbs:///a/b/c" is that of volume v already`}, beyond: true},
	{name: "format without a key", text: "[[volume]]\nname = 'v'\ndisk = 'd'\nformat = true", want: []string{`6:10: volume[0].format: is for a volume with a key: without one it is made anew in each boot`}, beyond: true},
	{name: "key that climbs", text: "[[volume]]\nname = 'v'\ndisk = 'd'\nkey = 'kbs:///a/../c'", want: []string{`6:7: volume[0].key: "kbs:///a/../c": want kbs:///REPOSITORY/TYPE/TAG, or kbs://HOST/REPOSITORY/TYPE/TAG`}},
	{name: "policy of no broker", text: "workloads = { from = 'image', image_service = true, policy = 'kbs:///a/b/c' }", want: []string{`3:62: workloads.policy: "kbs:///a/b/c": the guest has no broker; add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`}, beyond: true},
	{name: "policy by half a name", text: "workloads = { from = 'image', image_service = true, policy = 'kbs:///a/b' }", want: []string{`3:62: workloads.policy: "kbs:///a/b": want the path of a file, or kbs:///REPOSITORY/TYPE/TAG`}, beyond: true},
	{name: "two policies", text: "workloads = { from = 'image', image_service = true, policy = 'p', policy_file = 'q' }", want: []string{`3:81: workloads.policy_file: is what the broker has as workloads.policy, which is no kbs:///REPOSITORY/TYPE/TAG; write policy`}, beyond: true},
	{name: "credentials of no broker", text: "workloads = { from = 'image', image_service = true, auth = 'kbs:///a/b/c' }", want: []string{`3:60: workloads.auth: "kbs:///a/b/c": the guest has no broker; add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`}, beyond: true},
	{name: "mount of two things", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\nmounts = [{ path = '/m', tmpfs = 1, secret = 'kbs:///a/b/c' }]", want: []string{`8:37: workload[0].mounts[0].secret: cannot stand beside workload[0].mounts[0].tmpfs; keep one of the two`}},
	{name: "volume that is not there", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\nmounts = [{ path = '/m', volume = 'v' }]", want: []string{`8:11: workload[0].mounts[0]: "v": no such [[volume]]`}, beyond: true},
	{name: "secret of no broker", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\nmounts = [{ path = '/m', secret = 'kbs:///a/b/c' }]", want: []string{`8:11: workload[0].mounts[0]: "kbs:///a/b/c": the guest has no broker; add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`}, beyond: true},
	{name: "secret that is none", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\nmounts = [{ path = '/m', secret = 'sealed.' }]", want: []string{`8:35: workload[0].mounts[0].secret: "sealed.": want kbs:///REPOSITORY/TYPE/TAG, or sealed. and what plinth secret seal writes behind it`}},
	{name: "sealed variable of no broker", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\nenv = { A = 'sealed.e30.e30.AA' }", want: []string{`8:13: workload[0].env.A: a sealed secret: the guest has no broker; add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`}, beyond: true},
	{name: "variable that is half sealed", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\nenv = { A = 'sealed.e30' }", want: []string{`8:13: workload[0].env.A: begins as a sealed secret and is none`}, beyond: true},
	{name: "API that grants nothing", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = {}", want: []string{`8:7: workload[0].api: grants nothing; write evidence = true, or resources = ["kbs:///REPOSITORY/TYPE/TAG"]`}, beyond: true},
	{name: "API without attestation", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = { evidence = true }", want: []string{`8:7: workload[0].api: evidence and token are of the guest's attestation; add [attestation] with tee = "tpm"`}, beyond: true},
	{name: "token of no broker", text: "attestation.tee = 'tpm'\nnetwork.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = { token = true }", want: []string{`9:17: workload[0].api.token: there is no broker that gives one; add brokers under [attestation]`}, beyond: true},
	{name: "key without a token", text: "attestation.brokers = [{ url = 'https://a' }]\nnetwork.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = { tee_key = true }", want: []string{`9:19: workload[0].api.tee_key: wants token beside it`}, beyond: true},
	{name: "resources of no broker", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = { resources = ['kbs:///a/'] }", want: []string{`8:22: workload[0].api.resources: "kbs:///a/": the guest has no broker; add [attestation] with brokers = [{ url = "https://HOST:PORT" }]`}, beyond: true},
	{name: "resources by half a word", text: "network.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = { resources = ['kbs:///a/b/c/', 'kbs:///a'] }", want: []string{`8:22: workload[0].api.resources: "kbs:///a/b/c/": want kbs:///REPOSITORY/TYPE/TAG, kbs:///REPOSITORY/TYPE/ or kbs:///REPOSITORY/`, `8:39: workload[0].api.resources: "kbs:///a": want kbs:///REPOSITORY/TYPE/TAG, kbs:///REPOSITORY/TYPE/ or kbs:///REPOSITORY/`}},
	{name: "events without a register", text: "schema = 1\nextends = 'snp'\nnetwork.dhcp = true\nworkloads.from = 'image'\n[[workload]]\nname = 'a'\nimage = 'docker://r.example/a:1'\napi = { measure = true }", want: []string{`8:19: workload[0].api.measure: platform "snp" has no register for it`}, beyond: true},
	{name: "argument for workloads", text: "cmdline = ['plinth.workloads=image']", want: []string{`3:12: cmdline: "plinth.workloads=image" is refused: the build writes it; see workloads.from`}, beyond: true},

	{name: "another schema", text: "schema = 2\nextends = 'vtpm'", want: []string{`1:10: schema: 2: want 1`}},
	{name: "no schema", text: "extends = 'vtpm' # schema", want: []string{`1:1: schema: is missing; write schema = 1`}},
	{name: "enum", text: `initrd.compression = "zstdd"`, want: []string{`3:22: initrd.compression: "zstdd": want "none", "gzip", "zstd" or "xz"; did you mean "zstd"?`}},
	{name: "enum in a list", text: `outputs.kinds = ["raw", "qcow"]`, want: []string{`3:25: outputs.kinds: "qcow": want "raw", "qcow2", "vhd", "vmdk" or "gce"; did you mean "qcow2"?`}},
	{name: "too small", text: `machine.vcpus = [1, 0]`, want: []string{`3:21: machine.vcpus: 0: want 1 to 288`}},
	{name: "too large for 64 bits", text: `machine.memory = 99_999_999_999_999_999_999`, want: []string{`3:18: machine.memory: 99_999_999_999_999_999_999: want 128 to 1048576`}, beyond: true},
	{name: "before FAT", text: `epoch = 0`, want: []string{`3:9: epoch: 0: want 315532800 to 4294967295`}},
	{name: "argument with a blank", text: `cmdline = ["a b", "c=\"d e\""]`, want: []string{`3:12: cmdline: "a b": want one kernel argument in ASCII, blanks only within double quotes`}},
	{name: "empty argument", text: `cmdline = [""]`, want: []string{`3:12: cmdline: "": want one kernel argument in ASCII, blanks only within double quotes`}},
	{name: "argument with a line break", text: `cmdline = ["a\nb"]`, want: []string{`3:12: cmdline: "a\nb": want one kernel argument in ASCII, blanks only within double quotes`}},
	{name: "package", text: `stub.package = "Systemd"`, want: []string{`3:16: stub.package: "Systemd": want the name of a Debian package`}},
	{name: "mode", text: "[[files]]\npath = '/x'\ntext = ''\nmode = '755'", want: []string{`6:8: files[0].mode: "755": want octal digits in quotes, as in "0644"`}},
	{name: "owner", text: "[[files]]\npath = '/x'\ntext = ''\nowner = 'root:root'", want: []string{`6:9: files[0].owner: "root:root": want numbers, as in "0:0"`}},
	{name: "relative guest path", text: "[[files]]\npath = 'etc/motd'\ntext = ''", want: []string{`4:8: files[0].path: "etc/motd": want an absolute path without . or .. parts`}},
	{name: "guest path that climbs", text: "[[files]]\npath = '/etc/../motd'\ntext = ''", want: []string{`4:8: files[0].path: "/etc/../motd": want an absolute path without . or .. parts`}, beyond: true},
	{name: "member that climbs", text: `firmware.code = "../code.fd"`, want: []string{`3:17: firmware.code: "../code.fd": want a path in the package, without a leading slash`}, beyond: true},
	{name: "mirror", text: `sources.debian.mirror = ["mirror.example"]`, want: []string{`3:26: sources.debian.mirror: "mirror.example": want an http or https URL`}},
	{name: "name of a source", text: `sources."a b".suite = "x"`, want: []string{`3:9: sources.a b: bad name: want lower-case letters, digits and ._+-, a letter or digit first`}},
	{name: "name of a variable", text: "[[services]]\nname = 'a'\nexec = ['/a']\nenv.1A = 'x'", want: []string{`6:5: services[0].env.1A: bad name: want the name of an environment variable`}},
	{name: "NUL in an argument", text: "[[services]]\nname = 'a'\nexec = ['/a', \"\\u0000\"]", want: []string{`5:15: services[0].exec: "\u0000": want text without a NUL`}, beyond: true},
	{name: "empty path", text: `kernel.file = ""`, want: []string{`3:15: kernel.file: "": want the path of a file`}, beyond: true},

	{name: "key twice", text: "seed = 'a'\nseed = 'b'", want: []string{`4:1: seed: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "dotted key twice", text: "machine.memory = 512\nmachine . memory = 512", want: []string{`4:11: machine.memory: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "key in a table twice", text: "[kernel]\npackage = 'aa'\n\"package\" = 'bb'", want: []string{`5:1: kernel.package: given twice; keep one of the two, the first is in line 4`}, beyond: true},
	{name: "key in an inline table twice", text: "root = { kind = 'initrd', kind = 'initrd' }", want: []string{`3:27: root.kind: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "table twice", text: "[kernel]\npackage = 'aa'\n[stub]\n[kernel]\nsuite = 7", want: []string{`6:2: kernel: given twice; keep one of the two, the first is in line 3`, `7:9: kernel.suite: is an integer: want a string; write "7"`}, beyond: true},
	{name: "table after dotted key", text: "kernel.suite = 'x'\n[kernel]", want: []string{`4:2: kernel: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "table after value", text: "cmdline = []\n[cmdline.x]", want: []string{`4:2: cmdline: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "list of tables after list", text: "files = []\n[[files]]\npath = '/x'", want: []string{`4:3: files: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "table in an inline table", text: "kernel = { suite = 'x' }\n[kernel.x]", want: []string{`4:2: kernel: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "dotted key into a table", text: "[sources.x]\nsuite = 'x'\n[sources]\nx.mirror = []", want: []string{`6:1: sources.x: given twice; keep one of the two, the first is in line 3`}, beyond: true},
	{name: "path twice", text: "[[files]]\npath = '/x'\ntext = ''\n[[files]]\npath = '/x'\ntext = 'y'", want: []string{`7:8: files[1].path: "/x" is in the list already: p.toml:4:8; keep one of the two`}, beyond: true},
	{name: "module twice", text: `kernel.modules = ["a", "b", "a"]`, want: []string{`3:29: kernel.modules: "a" is in the list already: p.toml:3:19; keep one of the two`}},
	{name: "module twice by append", text: `kernel.modules = { append = ["virtio_blk"] }`, want: []string{`3:30: kernel.modules: "virtio_blk" is in the list already: built-in profile vtpm:35:3; keep one of the two`}, beyond: true},
	{name: "exclusive", text: "[kernel]\nfile = 'x'\nsuite = 'sid'\nmodules = []", want: []string{`5:1: kernel.suite: cannot stand beside kernel.file; keep one of the two`}},
	{name: "exclusive, the other way round", text: "[[files]]\npath = '/x'\ntext = 'x'\nsource = 'x'", want: []string{`6:1: files[0].source: cannot stand beside files[0].text; keep one of the two`}},
	{name: "no path", text: "[[files]]\ntext = 'x'", want: []string{`3:3: files[0]: path is missing`}},
	{name: "misspelt path", text: "[[files]]\npaht = '/x'\ntext = 'x'", want: []string{`4:1: files[0].paht: unknown key; did you mean "path"?`}},

	{name: "remove what is not there", text: `cmdline = { remove = ["console=tty1"] }`, want: []string{`3:23: cmdline: cannot remove "console=tty1": the list has no such entry; did you mean "console=tty0"?`}, beyond: true},
	{name: "remove from a default", text: `agent.phases = { remove = ["redy"] }`, want: []string{`3:28: agent.phases: cannot remove "redy": the list has no such entry; did you mean "ready"?`}, beyond: true},
	{name: "remove a file that is not there", text: `files = { remove = ["/x"] }`, want: []string{`3:21: files: cannot remove "/x": the list has no such entry`}, beyond: true},
	{name: "remove an integer", text: `machine.vcpus = { remove = [4] }`, want: []string{`3:29: machine.vcpus: cannot remove 4: the list has no such entry`}, beyond: true},
	{name: "another operation", text: `cmdline = { prepend = ["x"], apend = ["y"] }`, want: []string{
		`3:13: cmdline.prepend: unknown key: want a list, or a table with append and remove`,
		`3:30: cmdline.apend: unknown key: want a list, or a table with append and remove; did you mean "append"?`}},
	{name: "append a string", text: `cmdline = { append = "x" }`, want: []string{`3:22: cmdline.append: is a string: want a list; write ["x"]`}},
	{name: "remove tables", text: `files = { remove = [{ path = "/x" }] }`, want: []string{`3:21: files.remove: is a table: want a string`}},
	{name: "empty by remove", text: `machine.vcpus = { remove = [1, 2] }`, want: []string{`3:17: machine.vcpus: is empty`}, beyond: true},
	{name: "empty", text: `outputs.kinds = []`, want: []string{`3:17: outputs.kinds: is empty`}},

	{name: "nothing", text: "schema = 1", want: []string{
		"1:1: platform: is missing: What measures the guest: a virtual TPM, AMD SEV-SNP or Intel TDX.",
		"1:1: seed: is missing: Every identifier of the image (partition and disk GUIDs, volume numbers) derives from this text and from content. It is no secret.",
		"1:1: epoch: is missing: The only time in the image, in seconds since 1970, from 1980 (FAT) to 2106 (cpio). SOURCE_DATE_EPOCH overrides it.",
		"1:1: kernel.package: is missing, or kernel.file",
		"1:1: stub.package: is missing, or stub.file",
		"1:1: firmware.code: is missing, or firmware.code_file",
		"1:1: firmware.vars: is missing, or firmware.vars_file"}},
	{name: "no sources", text: "schema = 1\nplatform = 'vtpm'\nseed = 'x'\nepoch = 1767225600\nkernel.package = 'linux'\nstub.file = 's'\nfirmware = { code = 'c', vars_file = 'v' }", want: []string{
		`1:1: sources: is missing: there are packages to fetch; write [sources.debian] with suite = "trixie"`,
		"7:12: firmware.package: is missing: code and vars are paths in it"}, beyond: true},
	{name: "source without suite", text: "[sources.x]\nmirror = []", want: []string{"3:10: sources.x: suite is missing, or debs"}, beyond: true},
	{name: "suite that a source's name hides", text: "sources.sid.suite = 'unstable'\nkernel.suite = 'sid'", want: []string{`4:16: kernel.suite: no source has suite "sid", and sources.sid has another; name the source differently`}, beyond: true},
	{name: "suite of the generic firmware that a source's name hides", text: "schema = 1\nextends = 'snp'\nsources.sid.suite = 'unstable'\nfirmware.generic.suite = 'sid'", want: []string{`4:26: firmware.generic.suite: no source has suite "sid", and sources.sid has another; name the source differently`}, beyond: true},
	{name: "own kernel without modules", text: "[kernel]\nfile = 'x'", want: []string{"3:2: kernel.modules_dir: is missing: kernel.file comes without modules; or write modules = [] when all are built in"}, beyond: true},
	{name: "modules without kernel", text: "[kernel]\nmodules_dir = 'x'", want: []string{"3:2: kernel.package: is missing, or kernel.file", "4:15: kernel.modules_dir: wants kernel.file"}, beyond: true},
	{name: "file without content", text: "[[files]]\npath = '/x'", want: []string{"3:3: files[0]: source is missing, or url, text, link or dir"}, beyond: true},
	{name: "file by address without digest", text: "[[files]]\npath = '/x'\nurl = 'https://files.example.com/x'", want: []string{"3:3: files[0].sha256: is missing: what is at the URL may change"}, beyond: true},
	{name: "file from two places", text: "[[files]]\npath = '/x'\nurl = 'https://files.example.com/x'\nsource = 'x'\nsha256 = '" + zeros + "'", want: []string{"6:1: files[0].source: cannot stand beside files[0].url; keep one of the two"}},
	{name: "digest of a text", text: "[[files]]\npath = '/x'\ntext = 'x'\nsha256 = '" + zeros + "'", want: []string{"6:1: files[0].sha256: cannot stand beside files[0].text; keep one of the two"}},
	{name: "short digest", text: "[[files]]\npath = '/x'\nsource = 'x'\nsha256 = '00'", want: []string{`6:10: files[0].sha256: "00": want 64 lower-case hexadecimal digits`}},
	{name: "layer without digest", text: "[[layers]]\nname = 'a'\nsource = 'a.tar'", want: []string{"3:3: layers[0].digest: is missing: Digest of the layer as it is stored: a tar archive as it is, or packed with gzip, zstd or xz."}, beyond: true},
	{name: "layer from nowhere", text: "[[layers]]\nname = 'a'\ndigest = 'sha256:" + zeros + "'", want: []string{"3:3: layers[0]: source is missing, or layout or registry"}, beyond: true},
	{name: "layer from two places", text: "[[layers]]\nname = 'a'\ndigest = 'sha256:" + zeros + "'\nlayout = 'a'\nregistry = 'registry.example.com/a'", want: []string{"7:1: layers[0].registry: cannot stand beside layers[0].layout; keep one of the two"}},
	{name: "layer by another algorithm, from a reference with a tag", text: "[[layers]]\nname = 'a'\ndigest = 'md5:00'\nregistry = 'registry.example.com/a:1'", want: []string{
		`5:10: layers[0].digest: "md5:00": want sha256: and 64 lower-case hexadecimal digits`,
		`6:12: layers[0].registry: "registry.example.com/a:1": want HOST/NAME or HOST:PORT/NAME, without tag and digest`}},
	{name: "file of the agent", text: "[[files]]\npath = '/etc/plinth/agent.json'\ntext = ''", want: []string{`4:8: files[0].path: "/etc/plinth" belongs to the agent or the kernel`}, beyond: true},
	{name: "file in the place of the agent", text: "[[files]]\npath = '/init'\ntext = ''\n[[files]]\npath = '/initial'\ntext = ''", want: []string{`4:8: files[0].path: "/init" belongs to the agent or the kernel`}, beyond: true},
	{name: "service without program", text: "[[services]]\nname = 'x'", want: []string{"3:3: services[0].exec: is missing: The program, by absolute path in the guest, and its arguments. No shell reads them."}, beyond: true},
	{name: "service by relative path", text: "[[services]]\nname = 'x'\nexec = ['sh', '-c']", want: []string{`5:9: services[0].exec: "sh": want the absolute path of the program`}, beyond: true},
	{name: "long command line", text: "cmdline = ['" + strings.Repeat("a", 2000) + "', '" + strings.Repeat("b", 47) + "']", want: []string{"3:11: cmdline: 2048 bytes: want at most 1600, for the root hash comes beside it"}, beyond: true},
	{name: "long command line of an initrd", text: "root.kind = 'initrd'\ncmdline = ['" + strings.Repeat("a", 2000) + "', '" + strings.Repeat("b", 47) + "']", want: []string{"4:11: cmdline: 2048 bytes: want at most 2047"}, beyond: true},
	{name: "overlay over an initrd", text: "root = { kind = 'initrd', overlay = true }", want: []string{`3:37: root.overlay: is for root.kind "verity": an initrd is in memory, and can be written to`}, beyond: true},
	{name: "root hash signed by nobody", text: "root.verity_key = 'k'", want: []string{"3:1: root.verity_cert: is missing: root.verity_key signs in its name"}, beyond: true},
	{name: "root hash signed with nothing", text: "root.verity_cert = 'c'", want: []string{"3:1: root.verity_key: is missing: root.verity_cert alone signs nothing"}, beyond: true},
	{name: "signature of an initrd", text: "root = { kind = 'initrd', verity_key = 'k', verity_cert = 'c' }", want: []string{`3:8: root: verity_key and verity_cert are for root.kind "verity"`}, beyond: true},
	{name: "alternative by relative path", text: "root.alternatives = { '/usr/bin/awk' = 'mawk' }", want: []string{`3:40: root.alternatives./usr/bin/awk: "mawk": want an absolute path`}, beyond: true},
	{name: "file without content", text: "files = [{ path = '/a' }, { path = '/b', link = '/c' }, { path = '/d', dir = true }]", want: []string{"3:10: files[0]: source is missing, or url, text, link or dir"}, beyond: true},
	{name: "link with a mode", text: "[[files]]\npath = '/a'\nlink = 'b'\nmode = '0777'", want: []string{"6:1: files[0].mode: cannot stand beside files[0].link; keep one of the two"}},
	{name: "account", text: "[[users]]\nname = 'Root'\nuid = 0\ncomment = 'a:b'", want: []string{
		`4:8: users[0].name: "Root": want lower-case letters, digits, _ and -, a letter or _ first, at most 32`,
		"5:7: users[0].uid: 0: want 1 to 4294967294",
		`6:11: users[0].comment: "a:b": want a line of text without a colon`}},
	{name: "refused arguments", text: `cmdline = ["init=/bin/sh", "rdinit=/x", "initrd=x", "bootconfig", "plinth.verity=x", "initx", "bootconfig2"]`, want: []string{
		`3:12: cmdline: "init=/bin/sh" is refused: PID 1 is the agent`,
		`3:28: cmdline: "rdinit=/x" is refused: PID 1 is the agent`,
		`3:41: cmdline: "initrd=x" is refused: it would add a file of the ESP, which the host can write, to the initrd`,
		`3:53: cmdline: "bootconfig" is refused: it would take arguments from what is appended to the initrd, and the agent refuses to start then`,
		`3:67: cmdline: "plinth.verity=x" is refused: the build writes it; see root.kind`}, beyond: true},
	{name: "shell without debug", text: "agent.shell = true", want: []string{"3:15: agent.shell: wants agent.debug; add debug = true"}, beyond: true},
	{name: "fw_cfg as a module", text: `kernel.modules = ["?qemu-fw_cfg"]`, want: []string{`3:19: kernel.modules: "?qemu-fw_cfg" is not loaded this way; write fw_cfg = true under [agent]`}, beyond: true},
	{name: "level", text: "initrd = { compression = 'gzip', level = 10 }", want: []string{`3:42: initrd.level: 10: want at most 9 with compression "gzip"`}, beyond: true},
	{name: "key without certificate", text: "secure_boot.key = 'k'", want: []string{"3:1: secure_boot.cert: is missing: secure_boot.key signs in its name"}, beyond: true},
	{name: "certificate without key", text: "secure_boot.cert = 'c'", want: []string{"3:1: secure_boot.key: is missing: secure_boot.cert alone signs nothing"}, beyond: true},
	{name: "nothing to enroll", text: "secure_boot = { enroll = true, pk = 'p', db = ['d'] }", want: []string{"3:26: secure_boot.enroll: has no certificate to enroll; add cert, or all of pk, kek and db"}, beyond: true},
	{name: "phase that is not passed", text: `pcr_policy = { key = "k", phases = ["enter-initrd:sysinit"] }`, want: []string{`3:37: pcr_policy.phases: the agent never passes "enter-initrd:sysinit": see agent.phases`}, beyond: true},

	{name: "platform without a TPM", text: "platform = 'tdx'", want: []string{
		`3:12: platform: "tdx" has no TPM to extend agent.phases into; write phases = [] under [agent]`,
		`built-in profile vtpm:48:11: firmware.vars: the firmware of platform "tdx" is one file, code`}, beyond: true},
	{name: "firmware in two files", text: "platform = 'snp'\nagent.phases = []\nfirmware.vars_file = 'v'\nsnp.vcpu_types = ['EPYC']", want: []string{
		`5:22: firmware.vars_file: the firmware of platform "snp" is one file, code_file`}, beyond: true},
	{name: "no vCPU types", text: "schema = 1\nextends = 'snp'\nsnp.vcpu_types = []", want: []string{
		`3:18: snp.vcpu_types: is missing: the model of the vCPUs is measured; write vcpu_types = ["EPYC-v4"] under [snp]`}, beyond: true},
	{name: "table of another platform", text: "snp.policy = '0x30000'\ntdx = { xfam = '0x3' }", want: []string{
		`3:1: snp: is for platform "snp"`, `4:7: tdx: is for platform "tdx"`}, beyond: true},
	{name: "generic firmware of vtpm", text: "firmware.generic = { code_file = 'c', vars = 'v' }", want: []string{
		`3:20: firmware.generic: a guest of platform "vtpm" runs under its own firmware everywhere`,
		`3:20: firmware.generic.package: is missing: code and vars are paths in it`}, beyond: true},
	{name: "half a generic firmware", text: "schema = 1\nextends = 'snp'\n[firmware.generic]\nvars_file = 'v'\nsuite = 'sid'\ncode = { }", want: []string{
		`6:8: firmware.generic.code: is a table: want a string`}},
	{name: "keys for firmware without variables", text: "schema = 1\nextends = 'snp'\nsecure_boot.setup_mode = true", want: []string{
		`3:1: secure_boot: the firmware of platform "snp" has no variables to change: kernel, initrd and command line are measured at launch`}, beyond: true},
	{name: "keys and set-up mode", text: "secure_boot = { key = 'k', cert = 'c', enroll = true, setup_mode = true }", want: []string{
		`3:55: secure_boot.setup_mode: cannot stand beside secure_boot.enroll; keep one of the two`}},
	{name: "policy of a TPM", text: "schema = 1\nextends = 'tdx'\npcr_policy.key = 'k'", want: []string{
		`3:18: pcr_policy.key: platform "tdx" has no TPM to unseal with`}, beyond: true},
	{name: "number that is no text", text: "schema = 1\nextends = 'snp'\nsnp.policy = 0x30000", want: []string{`3:14: snp.policy: is an integer: want a string; write "0x30000"`}},
	{name: "bits", text: "schema = 1\nextends = 'snp'\nsnp.policy = '0x030000'", want: []string{`3:14: snp.policy: "0x030000": want a number of 64 bits in quotes, as in "0x30000"`}},

	{name: "no value", text: "seed =\n[machine]\nmemory = 'x'", want: []string{`3:7: unexpected character U+000A at start of value`, `5:10: machine.memory: is a string: want an integer`}, beyond: true},
	{name: "no equals sign", text: "seed 'x'\nsedd = 1", want: []string{`3:6: expected '=' after key`, `4:1: sedd: unknown key; did you mean "seed"?`}, beyond: true},
	{name: "lost header", text: "[machine\nmemory = 'x'\n[agent]\ndebug = 1", want: []string{`3:9: expected ']' to close table name`, `6:9: agent.debug: is an integer: want a boolean`}, beyond: true},
	{name: "no quotes", text: "seed = abc\nepoch = 2d", want: []string{`3:8: unexpected character U+0061 'a' at start of value`, `4:10: strings must be quoted`}, beyond: true},
	{name: "open list", text: "cmdline = [\n'a'", want: []string{`4:3: array is incomplete`}, beyond: true},
	{name: "open string", text: "seed = 'ü", want: []string{`3:9: unterminated literal string`}, beyond: true},
	{name: "octal mode without 0o", text: "[[files]]\nmode = 0644", want: []string{`3:3: files[0]: path is missing`, `4:8: integers cannot have leading zeroes`}, beyond: true},
}

func TestFaults(t *testing.T) {
	for _, c := range faultRows {
		text := withHead(c.text)
		_, err := load(text, Options{})
		var want []string
		for _, w := range c.want {
			if !strings.HasPrefix(w, "built-in") {
				w = "p.toml:" + w
			}
			want = append(want, w)
		}
		if f := (*Faults)(nil); !errors.As(err, &f) || err.Error() != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\ngot\n%v\nwant\n%s", c.name, text, err, strings.Join(want, "\n"))
		}
	}
}

func withHead(text string) string {
	if strings.Contains(text, "schema") {
		return text
	}
	return head + text
}

// Every fault of a profile at once, those of its base included.
func TestFaultsTogether(t *testing.T) {
	_, err := Load(files(map[string]string{
		"top.toml": `schema = 1
extends = "base"
platfrom = "vtpm"
seed = 5
cmdline = { append = ["a b"], remove = ["gone"] }
[machine]
memory = "12"
vcpus = 3
oops oops
[[files]]
path = "/x"
path = "/y"
mode = 0o644
[root]
kind = "veritty"
`,
		"base.toml": `schema = 1
extends = "vtpm"
epoch = 3
[kernel]
modlues = ["x"]
file = "x"
package = "linux"
`}), "top.toml", Options{Set: []string{"machine.cpus=2"}, SourceDateEpoch: "x"})
	want := `top.toml:3:1: platfrom: unknown key; did you mean "platform"?
top.toml:4:8: seed: is an integer: want a string; write "5"
top.toml:5:23: cmdline.append: "a b": want one kernel argument in ASCII, blanks only within double quotes
top.toml:7:10: machine.memory: is a string: want an integer; write 12
top.toml:8:9: machine.vcpus: is an integer: want a list; write [3]
top.toml:9:6: expected '=' after key
top.toml:12:1: files.path: given twice; keep one of the two, the first is in line 11
top.toml:13:8: files[0].mode: is an integer: want a string; write "0644"
top.toml:15:8: root.kind: "veritty": want "verity" or "initrd"; did you mean "verity"?
base.toml:3:9: epoch: 3: want 315532800 to 4294967295
base.toml:5:1: kernel.modlues: unknown key; did you mean "modules"?
base.toml:7:1: kernel.package: cannot stand beside kernel.file; keep one of the two
SOURCE_DATE_EPOCH: epoch: is a string: want an integer; write "x"
--set machine.cpus=2: machine.cpus: unknown key; did you mean "cpu"?`
	want = strings.Replace(want, `; write "x"`, "", 1)
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestFaultString(t *testing.T) {
	for _, c := range []struct {
		f    Fault
		want string
	}{
		{Fault{Origin{"a.toml", 3, 4}, "k", "is bad", "write b"}, "a.toml:3:4: k: is bad; write b"},
		{Fault{Origin{Source: "--set x"}, "", "is bad", ""}, "--set x: is bad"},
	} {
		if got := c.f.String(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"package", "suite", "file", "modules", "modules_dir"}
	for name, want := range map[string]string{
		"pakcage": "package", "packages": "package", "Suite": "suite", "fil": "file", "modlues": "modules",
		"module_dir": "modules_dir", "": "", "x": "", "sweets": "", "packagepackage": "",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "acb", 1}, {"kitten", "sitting", 3}, {"äb", "b", 1}, {"ca", "abc", 3}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
