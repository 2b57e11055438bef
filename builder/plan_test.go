package builder

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// movedBy says which steps get another key when one value of the profile
// changes. Where a value is only a wish that the lock answers, or a path whose
// content stands in the lock, no key changes: the lock's entries are in
// TestKeysFollowTheLock.
var movedBy = map[string]string{
	"schema": "", "extends": "", "arch": "",
	"platform": "measure",
	"seed":     "initrd uki disk measure",
	"epoch":    "firmware initrd uki disk measure",
	"cmdline":  "initrd uki disk measure",

	"sources.*.suite": "", "sources.*.components": "", "sources.*.mirror": "", "sources.*.keyring": "",
	"sources.*.check_valid_until": "", "sources.*.not_automatic": "", "sources.*.debs": "",

	"kernel.package": "", "kernel.suite": "", "kernel.file": "", "kernel.modules_dir": "",
	"kernel.modules": "initrd uki disk measure",
	"stub.package":   "", "stub.suite": "", "stub.file": "",

	"firmware.package": "", "firmware.suite": "", "firmware.code_file": "", "firmware.vars_file": "",
	"firmware.code": "firmware measure",
	"firmware.vars": "firmware measure",

	// What is for another platform decides nothing: see movedOn.
	"firmware.generic.package": "", "firmware.generic.suite": "", "firmware.generic.code_file": "", "firmware.generic.vars_file": "",
	"firmware.generic.code": "", "firmware.generic.vars": "",
	"snp.vcpu_types": "", "snp.policy": "", "snp.guest_features": "", "snp.host_era": "", "snp.family_id": "", "snp.image_id": "", "snp.guest_svn": "",
	"tdx.attributes": "", "tdx.xfam": "", "tdx.mr_config_id": "", "tdx.mr_owner": "", "tdx.mr_owner_config": "",

	"initrd.compression": "initrd uki disk measure",
	"initrd.level":       "initrd uki disk measure",
	"root.kind":          "", // neither is verity: see movedByVerity
	"root.packages":      "", "root.bare": "",
	"root.exclude": "initrd uki disk measure", "root.alternatives": "initrd uki disk measure",
	"root.overlay": "", "root.on_corruption": "", "root.hash": "", "root.verity_key": "", "root.verity_cert": "",
	"users.name": "initrd uki disk measure", "users.uid": "initrd uki disk measure", "users.group": "initrd uki disk measure",
	"users.comment": "initrd uki disk measure", "users.home": "initrd uki disk measure", "users.shell": "initrd uki disk measure",
	"users.groups": "initrd uki disk measure",
	"groups.name":  "initrd uki disk measure", "groups.gid": "initrd uki disk measure",

	"files.path": "initrd uki disk measure", "files.mode": "initrd uki disk measure", "files.owner": "initrd uki disk measure",
	"files.link": "initrd uki disk measure", "files.dir": "initrd uki disk measure",
	"files.source": "", "files.text": "", "files.url": "", "files.sha256": "",
	"layers.name": "initrd uki disk measure", "layers.paths": "initrd uki disk measure", "layers.strip": "initrd uki disk measure",
	"layers.to": "initrd uki disk measure", "layers.owner": "initrd uki disk measure",
	"layers.digest": "", "layers.source": "", "layers.layout": "", "layers.registry": "",
	"services.name": "initrd uki disk measure", "services.exec": "initrd uki disk measure", "services.env": "initrd uki disk measure",
	"services.after": "initrd uki disk measure", "services.restart": "initrd uki disk measure",
	"agent.phases": "initrd uki disk measure", "agent.fw_cfg": "initrd uki disk measure",
	"agent.debug": "initrd uki disk measure", "agent.shell": "initrd uki disk measure",

	"secure_boot.key": "", "secure_boot.cert": "", "secure_boot.pk": "", "secure_boot.kek": "", "secure_boot.db": "",
	"secure_boot.enroll": "firmware measure", "secure_boot.setup_mode": "firmware measure",
	"pcr_policy.key": "", "pcr_policy.banks": "uki disk measure", "pcr_policy.phases": "uki disk measure",

	"machine.type": "measure", "machine.cpu": "measure", "machine.vcpus": "measure", "machine.memory": "measure", "machine.path": "measure",
	"outputs.kinds": "forms", "initdata": "",

	"agent.test_keys": "initrd uki disk measure",
	"network.dhcp":    "initrd uki disk measure", "network.addresses": "initrd uki disk measure", // each is a network
	"network.gateways": "", "network.dns": "", "network.mtu": "",
	"workloads.from": "initrd uki disk workloads measure",
	// Without it nothing else says anything: see TestKeysOfWorkloads.
	"workloads.policy": "", "workloads.admit": "", "workloads.registries": "", "workloads.registries_d": "", "workloads.cas": "",
	"workloads.proxy": "", "workloads.no_proxy": "", "workloads.auth": "", "workloads.image_service": "", "workloads.max_size": "",
	"workloads.max_files": "", "workloads.memory": "", "workloads.disk": "", "workloads.event_pcr": "", "workloads.pcr_23": "",
	"workload.name": "", "workload.image": "", "workload.archive": "", "workload.command": "", "workload.args": "", "workload.env": "",
	"workload.dir": "", "workload.user": "", "workload.mounts.path": "", "workload.mounts.source": "", "workload.mounts.tmpfs": "",
	"workload.ports": "", "workload.network": "", "workload.memory": "", "workload.milli_cpu": "", "workload.pids": "",
	"workload.capabilities": "", "workload.read_only": "", "workload.scratch": "", "workload.devices": "", "workload.restart": "",
	"workload.output": "", "workload.exec": "", "workloads.policy_file": "",
	"workload.mounts.volume": "", "workload.mounts.secret": "",
	"workload.api.resources": "", "workload.api.evidence": "", "workload.api.token": "", "workload.api.tee_key": "", "workload.api.measure": "",

	"attestation.tee": "initrd uki disk measure", "attestation.from_initdata": "initrd uki disk measure", "attestation.key": "initrd uki disk measure",
	"attestation.hashes": "initrd uki disk measure", "attestation.ak_handle": "initrd uki disk measure", "attestation.services": "initrd uki disk measure",
	"attestation.brokers.url": "initrd uki disk measure", "attestation.brokers.cas": "", // its content is in the lock
	"volume.name": "initrd uki disk measure", "volume.disk": "initrd uki disk measure", "volume.key": "initrd uki disk measure",
	"volume.integrity": "initrd uki disk measure", "volume.filesystem": "initrd uki disk measure", "volume.format": "initrd uki disk measure",

	"Name": "initrd uki disk measure", "Origin": "", "Dir": "", "Stock": "",
}

