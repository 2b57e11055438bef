package measure

import (
	"fmt"
	"strings"
	"testing"
)

const (
	tableBegin = "<!-- behaviours -->\n"
	tableEnd   = "<!-- /behaviours -->\n"
)

// table writes the behaviours as docs/measurements.md has them.
func table() string {
	var b strings.Builder
	b.WriteString("| what | component | since | until | told by | PCR | read in | proved by |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range Behaviours {
		content := r.Content
		for _, prefix := range []string{textPrefix, earlyPrefix} {
			if text, ok := strings.CutPrefix(content, prefix); ok {
				content = fmt.Sprintf("%q", strings.TrimSuffix(text, "\x00"))
			}
		}
		component := string(r.Component)
		if r.TD {
			component += ", in a trust domain"
		}
		var registers []string
		for _, n := range r.Registers {
			registers = append(registers, fmt.Sprint(n))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
			r.What, component, r.Since, r.Until, content, strings.Join(registers, ", "), r.Source, r.Proof())
	}
	return b.String()
}

// TestDocs: the table in the documentation is the one in the code. When it is
// not, the test prints what belongs there.
func TestDocs(t *testing.T) {
	doc := string(read(t, "../docs/measurements.md"))
	_, rest, ok := strings.Cut(doc, tableBegin)
	got, _, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatal("docs/measurements.md: no table of behaviours")
	}
	if want := table(); got != want {
		t.Errorf("docs/measurements.md: want between %s and %s:\n%s", strings.TrimSpace(tableBegin), strings.TrimSpace(tableEnd), want)
	}
	for component, versions := range proven {
		for _, v := range versions {
			if !strings.Contains(doc, v) {
				t.Errorf("docs/measurements.md: %s %s, which is proven, is not named", component, v)
			}
		}
	}
}
