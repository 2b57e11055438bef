package source

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// recordedCatalog is a part of a real archive: testdata/apt/apt.sh says which.
func recordedCatalog(t *testing.T) *catalog {
	t.Helper()
	c := newCatalog("amd64")
	for _, suite := range []string{"trixie", "trixie-security"} {
		b, err := os.ReadFile("testdata/apt/" + suite + ".Packages")
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(b)
		if err := c.add(&index{r, &openSource{Source: Source{Name: "debian", Suite: suite}}}, r); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestClosureAsApt compares closures, with versions, with what apt chose.
func TestClosureAsApt(t *testing.T) {
	ask, err := os.ReadFile("testdata/apt/apt.ask")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/apt/apt.want")
	if err != nil {
		t.Fatal(err)
	}
	wants := strings.Split(string(want), "\n")
	c := recordedCatalog(t)
	for i, names := range slices.Collect(strings.Lines(string(ask))) {
		s, err := newSolver("amd64", nil, c)
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := s.solve(root(strings.Fields(names)...))
		if err != nil {
			t.Fatal(err)
		}
		l := &Lock{}
		for _, n := range nodes {
			l.Packages = append(l.Packages, n.Package)
		}
		if got := versions(l); got != wants[i] {
			t.Errorf("%s\ngot  %s\nwant %s", names, got, wants[i])
		}
	}
}

// TestAptRecording asks apt again.
func TestAptRecording(t *testing.T) {
	if testing.Short() {
		t.Skip("runs apt-get")
	}
	testenv.Need(t, "apt-get")
	ask, err := os.Open("testdata/apt/apt.ask")
	if err != nil {
		t.Fatal(err)
	}
	defer ask.Close()
	cmd := exec.Command("sh", "testdata/apt/apt.sh")
	cmd.Stdin, cmd.Stderr = ask, os.Stderr
	got, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/apt/apt.want")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("apt prints another result than the recorded one:\n%s", got)
	}
}