// movedByVerity says what moves otherwise where the root is on the disk.
var movedByVerity = map[string]string{
	"seed":  "rootfs verity initrd uki disk measure",
	"epoch": "firmware rootfs verity initrd uki disk measure",
	"Name":  "verity initrd uki disk measure",

	"root.kind":    "initrd uki disk measure", // to an initrd: the steps of the root are gone
	"root.exclude": "rootfs verity initrd uki disk measure", "root.alternatives": "rootfs verity initrd uki disk measure",
	"root.overlay": "initrd uki disk measure", "root.on_corruption": "verity initrd uki disk measure", "root.hash": "verity initrd uki disk measure",
	"users.name": "rootfs verity initrd uki disk measure", "users.uid": "rootfs verity initrd uki disk measure", "users.group": "rootfs verity initrd uki disk measure",
	"users.comment": "rootfs verity initrd uki disk measure", "users.home": "rootfs verity initrd uki disk measure", "users.shell": "rootfs verity initrd uki disk measure",
	"users.groups": "rootfs verity initrd uki disk measure",
	"groups.name":  "rootfs verity initrd uki disk measure", "groups.gid": "rootfs verity initrd uki disk measure",
	"files.path": "rootfs verity initrd uki disk measure", "files.mode": "rootfs verity initrd uki disk measure", "files.owner": "rootfs verity initrd uki disk measure",
	"files.link": "rootfs verity initrd uki disk measure", "files.dir": "rootfs verity initrd uki disk measure",
	"layers.name": "rootfs verity initrd uki disk measure", "layers.paths": "rootfs verity initrd uki disk measure", "layers.strip": "rootfs verity initrd uki disk measure",
	"layers.to": "rootfs verity initrd uki disk measure", "layers.owner": "rootfs verity initrd uki disk measure",
	"agent.shell": "rootfs verity initrd uki disk measure",

	"network.dhcp": "rootfs verity initrd uki disk measure", "network.addresses": "rootfs verity initrd uki disk measure", // a link to its name servers
	"workloads.from": "rootfs verity initrd uki disk workloads measure", // must hold the runtime
}

