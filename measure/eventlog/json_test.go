package eventlog

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestJSON(t *testing.T) {
	for _, name := range recorded {
		l, _ := readLog(t, name)
		l.Describe()
		l.Events[0].Source = "OVMF_CODE_4M.fd"
		first, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		var back Log
		if err := json.Unmarshal(first, &back); err != nil {
			t.Fatal(err)
		}
		if l.Legacy {
			back.Spec = SpecID{}
		}
		back.Spec.VendorInfo = l.Spec.VendorInfo
		if diff := cmp.Diff(l, &back); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		second, err := json.Marshal(&back)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Errorf("%s: the second form differs from the first", name)
		}
	}
}

func TestJSONRefuses(t *testing.T) {
	b, err := json.Marshal(one())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, old, new, want string }{
		{"schema", `"schema":1`, `"schema":2`, "schema 2: want 1"},
		{"unknown key", `"schema":1`, `"schema":1,"more":1`, "unknown field"},
		{"bank", `"banks":["sha1"`, `"banks":["md5"`, `bank "md5"`},
		{"type", "EV_SEPARATOR", "EV_NOTHING", `event 2: eventlog: event type "EV_NOTHING"`},
		{"digest", `"sha1":"`, `"sha1":"zz`, "sha1 digest: encoding/hex"},
		{"digest size", `"sha1":"`, `"sha1":"00`, "digest 0 is 21 bytes"},
		{"digest of no bank", `"sha1":"`, `"sha512":"`, "2 digests, 1 of them"},
		{"data", `"data":"`, `"data":"0`, "data: encoding/hex"},
	}
	for _, tt := range tests {
		spoiled := strings.Replace(string(b), tt.old, tt.new, 1)
		var l Log
		if err := json.Unmarshal([]byte(spoiled), &l); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
}

func TestParseType(t *testing.T) {
	for _, typ := range []Type{Separator, HandoffTables, 0x1234, 0xdeadbeef, 0x30} {
		if got, err := ParseType(typ.String()); err != nil || got != typ {
			t.Errorf("%v: %v, %v", typ, got, err)
		}
	}
}
