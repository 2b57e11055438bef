package strictjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

type document struct {
	Schema int                       `json:"schema"`
	Names  []string                  `json:"names,omitempty"`
	Items  []item                    `json:"items,omitempty"`
	Banks  map[string]map[int]string `json:"banks,omitempty"`
	Raw    []byte                    `json:"raw,omitempty"`
	Any    json.RawMessage           `json:"any,omitempty"`
	Hidden string                    `json:"-"`
	Plain  string
}

type item struct {
	Next *item `json:"next,omitempty"`
	Path string
}

func TestMarshal(t *testing.T) {
	got, err := Marshal(map[string]any{"b": "<>", "a": 1})
	if want := "{\n  \"a\": 1,\n  \"b\": \"<>\"\n}\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if b, err := Marshal(func() {}); err == nil || b != nil {
		t.Errorf("a function: %q, %v", b, err)
	}
}

func TestUnmarshal(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"whole", `{"schema":1,"names":["a","b"],"items":[{"next":{}}],"banks":{"sha1":{"0":"x","23":"y"}},"raw":"AAE="}`, ""},
		{"null", `{"names":null}`, ""},
		{"anything", `{"any":{"x":[1,{"x":2}],"y":"z"},"schema":1}`, ""},
		{"anything, cut", `{"any":{"x":[1`, "EOF"},
		{"unknown key behind anything", `{"any":[[]],"shema":1}`, "shema: unknown key"},
		{"space around", " {\"schema\":1} \n", ""},
		{"unknown key", `{"shema":1}`, "shema: unknown key"},
		{"unknown key that moves the cursor", `{"\u001b[2Jx\n":1}`, `"\x1b[2Jx\n": unknown key`},
		{"duplicate key that turns the line", `{"banks":{"\u202e":{},"\u202e":{}}}`, `banks."\u202e": duplicate key`},
		{"long key", `{"` + strings.Repeat("x", 1000) + `":1}`, `"` + strings.Repeat("x", 100) + `": unknown key`},
		{"unknown key below", `{"items":[{},{"nxt":{}}]}`, "items[1].nxt: unknown key"},
		{"other case", `{"Schema":1}`, "Schema: unknown key"},
		{"hidden field", `{"-":"x"}`, "-: unknown key"},
		{"field without a tag", `{"Plain":"x"}`, "Plain: unknown key"},
		{"empty key", `{"":"x"}`, "unknown key"},
		{"duplicate key", `{"schema":1,"schema":2}`, "schema: duplicate key"},
		{"duplicate by escape", `{"schema":1,"\u0073chema":2}`, "schema: duplicate key"},
		{"duplicate in a map", `{"banks":{"sha1":{},"sha1":{}}}`, "banks.sha1: duplicate key"},
		{"second spelling of a number", `{"banks":{"sha1":{"1":"x","01":"y"}}}`, "banks.sha1.01: unknown key"},
		{"signed number", `{"banks":{"sha1":{"+1":"x"}}}`, "banks.sha1.+1: unknown key"},
		{"array for a number", `{"schema":[1]}`, "schema: unexpected array"},
		{"object for text", `{"names":[{"a":1}]}`, "names[0].a: unknown key"},
		{"array for the document", `[]`, "document: unexpected array"},
		{"text for a number", `{"schema":"1"}`, "cannot unmarshal"},
		{"data behind", `{"schema":1}{}`, "data after the document"},
		{"garbage behind", `{"schema":1}x`, "data after the document"},
		{"empty", ``, "unexpected EOF"},
		{"cut in an object", `{"schema":1`, "EOF"},
		{"cut in a key", `{"sche`, "EOF"},
		{"cut in an array", `{"names":["a"`, "EOF"},
		{"invalid UTF-8", "{\"names\":[\"\xff\"]}", "invalid UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var v document
			err := Unmarshal([]byte(tt.in), &v)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzUnmarshal: what passes is JSON, and reads as encoding/json reads it.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"schema":1,"names":["a"],"items":[{"next":{}}],"banks":{"sha1":{"0":"x"}},"raw":"AAE="}`))
	f.Add([]byte(`{"banks":{"a":{"-1":null}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, want document
		if Unmarshal(b, &got) != nil {
			return
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("accepted %q: %v", b, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}