// movedOn says what moves on a platform and not on others.
var movedOn = map[string]map[string]string{
	profiles.PlatformSNP: {
		"firmware.generic.code": "firmware measure", "firmware.generic.vars": "firmware measure",
		"snp.vcpu_types": "measure", "snp.policy": "measure", "snp.guest_features": "measure", "snp.host_era": "measure",
		"snp.family_id": "measure", "snp.image_id": "measure", "snp.guest_svn": "measure",
		"platform": "firmware initrd uki disk measure", // the agent has a TPM then
	},
	profiles.PlatformTDX: {
		"firmware.generic.code": "firmware measure", "firmware.generic.vars": "firmware measure",
		"tdx.attributes": "measure", "tdx.xfam": "measure", "tdx.mr_config_id": "measure", "tdx.mr_owner": "measure", "tdx.mr_owner_config": "measure",
		"platform": "firmware initrd uki disk measure",
	},
}

// everything is a Spec in which no value is empty.
func everything() *Spec {
	p := &profiles.Profile{
		Sources:     map[string]profiles.Source{"debian": {Components: []string{"main"}, Mirror: []string{"a"}}},
		Files:       []profiles.File{{}},
		Layers:      []profiles.Layer{{}},
		Root:        profiles.Root{Alternatives: map[string]string{}},
		Users:       []profiles.User{{}},
		Groups:      []profiles.Group{{}},
		Services:    []profiles.Service{{Env: map[string]string{}}},
		Agent:       profiles.Agent{TestKeys: map[string]string{}},
		Workload:    []profiles.Workload{{Env: map[string]string{}, Mounts: []profiles.Mount{{}}}},
		Attestation: profiles.Attestation{Brokers: []profiles.Broker{{}}},
		Volume:      []profiles.Volume{{}},
	}
	n := 0
	leaves(reflect.ValueOf(p).Elem(), "", func(_ string, v reflect.Value) {
		n++
		change(v, n)
	})
	p.Outputs.Kinds = nil // without the step for them: TestKeysOfForms
	// Without containers: TestKeysOfWorkloads.
	p.Network, p.Workloads, p.Agent.TestKeys = profiles.Network{}, profiles.Workloads{}, map[string]string{}
	lock := &source.Lock{}
	for i, role := range []string{roleKernel, roleStub, roleFirmware, roleGeneric, roleRoot} {
		lock.Packages = append(lock.Packages, source.Package{Name: role, Version: "1", SHA256: cas.Digest{byte(i)}, Why: []string{role}})
	}
	lock.Packages = append(lock.Packages, source.Package{Name: "zlib", SHA256: cas.Digest{9}, Why: []string{"dependency of root"}})
	for i, key := range []string{"attestation.brokers[0].cas", "files /a", "firmware.code_file", "firmware.generic.code_file", "firmware.generic.vars_file", "firmware.vars_file", "initdata", "kernel.file", "kernel.modules_dir", "layers a",
		"pcr_policy.key", "root.verity_cert", "secure_boot.cert", "secure_boot.db[0]", "secure_boot.kek[0]", "secure_boot.pk", "stub.file"} {
		lock.Files = append(lock.Files, source.File{Path: key, SHA256: cas.Digest{1, byte(i)}})
	}
	return &Spec{Profile: p, Lock: lock, Guest: Guest{cas.Ref{Size: 1}, cas.Ref{Size: 2}}, Records: []byte("{}")}
}

