package refvalue

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// sum is n bytes of one value, in hex.
func sum(n int, b byte) string {
	const digits = "0123456789abcdef"
	return strings.Repeat(string([]byte{digits[b>>4], digits[b&15]}), n)
}

var zero48, zero32 = sum(48, 0), sum(32, 0)

func event(typ, name, digest string) measure.EventRef {
	return measure.EventRef{Type: typ, Name: name, Digest: digest, Source: "test"}
}

// document makes measurements that measurements.json could hold.
func document(t *testing.T, values ...measure.Value) *measure.Measurements {
	t.Helper()
	shapes := []measure.Shape{{Type: "q35", VCPUs: 1, MemoryMiB: 1024}, {Type: "q35", VCPUs: 2, MemoryMiB: 1024}}
	m := &measure.Measurements{Schema: 1, Profile: "test", Machine: shapes[0], Machines: shapes, Notes: []string{}, Values: values}
	for i := range m.Values {
		v := &m.Values[i]
		if v.Provenance == "" {
			v.Provenance = measure.Predicted
		}
		if v.Events == nil {
			v.Events = []measure.EventRef{}
		}
	}
	return m
}

// parsed sends a document through its JSON form, so that no test rests on one
// that could not be.
func parsed(t *testing.T, m *measure.Measurements) *measure.Measurements {
	t.Helper()
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out, err := measure.ParseMeasurements(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func launch(value byte, vcpus int, cpu string) measure.Value {
	return measure.Value{Platform: "snp", Register: "launch_digest", Bank: "sha384", Value: sum(48, value),
		Shape: &measure.Shape{Type: "q35", VCPUs: vcpus, MemoryMiB: 1024}, CPU: cpu}
}

func snpImage(t *testing.T, value byte) *measure.Measurements {
	m := document(t, launch(value, 1, "EPYC-v4"), launch(value+1, 2, "EPYC-v4"))
	m.SNP = &measure.SNPFacts{Policy: "0x30000", GuestFeatures: "0x1", VMM: "qemu", Era: "linux-6.10",
		KernelHashes: &measure.KernelHashes{Kernel: sum(32, 1), Initrd: sum(32, 2), Cmdline: sum(32, 3)}}
	return parsed(t, m)
}

func tdxValues(rtmr1, rtmr2 byte) []measure.Value {
	return []measure.Value{
		{Platform: "tdx", Register: "mrtd", Bank: "sha384", Provenance: measure.OneOf, OneOf: []string{sum(48, 0x0b), sum(48, 0x0a)}, Reason: "the VMM decides"},
		{Platform: "tdx", Register: "rtmr0", Bank: "sha384", Provenance: measure.Volatile, Reason: "not recorded"},
		{Platform: "tdx", Register: "rtmr1", Bank: "sha384", Value: sum(48, rtmr1), Events: []measure.EventRef{
			event("EV_SEPARATOR", "separator", sum(48, 0x39)),
			event("EV_EFI_BOOT_SERVICES_APPLICATION", "image from -kernel", sum(48, rtmr1+1)),
		}},
		{Platform: "tdx", Register: "rtmr2", Bank: "sha384", Value: sum(48, rtmr2), Events: []measure.EventRef{
			event("EV_EVENT_TAG", "load options", sum(48, rtmr2+1)),
			event("EV_EVENT_TAG", "initrd", sum(48, rtmr2+2)),
		}},
	}
}

func tdxImage(t *testing.T, rtmr1, rtmr2 byte) *measure.Measurements {
	m := document(t, tdxValues(rtmr1, rtmr2)...)
	m.TDX = &measure.TDXFacts{Attributes: "0x10000000", XFAM: "0x642e7"}
	return parsed(t, m)
}

const ready = "enter-initrd:leave-initrd:sysinit:ready"

func tpmImage(t *testing.T, value byte) *measure.Measurements {
	pcr11 := func(bank, phase, value string) measure.Value {
		return measure.Value{Platform: "tpm", Register: "pcr11", Bank: bank, Phase: phase, Value: value,
			Events: []measure.EventRef{event("EV_IPL", "section .linux", sum(len(value)/2, 7))}}
	}
	return parsed(t, document(t,
		pcr11("sha1", ready, sum(20, value)),
		pcr11("sha256", "", sum(32, value+1)),
		pcr11("sha256", ready, sum(32, value)),
		pcr11("sha256", "enter-initrd", sum(32, value+2)),
	))
}

func mustNew(t *testing.T, tee TEE, p Platform, images ...Image) *Set {
	t.Helper()
	s, err := New(tee, images, p, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The names and forms here are read off the policy, not off the table.
func TestNames(t *testing.T) {
	for _, row := range []struct {
		tee      TEE
		m        *measure.Measurements
		platform Platform
		want     string
	}{
		{SNP, snpImage(t, 0x10), Platform{
			"snp_bootloader": {int64(4), int64(3)}, "snp_microcode": {int64(209)}, "snp_snp_svn": {int64(21)}, "snp_tee_svn": {int64(0)},
			"snp_smt_enabled": {true}, "snp_tsme_enabled": {false},
		}, `{
			"snp_launch_measurement": ["` + sum(48, 0x10) + `", "` + sum(48, 0x11) + `"],
			"snp_bootloader": [3, 4], "snp_microcode": [209], "snp_snp_svn": [21], "snp_tee_svn": [0],
			"snp_smt_enabled": true, "snp_tsme_enabled": false,
			"snp_guest_abi_major": 0, "snp_guest_abi_minor": 0, "snp_single_socket": false, "snp_smt_allowed": true
		}`},
		{TDX, tdxImage(t, 0x20, 0x30), nil, `{
			"mr_td": ["` + sum(48, 0x0a) + `", "` + sum(48, 0x0b) + `"],
			"rtmr_1": ["` + sum(48, 0x20) + `"], "rtmr_2": ["` + sum(48, 0x30) + `"],
			"xfam": ["e742060000000000"],
			"tdvfkernel": "` + sum(48, 0x21) + `", "tdvfkernelparams": "` + sum(48, 0x31) + `"
		}`},
		{AzSNP, tpmImage(t, 0x40), Platform{ // all texts, the measurement in base64: az_snp_vtpm/mod.rs, parse_tee_evidence_az
			"measurement":    {sum(48, 0xff), strings.Repeat("WXYZ", 16)},
			"tcb_bootloader": {int64(3)}, "tcb_microcode": {"115"}, "tcb_snp": {int64(8)}, "tcb_tee": {int64(0)},
			"smt_enabled": {true}, "tsme_enabled": {false}, "abi_major": {int64(0)}, "abi_minor": {int64(31)},
			"single_socket": {"false"}, "smt_allowed": {true},
		}, `{
			"measurement": ["` + strings.Repeat("////", 16) + `", "` + strings.Repeat("WXYZ", 16) + `"], "snp_pcr11": ["` + sum(32, 0x40) + `"],
			"tcb_bootloader": ["3"], "tcb_microcode": ["115"], "tcb_snp": ["8"], "tcb_tee": ["0"],
			"smt_enabled": ["true"], "tsme_enabled": ["false"], "abi_major": ["0"], "abi_minor": ["31"],
			"single_socket": ["false"], "smt_allowed": ["true"]
		}`},
		{AzTDX, tpmImage(t, 0x40), Platform{"mr_td": {sum(48, 0x98)}, "xfam": {"e718060000000000"}}, `{
			"tdx_pcr11": ["` + sum(32, 0x40) + `"], "mr_td": ["` + sum(48, 0x98) + `"], "xfam": ["e718060000000000"]
		}`},
		{TPM, tpmImage(t, 0x40), Platform{"trusted_aks": {"TUlJQg=="}}, `{
			"tpm_pcr11": ["` + sum(32, 0x40) + `"], "trusted_aks": ["TUlJQg=="]
		}`},
	} {
		t.Run(string(row.tee), func(t *testing.T) {
			s := mustNew(t, row.tee, row.platform, Image{Label: "i", Measurements: row.m})
			b, err := s.Sample()
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(row.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
			r := Check(s)
			if !r.OK() || len(r.Missing()) > 0 || len(s.Left) > 0 {
				t.Errorf("ok %v, missing %v, left %v", r.OK(), r.Missing(), s.Left)
			}
			if v, _ := s.Value(Names(row.tee)[0]); len(v.From) == 0 || v.From[0].Value == "" {
				t.Errorf("%s: from %+v", v.Name, v.From)
			}
			if got := TEEsOf(row.m); !slices.Contains(got, row.tee) {
				t.Errorf("TEEs of the image: %v", got)
			}
		})
	}
}

// Claims that Trustee's own tests expect of real evidence must pass for values of
// their names: the same spelling, byte order and length.
func TestSpelling(t *testing.T) {
	dir := filepath.Join(testenv.Vectors(t), "guest", "trustee", "evidence")
	var claims struct {
		Quote struct {
			Header map[string]string `json:"header"`
			Body   map[string]string `json:"body"`
		} `json:"quote"`
		Log []struct {
			Type    string                    `json:"type_name"`
			Details map[string]any            `json:"details"`
			Digests []struct{ Digest string } `json:"digests"`
		} `json:"uefi_event_logs"`
	}
	decode(t, filepath.Join(dir, "parse_tdx_claims_expected.json"), &claims)
	for _, name := range []string{"mr_td", "rtmr_1", "rtmr_2", "xfam"} {
		if err := names[name].check(claims.Quote.Body[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, e := range claims.Log {
		for _, d := range e.Digests {
			if err := names["tdvfkernel"].check(d.Digest); err != nil {
				t.Errorf("%s: %v", e.Type, err)
			}
		}
	}
	for _, c := range Conditions(TDX) {
		if c.Claim == "tdx.quote.header.tee_type" || c.Claim == "tdx.quote.header.vendor_id" {
			if got := claims.Quote.Header[c.Claim[strings.LastIndex(c.Claim, ".")+1:]]; got != c.Want {
				t.Errorf("%s is %s in a real quote, and the table wants %v", c.Claim, got, c.Want)
			}
		}
	}
	var evidence struct {
		AK    string `json:"ak_public"`
		Quote struct {
			PCRs []string `json:"pcrs"`
		} `json:"tpm_quote"`
	}
	decode(t, filepath.Join(dir, "tpm_evidence.json"), &evidence)
	if err := names["trusted_aks"].check(evidence.AK); err != nil {
		t.Error(err)
	}
	if err := names["tpm_pcr11"].check(evidence.Quote.PCRs[11]); err != nil {
		t.Error(err)
	}
}

// Real logs of trust domains, with what Trustee reads of them: the events that its
// policy looks for are those of these names, in these registers.
func TestNamedEvents(t *testing.T) {
	dir := filepath.Join(testenv.Vectors(t), "guest", "trustee", "eventlog")
	found := map[namedEvent]int{}
	for _, name := range []string{"CCEL_data_ovmf", "CCEL_data_grub"} {
		var published struct {
			Log []struct {
				Index   int                       `json:"index"`
				Type    string                    `json:"type_name"`
				Details map[string]any            `json:"details"`
				Digests []struct{ Digest string } `json:"digests"`
			} `json:"uefi_event_logs"`
		}
		decode(t, filepath.Join(dir, name+"_out.json"), &published)
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		l, err := eventlog.ParseCC(b)
		if err != nil {
			t.Fatal(err)
		}
		l.Describe()
		var want, got []string
		for _, e := range published.Log {
			paths, _ := e.Details["device_paths"].([]any)
			switch {
			case e.Type == kernelEvent.typ && slices.Contains(paths, any("File(kernel)")):
				want = append(want, fmt.Sprint(kernelEvent, e.Index, e.Digests[0].Digest))
			case e.Type == optionsEvent.typ && e.Details["string"] == "LOADED_IMAGE::LoadOptions":
				want = append(want, fmt.Sprint(optionsEvent, e.Index, e.Digests[0].Digest))
			}
		}
		for _, e := range l.Events {
			if n := (namedEvent{e.Type.String(), e.Name}); n == kernelEvent && l.RegisterName(e.Register) == "rtmr1" || n == optionsEvent && l.RegisterName(e.Register) == "rtmr2" {
				got = append(got, fmt.Sprint(n, e.Register, hex.EncodeToString(e.Digest(eventlog.SHA384))))
				found[n]++
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got  %v\nwant %v", name, got, want)
		}
	}
	if found[kernelEvent] == 0 || found[optionsEvent] == 0 {
		t.Errorf("found %v", found)
	}
}

func decode(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func TestPhase(t *testing.T) {
	m := tpmImage(t, 0x40)
	for phase, want := range map[string]byte{"": 0x40, ready: 0x40, NoPhase: 0x41, "enter-initrd": 0x42} {
		s := mustNew(t, TPM, nil, Image{Label: "i", Measurements: m, Phase: phase})
		if v, _ := s.Value("tpm_pcr11"); !reflect.DeepEqual(v.Any, []any{sum(32, want)}) {
			t.Errorf("phase %q: %v", phase, v.Any)
		}
	}
	_, err := New(TPM, []Image{{Label: "i", Measurements: m, Phase: "sysinit"}}, nil, time.Time{})
	if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), `"enter-initrd"`) {
		t.Errorf("a phase that is not there: %v", err)
	}
}

func TestVolatile(t *testing.T) {
	volatile := func(vcpus int) measure.Value {
		v := launch(0, vcpus, "EPYC-v4")
		v.Value, v.Provenance, v.Reason = "", measure.Volatile, "a MAC address is in it"
		return v
	}
	t.Run("all", func(t *testing.T) {
		_, err := New(SNP, []Image{{Label: "i", Measurements: parsed(t, document(t, volatile(1), volatile(2)))}}, nil, time.Time{})
		if !errors.Is(err, ErrVolatile) || !strings.Contains(err.Error(), "1 vCPUs, 1024 MiB, EPYC-v4: a MAC address is in it") {
			t.Error(err)
		}
	})
	t.Run("one", func(t *testing.T) {
		s := mustNew(t, SNP, nil, Image{Label: "i", Measurements: parsed(t, document(t, launch(5, 1, ""), volatile(2)))})
		v, _ := s.Value("snp_launch_measurement")
		if !reflect.DeepEqual(v.Any, []any{sum(48, 5)}) {
			t.Error(v.Any)
		}
		if !slices.ContainsFunc(s.Left, func(l Left) bool {
			return l.Name == v.Name && l.Reason == "2 vCPUs, 1024 MiB, EPYC-v4: a MAC address is in it"
		}) {
			t.Error(s.Left)
		}
	})
	t.Run("event", func(t *testing.T) {
		values := tdxValues(0x20, 0x30)
		values[2].Events[1].Digest = ""
		s := mustNew(t, TDX, nil, Image{Label: "i", Measurements: parsed(t, document(t, values...))})
		if _, ok := s.Value("tdvfkernel"); ok || !slices.ContainsFunc(s.Left, func(l Left) bool { return l.Name == "tdvfkernel" }) {
			t.Error(s.Left)
		}
	})
	t.Run("recorded", func(t *testing.T) {
		v := launch(5, 1, "")
		v.Provenance = measure.Recorded
		if v, _ := mustNew(t, SNP, nil, Image{Label: "i", Measurements: parsed(t, document(t, v))}).Value("snp_launch_measurement"); len(v.Any) != 1 {
			t.Error(v)
		}
	})
}

func TestUnfit(t *testing.T) {
	for tee, m := range map[TEE]*measure.Measurements{
		SNP: tpmImage(t, 1), TDX: snpImage(t, 1), TPM: tdxImage(t, 1, 2), AzTDX: tdxImage(t, 1, 2), AzSNP: snpImage(t, 1),
	} {
		if _, err := New(tee, []Image{{Label: "i", Measurements: m}}, nil, time.Time{}); !errors.Is(err, ErrUnfit) {
			t.Errorf("%s of another image: %v", tee, err)
		}
	}
	sha1 := tpmImage(t, 1)
	sha1.Values = sha1.Values[:1]
	if _, err := New(TPM, []Image{{Label: "i", Measurements: sha1}}, nil, time.Time{}); !errors.Is(err, ErrUnfit) {
		t.Errorf("without the SHA-256 bank: %v", err)
	}
}

func TestSoleTrivial(t *testing.T) {
	tpm := func(value string, events ...measure.EventRef) *measure.Measurements {
		return parsed(t, document(t, measure.Value{Platform: "tpm", Register: "pcr11", Bank: "sha256", Value: value, Events: events}))
	}
	bare := snpImage(t, 1)
	bare.SNP.KernelHashes = nil
	values := tdxValues(0, 0)
	for _, i := range []int{2, 3} {
		values[i].Value, values[i].Events = zero48, []measure.EventRef{}
	}
	for name, row := range map[string]struct {
		tee TEE
		m   *measure.Measurements
		why string
	}{
		"unset":            {TPM, tpm(zero32), "nothing extends it"},
		"separator":        {AzSNP, tpm(sum(32, 9), event("EV_SEPARATOR", "separator", sum(32, 8))), "only a separator"},
		"no kernel hashes": {SNP, bare, "the firmware alone"},
		"both RTMRs":       {TDX, parsed(t, document(t, values...)), "rtmr1: nothing extends it; rtmr2: nothing extends it"},
	} {
		_, err := New(row.tee, []Image{{Label: "i", Measurements: row.m}}, nil, time.Time{})
		if !errors.Is(err, ErrTrivial) || !strings.Contains(err.Error(), row.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A kernel that measures nothing leaves RTMR 2 alone; RTMR 1 still knows it.
	values = tdxValues(0x20, 0)
	values[3].Value, values[3].Events = zero48, []measure.EventRef{}
	s := mustNew(t, TDX, nil, Image{Label: "i", Measurements: parsed(t, document(t, values...))})
	if v, _ := s.Value("rtmr_2"); v.Trivial != "nothing extends it" {
		t.Errorf("rtmr_2: %q", v.Trivial)
	}
	if v, _ := s.Value("rtmr_1"); v.Trivial != "" {
		t.Errorf("rtmr_1: %q", v.Trivial)
	}
	if Check(s).OK() {
		t.Error("a value that says nothing passes the check")
	}
}

func TestRollOver(t *testing.T) {
	a, b := Image{Label: "a", Measurements: tdxImage(t, 0x20, 0x30)}, Image{Label: "b", Measurements: tdxImage(t, 0x40, 0x50)}
	s := mustNew(t, TDX, nil, a, b)
	if v, _ := s.Value("rtmr_1"); !reflect.DeepEqual(v.Any, []any{sum(48, 0x20), sum(48, 0x40)}) || v.Trivial != "" {
		t.Errorf("rtmr_1: %+v", v)
	}
	if v, _ := s.Value("mr_td"); !strings.HasPrefix(v.Trivial, "the same for all 2 images") {
		t.Errorf("mr_td: %q", v.Trivial)
	}
	if v, _ := s.Value("xfam"); v.Trivial != "" {
		t.Errorf("xfam: %q", v.Trivial)
	}
	for _, name := range []string{"tdvfkernel", "tdvfkernelparams"} {
		if v, ok := s.Value(name); ok {
			t.Errorf("%s: the policy cannot hold two: %v", name, v.Any)
		}
		if !slices.ContainsFunc(s.Left, func(l Left) bool { return l.Name == name && strings.Contains(l.Reason, "==") }) {
			t.Errorf("%s: not in %v", name, s.Left)
		}
	}
	r := Check(s)
	if r.Vector[Executables] != 4 || !r.OK() {
		t.Errorf("vector %v, ok %v: want the rule without events", r.Vector, r.OK())
	}
	x, _ := s.Sample()
	y, _ := mustNew(t, TDX, nil, b, a).Sample()
	if !bytes.Equal(x, y) {
		t.Error("the order of the images shows in the values")
	}
	// One image twice is one image: nothing in it is the same "for all".
	twice := mustNew(t, TDX, nil, a, Image{Label: "again", Measurements: a.Measurements})
	if v, _ := twice.Value("mr_td"); v.Trivial != "" {
		t.Errorf("mr_td of one image twice: %q", v.Trivial)
	}
}

func TestNewRefuses(t *testing.T) {
	m := snpImage(t, 1)
	good := []Image{{Label: "i", Measurements: m}}
	policy := snpImage(t, 1)
	policy.SNP.Policy = "0x10000" // bit 17 must be 1
	for name, row := range map[string]struct {
		tee      TEE
		images   []Image
		platform Platform
		is       error
		says     string
	}{
		"TEE":             {"sev", good, nil, nil, `"sev": want one of snp, tdx`},
		"no image":        {SNP, nil, nil, nil, "no image"},
		"no label":        {SNP, []Image{{Measurements: m}}, nil, nil, "no label"},
		"no measurements": {SNP, []Image{{Label: "i"}}, nil, nil, "no measurements"},
		"label twice":     {SNP, append(good, good...), nil, nil, `called "i"`},
		"policy":          {SNP, []Image{{Label: "i", Measurements: policy}}, nil, nil, "bit 17"},
		"of the image":    {SNP, good, Platform{"snp_smt_allowed": {true}}, ErrPlatform, "image i decides it"},
		"text for number": {SNP, good, Platform{"snp_bootloader": {"3"}}, ErrPlatform, "whole number"},
		"out of range":    {SNP, good, Platform{"snp_bootloader": {int64(256)}}, ErrPlatform, "whole number"},
		"negative":        {SNP, good, Platform{"snp_bootloader": {int64(-1)}}, ErrPlatform, "whole number"},
		"number for bool": {SNP, good, Platform{"snp_smt_enabled": {int64(1)}}, ErrPlatform, "true or false"},
		"two scalars":     {SNP, good, Platform{"snp_smt_enabled": {true, false}}, ErrPlatform, "=="},
		"nothing":         {SNP, good, Platform{"snp_bootloader": {}}, ErrPlatform, "nothing is given"},
		"type":            {SNP, good, Platform{"mine": {1.5}}, ErrPlatform, "float64"},
		"upper case":      {SNP, good, Platform{"mr_td": {strings.ToUpper(sum(48, 0xab))}}, ErrPlatform, "lower-case"},
		"short digest":    {SNP, good, Platform{"mr_td": {sum(32, 0xab)}}, ErrPlatform, "48 bytes"},
		"short base64":    {SNP, good, Platform{"measurement": {sum(32, 0xab)}}, ErrPlatform, "48 bytes in base64"},
		"number as text":  {SNP, good, Platform{"tcb_snp": {"08"}}, ErrPlatform, "as text"},
		"number too big":  {SNP, good, Platform{"tcb_snp": {int64(256)}}, ErrPlatform, "as text"},
		"bool as text":    {SNP, good, Platform{"smt_enabled": {"True"}}, ErrPlatform, "as text"},
		"key":             {SNP, good, Platform{"trusted_aks": {"-----BEGIN"}}, ErrPlatform, "base64"},
		"empty key":       {SNP, good, Platform{"trusted_aks": {""}}, ErrPlatform, "base64"},
	} {
		_, err := New(row.tee, row.images, row.platform, time.Time{})
		if err == nil || !strings.Contains(err.Error(), row.says) || row.is != nil && !errors.Is(err, row.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A name of the user's own policy is kept, and Check says that nobody knows it.
	if _, ok := mustNew(t, SNP, Platform{"mine": {"x"}}, good...).Value("mine"); !ok {
		t.Error("a name of one's own is dropped")
	}
}

func TestParsePlatform(t *testing.T) {
	got, err := ParsePlatform([]byte(`{"snp_bootloader": [3, 4], "snp_smt_enabled": true, "mine": "x"}`))
	want := Platform{"snp_bootloader": {int64(3), int64(4)}, "snp_smt_enabled": {true}, "mine": {"x"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{`[]`, `{"a": {}}`, `{"a": null}`, `{"a": 1.5}`, `{"a": 1, "a": 2}`, `{"a": [[1]]}`, `{} {}`} {
		if _, err := ParsePlatform([]byte(bad)); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestParsePlatformValue(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       any // nil: refused
	}{
		{"snp_bootloader", "3", int64(3)},
		{"snp_microcode", "0xd1", int64(209)},
		{"snp_microcode", "256", nil},
		{"snp_microcode", "x", nil},
		{"snp_smt_enabled", "true", true},
		{"snp_smt_enabled", "on", nil},
		{"mr_td", "0X" + strings.ToUpper(sum(48, 0xab)), sum(48, 0xab)},
		{"mr_td", sum(32, 0xab), nil},
		{"measurement", "0x" + strings.ToUpper(sum(48, 0xff)), strings.Repeat("////", 16)},
		{"measurement", strings.Repeat("WxYz", 16), strings.Repeat("WxYz", 16)},
		{"measurement", sum(32, 0xab), nil},
		{"tcb_microcode", "0xd1", "209"},
		{"tcb_microcode", "300", nil},
		{"smt_enabled", "1", "true"},
		{"smt_enabled", "yes", nil},
		{"trusted_aks", "TUlJQg==", "TUlJQg=="},
		{"trusted_aks", "TUlJQg", nil},
		{"mine", "7", int64(7)},
		{"mine", "007", "007"},
		{"mine", "false", false},
		{"mine", "text", "text"},
	} {
		got, err := ParsePlatformValue(row.name, row.text)
		if got != row.want || (err == nil) != (row.want != nil) || err != nil && !errors.Is(err, ErrPlatform) {
			t.Errorf("%s=%s: %v, %v", row.name, row.text, got, err)
		}
	}
}
