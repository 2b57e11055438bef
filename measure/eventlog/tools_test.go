package eventlog

import (
	"encoding/hex"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/plinth-os/plinth/internal/testenv"
)

// tpm2_eventlog, which parses and replays on its own, must see the same events
// and reach the same registers.
func TestTPM2EventlogAgrees(t *testing.T) {
	testenv.Need(t, "tpm2_eventlog")
	for _, name := range recorded {
		out, err := exec.Command(testenv.Tool("tpm2_eventlog"), filepath.Join("testdata", name+".bin")).Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		l, _ := readLog(t, name)
		var got strings.Builder
		if !l.Legacy { // the tool lists the Spec ID event, too
			got.WriteString("0 EV_NO_ACTION 0000000000000000000000000000000000000000\n")
		}
		for _, e := range l.Events {
			fmt.Fprintf(&got, "%d %v", e.Register, e.Type)
			for _, d := range e.Digests {
				fmt.Fprintf(&got, " %x", d.Value)
			}
			got.WriteString("\n")
		}
		events, registers, _ := strings.Cut(string(out), "\npcrs:\n")
		if diff := cmp.Diff(toolEvents(events), got.String()); diff != "" {
			t.Errorf("%s: events: %s", name, diff)
		}
		if diff := cmp.Diff(toolRegisters(t, registers), replayAll(t, l)); diff != "" {
			t.Errorf("%s: registers: %s", name, diff)
		}
	}
}

var toolLine = regexp.MustCompile(`(?m)^  (?:PCRIndex: (\d+)|EventType: (\S+)|(?:  )?Digest: "([0-9a-f]+)")$`)

// toolEvents turns the tool's YAML into "register type digest ..." lines.
func toolEvents(yaml string) string {
	var out strings.Builder
	for _, m := range toolLine.FindAllStringSubmatch(yaml, -1) {
		switch {
		case m[1] != "":
			out.WriteString("\n" + m[1])
		default:
			out.WriteString(" " + m[2] + m[3])
		}
	}
	return strings.TrimPrefix(out.String(), "\n") + "\n"
}

var toolBank = regexp.MustCompile(`(?m)^  (sha\d+):$|^    (\d+) *: 0x([0-9a-fA-F]+)$`)

func toolRegisters(t *testing.T, yaml string) map[string]string {
	t.Helper()
	out, bank := map[string]string{}, ""
	for _, m := range toolBank.FindAllStringSubmatch(yaml, -1) {
		if m[1] != "" {
			bank = m[1]
			continue
		}
		out[bank+" "+m[2]] = strings.ToLower(m[3])
	}
	return out
}

func replayAll(t *testing.T, l *Log) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, alg := range l.Algs {
		values, err := l.Replay(alg)
		if err != nil {
			t.Fatal(err)
		}
		for r, v := range values {
			out[fmt.Sprintf("%v %d", alg, r)] = hex.EncodeToString(v)
		}
	}
	return out
}