// leaves calls visit for each value of a profile, with its key.
func leaves(v reflect.Value, at string, visit func(string, reflect.Value)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if name == "-" {
			name = f.Name
		}
		if at == "sources.*" && name == "Name" {
			continue // the key of the map
		}
		key, child := strings.TrimPrefix(at+"."+name, "."), v.Field(i)
		switch {
		case child.Kind() == reflect.Struct:
			leaves(child, key, visit)
		case child.Kind() == reflect.Slice && child.Type().Elem().Kind() == reflect.Struct:
			leaves(child.Index(0), key, visit)
		case child.Type() == reflect.TypeFor[map[string]profiles.Source]():
			s := reflect.New(child.Type().Elem()).Elem()
			s.Set(child.MapIndex(reflect.ValueOf("debian")))
			leaves(s, key+".*", visit)
			child.SetMapIndex(reflect.ValueOf("debian"), s)
		default:
			visit(key, child)
		}
	}
}

// change makes a value another one; n makes it unlike others.
func change(v reflect.Value, n int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("%s%d", v, n))
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + int64(n))
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Slice:
		e := reflect.New(v.Type().Elem()).Elem()
		change(e, n)
		v.Set(reflect.Append(v, e))
	case reflect.Map: // of strings
		v.SetMapIndex(reflect.ValueOf(fmt.Sprint(n)), reflect.ValueOf("x"))
	default:
		panic("a profile has a " + v.Kind().String())
	}
}

// onVerity is everything with its root on the disk.
func onVerity() *Spec {
	s := everything()
	s.Profile.Root.Kind = profiles.RootVerity
	return s
}

// A change of the command line, or of a service, leaves the root as it is.
func TestKeysOfAVerityRoot(t *testing.T) {
	leaves(reflect.ValueOf(everything().Profile).Elem(), "", func(key string, _ reflect.Value) {
		s := onVerity()
		leaves(reflect.ValueOf(s.Profile).Elem(), "", func(k string, v reflect.Value) {
			if k == key {
				change(v, 1000)
			}
		})
		want, ok := movedByVerity[key]
		if !ok {
			want = movedBy[key]
		}
		if got := moved(t, onVerity(), s); got != want {
			t.Errorf("%s: moves %q, want %q", key, got, want)
		}
	})
	for _, c := range []struct {
		name string
		edit func(*Spec)
		want string
	}{
		{"root package", pkg("root"), "rootfs verity initrd uki disk measure"},
		{"files", file("files /a"), "rootfs verity initrd uki disk measure"},
		{"layers", file("layers a"), "rootfs verity initrd uki disk measure"},
		{"agent", func(s *Spec) { s.Guest.Agent.Size++ }, "rootfs verity initrd uki disk measure"},
		{"shell", func(s *Spec) { s.Guest.Shell.Size++ }, "rootfs verity initrd uki disk measure"},
		{"kernel package", pkg("kernel"), "kernel initrd uki disk measure"},
		{"pcr_policy.key", file("pcr_policy.key"), "initrd uki disk measure"},
		{"root.verity_cert", file("root.verity_cert"), "disk measure"},
	} {
		s := onVerity()
		c.edit(s)
		if got := moved(t, onVerity(), s); got != c.want {
			t.Errorf("%s: moves %q, want %q", c.name, got, c.want)
		}
	}
}

// moved lists the steps whose keys differ.
func moved(t *testing.T, a, b *Spec) string {
	t.Helper()
	pa, err := NewPlan(a)
	if err != nil {
		t.Fatal(err)
	}
	pb, err := NewPlan(b)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]cas.Digest{}
	for _, s := range pa.Steps {
		keys[s.Name] = s.Key
	}
	var names []string
	for _, s := range pb.Steps {
		if s.Key != keys[s.Name] {
			names = append(names, s.Name)
		}
	}
	return strings.Join(names, " ")
}

