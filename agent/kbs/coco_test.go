package kbs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

func vector(t testing.TB, name ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{testenv.Vectors(t), "guest", "guest-components"}, name...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The configuration files of guest-components and of its tests, with what they say.
func TestCoCoVectors(t *testing.T) {
	for name, want := range map[string]CoCo{
		"config.example.toml": {URL: "https://127.0.0.1:8080", CAs: "-----BEGIN CERTIFICATE-----\nMIIDlj", Key: keyP256},
		"test/config1.toml":   {URL: "https://127.0.0.1:8080", CAs: "cert"},
		"test/config2.toml":   {URL: "https://127.0.0.1:8080", CAs: "cert"},
		"test/config3.toml":   {URL: "https://127.0.0.1:8080"},
		"test/config4.toml":   {},
		"test/config5.toml":   {},
		"test/config6.toml":   {},
	} {
		got, err := ParseCoCo(vector(t, "attestation-agent", filepath.FromSlash(name)), "")
		if err != nil || got.URL != want.URL || !strings.HasPrefix(got.CAs, want.CAs) || (got.CAs == "") != (want.CAs == "") || got.Key != want.Key {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
		if strings.Contains(want.CAs, "BEGIN") {
			if _, err := ParseCAs(got.CAs); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	var both []*CoCo
	for _, name := range []string{"example.config.toml", "example.config.json"} {
		got, err := ParseCoCo("", vector(t, "cdh-config", name))
		if err != nil || got.URL != "http://example.io:8080" || !strings.Contains(got.CAs, "MIIFTDCCAvugAwIBAgIBADBGBg") {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		if !slices.Contains(got.Ignored, "cdh.toml: image.image_security_policy_uri") || slices.Contains(got.Ignored, "cdh.toml: kbc.url") {
			t.Errorf("%s: ignored %q", name, got.Ignored)
		}
		both = append(both, got)
	}
	if both[0].URL != both[1].URL || strings.TrimSpace(both[0].CAs) != strings.TrimSpace(both[1].CAs) {
		t.Error("TOML and JSON of one configuration differ")
	}
	// A broker's own configuration, which is neither.
	if got, err := ParseCoCo(vector(t, "kbs_protocol", "kbs-config.toml"), ""); err != nil || got.URL != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCoCo(t *testing.T) {
	const (
		aa  = "[token_configs.kbs]\nurl = \"https://a.example\"\n"
		cdh = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://a.example\"\n"
	)
	for name, c := range map[string]struct {
		aa, cdh string
		want    CoCo
	}{
		"neither":      {"", "", CoCo{}},
		"agent alone":  {aa, "", CoCo{URL: "https://a.example"}},
		"hub alone":    {"", cdh, CoCo{URL: "https://a.example"}},
		"both":         {aa, cdh, CoCo{URL: "https://a.example"}},
		"one has CAs":  {aa, cdh + "kbs_cert = \"x\"\n", CoCo{URL: "https://a.example", CAs: "x"}},
		"both, spaces": {aa + "cert = \"x\\n\"\n", cdh + "kbs_cert = \"x\"\n", CoCo{URL: "https://a.example", CAs: "x\n"}},
		"key":          {aa + "tee_key_algorithm = \"RSA-OAEP-256\"\n", "", CoCo{URL: "https://a.example", Key: keyRSA}},
		"checked":      {"", "skip_sealed_secret_verification = false\n" + cdh, CoCo{URL: "https://a.example"}},
		"no name":      {"", "[kbc]\nurl = \"https://a.example\"\n", CoCo{URL: "https://a.example"}},
	} {
		got, err := ParseCoCo(c.aa, c.cdh)
		if err != nil || got.URL != c.want.URL || got.CAs != c.want.CAs || got.Key != c.want.Key || len(got.Ignored) != 0 {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
	for name, c := range map[string][3]string{
		"two brokers":      {aa, strings.Replace(cdh, "//a", "//b", 1), "two brokers"},
		"two certificates": {aa + "cert = \"x\"\n", cdh + "kbs_cert = \"y\"\n", "two certificates"},
		"offline":          {"", "[kbc]\nname = \"offline_fs_kbc\"\n", `cdh.toml: kbc.name: "offline_fs_kbc": only cc_kbc`},
		"sample":           {"", "[kbc]\nname = \"sample_kbc\"\n", "only cc_kbc"},
		"unchecked":        {"", "skip_sealed_secret_verification = true\n", "always checked"},
		"unchecked, text":  {"", "skip_sealed_secret_verification = \"true\"\n", "true or false"},
		"key":              {aa + "tee_key_algorithm = \"ML-KEM-768+A192KW\"\n", "", "aa.toml: token_configs.kbs.tee_key_algorithm: key \"ML-KEM-768+A192KW\""},
		"url a number":     {"[token_configs.kbs]\nurl = 1\n", "", "token_configs.kbs.url: want text"},
		"url a table":      {"[token_configs.kbs.url]\nx = 1\n", "", "want text"},
		"no table":         {"token_configs = 1\n", "", "want a table"},
		"not TOML":         {"url = \n", "", "aa.toml"},
		"key twice":        {"", "[kbc]\nname = \"cc_kbc\"\nname = \"cc_kbc\"\n", "cdh.toml"},
		"long":             {strings.Repeat("#", maxCoCo+1), "", "want at most"},
		"JSON":             {`{"token_configs":`, "", "aa.toml"},
	} {
		if got, err := ParseCoCo(c[0], c[1]); err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, got, err, c[2])
		}
	}
}

func FuzzCoCo(f *testing.F) {
	f.Add("[token_configs.kbs]\nurl = \"https://a.example\"\n", "[kbc]\nname = \"cc_kbc\"\nurl = \"https://a.example\"\n")
	f.Add(`{"a":{"b":[1]}}`, "a.b.c = 1")
	f.Fuzz(func(t *testing.T, aa, cdh string) {
		c, err := ParseCoCo(aa, cdh)
		if err == nil && c.Key.check() != nil {
			t.Fatalf("%+v", c)
		}
	})
}
