package source

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/cas"
)

func TestFetchURL(t *testing.T) {
	body := bytes.Repeat([]byte("kata-agent"), 100_000)
	digest := cas.Sum(body)
	flipped := bytes.Clone(body)
	flipped[5] ^= 1
	requests := 0
	mux := http.NewServeMux()
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) {
		requests++
		http.ServeContent(w, r, "", today, bytes.NewReader(body))
	})
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no length is announced
		w.Write(body)
	})
	mux.HandleFunc("/html", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		http.ServeContent(w, r, "", today, bytes.NewReader(body))
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/plain", http.StatusFound) })
	mux.HandleFunc("/flipped", func(w http.ResponseWriter, _ *http.Request) { w.Write(flipped) })
	mux.HandleFunc("/flipped-chunked", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); w.Write(flipped) })
	mux.HandleFunc("/short-chunked", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); w.Write(body[:1000]) })
	mux.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(int64(maxPinned)+1))
		w.WriteHeader(200)
	})
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	cut := 0
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		if cut++; cut == 2 { // the first request asks for the length
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body[:300_000])
			return
		}
		if cut > 2 && r.Header.Get("Range") != "bytes=300000-" {
			t.Errorf("range %q", r.Header.Get("Range"))
		}
		http.ServeContent(w, r, "", today, bytes.NewReader(body))
	})
	s := httptest.NewServer(mux)
	defer s.Close()

	for _, c := range []struct {
		path string
		code int
		say  string
	}{
		{"/plain", 0, ""}, {"/html", 0, ""}, {"/chunked", 0, ""}, {"/moved", 0, ""}, {"/cut", 0, ""},
		{"/flipped", 7, "want " + digest.String()}, {"/flipped-chunked", 7, "want " + digest.String()},
		{"/short-chunked", 7, "want " + digest.String()}, {"/huge", 7, "more than 17179869184 bytes"},
		{"/down", 5, "500"}, {"/none", 5, "404"},
	} {
		client := newClient(t)
		ref, err := client.FetchURL(t.Context(), s.URL+c.path, digest)
		wantError(t, err, c.code, c.say)
		if _, ok := client.Store.Find(digest); ok != (c.code == 0) || ok && content(t, client.Store, ref) != string(body) {
			t.Errorf("%s: in the store: %v", c.path, ok)
		}
		hint := map[int]string{5: "check the address in the profile", 7: "write its digest into the profile"}[c.code]
		if h, ok := err.(interface{ Hint() string }); c.code != 0 && (!ok || !strings.Contains(h.Hint(), hint)) {
			t.Errorf("%s: hint of %v", c.path, err)
		}
	}

	// What the store has is asked of nobody.
	client := newClient(t)
	put(t, client.Store, body)
	before := requests
	client.Offline = true
	if ref, err := client.FetchURL(t.Context(), s.URL+"/plain", digest); err != nil || ref.Size != int64(len(body)) || requests != before {
		t.Errorf("%v, %v, %d requests more", ref, err, requests-before)
	}
	_, err := client.FetchURL(t.Context(), strings.Replace(s.URL, "//", "//me:secret@", 1)+"/plain", cas.Sum(nil))
	wantError(t, err, 5, "offline")
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

func TestPutFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	right, wrong := cas.Sum([]byte("a")), cas.Sum([]byte("b"))
	for _, c := range []struct {
		path   string
		digest *cas.Digest
		code   int
		say    string
	}{
		{path, nil, 0, ""}, {path, &right, 0, ""},
		{path, &wrong, 7, "sha256 is " + right.String() + ", want " + wrong.String()},
		{filepath.Dir(path), nil, 6, "not a regular file"},
	} {
		st := store(t)
		ref, err := PutFile(t.Context(), st, c.path, c.digest)
		wantError(t, err, c.code, c.say)
		if err == nil && content(t, st, ref) != "a" {
			t.Errorf("%v", ref)
		}
	}
}
