package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// The matrix: every pair of values of two dimensions is booted at least once.
var dimensions = []struct {
	name   string
	values []string
}{
	{"firmware", []string{"trixie", "bookworm", "sid"}},                    // edk2 2025.02, 2022.11, 2026.08
	{"stub", []string{"trixie", "bookworm", "sid"}},                        // systemd 257, 252, 262
	{"kernel", []string{"trixie cloud", "bookworm cloud", "trixie plain"}}, // 6.12, 6.1, 6.12
	{"path", []string{"disk", "uki", "kernel"}},
	{"memory", []string{"1024", "512", "3072"}},
	{"vcpus", []string{"1", "2", "4"}},
	{"secureboot", []string{"off", "on"}},
	{"qemu", []string{"host", "newer"}},
}

// possible rejects what cannot boot: with keys of one's own, firmware refuses
// the distribution's kernel as it is.
func possible(row map[string]string) bool {
	return !(row["path"] == "kernel" && row["secureboot"] == "on")
}

// ciRows is how many rows an ordinary test run boots; each takes two boots, one
// of them for the platform record.
const ciRows = 6

// TestFidelity: for every row, each register of a real boot is as predicted.
// PLINTH_FIDELITY=full boots the whole cover.
func TestFidelity(t *testing.T) {
	needs(t, bootTools...)
	rows := pairwise()
	if len(rows) > 30 {
		t.Fatalf("%d rows are more than 60 boots", len(rows))
	}
	if os.Getenv("PLINTH_FIDELITY") != "full" {
		rows = rows[:ciRows]
	}
	for _, row := range rows {
		t.Run(rowName(row), func(t *testing.T) { bootRow(t, row) })
	}
}

func rowName(row map[string]string) string {
	var parts []string
	for _, d := range dimensions {
		parts = append(parts, d.name+"="+strings.ReplaceAll(row[d.name], " ", "-"))
	}
	return strings.Join(parts, ",")
}