func TestKeysFollowTheProfile(t *testing.T) {
	if got := moved(t, everything(), everything()); got != "" {
		t.Fatalf("equal specs have other keys: %s", got)
	}
	var keys []string
	leaves(reflect.ValueOf(everything().Profile).Elem(), "", func(key string, _ reflect.Value) { keys = append(keys, key) })
	for _, key := range keys {
		want, ok := movedBy[key]
		if !ok {
			t.Errorf("%s: is not in the table: which steps does it decide?", key)
			continue
		}
		s := everything()
		leaves(reflect.ValueOf(s.Profile).Elem(), "", func(k string, v reflect.Value) {
			if k == key {
				change(v, 1000)
			}
		})
		if got := moved(t, everything(), s); got != want {
			t.Errorf("%s: moves %q, want %q", key, got, want)
		}
	}
	for key := range movedBy {
		if !slices.Contains(keys, key) {
			t.Errorf("%s: is in the table and not in a profile", key)
		}
	}
}

func TestKeysFollowThePlatform(t *testing.T) {
	for platform, table := range movedOn {
		on := func() *Spec {
			s := everything()
			s.Profile.Platform = platform
			return s
		}
		leaves(reflect.ValueOf(everything().Profile).Elem(), "", func(key string, _ reflect.Value) {
			s := on()
			leaves(reflect.ValueOf(s.Profile).Elem(), "", func(k string, v reflect.Value) {
				if k == key {
					change(v, 1000)
				}
			})
			want, ok := table[key]
			if !ok {
				want = movedBy[key]
			}
			if got := moved(t, on(), s); got != want {
				t.Errorf("%s: %s: moves %q, want %q", platform, key, got, want)
			}
		})
		for name, edit := range map[string]func(*Spec){
			"generic package": pkg(roleGeneric), "generic code": file("firmware.generic.code_file"), "generic vars": file("firmware.generic.vars_file"),
		} {
			s := on()
			edit(s)
			if got := moved(t, on(), s); got != "firmware measure" {
				t.Errorf("%s: %s: moves %q", platform, name, got)
			}
			s = everything()
			edit(s)
			if got := moved(t, everything(), s); got != "" {
				t.Errorf("another platform: %s: moves %q", name, got)
			}
		}
	}
}

