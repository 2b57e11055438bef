package guestapi

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/workload"
)

// Whatever a container sends, the guest is asked for nothing but what the grant has,
// by names that are those of the grant.
func FuzzRequest(f *testing.F) {
	for _, op := range operations {
		f.Add(op.raw)
	}
	for _, path := range []string{"/cdh/resource/r/t/../../r2/t/tag", "/cdh/resource/r/t/%2e%2e", "//r/t", "/cdh/resource/r/t/tag?x=%zz", "/aa/evidence?runtime_data=YQ&encoding=base64"} {
		f.Add(get(path))
	}
	f.Add(strings.Replace(get("/info"), "127.0.0.1:8006", "evil.example.com", 1))
	f.Add(post("/aa/aael", `{"domain":"GITHUB.com/plinth-os/plinth","operation":"x","content":""}`))
	f.Fuzz(func(t *testing.T, raw string) {
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		req.RemoteAddr = "127.0.0.1:5"
		g := &fakeGuest{}
		r := &REST{Guest: g, Grant: workload.API{Resources: []string{"kbs:///r/t/"}, Token: true, Measure: true}}
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		check(t, w.Code, g.take())
		if w.Code >= 400 && w.Body.Len() > 512 || strings.Contains(w.Body.String(), "tee_keypair") {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	})
}

var below = regexp.MustCompile(`^kbs:///r/t/[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)

func check(t *testing.T, status int, journal string) {
	switch what, rest, _ := strings.Cut(journal, " "); what {
	case "":
		return
	case "resource":
		if !below.MatchString(rest) {
			t.Errorf("the guest was asked for %q", rest)
		}
	case "token":
		if rest != "false" {
			t.Error("with the key")
		}
	case "measure":
		parts := strings.SplitN(rest, " ", 3)
		low := strings.ToLower(rest)
		if len(parts) != 3 || strings.Contains(rest, "\n") || strings.HasPrefix(low, workload.DomainPlinth) || strings.HasPrefix(low, workload.DomainCoCo) {
			t.Errorf("measured %q", rest)
		}
	default:
		t.Errorf("not granted: %q", journal)
	}
	if status != http.StatusOK {
		t.Errorf("status %d, and the guest was asked: %q", status, journal)
	}
}
