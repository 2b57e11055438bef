package kbs

import (
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// recorded reads a boot that happened: its log, and the registers that its guest
// found.
func recorded(t *testing.T, name string) (log []byte, pcrs [][]byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var boot struct {
		PCRs map[string]map[string]string
	}
	if err := json.Unmarshal(b, &boot); err != nil {
		t.Fatal(err)
	}
	for n := range registers {
		pcrs = append(pcrs, initial(n))
	}
	for n, text := range boot.PCRs["sha256"] {
		i, err := strconv.Atoi(n)
		if err != nil {
			t.Fatal(err)
		}
		if pcrs[i], err = hex.DecodeString(text); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(strings.TrimSuffix(name, ".json") + ".log.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if log, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return log, pcrs
}

// The logs of boots that happened replay to the registers that their guests found,
// whatever the firmware, and to no others.
func TestRecordedLogs(t *testing.T) {
	names, err := filepath.Glob("../../measure/testdata/boots/*.json")
	if err != nil || len(names) < 40 {
		t.Fatalf("%d boots, %v", len(names), err)
	}
	for _, name := range names {
		log, pcrs := recorded(t, name)
		text := base64.StdEncoding.EncodeToString(log)
		events, err := replayLog(text, pcrs)
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
			continue
		}
		if !strings.HasSuffix(name, "-full.json") { // one of each firmware will do
			continue
		}
		if got := fmt.Sprint(events[11]); !strings.Contains(got, ".cmdline") || !strings.Contains(got, ".initrd") {
			t.Errorf("%s: PCR 11: %s: sections are not named", filepath.Base(name), got)
		}
		for n := range registers {
			if n == imaPCR {
				continue
			}
			pcrs[n][0] ^= 1
			if _, err := replayLog(text, pcrs); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("log: pcr%d: ", n)) {
				t.Errorf("%s: another pcr%d: %v", filepath.Base(name), n, err)
			}
			pcrs[n][0] ^= 1
		}
	}
}