// What stands in a key goes on to: a store that was filled serves on until a step
// makes other bytes and says so by its version.
func TestKeysOfOldStores(t *testing.T) {
	p := &profiles.Profile{Name: "old", Platform: profiles.PlatformVTPM, Machine: profiles.Machine{Type: "q35", CPU: "max", VCPUs: []int{1}, Memory: 1024}}
	plan, err := NewPlan(&Spec{Profile: p, Lock: &source.Lock{}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"kernel":   "a108a8b175fa",
		"stub":     "9456524500a8",
		"firmware": "1427c07815d9",
		"initrd":   "7794481b37e9",
		"uki":      "bb501cd147b2",
		"disk":     "278bdcb21b49",
		"measure":  "e1dded68c684",
	}
	for _, s := range plan.Steps {
		if got := s.Key.Short(); got != want[s.Name] {
			t.Errorf("%s: %s, want %s", s.Name, got, want[s.Name])
		}
	}
}

// The disk is another one for a form that wants whole GiB, and the prediction for
// a cloud says that its firmware is another.
func TestKeysOfForms(t *testing.T) {
	with := func(kinds ...string) *Spec {
		s := onVerity()
		s.Profile.Platform, s.Profile.Outputs.Kinds = profiles.PlatformVTPM, kinds
		return s
	}
	for _, c := range []struct{ kinds, want string }{
		{"raw", ""},
		{"qcow2", "forms"},
		{"raw qcow2", "forms"},
		{"vhd", "forms measure"},
		{"vmdk qcow2", "forms measure"},
		{"gce", "disk forms measure"},
	} {
		if got := moved(t, with("raw"), with(strings.Fields(c.kinds)...)); got != c.want {
			t.Errorf("%s: moves %q, want %q", c.kinds, got, c.want)
		}
	}
	if got := moved(t, with("vmdk", "qcow2"), with("qcow2", "raw", "vmdk")); got != "" {
		t.Errorf("another order: moves %q", got)
	}
	if got := moved(t, with("vmdk", "qcow2"), with("vmdk")); got != "forms" {
		t.Errorf("one form less: moves %q", got)
	}
	a, b := with("qcow2"), with("qcow2")
	b.Profile.Seed += "x" // on which identifiers in a form depend
	if got := moved(t, a, b); !strings.HasSuffix(got, "disk forms measure") {
		t.Errorf("seed: moves %q", got)
	}
}

func TestKeysFollowTheLock(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Spec)
		want string
	}{
		{"kernel package", pkg("kernel"), "kernel initrd uki disk measure"},
		{"stub package", pkg("stub"), "stub uki disk measure"},
		{"firmware package", pkg("firmware"), "firmware measure"},
		{"root package", pkg("root"), "initrd uki disk measure"},
		{"dependency of a root package", pkg("zlib"), "initrd uki disk measure"},
		{"version alone", func(s *Spec) { s.Lock.Packages[0].Version = "2" }, ""},
		{"evidence", func(s *Spec) { s.Lock.Packages[0].InRelease[0]++ }, ""},
		{"kernel.file", file("kernel.file"), "kernel initrd uki disk measure"},
		{"kernel.modules_dir", file("kernel.modules_dir"), "kernel initrd uki disk measure"},
		{"stub.file", file("stub.file"), "stub uki disk measure"},
		{"initdata", file("initdata"), "measure"},
		{"firmware.code_file", file("firmware.code_file"), "firmware measure"},
		{"firmware.vars_file", file("firmware.vars_file"), "firmware measure"},
		{"secure_boot.cert", file("secure_boot.cert"), "firmware uki disk measure"},
		{"secure_boot.pk", file("secure_boot.pk"), "firmware measure"},
		{"secure_boot.kek", file("secure_boot.kek[0]"), "firmware measure"},
		{"secure_boot.db", file("secure_boot.db[0]"), "firmware measure"},
		{"pcr_policy.key", file("pcr_policy.key"), "initrd uki disk measure"},
		{"files", file("files /a"), "initrd uki disk measure"},
		{"agent", func(s *Spec) { s.Guest.Agent.Size++ }, "initrd uki disk measure"},
		{"shell", func(s *Spec) { s.Guest.Shell.Size++ }, "initrd uki disk measure"},
		{"platform records", func(s *Spec) { s.Records = nil }, "measure"},
	} {
		s := everything()
		c.edit(s)
		if got := moved(t, everything(), s); got != c.want {
			t.Errorf("%s: moves %q, want %q", c.name, got, c.want)
		}
	}
}

func pkg(name string) func(*Spec) {
	return func(s *Spec) {
		for i := range s.Lock.Packages {
			if s.Lock.Packages[i].Name == name {
				s.Lock.Packages[i].SHA256[31]++
			}
		}
	}
}

func file(key string) func(*Spec) {
	return func(s *Spec) {
		for i := range s.Lock.Files {
			if s.Lock.Files[i].Path == key {
				s.Lock.Files[i].SHA256[31]++
			}
		}
	}
}

// A raised version changes the key of the step and of those that need it.
func TestKeysFollowTheVersion(t *testing.T) {
	s := everything()
	before, err := NewPlan(s)
	if err != nil {
		t.Fatal(err)
	}
	raised := *before.Steps[0].step
	raised.version++
	key, err := stepKey(&raised, s, nil)
	if err != nil || key == before.Steps[0].Key {
		t.Errorf("key %s, %v", key, err)
	}
}

// The table is in an order in which it can run, and every output that has a name
// for users comes from a step of it.
func TestPipelineIsOrdered(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range pipeline {
		for _, n := range s.needs {
			if !seen[n] {
				t.Errorf("%s needs %s, which does not come before it", s.name, n)
			}
		}
		if s.version < 1 || s.does == "" {
			t.Errorf("%s: version %d, does %q", s.name, s.version, s.does)
		}
		seen[s.name] = true
	}
	for _, a := range artefacts {
		if !seen[a.step] {
			t.Errorf("%s comes from a step %s that is not there", a.name, a.step)
		}
	}
}
