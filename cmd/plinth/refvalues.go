package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/refvalue"
)

func newRefvalues(c *common) *cobra.Command {
	return group(&cobra.Command{
		Use:   "refvalues",
		Short: "Look at what could be reference values",
	}, newRefvaluesCommon(c))
}

func newRefvaluesCommon(c *common) *cobra.Command {
	var banks []string
	cmd := &cobra.Command{
		Use:   "common FILE FILE...",
		Short: "Say in which registers several boots agree, and which of these mean anything",
		Long: `Compares the registers of several boots. A FILE is what tpm2_pcrread or systemd-analyze
pcrs printed, a list as "PCR07: 0123...", an event log as the kernel has it
(binary_bios_measurements), or a report of plinth boot --json.

A register that is the same in all boots need not say anything: one that nothing
extends, and one with only a separator in it, is the same in every boot of every
image. Do not pin these. And what the boots agree on may be their firmware: to learn
which register tells images apart, compare boots of different images as well.`,
		Example: "  plinth refvalues common azure.txt swtpm.txt\n  plinth boot out/vtpm --json >a.json && plinth boot out/other --json >b.json && plinth refvalues common a.json b.json",
		Args:    cobra.MinimumNArgs(2),
		RunE:    func(_ *cobra.Command, a []string) error { return c.commonRegisters(a, banks) },
	}
	cmd.Flags().StringArrayVar(&banks, "bank", nil, "bank to compare; repeatable (default: sha256, and all where a file has none of it)")
	return cmd
}

func (c *common) commonRegisters(files, banks []string) error {
	if _, err := parseBanks(banks); err != nil {
		return err
	}
	var boots []refvalue.Boot
	for _, name := range files {
		b, err := readBoot(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		boots = append(boots, b)
	}
	keepBanks(boots, banks)
	s := refvalue.Common(boots)
	if c.json {
		return printJSON(c.env.stdout, struct {
			Files []string `json:"files"`
			*refvalue.Shared
		}{files, s})
	}
	return c.printShared(s)
}

// keepBanks drops the registers of other banks.
func keepBanks(boots []refvalue.Boot, banks []string) {
	has := func(b refvalue.Boot, bank string) bool {
		for r := range b.Values {
			if r.Bank == bank {
				return true
			}
		}
		return false
	}
	if len(banks) == 0 {
		if slices.ContainsFunc(boots, func(b refvalue.Boot) bool { return !has(b, "sha256") }) {
			return
		}
		banks = []string{"sha256"}
	}
	for _, b := range boots {
		maps.DeleteFunc(b.Values, func(r refvalue.Register, _ string) bool { return !slices.Contains(banks, r.Bank) })
	}
}

// maxBootFile bounds what readBoot takes, in bytes: a report is the largest.
const maxBootFile = evidence.MaxReport

// readBoot reads the registers of one boot, whatever form they are in. A pipe will
// do, as the shell makes one of <(tpm2_pcrread).
func readBoot(name string) (refvalue.Boot, error) {
	f, err := os.Open(name)
	if err != nil {
		return refvalue.Boot{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBootFile+1))
	if err != nil {
		return refvalue.Boot{}, err
	}
	if len(b) > maxBootFile {
		return refvalue.Boot{}, mismatchError{fmt.Errorf("more than %d bytes", maxBootFile)}
	}
	boot, err := parseBoot(b)
	if err != nil {
		return refvalue.Boot{}, mismatchError{err}
	}
	boot.Name = name
	return boot, nil
}

func parseBoot(b []byte) (refvalue.Boot, error) {
	switch {
	case bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")):
		return parseBootJSON(b)
	case bytes.IndexByte(b, 0) < 0: // a log has zeros in its first event
		values, err := refvalue.ParseRegisters(b)
		return refvalue.Boot{Values: values}, err
	}
	l, err := eventlog.ParseAny(b)
	if err != nil {
		return refvalue.Boot{}, err
	}
	l.Describe()
	values, err := refvalue.Replayed(l)
	return refvalue.Boot{Values: values, Log: l}, err
}

// parseBootJSON reads a report of a boot. eventlog.json is none: it leaves out what
// is not known beforehand.
func parseBootJSON(b []byte) (refvalue.Boot, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return refvalue.Boot{}, err
	}
	if keys["after"] == nil {
		return refvalue.Boot{}, errors.New("not a report of a boot; what is predicted is not one")
	}
	r, err := evidence.ParseReport(b)
	if err != nil {
		return refvalue.Boot{}, err
	}
	out := refvalue.Boot{Values: map[refvalue.Register]string{}}
	for bank, values := range r.After {
		for n, v := range values {
			out.Values[refvalue.Register{Name: fmt.Sprintf("pcr%d", n), Bank: bank}] = v
		}
	}
	if len(r.EventLog) == 0 {
		return out, nil
	}
	if out.Log, err = eventlog.ParseAny(r.EventLog); err != nil {
		return refvalue.Boot{}, err
	}
	out.Log.Describe()
	for _, x := range r.Extends {
		e, err := extended(x)
		if err != nil {
			return refvalue.Boot{}, err
		}
		out.Log.Events = append(out.Log.Events, e)
	}
	return out, nil
}

// extended is an extend of the agent's as an event.
func extended(x evidence.Extend) (eventlog.Event, error) {
	e := eventlog.Event{Register: x.PCR, Type: eventlog.IPL, Name: "phase " + x.What}
	for _, bank := range slices.Sorted(maps.Keys(x.Digests)) {
		alg, err := eventlog.ParseAlg(bank)
		if err != nil {
			return e, err
		}
		d, err := hex.DecodeString(x.Digests[bank])
		if err != nil {
			return e, fmt.Errorf("extend %q: %w", x.What, err)
		}
		e.Digests = append(e.Digests, eventlog.Digest{Alg: alg, Value: d})
	}
	return e, nil
}

func (c *common) printShared(s *refvalue.Shared) error {
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for _, a := range s.Same {
		if a.Trivial != "" {
			fmt.Fprintf(t, "%s\t%s\t%s\tsays nothing: %s\n", a.Name, a.Bank, a.Value, a.Trivial)
			continue
		}
		means := a.Holds
		if len(a.Events) > 0 {
			means = few(a.Events, 4)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", a.Name, a.Bank, a.Value, means)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, l := range []struct {
		what      string
		registers []refvalue.Register
	}{{"differ", s.Differ}, {"not in every file", s.Some}} {
		if len(l.registers) > 0 {
			fmt.Fprintf(c.env.stdout, "%s: %s\n", l.what, registerList(l.registers))
		}
	}
	if !slices.ContainsFunc(s.Same, func(a refvalue.Agreement) bool { return a.Trivial == "" }) {
		fmt.Fprintln(c.env.stdout, "no register that means anything is the same in all files")
	}
	return nil
}

// few names the first n of several.
func few(names []string, n int) string {
	if len(names) <= n {
		return strings.Join(names, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(names[:n], "; "), len(names)-n)
}

// registerList groups registers by bank: "sha1: pcr0 pcr4, sha256: pcr0".
func registerList(registers []refvalue.Register) string {
	var out []string
	for i, r := range registers {
		if i == 0 || registers[i-1].Bank != r.Bank {
			out = append(out, r.Bank+": "+r.Name)
			continue
		}
		out[len(out)-1] += " " + r.Name
	}
	return strings.Join(out, ", ")
}
