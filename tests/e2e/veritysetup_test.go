package e2e

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

const verityUUID = "01234567-89ab-cdef-0123-456789abcdef"

// veritysetup runs it or, under the same words, plinth verity.
type veritysetup func(t *testing.T, args ...string) (out string, code int)

func bothVeritysetups(t *testing.T) (ours, theirs veritysetup) {
	t.Helper()
	testenv.Need(t, "veritysetup", "go")
	plinth := filepath.Join(t.TempDir(), "plinth")
	write(t, plinth, program(t, "./cmd/plinth"))
	run := func(name string, words ...string) veritysetup {
		return func(t *testing.T, args ...string) (string, int) {
			t.Helper()
			cmd := exec.Command(name, append(words, args...)...)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			return string(out), cmd.ProcessState.ExitCode()
		}
	}
	return run("/bin/sh", "-c", `chmod +x "$0" && exec "$0" verity "$@"`, plinth), run(testenv.Tool("veritysetup"))
}

// TestVerityCommandLine gives both programs the same words: files, printed values
// and verdicts are equal.
func TestVerityCommandLine(t *testing.T) {
	if testing.Short() {
		t.Skip("builds plinth")
	}
	ours, theirs := bothVeritysetups(t)
	for _, c := range []struct{ name, flags string }{
		{"defaults", "--salt 00ff"},
		{"no salt", "--salt -"},
		{"SHA-512", "--hash sha512 -s " + strings.Repeat("5a", 256)},
		{"-h", "-h sha512 --salt -"},
		{"small blocks", "--data-block-size 512 --hash-block-size=1024 --salt 01"},
		{"small data blocks", "--data-block-size=1024 --salt 01"},
		{"part of the data", "--data-blocks 100 --salt 02"},
		{"one block", "--data-blocks 1 --salt 02"},
		{"format 0", "--format 0 --salt " + strings.Repeat("c3", 31)},
		{"an offset", "--hash-offset 8192 --salt 03"},
		{"an odd offset", "--hash-offset 512 --salt 03"},
		{"no superblock", "--no-superblock --salt 04"},
		{"no superblock, an offset", "--no-superblock --hash-offset 4096 --salt 04 --hash-block-size 2048"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			data := filepath.Join(dir, "data")
			write(t, data, noise(7, 700*4096))
			flags := strings.Fields(c.flags)
			root := sameFormat(t, ours, theirs, data, flags)
			sameVerdicts(t, ours, theirs, data, root, flags)
		})
	}
}

// sameFormat formats with both and returns the root hash.
func sameFormat(t *testing.T, ours, theirs veritysetup, data string, flags []string) string {
	t.Helper()
	var roots, prints []string
	for i, program := range []veritysetup{ours, theirs} {
		hash := data + []string{".ours", ".theirs"}[i]
		args := slices.Concat([]string{"format", data, hash}, flags, []string{"--uuid", verityUUID, "--root-hash-file", hash + ".root"})
		out, code := program(t, args...)
		if code != 0 {
			t.Fatalf("%q: exit %d\n%s", args, code, out)
		}
		roots = append(roots, strings.TrimSpace(string(read(t, hash+".root"))))
		prints = append(prints, values(out))
	}
	if roots[0] != roots[1] {
		t.Errorf("the root hash is %s, veritysetup's %s", roots[0], roots[1])
	}
	if prints[0] != prints[1] {
		t.Errorf("format prints\n%s\nveritysetup prints\n%s", prints[0], prints[1])
	}
	if !bytes.Equal(read(t, data+".ours"), read(t, data+".theirs")) {
		t.Error("the trees differ")
	}
	return roots[0]
}

// values are the lines "Name: value" that both print, up to the root hash; what
// follows it in veritysetup's is about files. Without a superblock there is no UUID,
// and veritysetup leaves the type out.
func values(out string) string {
	out = strings.ReplaceAll(out, " [bytes]", "")
	if !strings.Contains(out, verityUUID) {
		out = regexp.MustCompile(`(?m)^(UUID|Hash type):.*\n`).ReplaceAllString(out, "")
	}
	lines := regexp.MustCompile(`(?m)^(UUID|Hash type|Data blocks|Data block size|Hash blocks|Hash block size|Hash algorithm|Salt|Root hash):\s*\S+$`)
	return strings.Join(lines.FindAllString(out, -1), "\n")
}

// sameVerdicts verifies each tree with the other program, dumps it, and then does
// so with a bit of the data changed.
func sameVerdicts(t *testing.T, ours, theirs veritysetup, data, root string, flags []string) {
	t.Helper()
	if !slices.Contains(flags, "--no-superblock") {
		// Dump takes the superblock's place, and finds the rest there.
		var offset []string
		if i := slices.Index(flags, "--hash-offset"); i >= 0 {
			offset = flags[i : i+2]
		}
		a, codeA := ours(t, append([]string{"dump", data + ".theirs"}, offset...)...)
		b, codeB := theirs(t, append([]string{"dump", data + ".ours"}, offset...)...)
		if codeA != 0 || codeB != 0 || values(a) != values(b) || values(a) == "" {
			t.Errorf("dump: exit %d\n%s\nveritysetup: exit %d\n%s", codeA, a, codeB, b)
		}
	}
	verify := func(name, root string, good bool) {
		t.Helper()
		for i, program := range []veritysetup{ours, theirs} {
			hash := data + []string{".theirs", ".ours"}[i]
			args := slices.Concat([]string{"verify", data, hash, root}, flags)
			if out, code := program(t, args...); (code == 0) != good {
				t.Errorf("%s: %q: exit %d\n%s", name, args, code, out)
			}
		}
	}
	verify("as it is", root, true)
	verify("another root hash", strings.Repeat("00", len(root)/2), false)
	b := read(t, data)
	b[100] ^= 4
	write(t, data, b)
	verify("another bit", root, false)
}