// bootRow builds the row's image, records its platform from a boot of another
// image, boots it and compares.
func bootRow(t *testing.T, row map[string]string) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "row.toml"), []byte(rowProfile(t, dir, row)))
	if r := plinth(t, dir, "lock", "./row.toml"); r.code == 5 || strings.Contains(r.stderr, "no such package") {
		t.Skipf("not obtainable: %s", r.stderr)
	} else if r.code != 0 {
		t.Fatalf("lock: exit %d\n%s", r.code, r.stderr)
	}
	args := []string{"boot", "./row.toml", "--record", "--check", "--json", "--path", row["path"]}
	if row["path"] != "disk" {
		args = append(args, "--repredict") // measurements.json is of the disk
	}
	if row["qemu"] == "newer" {
		args = append(args, "--qemu", newerQEMU(t))
	}
	r := plinth(t, dir, args...)
	for try := 2; try <= 3 && r.code == 8; try++ {
		// An emulated guest with several processors now and then dies in early
		// boot. That is no measurement; a second death in a row would be news.
		t.Logf("try %d, for the guest did not come up:\n%s", try, r.stderr)
		r = plinth(t, dir, args...)
	}
	if r.stdout == "" {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	allPredicted(t, r.stdout)
	if r.code != 0 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

func rowProfile(t *testing.T, dir string, row map[string]string) string {
	kernelSuite, flavour, _ := strings.Cut(row["kernel"], " ")
	pkg := "linux-image-amd64"
	if flavour == "cloud" {
		pkg = "linux-image-cloud-amd64"
	}
	code, extra := "OVMF_CODE_4M.fd", ""
	if row["secureboot"] == "on" {
		code = "OVMF_CODE_4M.secboot.fd"
		extra = "[secure_boot]\nkey = \"db.key\"\ncert = \"db.crt\"\nenroll = true\n"
		writeKey(t, dir)
	}
	return fmt.Sprintf(`schema  = 1
extends = "vtpm"
seed    = "plinth-fidelity"

# A suite that only waits for its next update is past its Valid-Until.
[sources.sid]
suite = "sid"
check_valid_until = false
[sources.bookworm]
suite = "bookworm"

[kernel]
package = %q
suite   = %q
[stub]
suite = %q
[firmware]
suite = %q
code  = "usr/share/OVMF/%s"
[machine]
memory = %s
vcpus  = [%s]
%s`, pkg, kernelSuite, row["stub"], row["firmware"], code, row["memory"], row["vcpus"], extra)
}

// writeKey makes a key and a certificate that is at once PK, KEK and db.
func writeKey(t *testing.T, dir string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "plinth test"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "db.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	write(t, filepath.Join(dir, "db.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
}

// pairwise covers every possible pair of values greedily: each row takes, value
// by value, what covers most pairs that no row has yet. The result is the same
// at every run.
func pairwise() []map[string]string {
	left := map[[4]int]bool{} // dimension, value, dimension, value
	for a := range dimensions {
		for b := a + 1; b < len(dimensions); b++ {
			for i := range dimensions[a].values {
				for j := range dimensions[b].values {
					pair := map[string]string{dimensions[a].name: dimensions[a].values[i], dimensions[b].name: dimensions[b].values[j]}
					if possible(pair) {
						left[[4]int{a, i, b, j}] = true
					}
				}
			}
		}
	}
	var rows []map[string]string
	for len(left) > 0 {
		best, gain := []int(nil), 0
		for start := range left {
			row := complete(start, left)
			if n := len(covered(row, left)); n > gain || n == gain && less(row, best) {
				best, gain = row, n
			}
		}
		for _, p := range covered(best, left) {
			delete(left, p)
		}
		rows = append(rows, named(best))
	}
	return rows
}

// complete fills a row that begins with one uncovered pair.
func complete(start [4]int, left map[[4]int]bool) []int {
	row := make([]int, len(dimensions))
	for i := range row {
		row[i] = -1
	}
	row[start[0]], row[start[2]] = start[1], start[3]
	for d := range dimensions {
		if row[d] >= 0 {
			continue
		}
		best, gain := 0, -1
		for v := range dimensions[d].values {
			row[d] = v
			if n := len(covered(row, left)); n > gain && possible(named(row)) {
				best, gain = v, n
			}
		}
		row[d] = best
	}
	return row
}

// covered lists the uncovered pairs that a row, perhaps not complete, has.
func covered(row []int, left map[[4]int]bool) (out [][4]int) {
	for a := range row {
		for b := a + 1; b < len(row); b++ {
			p := [4]int{a, row[a], b, row[b]}
			if left[p] {
				out = append(out, p)
			}
		}
	}
	return out
}

func named(row []int) map[string]string {
	out := map[string]string{}
	for d, v := range row {
		if v >= 0 {
			out[dimensions[d].name] = dimensions[d].values[v]
		}
	}
	return out
}

func less(a, b []int) bool { return fmt.Sprint(a) < fmt.Sprint(b) }

// TestPairwise: the cover is a cover.
func TestPairwise(t *testing.T) {
	rows := pairwise()
	for a := range dimensions {
		for b := range a {
			for _, x := range dimensions[a].values {
				for _, y := range dimensions[b].values {
					pair := map[string]string{dimensions[a].name: x, dimensions[b].name: y}
					if possible(pair) && !hasPair(rows, pair) {
						t.Errorf("no row has %v", pair)
					}
				}
			}
		}
	}
	t.Logf("%d rows", len(rows))
}

func hasPair(rows []map[string]string, pair map[string]string) bool {
	for _, row := range rows {
		all := possible(row)
		for k, v := range pair {
			all = all && row[k] == v
		}
		if all {
			return true
		}
	}
	return false
}

// newerQEMU unpacks the newest QEMU that the mirror has, once.
func newerQEMU(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(shared.work, "qemu")
	bin := filepath.Join(dir, "bin", "qemu-system-x86_64")
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	script := filepath.Join(testenv.Root(t), "tests", "tools", "unpack-debs.sh")
	if out, err := exec.Command(script, "sid", dir).CombinedOutput(); err != nil {
		testenv.Missing(t, "network", fmt.Sprintf("newer QEMU not obtainable: %v\n%s", err, out))
	}
	return bin
}
