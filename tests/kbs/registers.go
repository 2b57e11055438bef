package kbs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	valuePrefix = "tpm_pcr" // and two digits: a claim tpm.pcrNN of Trustee's is compared with it
	maxAccepted = 16        // logs of a register that are remembered
)

// registerOf reads the number out of a reference value's name.
func registerOf(name string) (n int, ok bool) {
	for n := range registers {
		if name == nameOf(n) {
			return n, true
		}
	}
	return 0, false
}

func nameOf(n int) string { return fmt.Sprintf("%s%02d", valuePrefix, n) }

// wanted are the registers that all evidence must have right: PCR 11, without which
// Trustee's policy for executables trusts no TPM, and those with a reference value
// that no resource wants for itself.
func (b *Broker) wanted() []int {
	own := map[int]bool{}
	for _, r := range b.Resources {
		for _, name := range r.Registers {
			if n, ok := registerOf(name); ok {
				own[n] = true
			}
		}
	}
	list := []int{}
	for name := range b.values {
		if n, ok := registerOf(name); ok && !own[n] {
			list = append(list, n)
		}
	}
	if !slices.Contains(list, 11) && !own[11] {
		list = append(list, 11)
	}
	slices.Sort(list)
	return list
}

// policy compares the registers that a resource wants besides.
func (b *Broker) policy(r Resource, token string, claims map[string]any) error {
	var want []int
	for _, name := range r.Registers {
		n, ok := registerOf(name)
		if !ok {
			return fmt.Errorf("%s: no register", name)
		}
		want = append(want, n)
	}
	if len(want) == 0 {
		return nil
	}
	pcrs := make([][]byte, registers)
	for _, n := range want {
		text, _ := dig(claims, "submods", "cpu0", "ear.veraison.annotated-evidence", "tpm", fmt.Sprintf("pcr%02d", n)).(string)
		pcrs[n], _ = hex.DecodeString(text) // what is no value matches none
	}
	var events map[int][]event
	if a := b.appraisals[token]; a != nil {
		events = a.events
	}
	if err := b.checkRegisters(want, pcrs, events); err != nil {
		return err
	}
	b.accept(want, events)
	return nil
}

// checkRegisters compares registers with reference values and says of each that
// differs which event it was.
func (b *Broker) checkRegisters(want []int, pcrs [][]byte, events map[int][]event) error {
	var errs []error
	for _, n := range want {
		if err := b.checkRegister(n, pcrs[n], events[n]); err != nil && !b.Off[fmt.Sprintf("pcr%d", n)] {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

func (b *Broker) checkRegister(n int, value []byte, events []event) error {
	list, ok := b.values[nameOf(n)].([]any)
	if !ok {
		return fmt.Errorf("pcr%d: there is no reference value %s", n, nameOf(n))
	}
	if slices.Contains(list, any(hex.EncodeToString(value))) {
		return nil
	}
	return fmt.Errorf("pcr%d: %s: %x is none of %d values", n, b.difference(n, events), value, len(list))
}

// difference names the event by which a register went another way than in evidence
// that was accepted: of all such logs, the one that has most in common.
func (b *Broker) difference(n int, got []event) string {
	logs := b.accepted[n]
	if len(logs) == 0 {
		return fmt.Sprintf("%d events, none accepted before", len(got))
	}
	var best []event
	common := -1
	for _, log := range logs {
		if c := inCommon(got, log); c > common || c == common && len(log) == len(got) {
			best, common = log, c
		}
	}
	switch {
	case common < len(got) && len(got) == len(best): // nothing is missing or too much: every other event is named
		var texts []string
		for i := range got {
			if !bytes.Equal(got[i].digest, best[i].digest) {
				texts = append(texts, fmt.Sprintf("event %d %v: got %x, accepted %v %x", i, got[i], got[i].digest, best[i], best[i].digest))
			}
		}
		return strings.Join(texts, ", ")
	case common < len(got) && common < len(best):
		return fmt.Sprintf("event %d %v: got %x, accepted %v %x", common, got[common], got[common].digest, best[common], best[common].digest)
	case common < len(got):
		return fmt.Sprintf("event %d %v: got %x, accepted none", common, got[common], got[common].digest)
	case common < len(best):
		return fmt.Sprintf("event %d: got none, accepted %v %x", common, best[common], best[common].digest)
	}
	return "the same events as accepted"
}

func inCommon(a, b []event) int {
	n := 0
	for n < len(a) && n < len(b) && bytes.Equal(a[n].digest, b[n].digest) {
		n++
	}
	return n
}

// accept remembers the events of registers that were accepted.
func (b *Broker) accept(list []int, events map[int][]event) {
	if b.accepted == nil {
		b.accepted = map[int][][]event{}
	}
	for _, n := range list {
		logs, log := b.accepted[n], events[n]
		known := slices.ContainsFunc(logs, func(l []event) bool { return len(l) == len(log) && inCommon(l, log) == len(l) })
		if !known {
			logs = append(logs, log)
			b.accepted[n] = logs[max(0, len(logs)-maxAccepted):]
		}
	}
}
