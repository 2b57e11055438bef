package initdata

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// vector reads a file of the published vectors.
func vector(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{testenv.Vectors(t), "guest"}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t *testing.T, raw []byte) *Document {
	t.Helper()
	d, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// expected are digests and fields that were computed without plinth.
func expected(t *testing.T) map[string]map[string]string {
	t.Helper()
	var all map[string]map[string]string
	if err := json.Unmarshal(vector(t, "made", "initdata", "expected.json"), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 4 {
		t.Fatalf("%d documents, want 4", len(all))
	}
	return all
}

func TestVectors(t *testing.T) {
	for name, want := range expected(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			raw := vector(t, strings.Replace(name, "gen/", "made/", 1))
			d := parse(t, raw)
			if string(d.Algorithm) != want["algorithm"] {
				t.Errorf("algorithm %s, want %s", d.Algorithm, want["algorithm"])
			}
			if got := hex.EncodeToString(d.Digest()); got != want["digest"] {
				t.Errorf("digest %s, want %s", got, want["digest"])
			}
			for p, key := range map[Platform]string{SNP: "HOSTDATA(32)", TDX: "MRCONFIGID(48)", CCA: "CCA_RPV(64)"} {
				b, err := d.Bind(p)
				if err != nil {
					t.Fatal(err)
				}
				if got := hex.EncodeToString(b.Value); got != want[key] {
					t.Errorf("%s: %s, want %s", p, got, want[key])
				}
			}
			for _, p := range []Platform{TPM, AzSNP, AzTDX} {
				b, err := d.Bind(p)
				switch {
				case d.Algorithm != SHA256: // the vectors say what a guest that cuts would extend
					if !errors.Is(err, ErrAlgorithm) || !strings.Contains(err.Error(), string(p)) {
						t.Errorf("%s: error %v, want ErrAlgorithm with the platform", p, err)
					}
				case err != nil:
					t.Errorf("%s: %v", p, err)
				case hex.EncodeToString(b.Value) != want["PCR8_sha256"]:
					t.Errorf("%s: %x, want %s", p, b.Value, want["PCR8_sha256"])
				}
			}
			if len(d.Unknown)+len(d.Remarks) > 0 {
				t.Errorf("unknown %q, remarks %q", d.Unknown, d.Remarks)
			}
		})
	}
}

// TestFlip: a bit of the document moves every field.
func TestFlip(t *testing.T) {
	raw, err := Build(SHA256, map[string]string{Policy: "package agent_policy\n"})
	if err != nil {
		t.Fatal(err)
	}
	changed := slices.Clone(raw)
	changed[len(changed)-8] ^= 1
	for _, p := range Platforms() {
		a, errA := parse(t, raw).Bind(p)
		b, errB := parse(t, changed).Bind(p)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if reflect.DeepEqual(a.Value, b.Value) {
			t.Errorf("%s: %s is %x for both", p, a.Field, a.Value)
		}
	}
}

