package measure

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/uki"
)

// parts are the digests, by bank, of an image's parts, from testdata/payload.py.
type parts struct {
	Stub, Kernel, Cmdline         string
	Image, Patched, Inner, Initrd map[string]string
	Sections                      map[string]map[string]string
}

// recordedBoot is a boot that really happened: testdata/README.md says how it was
// made.
type recordedBoot struct {
	name     string
	Command  string
	Inputs   string
	Firmware string // testdata/firmware
	Enrolled bool   // NVRAM with testdata/sb.crt as PK, KEK and db; else an empty one
	Path     string // disk, uki, kernel
	Machine  struct {
		VCPUs        int    `json:"vcpus"`
		MemoryMiB    int    `json:"memory_mib"`
		VMM          string `json:"vmm"`
		TPM          string `json:"tpm"`
		DiskWritable bool   `json:"disk_writable"`
	}
	GPT     string
	Append  string
	Modules []Module
	Payload string // testdata/payloads
	parts   parts

	// What the guest reported.
	Cmdline string                       // /proc/cmdline
	PCRs    map[string]map[string]string // bank -> register -> hex: all of bank sha256, PCR 10 of all; without those that are as after a reset
	log     *eventlog.Log
}

var allBanks = []eventlog.Alg{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384, eventlog.SHA512}

func recordedBoots(t testing.TB) []*recordedBoot {
	t.Helper()
	paths, err := filepath.Glob("testdata/boots/*.json")
	if err != nil || len(paths) < 50 {
		t.Fatalf("%d boots in testdata (%v)", len(paths), err)
	}
	var out []*recordedBoot
	for _, p := range paths {
		out = append(out, loadBoot(t, strings.TrimSuffix(filepath.Base(p), ".json")))
	}
	return out
}

func loadBoot(t testing.TB, name string) *recordedBoot {
	t.Helper()
	r := &recordedBoot{name: name}
	decode(t, "testdata/boots/"+name+".json", r)
	decode(t, "testdata/payloads/"+r.Payload+".json", &r.parts)
	var err error
	if r.log, err = eventlog.Parse(gunzip(t, "testdata/boots/"+name+".log.gz")); err != nil {
		t.Fatal(name, err)
	}
	return r
}

