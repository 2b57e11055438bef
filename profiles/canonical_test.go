package profiles

import (
	"bytes"
	"testing"
	"testing/fstest"
)

func TestParseCanonicalGivesTheProfileBack(t *testing.T) {
	mine := `schema = 1
extends = "vtpm-debug"
[kernel]
modules = { append = ["?dm_verity"] }
[[files]]
path = "/etc/motd"
text = "a \"quoted\" line\n"
[[services]]
name = "hello"
exec = ["/bin/hello", "--port", "80"]
env  = { A = "b", "C" = "=" }
[machine]
vcpus = [4, 1]
`
	for _, name := range []string{"vtpm", "vtpm-debug", "snp", "tdx", "mine.toml"} {
		p, err := Load(fstest.MapFS{"mine.toml": {Data: []byte(mine)}}, name, Options{})
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseCanonical(p.Canonical())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(p.Canonical(), q.Canonical()) {
			t.Errorf("%s:\n%s\nbecame\n%s", name, p.Canonical(), q.Canonical())
		}
	}
	for _, bad := range []string{"", "{}", `{"name":"x","schema":1,"nonsense":2}`, `{"name":"x","schema":1.5}`} {
		if _, err := ParseCanonical([]byte(bad)); err == nil {
			t.Errorf("ParseCanonical(%q) succeeded", bad)
		}
	}
}