// TestComment: the digest is over the bytes, comments included, not over what
// they mean.
func TestComment(t *testing.T) {
	raw := []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n")
	a, b := parse(t, raw), parse(t, append(slices.Clone(raw), "# nothing\n"...))
	if !maps.Equal(a.Data, b.Data) {
		t.Fatal("the comment is data")
	}
	if reflect.DeepEqual(a.Digest(), b.Digest()) {
		t.Error("equal digests")
	}
	want := sha256.Sum256(raw)
	if got := a.Digest(); string(got) != string(want[:]) {
		t.Errorf("digest %x, want %x", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	const head = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n"
	for _, row := range []struct{ name, raw, want string }{
		{"empty", "", "no version"},
		{"no version", "algorithm = \"sha256\"\n[data]\n", "no version"},
		{"no algorithm", "version = \"0.1.0\"\n[data]\n", "no algorithm"},
		{"no data", head, "no data"},
		{"other version", "version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]\n", `version 0.2.0: want the string "0.1.0"`},
		{"version is a number", "version = 1\nalgorithm = \"sha256\"\n[data]\n", "version 1: want the string"},
		{"algorithm", "version = \"0.1.0\"\nalgorithm = \"md5\"\n[data]\n", `algorithm "md5": want sha256, sha384 or sha512`},
		{"algorithm is a list", "version = \"0.1.0\"\nalgorithm = [\"sha256\"]\n[data]\n", "algorithm [sha256]: want a string"},
		{"data is a string", head + "data = \"x\"\n", "data: want a table"},
		{"value is a number", head + "[data]\n\"aa.toml\" = 1\n", `data."aa.toml": want a string`},
		{"dotted key", head + "[data]\naa.toml = \"x\"\n", `data.aa: want a string; a key with a dot needs quotes, as in "aa.toml"`},
		{"key twice", head + "[data]\na = \"x\"\na = \"y\"\n", "TOML: line 5, column 1: "},
		{"syntax", head + "[data\n", "TOML: line 3"},
		{"JSON", " {\"version\": \"0.1.0\"}", "JSON: want TOML"},
		{"not UTF-8", head + "[data]\na = \"\xff\"\n", "not UTF-8"},
		{"size", head + "[data]\n" + strings.Repeat("#", MaxSize), fmt.Sprintf("want at most %d", MaxSize)},
		{"many keys", head + "[data]\n" + strings.Repeat("a=1\n", maxMarks), "more than 4096 keys"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Parse([]byte(row.raw))
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.HasPrefix(err.Error(), "initdata: ") {
				t.Errorf("error %v, want %q", err, row.want)
			}
		})
	}
}

// TestHostile: what takes a TOML parser long or deep is refused before.
func TestHostile(t *testing.T) {
	var keys strings.Builder
	for i := 0; keys.Len() < MaxSize-16; i++ {
		fmt.Fprintf(&keys, "k%d=1\n", i)
	}
	for name, raw := range map[string]string{
		"keys":    keys.String(),
		"lists":   "a = " + strings.Repeat("[", MaxSize-8),
		"numbers": "a = [" + strings.Repeat("1,", MaxSize/2-8),
		"dots":    strings.Repeat("a.", MaxSize/2-8) + "a = 1",
		"tables":  "a = " + strings.Repeat("{a=", MaxSize/3-8),
		"header":  "[" + strings.Repeat("a.", MaxSize/2-8) + "a]",
		"quotes":  strings.Repeat("''", MaxSize/2),
		"key":     "\"" + strings.Repeat("k", MaxSize-16) + "\" = 1",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			if _, err := Parse([]byte(raw)); err == nil {
				t.Error("no error")
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	if _, err := Parse([]byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = '''" + strings.Repeat("[", MaxSize/2) + "'''\n")); err != nil {
		t.Errorf("a large policy: %v", err)
	}
}

func TestUnknown(t *testing.T) {
	d := parse(t, []byte(`version = "0.1.0"
algorithm = "sha-256"
extra = [1, 2]
[data]
"policy.rego" = "package agent_policy"
"aa.tom" = "x = 1"
"../../etc/passwd" = ""
other = "a"
[more]
`))
	if want := []string{"extra", "more", `data."../../etc/passwd"`, `data."aa.tom"`, "data.other"}; !slices.Equal(d.Unknown, want) {
		t.Errorf("unknown %q, want %q", d.Unknown, want)
	}
	want := []string{
		`algorithm "sha-256": the specification's spelling; guests and verifiers want "sha256"`,
		`data."aa.tom": guests pass over it; is data."aa.toml" meant?`,
	}
	if !slices.Equal(slices.Sorted(slices.Values(d.Remarks)), want) {
		t.Errorf("remarks %q, want %q", d.Remarks, want)
	}
	if d.Algorithm != SHA256 {
		t.Errorf("algorithm %s", d.Algorithm)
	}
}

func TestRemarks(t *testing.T) {
	for _, row := range []struct{ key, content, want string }{
		{AgentConfig, "a = 1\n", ""},
		{AgentConfig, "a = \n", `data."aa.toml": TOML: line 1`},
		{HubConfig, "{}", `data."cdh.toml": JSON`},
		{Policy, "# why\npackage agent_policy # ours\n", ""},
		{Policy, "package other\n", `data."policy.rego": no line "package agent_policy"`},
		{Policy, "", `data."policy.rego": no line`},
	} {
		d := parse(t, fmt.Appendf(nil, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n%q = %s\n", row.key, text(row.content)))
		if got := strings.Join(d.Remarks, "; "); !strings.HasPrefix(got, row.want) || (row.want == "") != (got == "") {
			t.Errorf("%s %q: remarks %q, want %q", row.key, row.content, got, row.want)
		}
	}
}

// nasty are texts that TOML cannot hold as they are, or that end where its quotes
// begin.
var nasty = map[string]string{
	"empty": "", "newline": "\n", "newlines": "\n\n", "plain": "a\nb", "tab": "\ta\t\n", "quote": "'", "quotes": "it''s", "three": "a'''b\n",
	"end": "ends with '", "double": "\"\"\"", "backslash": `a\nb\`, "both": "'''\"\"\"\\", "return": "a\r\nb\r", "control": "\x00\x01\x1f\x7f",
	"text": "ä€😀\u2028", "begins": "'x'\n", "key with \"quotes\" and \\": "x", "# no comment": "# a\n", "line end": "a\\\nb", "bom": "\ufeffa",
}

func TestBuild(t *testing.T) {
	raw, err := Build(SHA384, nasty)
	if err != nil {
		t.Fatal(err)
	}
	d := parse(t, raw)
	if !maps.Equal(d.Data, nasty) || d.Algorithm != SHA384 {
		t.Errorf("read back: %s %q", d.Algorithm, d.Data)
	}
	for range 20 {
		if again, err := Build(SHA384, maps.Clone(nasty)); err != nil || string(again) != string(raw) {
			t.Fatal("other bytes for equal arguments")
		}
	}
}

// TestBuildGolden: the bytes, and so the digests that guests are bound to, do not
// change from one plinth to the next.
func TestBuildGolden(t *testing.T) {
	raw, err := Build(SHA256, map[string]string{
		Policy:      "package agent_policy\n",
		AgentConfig: "[token_configs.kbs]\nurl = \"http://127.0.0.1:8080\"\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `version = "0.1.0"
algorithm = "sha256"

[data]
"aa.toml" = '''
[token_configs.kbs]
url = "http://127.0.0.1:8080"
'''
"policy.rego" = '''
package agent_policy
'''
`
	if string(raw) != want {
		t.Errorf("got %s, want %s", raw, want)
	}
}

// TestText: a string that ends with a quote has escapes. TOML 1.0 could do without;
// what Kata reads with is older.
func TestText(t *testing.T) {
	for s, want := range map[string]string{"a": "'''\na'''", "a'": "\"\"\"\na'\"\"\"", "\"\\\r": `"""` + "\n" + `\"\\\u000D"""`} {
		if got := text(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

// TestBuildVector: the vector's parts give the vector's bytes, which another
// program wrote in the same style.
func TestBuildVector(t *testing.T) {
	want := vector(t, "made", "initdata", "small-sha256.toml")
	raw, err := Build(SHA256, parse(t, want).Data)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != string(want) {
		t.Errorf("got %s, want %s", raw, want)
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, row := range []struct {
		name, key, content string
		a                  Algorithm
		want               string
	}{
		{"algorithm", Policy, "", "sha-256", `algorithm "sha-256"`},
		{"empty key", "", "", SHA256, "want 1 to 255 bytes"},
		{"long key", strings.Repeat("k", 256), "", SHA256, "want 1 to 255 bytes"},
		{"key of lines", "a\nb", "", SHA256, "on one line"},
		{"key not text", "\xff", "", SHA256, "want 1 to 255 bytes"},
		{"not text", Policy, "\xff", SHA256, `data."policy.rego": not UTF-8`},
		{"agent", AgentConfig, "a =", SHA256, `data."aa.toml": TOML: line 1`},
		{"hub", HubConfig, "a = 1\na = 2\n", SHA256, `data."cdh.toml": TOML: line 2`},
		{"size", Policy, strings.Repeat("a", MaxSize), SHA256, "want at most 4194304"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Build(row.a, map[string]string{row.key: row.content})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error %v, want %q", err, row.want)
			}
		})
	}
	if _, err := Build(SHA256, nil); err == nil {
		t.Error("no data: no error")
	}
}

// TestBuildPython: Python's tomllib reads what Build wrote as it was meant.
func TestBuildPython(t *testing.T) {
	testenv.Need(t, "python3")
	if exec.Command("python3", "-c", "import tomllib").Run() != nil {
		testenv.Missing(t, "python3", "without tomllib, which came with 3.11")
	}
	raw, err := Build(SHA512, nasty)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", "import sys, tomllib, json; json.dump(tomllib.load(sys.stdin.buffer), sys.stdout)")
	cmd.Stdin = strings.NewReader(string(raw))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	var got struct {
		Version, Algorithm string
		Data               map[string]string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Version != Version || got.Algorithm != "sha512" || !maps.Equal(got.Data, nasty) {
		t.Errorf("python3 reads %+v", got)
	}
}

func FuzzParse(f *testing.F) {
	if raw, err := Build(SHA256, nasty); err == nil {
		f.Add(raw)
	}
	f.Add([]byte("version = '0.1.0'\nalgorithm = \"sha-384\"\ndata = {\"aa.toml\" = \"\", b = \"\"\"\"\"\"\"\"}\nother.x = [{}]\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := Parse(raw)
		if err != nil || len(d.Data) == 0 {
			return
		}
		built, err := Build(d.Algorithm, d.Data)
		if err != nil {
			return // parts that are no TOML, keys of several lines
		}
		again, err := Parse(built)
		if err != nil {
			t.Fatalf("%v\n%s", err, built)
		}
		if !maps.Equal(again.Data, d.Data) || again.Algorithm != d.Algorithm {
			t.Errorf("%q became %q", d.Data, again.Data)
		}
		if more, _ := Build(again.Algorithm, again.Data); string(more) != string(built) {
			t.Errorf("%s became %s", built, more)
		}
	})
}
