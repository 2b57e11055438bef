package attester

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/faketsm"
)

// fakeReports is configfs-tsm as go-configfs-tsm imagines it. make builds the report.
type fakeReports struct {
	provider string
	floor    string // privlevel_floor; "": no such attribute
	aux      []byte // nil: no such attribute
	make     func(inblob []byte) []byte
	meddle   func(c *faketsm.ReportSubsystem, entry string) // after outblob was read

	entries int // made so far
}

func (f *fakeReports) client() tsm {
	r := &faketsm.ReportSubsystem{Random: rand.Reader}
	r.MakeEntry = func() *faketsm.ReportEntry {
		f.entries++
		e := &faketsm.ReportEntry{
			InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}, "privlevel": {}},
			ROAttrs: map[string][]byte{"provider": []byte(f.provider + "\n")},
		}
		if f.floor != "" {
			e.ROAttrs["privlevel_floor"] = []byte(f.floor + "\n")
		}
		return e
	}
	r.CheckInAttr = func(_ *faketsm.ReportEntry, attr string, b []byte) error {
		if attr == "inblob" && len(b) > 64 {
			return errors.New("inblob is too large")
		}
		return nil
	}
	r.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch {
		case attr == "outblob" && f.make != nil:
			return f.make(append(bytes.Clone(e.InAttrs["inblob"].Value), e.InAttrs["privlevel"].Value...)), nil
		case attr == "auxblob" && f.aux != nil:
			return f.aux, nil
		}
		return nil, os.ErrNotExist
	}
	return tsm{&watched{f, r}, tsmReports}
}

// watched is the client, with what others do in between, and the real errors of a file
// that is not there.
type watched struct {
	f *fakeReports
	r *faketsm.ReportSubsystem
}

func (w *watched) MkdirTemp(dir, pattern string) (string, error) { return w.r.MkdirTemp(dir, pattern) }
func (w *watched) WriteFile(name string, b []byte) error         { return w.r.WriteFile(name, b) }
func (w *watched) RemoveAll(dir string) error                    { return w.r.RemoveAll(dir) }

func (w *watched) ReadFile(name string) ([]byte, error) {
	b, err := w.r.ReadFile(name)
	if err != nil && strings.Contains(err.Error(), os.ErrNotExist.Error()) {
		err = fs.ErrNotExist
	}
	if filepath.Base(name) == "outblob" && w.f.meddle != nil {
		w.f.meddle(w.r, filepath.Dir(name))
	}
	return b, err
}

func TestTSM(t *testing.T) {
	data := bytes.Repeat([]byte{0xda}, 64)
	echo := func(in []byte) []byte { return append([]byte("report on "), in...) }
	for _, tt := range []struct {
		name     string
		fake     fakeReports
		out, aux string
		err      string
	}{
		{"report", fakeReports{provider: "sev_guest", aux: []byte("certificates"), make: echo}, "report on " + string(data), "certificates", ""},
		{"no certificates", fakeReports{provider: "sev_guest", aux: []byte{}, make: echo}, "report on " + string(data), "", ""},
		{"without auxblob", fakeReports{provider: "sev_guest", make: echo}, "report on " + string(data), "", ""},
		{"level 0", fakeReports{provider: "sev_guest", floor: "0", make: echo}, "report on " + string(data), "", ""},
		{"level 2", fakeReports{provider: "sev_guest", floor: "2", make: echo}, "report on " + string(data) + "2", "", ""},
		{"other provider", fakeReports{provider: "tdx_guest", make: echo}, "", "", `reports are by "tdx_guest", want sev_guest`},
		{"level that is no number", fakeReports{provider: "sev_guest", floor: "x", make: echo}, "", "", "privlevel_floor"},
		{"no report", fakeReports{provider: "sev_guest"}, "", "", "not exist"},
		{"somebody else asks", fakeReports{provider: "sev_guest", make: echo, meddle: func(r *faketsm.ReportSubsystem, entry string) {
			if err := r.WriteFile(entry+"/inblob", make([]byte, 64)); err != nil {
				t.Error(err)
			}
		}}, "", "", "generation 2, want 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.fake.client()
			out, aux, err := c.report("sev_guest", data)
			wantError(t, err, tt.err)
			if err == nil && (string(out) != tt.out || string(aux) != tt.aux) {
				t.Errorf("got %q, %q, want %q, %q", out, aux, tt.out, tt.aux)
			}
			if left := len(c.files.(*watched).r.Entries); left != 0 || tt.fake.entries != 1 {
				t.Errorf("%d entries were made, %d are left", tt.fake.entries, left)
			}
		})
	}
}

// TestOSFiles: what is read is bounded, and what is written is written at once.
func TestOSFiles(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "blob")
	if err := (osFiles{}).WriteFile(name, []byte("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an attribute was made: %v", err)
	}
	if err := os.WriteFile(name, make([]byte, maxBlob+1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := osFiles{}.ReadFile(name)
	wantError(t, err, "more than 131072 bytes")
	entry, err := osFiles{}.MkdirTemp(dir, "plinth-")
	if err != nil {
		t.Fatal(err)
	}
	if err := (osFiles{}).RemoveAll(entry); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(entry); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", entry, err)
	}
	_, _, err = Report(t.TempDir(), "sev_guest", nil)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without configfs: %v", err)
	}
}
