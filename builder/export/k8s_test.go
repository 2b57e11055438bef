package export

import (
	"bytes"
	"encoding/base64"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/tests/kbs"
)

var object = Object{Kind: "ConfigMap", Name: ObjectName, Namespace: ObjectSpace}

var until = time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)

func TestObject(t *testing.T) {
	s := set(t, payload)
	s.Expires = until
	want := map[string]any{"snp_launch_measurement": []any{"aa", "bb"}, "snp_guest_abi_major": 0.0, "snp_smt_allowed": true}
	for _, kind := range ObjectKinds {
		o := object
		o.Kind = kind
		b, err := o.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		got, expires, err := kbs.Object(b)
		if err != nil || !reflect.DeepEqual(got, want) || !expires.Equal(until) {
			t.Errorf("%s: %v, %v, %v\n%s", kind, got, expires, err, b)
		}
		if again, err := o.Marshal(s); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: other bytes, %v", kind, err)
		}
	}
}

// A value as the samples of trustee-operator have it: tests/e2e/sample-attester,
// 05-rvps-reference-values.yaml at dec08ea. Ours says the version as well, as RVPS
// does when it stores one.
func TestRecordedObject(t *testing.T) {
	const theirs = "eyJuYW1lIjoic3ZuIiwiZXhwaXJhdGlvbiI6IjIwMjctMDEtMDFUMDA6MDA6MDBaIiwidmFsdWUiOjF9"
	s := set(t, `{"svn": 1}`)
	s.Expires = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	b, err := object.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"ours": string(b), "theirs": `apiVersion: v1
kind: ConfigMap
metadata: {name: rvps-reference-values, namespace: trustee-operator-system}
data:
  reference_value: |
    {"svn":"` + theirs + `"}
`} {
		got, expires, err := kbs.Object([]byte(text))
		if err != nil || !reflect.DeepEqual(got, map[string]any{"svn": 1.0}) || !expires.Equal(s.Expires) {
			t.Errorf("%s: %v, %v, %v", name, got, expires, err)
		}
	}
	raw, _ := base64.URLEncoding.DecodeString(theirs)
	ours := strings.Replace(string(raw), "{", `{"version":"0.1.0",`, 1)
	if !bytes.Contains(b, []byte(base64.URLEncoding.EncodeToString([]byte(ours)))) {
		t.Errorf("want %s in base64 in\n%s", ours, b)
	}
}

func TestRefusedObjects(t *testing.T) {
	s := set(t, payload)
	if _, err := object.Marshal(s); err == nil || !strings.Contains(err.Error(), "expires") {
		t.Errorf("without an end: %v", err)
	}
	s.Expires = until
	for name, change := range map[string]func(*Object){
		"kind":            func(o *Object) { o.Kind = "Pod" },
		"no name":         func(o *Object) { o.Name = "" },
		"upper case":      func(o *Object) { o.Name = "Values" },
		"a line":          func(o *Object) { o.Name = "a\nkind: Pod" },
		"a line behind":   func(o *Object) { o.Name = "a\n" },
		"a dash":          func(o *Object) { o.Name = "-a" },
		"a dot":           func(o *Object) { o.Name = "a..b" },
		"long":            func(o *Object) { o.Name = strings.Repeat("a.", 127) + "a" },
		"long label":      func(o *Object) { o.Namespace = strings.Repeat("a", 64) },
		"dots in a space": func(o *Object) { o.Namespace = "a.b" },
		"no space":        func(o *Object) { o.Namespace = "" },
	} {
		o := object
		change(&o)
		if _, err := o.Marshal(s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	s = set(t, `{"x": ["`+strings.Repeat("a", 1<<20)+`"]}`)
	s.Expires = until
	if _, err := object.Marshal(s); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too large: %v", err)
	}
}
