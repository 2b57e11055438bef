package workload

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestResourceName(t *testing.T) {
	for name, want := range map[string]bool{
		"kbs:///a/b/c": true, "kbs:///A_1/b-2/c.json": true, "kbs://kbs/a/b/c": true, "kbs://KBS.example.com:8443/a/b/c": true, "kbs://[2001:db8::1]:1/a/b/c": true,
		"": false, "kbs:///": false, "kbs:///a/b": false, "kbs:///a/b/c/d": false, "kbs:///a//c": false, "kbs:///a/b/": false, "kbs:///../b/c": false, "kbs:///a/b/.c": false,
		"kbs://a:b/a/b/c": false, "kbs://-._/a/b/c": false, "kbs:///a/b/c?d": false, "kbs:///a/b/%63": false, "kbs:///a/b/c\n": false, "kbs+x:///a/b/c": false, "KBS:///a/b/c": false,
		"kbs:///a/b/" + strings.Repeat("c", maxText): false,
	} {
		if got := ResourceName(name); got != want {
			t.Errorf("%.100q: %t", name, got)
		}
	}
}

// What only a broker has, stands in one list.
func TestNeeds(t *testing.T) {
	c := sample()
	c.Policy, c.PolicyFrom = nil, "kbs:///a/policy/b"
	var got []string
	for _, n := range c.Needs() {
		got = append(got, n.Where+" "+n.Name)
	}
	want := []string{
		"policy_from kbs:///a/policy/b", "auth kbs:///default/registry/auth",
		"web: mounts[3] kbs://kbs.example.com:8443/a/b/c", "web: mounts[4] ", "web: env: C ",
		"web: api: resources[0] kbs:///b/c/d", "web: api: resources[1] kbs:///a/", "web: api: resources[2] kbs:///a/b/",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := (&Config{Workloads: []Process{{Env: map[string]string{"A": "seal"}}}}).Needs(); len(n) > 0 {
		t.Errorf("%v", n)
	}
}

// The policy of a broker is measured as one in the document is, once it is there, and
// not before.
func TestWithPolicy(t *testing.T) {
	c := &Config{Schema: Schema, PolicyFrom: "kbs:///a/policy/b", ImageService: true}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if e, err := c.Events(nil); err == nil || !strings.Contains(err.Error(), "kbs:///a/policy/b: not known yet") {
		t.Errorf("before: %v, %v", e, err)
	}
	with, err := c.WithPolicy([]byte("{\n\"default\": [ {\"type\": \"reject\"} ]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := with.Events(nil)
	if err != nil || events[0].Content != `{"policy":"sha256:`+rejectAll+`"}` {
		t.Errorf("got %v, %v", events, err)
	}
	if c.Policy != nil {
		t.Error("the document was changed")
	}
	if _, err := c.WithPolicy([]byte("{")); err == nil || !strings.Contains(err.Error(), "not JSON") {
		t.Errorf("no JSON: %v", err)
	}
	for _, c := range []*Config{with, {}} {
		if _, err := c.WithPolicy([]byte("{}")); err == nil {
			t.Errorf("%+v takes a policy", c)
		}
	}
}

// The digest of what a container may ask for is over its canonical form, written here
// by hand, whatever the order of the grants.
func TestEffectiveAPI(t *testing.T) {
	text := `{"api":{"evidence":true,"resources":["kbs:///a/","kbs:///b/c/d"]},"args":["/app"],"dir":"/","env":["PATH=/bin"],` +
		`"mounts":[{"path":"/d","volume":"data"},{"path":"/s","secret":"kbs:///a/b/c"}],"network":"nat","resources":{"pids":1024},"scratch_mib":64,"stop_signal":"SIGTERM"}`
	want := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
	for _, resources := range [][]string{{"kbs:///a/", "kbs:///b/c/d"}, {"kbs:///b/c/d", "kbs:///a/"}} {
		p := &Process{
			Command: []string{"/app"}, Env: map[string]string{"PATH": "/bin"},
			Mounts: []Mount{{Path: "/d", Volume: "data"}, {Path: "/s", Secret: "kbs:///a/b/c"}}, API: &API{Resources: resources, Evidence: true},
		}
		e, err := p.Effective(&v1.ImageConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := e.Digest(); err != nil || got != want {
			t.Errorf("%q: got %s, %v, want %s", resources, got, err, want)
		}
	}
}
