package jcs

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// RFC 8785, section 3.2.2 and 3.2.3: the examples, as they are printed there.
func TestExamples(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`{
       "numbers": [333333333.33333329, 1E30, 4.50,
                   2e-3, 0.000000000000000000000000001],
       "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
       "literals": [null, true, false]
     }`, `{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`},
		{`{
       "\u20ac": "Euro Sign",
       "\r": "Carriage Return",
       "\ufb33": "Hebrew Letter Dalet With Dagesh",
       "1": "One",
       "\ud83d\ude00": "Emoji: Grinning Face",
       "\u0080": "Control",
       "\u00f6": "Latin Small Letter O With Diaeresis"
     }`, `{"\r":"Carriage Return","1":"One","` + "\u0080" + `":"Control","ö":"Latin Small Letter O With Diaeresis","€":"Euro Sign","😀":"Emoji: Grinning Face","` + "\ufb33" + `":"Hebrew Letter Dalet With Dagesh"}`},
		{"[]", "[]"},
		{" { } ", "{}"},
		{`[ {"b" : 1 , "a":[ ] } ,"\b\f\n\r\t\u007f\u2028<>&"]`, `[{"a":[],"b":1},"\b\f\n\r\t` + "\u007f\u2028" + `<>&"]`},
	} {
		got, err := Transform([]byte(tt.in))
		if err != nil || string(got) != tt.want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", tt.in, got, err, tt.want)
		}
	}
}

// RFC 8785, appendix B: IEEE 754 bits and what ECMAScript writes for them.
var numbers = []struct{ bits, want string }{
	{"0000000000000000", "0"}, {"8000000000000000", "0"},
	{"0000000000000001", "5e-324"}, {"8000000000000001", "-5e-324"},
	{"7fefffffffffffff", "1.7976931348623157e+308"}, {"ffefffffffffffff", "-1.7976931348623157e+308"},
	{"4340000000000000", "9007199254740992"}, {"c340000000000000", "-9007199254740992"},
	{"4430000000000000", "295147905179352830000"},
	{"44b52d02c7e14af5", "9.999999999999997e+22"}, {"44b52d02c7e14af6", "1e+23"}, {"44b52d02c7e14af7", "1.0000000000000001e+23"},
	{"444b1ae4d6e2ef4e", "999999999999999700000"}, {"444b1ae4d6e2ef4f", "999999999999999900000"}, {"444b1ae4d6e2ef50", "1e+21"},
	{"3eb0c6f7a0b5ed8c", "9.999999999999997e-7"}, {"3eb0c6f7a0b5ed8d", "0.000001"},
	{"41b3de4355555553", "333333333.3333332"}, {"41b3de4355555554", "333333333.33333325"}, {"41b3de4355555555", "333333333.3333333"},
	{"41b3de4355555556", "333333333.3333334"}, {"41b3de4355555557", "333333333.33333343"},
	{"becbf647612f3696", "-0.0000033333333333333333"},
	{"43143ff3c1cb0959", "1424953923781206.2"},
}

func TestNumbers(t *testing.T) {
	for _, tt := range numbers {
		bits, err := strconv.ParseUint(tt.bits, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		f := math.Float64frombits(bits)
		got, err := Transform(strconv.AppendFloat(nil, f, 'e', 17, 64))
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: got %s, %v, want %s", tt.bits, got, err, tt.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"nothing":              {"", "offset 0: not JSON"},
		"two documents":        {"{} {}", "offset 3: data after"},
		"key twice":            {`{"a":1,"b":2,"a":3}`, `key "a": twice`},
		"key twice, escaped":   {`{"a":1,"\u0061":3}`, `key "a": twice`},
		"first half alone":     {`"\ud83d"`, "half of a surrogate pair"},
		"first half, then not": {`"\ud83d\u0041"`, "half of a surrogate pair"},
		"second half alone":    {`"\ude00"`, "half of a surrogate pair"},
		"not UTF-8":            {"\"\xff\"", "not UTF-8"},
		"control character":    {"\"\n\"", "not JSON"},
		"unknown escape":       {`"\x"`, "not JSON"},
		"short escape":         {`"\u12"`, "not JSON"},
		"sign in an escape":    {`"\u+123"`, "not JSON"},
		"no end":               {`"a`, "not JSON"},
		"too large":            {"1e309", "more than a double holds"},
		"leading zero":         {"01", "not JSON"},
		"plus":                 {"+1", "not JSON"},
		"bare point":           {"1.", "not JSON"},
		"NaN":                  {"NaN", "not JSON"},
		"comma behind, list":   {"[1,]", "not JSON"},
		"comma behind, object": {`{"a":1,}`, "not JSON"},
		"no comma":             {"[1 2]", "not JSON"},
		"no colon":             {`{"a" 1}`, "not JSON"},
		"key without quotes":   {"{a:1}", "not JSON"},
		"too deep":             {strings.Repeat("[", 1002), "more than 1000 levels"},
	} {
		if got, err := Transform([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %s, %v, want %q", name, got, err, tt.want)
		}
	}
}

func TestMarshal(t *testing.T) {
	got, err := Marshal(struct {
		B string `json:"b"`
		A []int  `json:"a"`
	}{"<&>", nil})
	if want := `{"a":null,"b":"<&>"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	if _, err := Marshal(math.Inf(1)); err == nil {
		t.Error("infinity was written")
	}
}

// FuzzTransform: what is written is JSON that means the same, and its own canonical
// form; what encoding/json refuses is refused.
func FuzzTransform(f *testing.F) {
	f.Add([]byte(`{"b":[1E30,-0,"\ud83d\ude00"],"a":{"":null}}`))
	f.Add([]byte(`[0.1,1e-7,123456789012345678901234567890]`))
	f.Fuzz(func(t *testing.T, in []byte) {
		once, err := Transform(in)
		if err != nil {
			return
		}
		var a, b any
		if err := json.Unmarshal(in, &a); err != nil {
			t.Fatalf("taken, and no JSON: %v", err)
		}
		if err := json.Unmarshal(once, &b); err != nil {
			t.Fatalf("%s: %v", once, err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%s means something else", once)
		}
		if twice, err := Transform(once); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s becomes %s, %v", once, twice, err)
		}
	})
}
