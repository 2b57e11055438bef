package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tdValue is what the tests read of a trust domain's value.
type tdValue struct {
	Register, Provenance, Value, Reason string
	OneOf                               []string `json:"one_of"`
	Events                              []struct{ Name, Type, Digest, Provenance string }
}

func tdValues(t *testing.T, dir string) map[string]tdValue {
	t.Helper()
	var m struct{ Values []tdValue }
	decode(t, string(read(t, filepath.Join(dir, "measurements.json"))), &m)
	out := map[string]tdValue{}
	for _, v := range m.Values {
		if _, twice := out[v.Register]; !twice {
			out[v.Register] = v // of the first shape
		}
	}
	return out
}

// TestTDXBoot: after the tables were asked for, no ACPI event of RTMR 0 is
// unknown; the events behind RTMR 1 and 2 are those of a real boot, with the same
// digests in the same order, and lead to the same values.
func TestTDXBoot(t *testing.T) {
	needs(t, bootTools...)
	dir := lockedDir(t, "tdx", "tdx")
	r := boots(t, dir, "boot", "tdx", "--record", "--check", "--json")
	if r.code != 0 || !strings.Contains(r.stderr, "Intel TDX, which plinth boot does not start") {
		t.Fatalf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	var c guestCheck
	decode(t, r.stdout, &c)
	for register, want := range map[string]string{
		"disk": "match", "mrtd": "not checked", "rtmr0": "not checked", "rtmr1": "match", "rtmr2": "match", "rtmr3": "not checked",
	} {
		if got := c.verdicts(register); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %s", register, got, want)
		}
	}
	values := tdValues(t, filepath.Join(dir, "out/tdx"))
	for _, e := range values["rtmr0"].Events {
		if e.Name == "ACPI DATA" && (e.Digest == "" || e.Provenance != "recorded") {
			t.Errorf("%+v", e)
		}
	}
	for _, register := range []string{"rtmr1", "rtmr2"} {
		if v := values[register]; v.Provenance != "predicted" || len(v.Events) < 7 {
			t.Errorf("%s: %s, %d events", register, v.Provenance, len(v.Events))
		}
	}
}

// TestTDXKeys: with keys of one's own in the firmware's variables MRTD stays what
// it is, RTMR 0 moves, and under a generic firmware with the same keys the signed
// image boots and measures what was predicted.
func TestTDXKeys(t *testing.T) {
	needs(t, bootTools...)
	stock := tdValues(t, filepath.Join(guestDir(t, "tdx"), "out/tdx"))
	dir := lockedDir(t, "tdx", "keys")
	writeKey(t, dir)
	write(t, filepath.Join(dir, "keys.toml"), []byte(`schema  = 1
extends = "tdx"

[firmware.generic]
code = "usr/share/OVMF/OVMF_CODE_4M.secboot.fd"

[secure_boot]
key    = "db.key"
cert   = "db.crt"
enroll = true
`))
	must(t, dir, "build", "./keys.toml")
	own := tdValues(t, filepath.Join(dir, "out/keys"))
	if !slices.Equal(own["mrtd"].OneOf, stock["mrtd"].OneOf) || len(own["mrtd"].OneOf) != 2 {
		t.Errorf("MRTD is %q, without the keys %q", own["mrtd"].OneOf, stock["mrtd"].OneOf)
	}
	if own["rtmr0"].Events[1].Digest == stock["rtmr0"].Events[1].Digest {
		t.Error("RTMR 0 does not move with the variables")
	}
	r := boots(t, dir, "boot", "out/keys", "--check", "--json")
	var c guestCheck
	decode(t, r.stdout, &c)
	if r.code != 0 || !slices.Equal(c.verdicts("rtmr1"), []string{"match"}) || !slices.Equal(c.verdicts("rtmr2"), []string{"match"}) {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestTDXTamper: a changed disk is named by its event, and is not what the values
// are for.
func TestTDXTamper(t *testing.T) {
	needs(t, bootTools...)
	dir := lockedDir(t, "tdx", "tdx")
	must(t, dir, "build", "tdx")
	changeGPT(t, filepath.Join(dir, "out/tdx/image.raw"))
	r := boots(t, dir, "boot", "out/tdx", "--check")
	if r.code != 7 || !strings.Contains(r.stdout, "partition table") || !strings.Contains(r.stdout, "what was booted is not what the values are for") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