func decode(t testing.TB, path string, v any) {
	t.Helper()
	if err := decodeStrict(read(t, path), v); err != nil {
		t.Fatal(path, err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gunzip(t testing.TB, path string) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(read(t, path)))
	if err != nil {
		t.Fatal(path, err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(path, err)
	}
	return b
}

func certificate(t testing.TB) []byte {
	t.Helper()
	block, _ := pem.Decode(read(t, "testdata/sb.crt"))
	return block.Bytes
}

var keyOwner = mustGUID("0f8a6f5e-6d3c-4c0b-9a53-706c696e7468")

func nvramFlash(t testing.TB, enrolled bool) []byte {
	t.Helper()
	flash := gunzip(t, "testdata/vars.fd.gz")
	if !enrolled {
		return flash
	}
	cert := certificate(t)
	flash, err := ovmf.Enroll(flash, ovmf.Keys{Owner: keyOwner, PK: cert, KEK: [][]byte{cert}, DB: [][]byte{cert}})
	if err != nil {
		t.Fatal(err)
	}
	return flash
}

func firmware(t testing.TB, name string) *Firmware {
	t.Helper()
	f, err := ParseFirmware(read(t, "testdata/firmware/"+name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// placeholder stands for a file whose digests the test has.
var placeholder = io.NewSectionReader(strings.NewReader(""), 0, 0)

func (r *recordedBoot) boot(t testing.TB) *Boot {
	m := r.Machine
	b := &Boot{
		Firmware: firmware(t, r.Firmware),
		Vars:     nvramFlash(t, r.Enrolled),
		Cmdline:  r.Append,
		Machine: Machine{Type: "q35", VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB, VMM: m.VMM, Accel: "tcg", TPM: m.TPM,
			DiskWritable: m.DiskWritable},
		Banks:   allBanks,
		Modules: r.Modules,
	}
	switch r.Path {
	case "disk":
		b.Disk = placeholder
	case "uki":
		b.UKI = placeholder
	default:
		b.Kernel = placeholder
		if r.parts.Initrd != nil {
			b.Initrd = placeholder
		}
	}
	return b
}

// payload makes of the digests what open makes of files.
func (r *recordedBoot) payload(t testing.TB, p *predictor) *payload {
	t.Helper()
	o := &payload{release: r.parts.Kernel, image: inBanks(t, r.parts.Image)}
	if r.parts.Initrd != nil {
		o.initrd = inBanks(t, r.parts.Initrd)
	}
	if r.Path == "kernel" {
		o.cmdline = directLoadOptions(r.Append, o.initrd != nil, p.Firmware.does(initrdPrefix))
		if patched, _ := p.headerPatched(); patched {
			o.image = inBanks(t, r.parts.Patched)
		}
		return o
	}
	var v uki.Version
	if _, err := fmt.Sscanf(r.parts.Stub, "%d.%d", &v.Major, &v.Minor); err != nil {
		t.Fatal(err)
	}
	v.Full = r.parts.Stub
	o.stub, o.cmdline = &v, passedOn(r.parts.Cmdline, &v, &p.m)
	o.inner = inBanks(t, r.parts.Inner)
	for _, name := range uki.MeasuredOrder(v) {
		if d, ok := r.parts.Sections[name]; ok {
			o.sections = append(o.sections, []eventlog.Event{
				{Register: 11, Type: eventlog.IPL, Data: utf16Bytes(name, true), Digests: digestsOf(allBanks, append([]byte(name), 0))},
				{Register: 11, Type: eventlog.IPL, Data: utf16Bytes(name, true), Digests: inBanks(t, d)},
			})
		}
	}
	if r.Path == "disk" {
		o.gpt = unhex(t, r.GPT)
	}
	if p.vars.enforced(p.Firmware) {
		o.authority = append(keyOwner[:], certificate(t)...)
	}
	return o
}

func inBanks(t testing.TB, digests map[string]string) (out []eventlog.Digest) {
	t.Helper()
	for _, bank := range allBanks {
		out = append(out, eventlog.Digest{Alg: bank, Value: unhex(t, digests[bank.String()])})
	}
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) == 0 {
		t.Fatalf("hex %q: %v", s, err)
	}
	return b
}

func (r *recordedBoot) predict(t testing.TB, records *Records) *Prediction {
	t.Helper()
	b := r.boot(t)
	b.Records = records
	p, err := newPredictor(b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.predict(r.payload(t, p))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (r *recordedBoot) observed(t testing.TB) *Observed {
	b := r.boot(t)
	o := &Observed{Machine: b.Machine, Log: r.log, Before: map[string]map[int]string{}}
	for _, bank := range allBanks {
		regs := map[int]string{}
		replay, err := r.log.Replay(bank)
		if err != nil {
			t.Fatal(err)
		}
		for i := range registers {
			regs[i] = cmp.Or(r.PCRs[bank.String()][fmt.Sprint(i)], hex.EncodeToString(resetValue(bank, i)))
			if v, ok := replay[i]; ok && bank != eventlog.SHA256 {
				regs[i] = hex.EncodeToString(v) // as the TPM had it when the boot was recorded
			}
		}
		o.Before[bank.String()] = regs
	}
	return o
}

// TestEvents compares the predicted list with the log of each boot, event by
// event in the order of the log, in every bank, and the registers with those
// that the TPM held.
func TestEvents(t *testing.T) {
	for _, r := range recordedBoots(t) {
		t.Run(r.name, func(t *testing.T) {
			p := r.predict(t, nil)
			for _, problem := range eventProblems(p, r.log) {
				t.Error(problem)
			}
			m, err := NewMeasurements("test", p)
			if err != nil {
				t.Fatal(err)
			}
			result, err := Check(m, r.observed(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range result.Registers {
				if x.Verdict == Mismatch || x.Verdict == LogMismatch {
					t.Errorf("%s %s: %s: got %s, want %s: %v", x.Bank, x.Register, x.Verdict, x.Got, x.Want, x.Differences)
				}
			}
		})
	}
}

// eventProblems compares the prediction with a log, in both directions.
func eventProblems(p *Prediction, l *eventlog.Log) (out []string) {
	got := *l
	got.Events = slices.DeleteFunc(slices.Clone(l.Events), func(e eventlog.Event) bool { return e.Type == eventlog.NoAction })
	got.Describe()
	want := slices.DeleteFunc(slices.Clone(p.Events), func(e Event) bool { return e.Unlogged })
	if failed := "Exit Boot Services Returned with Failure"; slices.ContainsFunc(got.Events, func(e eventlog.Event) bool { return e.Name == failed }) {
		// The second of the values that are possible.
		call := want[len(want)-2]
		failure := call
		failure.Name, failure.Data, failure.Digests = failed, []byte(failed), digestsOf(allBanks, []byte(failed))
		want = slices.Insert(want, len(want)-1, failure, call)
	}
	for i := range max(len(want), len(got.Events)) {
		switch {
		case i >= len(want):
			out = append(out, fmt.Sprintf("event %d: not predicted: PCR %d %s", i, got.Events[i].Register, got.Events[i].Name))
		case i >= len(got.Events):
			out = append(out, fmt.Sprintf("event %d: predicted, not in the log: PCR %d %s", i, want[i].Register, want[i].Name))
		default:
			if diff := differs(&want[i], &got.Events[i]); diff != "" {
				out = append(out, fmt.Sprintf("event %d: PCR %d %q: %s", i, got.Events[i].Register, got.Events[i].Name, diff))
			}
		}
	}
	return out
}

func differs(want *Event, got *eventlog.Event) string {
	if want.Register != got.Register || want.Type != got.Type || want.Name != got.Name {
		return fmt.Sprintf("predicted PCR %d %v %q", want.Register, want.Type, want.Name)
	}
	if want.Data != nil && !bytes.Equal(want.Data, got.Data) {
		return fmt.Sprintf("data %x, predicted %x", got.Data, want.Data)
	}
	if want.Provenance == Volatile {
		return ""
	}
	for _, d := range got.Digests {
		if !bytes.Equal(d.Value, want.Digest(d.Alg)) {
			return fmt.Sprintf("%v digest %x, predicted %x", d.Alg, d.Value, want.Digest(d.Alg))
		}
	}
	if len(want.Digests) != len(got.Digests) {
		return fmt.Sprintf("%d banks, predicted %d", len(got.Digests), len(want.Digests))
	}
	return ""
}
