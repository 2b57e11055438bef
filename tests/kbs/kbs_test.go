package kbs

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// ask makes a request of a broker.
func ask(t *testing.T, b *Broker, method, path, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	answer, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(answer)
}

// pack is a message with a payload of that text.
func pack(kind, payload string) string {
	return `{"version":"0.1.0","type":"` + kind + `","payload":"` + base64.StdEncoding.EncodeToString([]byte(payload)) + `"}`
}

func TestBroker(t *testing.T) {
	b := &Broker{}
	if code, answer := ask(t, b, "POST", "/kbs/v0/reference-value", pack("sample", `{"svn":1,"a/b":["x"]}`)); code != 200 || answer != "" {
		t.Errorf("%d %s", code, answer)
	}
	if code, answer := ask(t, b, "GET", "/kbs/v0/reference-value/a/b", ""); code != 200 || answer != "[\"x\"]\n" {
		t.Errorf("%d %s", code, answer)
	}
	if code, _ := ask(t, b, "POST", "/kbs/v0/reference-value", `{"type":"sample","payload":"e30="}`); code != 200 {
		t.Errorf("without a version: %d", code) // which has a default
	}
}

func TestBrokerRefuses(t *testing.T) {
	for name, body := range map[string]string{
		"nothing":       "",
		"no object":     `["sample"]`,
		"two":           pack("sample", "{}") + "{}",
		"version":       strings.Replace(pack("sample", "{}"), "0.1.0", "0.2.0", 1),
		"no payload":    `{"version":"0.1.0","type":"sample"}`,
		"provenance":    strings.Replace(pack("sample", "{}"), "payload", "provenance", 1), // which the guide says and the code does not read
		"object inside": `{"type":"sample","payload":{}}`,
		"type":          pack("in-toto", "{}"),
		"no base64":     `{"type":"sample","payload":"{}"}`,
		"URL base64":    `{"type":"sample","payload":"` + base64.URLEncoding.EncodeToString([]byte(`{"a":"??>>"}`)) + `"}`,
		"a list":        pack("sample", "[]"),
		"no name":       pack("sample", `{"":1}`),
		"a bad name":    pack("sample", `{"a b":1}`),
		"no CoRIM":      pack("corim", "{}"),
	} {
		for documented, status := range map[bool]int{false: 401, true: 400} {
			b := &Broker{Documented: documented}
			code, answer := ask(t, b, "POST", "/kbs/v0/reference-value", body)
			var p map[string]string
			if code != status || json.Unmarshal([]byte(answer), &p) != nil || len(p) != 2 || !strings.HasSuffix(p["type"], "/RvpsError") || len(b.Values()) > 0 {
				t.Errorf("%s: %d %s, want %d", name, code, answer, status)
			}
		}
	}
	for _, path := range []string{"/kbs/v0/reference-values", "/kbs/v0/resource/a/b/c", "/reference-value", "/kbs/v0/reference-value/x"} {
		if code, _ := ask(t, &Broker{}, "POST", path, pack("sample", "{}")); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	r := httptest.NewRequest("POST", "/kbs/v0/reference-value", strings.NewReader(pack("sample", "{}")))
	w := httptest.NewRecorder()
	(&Broker{}).ServeHTTP(w, r)
	if w.Code != 401 || !strings.Contains(w.Body.String(), "want application/json") {
		t.Errorf("no content type: %d %s", w.Code, w.Body)
	}
}

// The sample of Trustee's own tests: rvps/src/extractors/corim/mod.rs.
func TestPublishedCoRIM(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest", "trustee", "rvps", "unsigned-example-corim.cbor"))
	if err != nil {
		testenv.Missing(t, "vectors", err.Error())
	}
	values, err := Read("corim", b)
	if err != nil {
		t.Fatal(err)
	}
	const name = "ACME/RoadRunner/31fb5abf-023e-4992-aa4e-95f9c1503bfa/digests"
	if got, want := values[name], any([]any{"a3a5e715f0cc574a73c3f9bebb6bc24f32ffd5b67b387244c2c909da779a1478"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v; all: %v", got, want, values)
	}
}

// What is no CoRIM is refused, however it is cut or bent, and never crashes.
func TestBentCoRIM(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest", "trustee", "rvps", "unsigned-example-corim.cbor"))
	if err != nil {
		testenv.Missing(t, "vectors", err.Error())
	}
	for n := range b {
		if _, err := Read("corim", b[:n]); err == nil {
			t.Errorf("the first %d bytes: taken", n)
		}
		for _, flip := range []byte{1, 0x20, 0x80, 0xff} {
			bent := append([]byte{}, b...)
			bent[n] ^= flip
			Read("corim", bent)
		}
	}
}

func TestObjectRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no object":   "[]",
		"another key": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {values: '{}'}\n",
		"a field":     "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\nstringData: {}\ndata: {reference_value: '{}'}\n",
		"kind":        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\ndata: {reference_value: '{}'}\n",
		"no base64":   "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {reference_value: '{\"svn\": {\"value\": 1}}'}\n",
		"a Secret":    "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b}\ndata: {reference_value: '{}'}\n",
		"no end":      "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {reference_value: '{\"svn\": \"eyJuYW1lIjoic3ZuIiwidmFsdWUiOjF9\"}'}\n",
	} {
		if v, _, err := Object([]byte(text)); err == nil {
			t.Errorf("%s: taken: %v", name, v)
		}
	}
}
