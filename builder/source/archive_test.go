package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	ulikunitz "github.com/ulikunitz/xz"

	"github.com/plinth-os/plinth/internal/cas"
)

// today is the clock of these tests.
var today = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// An archive is a Debian archive that a test fills, signs, serves and breaks.
type archive struct {
	t     testing.TB
	suite string
	date  time.Time
	until time.Time // zero for none
	extra string    // more Release fields
	// unpacksToOther makes the compressed indexes differ from the plain one.
	unpacksToOther bool
	key            *openpgp.Entity
	// stanzas and files are what publish makes files from.
	stanzas []string

	mu       sync.Mutex
	files    map[string][]byte
	requests []string
	// fault may answer a request instead of the archive.
	fault func(w http.ResponseWriter, r *http.Request) bool

	server *httptest.Server
}

var testKey = sync.OnceValue(func() *openpgp.Entity { return newKey("archive") })

func newKey(name string) *openpgp.Entity {
	e, err := openpgp.NewEntity(name, "", "", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return today.AddDate(-1, 0, 0) }})
	if err != nil {
		panic(err)
	}
	return e
}

func newArchive(t *testing.T) *archive {
	a := &archive{t: t, suite: "trixie", date: today.AddDate(0, 0, -1), key: testKey(), files: map[string][]byte{}}
	a.server = httptest.NewServer(a)
	t.Cleanup(a.server.Close)
	return a
}

func (a *archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests = append(a.requests, r.URL.Path)
	body, ok := a.files[strings.TrimPrefix(r.URL.Path, "/debian/")]
	fault := a.fault
	a.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// count returns how often a path that ends so was asked for.
func (a *archive) count(suffix string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.requests {
		if strings.HasSuffix(p, suffix) {
			n++
		}
	}
	return n
}

// add publishes a .deb with one file. fields are lines of its control file.
func (a *archive) add(name, version string, fields ...string) []byte {
	a.t.Helper()
	control := strings.Join(append([]string{"Package: " + name, "Version: " + version, "Architecture: amd64"}, fields...), "\n")
	deb := makeDeb(a.t, control, map[string]string{"./usr/share/doc/" + name: version})
	a.addFile("pool/"+name+"_"+version+"_amd64.deb", control, deb)
	return deb
}

func (a *archive) addFile(path, control string, deb []byte) {
	a.files[path] = deb
	a.stanzas = append(a.stanzas, fmt.Sprintf("%s\nFilename: %s\nSize: %d\nSHA256: %s\n", control, path, len(deb), cas.Sum(deb)))
}

// drop takes a package out, as a point release does.
func (a *archive) drop(name string) {
	for path := range a.files {
		if strings.HasPrefix(path, "pool/"+name+"_") {
			delete(a.files, path)
		}
	}
	a.stanzas = slices.DeleteFunc(a.stanzas, func(s string) bool { return strings.HasPrefix(s, "Package: "+name+"\n") })
}

// publish writes indexes, Release and signature.
func (a *archive) publish() *archive {
	a.t.Helper()
	dir := "dists/" + a.suite + "/"
	packages := []byte(strings.Join(a.stanzas, "\n"))
	if a.unpacksToOther {
		packages[0] = 'p'
	}
	forms := map[string][]byte{"": []byte(strings.Join(a.stanzas, "\n")), ".xz": xzOf(a.t, packages), ".gz": gzipOf(a.t, packages)}
	var digests strings.Builder
	for ext, b := range forms {
		fmt.Fprintf(&digests, "\n %s %d main/binary-amd64/Packages%s", cas.Sum(b), len(b), ext)
		a.files[dir+"main/binary-amd64/by-hash/SHA256/"+cas.Sum(b).String()] = b
		if ext != "" { // Debian has the plain form in Release only
			a.files[dir+"main/binary-amd64/Packages"+ext] = b
		}
	}
	release := fmt.Sprintf("Origin: Test\nSuite: stable\nCodename: %s\nDate: %s\nAcquire-By-Hash: yes\n%s", a.suite, a.date.Format(time.RFC1123), a.extra)
	if !a.until.IsZero() {
		release += "Valid-Until: " + a.until.Format(time.RFC1123) + "\n"
	}
	a.files[dir+"InRelease"] = a.sign(release + "SHA256:" + digests.String() + "\n")
	return a
}

func (a *archive) sign(text string) []byte {
	a.t.Helper()
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, a.key.PrivateKey, &packet.Config{Time: func() time.Time { return a.date }})
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		a.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		a.t.Fatal(err)
	}
	return out.Bytes()
}

func (a *archive) url() string { return a.server.URL + "/debian" }

func (a *archive) source() Source {
	return Source{Name: "test", Suite: a.suite, Mirrors: []string{a.url()}}
}

func (a *archive) request(wants ...Want) Request {
	return Request{Profile: "demo", Arch: "amd64", Sources: []Source{a.source()}, Wants: wants, Now: today}
}

// resolve makes a lock or fails the test.
func (a *archive) resolve(c *Client, req Request, prev *Lock) *Lock {
	a.t.Helper()
	l, err := c.Resolve(context.Background(), req, prev)
	if err != nil {
		a.t.Fatal(err)
	}
	return l
}

// A testClient does not sleep; it notes for how long it would have.
type testClient struct {
	*Client
	slept []time.Duration
}

func newClient(t *testing.T) *testClient {
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &testClient{Client: &Client{Store: st, Keys: &Keyring{openpgp.EntityList{testKey()}}}}
	c.sleepFunc = func(ctx context.Context, d time.Duration) error {
		c.slept = append(c.slept, d)
		return ctx.Err()
	}
	return c
}

func root(names ...string) (wants []Want) {
	for _, n := range names {
		wants = append(wants, Want{Role: "root", Package: n, Closure: true})
	}
	return wants
}

func versions(l *Lock) string {
	var s []string
	for _, p := range l.Packages {
		s = append(s, p.Name+"="+p.Version)
	}
	return strings.Join(s, " ")
}

func xzOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := ulikunitz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// makeDeb makes a .deb of regular files; dpkg-deb reads what it makes, see TestDpkg.
func makeDeb(t testing.TB, control string, files map[string]string) []byte {
	t.Helper()
	var hs []tarFile
	for name, text := range files {
		hs = append(hs, tarFile{tar.Header{Name: name, Mode: 0o644}, text})
	}
	slices.SortFunc(hs, func(a, b tarFile) int { return strings.Compare(a.Name, b.Name) })
	return arOf(
		arFile{"debian-binary", []byte("2.0\n")},
		arFile{"control.tar.gz", gzipOf(t, tarOf(t, tarFile{tar.Header{Name: "./control", Mode: 0o644}, control + "\n"}))},
		arFile{"data.tar.xz", xzOf(t, tarOf(t, hs...))})
}

type tarFile struct {
	tar.Header
	text string
}

func tarOf(t testing.TB, files ...tarFile) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if f.Typeflag == 0 {
			f.Typeflag = tar.TypeReg
		}
		f.Size = int64(len(f.text))
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type arFile struct {
	name string
	data []byte
}

func arOf(files ...arFile) []byte {
	out := []byte(arMagic)
	for _, f := range files {
		out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", f.name, 0, 0, 0, "100644", len(f.data))
		out = append(out, f.data...)
		if len(f.data)%2 == 1 {
			out = append(out, '\n')
		}
	}
	return out
}
