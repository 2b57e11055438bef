package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/tests/kbs"
	"github.com/plinth-os/plinth/tests/swtpm"
	"github.com/plinth-os/plinth/workload"
)

// specID begins a firmware's log: TCG PC Client Platform Firmware Profile 1.06, section
// 10.4.5.1.
func specID(banks []Bank) string {
	data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(banks)))
	for _, b := range banks {
		data = binary.LittleEndian.AppendUint16(data, uint16(b.Alg))
		data = binary.LittleEndian.AppendUint16(data, uint16(b.Hash.Size()))
	}
	data = append(data, 0)
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, 3) // EV_NO_ACTION
	b = append(b, make([]byte, 20)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return string(append(b, data...))
}

// newAttested is a guest with a software TPM and a broker that verifies its evidence.
func newAttested(t *testing.T, broker *kbs.Broker, spoil func(*config.Config)) (*State, *fakeSite) {
	t.Helper()
	testenv.Need(t, "swtpm")
	dir := t.TempDir()
	ak := base64.StdEncoding.EncodeToString(swtpm.AK(t, dir))
	server := kbs.Serve(t, broker)
	broker.Change(func(b *kbs.Broker) { b.Documented = true })
	broker.Set("trusted_aks", []any{ak})
	s, m, f := newWorkloads(t, func(c *config.Config) {
		c.Attestation = &config.Attestation{TEE: evidence.TEETPM, Brokers: []config.Broker{{URL: server.URL(), CAs: string(server.CA)}}}
		c.Workloads.Workloads = c.Workloads.Workloads[:1]
		if spoil != nil {
			spoil(c)
		}
	})
	s.work.site.brokers = guestSite.brokers
	var chip transport.TPM = swtpm.Start(t, dir).Open(t)
	m.tpm = chip
	d, err := newDevice(chip)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, "/sys/kernel/security/tpm0/binary_bios_measurements", specID(d.Banks()))
	return s, f
}

// A guest boots, and its broker gives it secrets at the registers that they are for:
// PCR 11 before the containers, PCR 14 with all of them. What the container asks for
// itself comes at the last phase.
func TestAttestation(t *testing.T) {
	fileOnly := kbs.Resource{Value: []byte("canary of the file")}
	broker := &kbs.Broker{Resources: map[string]kbs.Resource{
		"default/web/file": fileOnly, "default/web/own": {Value: []byte("canary of its own")}, "default/other/one": {Value: []byte("canary")},
	}}
	s, f := newAttested(t, broker, func(c *config.Config) {
		w := &c.Workloads.Workloads[0]
		w.Mounts = []workload.Mount{{Path: "/run/secret", Secret: "kbs:///default/web/file"}}
		w.API = &workload.API{Resources: []string{"kbs:///default/web/"}, Token: true, Measure: true}
	})
	before, last := []string{"enter-initrd", "leave-initrd"}, []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}
	events := expected(t, s)
	broker.Set("tpm_pcr11", []any{foldWords(before), foldWords(last)})
	broker.Set("tpm_pcr14", []any{fold(events)})
	broker.Change(func(b *kbs.Broker) {
		b.Log = func(format string, args ...any) {
			if line := fmt.Sprintf(format, args...); strings.Contains(line, "attest") {
				t.Log(line)
			}
		}
	})
	if err := bootWorkloads(t, s); err != nil {
		t.Fatalf("%v\n%s", err, s.console.(*lockedBuffer).String())
	}
	if got := f.run(t, 1).files["/run/secret"]; got != "canary of the file" {
		t.Errorf("the file has %q", got)
	}
	// By now the last phase was extended, and the token of before is none.
	body := askGuest(t, s, f, "GET", "/cdh/resource/default/web/own", "", http.StatusOK)
	if body != "canary of its own" {
		t.Errorf("got %q", body)
	}
	askGuest(t, s, f, "GET", "/cdh/resource/default/other/one", "", http.StatusForbidden)
	list := broker.Attestations()
	if len(list) != 2 {
		t.Fatalf("%d attestations, want one before the containers and one after the boot", len(list))
	}
	for i, want := range [][]string{before, last} {
		pcrs := quoted(t, list[i])
		if got := pcrs[14]; got != fold(events) {
			t.Errorf("attestation %d: PCR 14 is %s, want %s", i, got, fold(events))
		}
		if got := pcrs[11]; got != foldWords(want) {
			t.Errorf("attestation %d: PCR 11 is %s, want %s after %q", i, got, foldWords(want), want)
		}
	}
	// An event of the container is in the next evidence.
	broker.Set("tpm_pcr14", []any{fold(append(slices.Clone(events), workload.Event{Domain: "example.com", Operation: "note", Content: "x"}))})
	askGuest(t, s, f, "POST", "/aa/aael", `{"domain":"example.com","operation":"note","content":"x"}`, http.StatusOK)
	var token struct {
		Token string
		Key   string `json:"tee_keypair"`
	}
	if err := json.Unmarshal([]byte(askGuest(t, s, f, "GET", "/aa/token?token_type=kbs", "", http.StatusOK)), &token); err != nil || token.Token == "" || token.Key != "" {
		t.Errorf("got %+v, %v", token, err)
	}
	events = append(events, workload.Event{Domain: "example.com", Operation: "note", Content: "x"})
	list = broker.Attestations()
	if len(list) != 3 || quoted(t, list[2])[14] != fold(events) {
		t.Errorf("%d attestations, and the last has not the container's event", len(list))
	}
	if r := s.Report.Attestation; r == nil || r.TEE != evidence.TEETPM || len(r.Brokers) != 1 {
		t.Errorf("reported %+v", r)
	}
	if out := s.console.(*lockedBuffer).String(); strings.Contains(out, "canary") {
		t.Errorf("a secret is on the console:\n%s", out)
	}
}

// A guest that is refused goes no further than to the one who refuses it.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(*kbs.Broker)
	}{
		{"other image", "pcr11: ", func(b *kbs.Broker) { b.Set("tpm_pcr11", []any{foldWords([]string{"enter-initrd"})}) }},
		{"other workloads", "pcr14: ", func(b *kbs.Broker) { b.Set("tpm_pcr14", []any{strings.Repeat("00", 32)}) }},
		{"other TPM", "ak: ", func(b *kbs.Broker) { b.Set("trusted_aks", []any{"AAAA"}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			broker := &kbs.Broker{Resources: map[string]kbs.Resource{"default/web/file": {Value: []byte("canary")}}}
			s, f := newAttested(t, broker, func(c *config.Config) {
				c.Workloads.Workloads[0].Mounts = []workload.Mount{{Path: "/run/secret", Secret: "kbs:///default/web/file"}}
			})
			broker.Set("tpm_pcr11", []any{foldWords([]string{"enter-initrd", "leave-initrd"})})
			broker.Set("tpm_pcr14", []any{fold(expected(t, s))})
			tt.spoil(broker)
			wantError(t, bootWorkloads(t, s), tt.want)
			if slices.Contains(f.lines(), "create web") {
				t.Error("a container was made")
			}
			if got := foldWords([]string{"enter-initrd", "leave-initrd"}); quoted(t, broker.Attestations()[0])[11] != got {
				t.Error("the guest asked at another phase")
			}
		})
	}
}

// What attests the guest is what the configuration names, or the boot ends.
func TestAttesterMissing(t *testing.T) {
	for tee, want := range map[string]string{
		evidence.TEETPM: "attestation: no TPM", evidence.TEESNP: "attestation: attester: snp: ", evidence.TEETDX: "attestation: attester: tdx: ",
		evidence.TEEAzSNP: "attestation: no TPM", evidence.TEEAzTDX: "attestation: no TPM",
	} {
		s, m, _ := newWorkloads(t, func(c *config.Config) {
			c.TPM, c.Phases = config.TPMOptional, nil
			c.Attestation = attested()
			c.Attestation.TEE = tee
		})
		m.tpm = nil
		wantError(t, bootWorkloads(t, s), want)
	}
	s, _ := newGuest(t, config.Config{})
	_, err := s.newAttester(&config.Attestation{TEE: evidence.TEESample})
	wantError(t, err, "want debug")
	_, err = s.newAttester(&config.Attestation{TEE: "sgx"})
	wantError(t, err, `tee "sgx"`)
	s.Config.Debug = true
	if a, err := s.newAttester(&config.Attestation{TEE: evidence.TEESample}); err != nil || a.TEE() != evidence.TEESample {
		t.Errorf("got %v, %v", a, err)
	}
}

// expected are the events of a guest's workloads.
func expected(t *testing.T, s *State) []workload.Event {
	t.Helper()
	var admitted []workload.Admitted
	c := s.Config.Workloads
	for i := range c.Workloads {
		w := &c.Workloads[i]
		im := fakeImage(w.Image)
		e, err := w.Effective(&im.Settings.Config)
		if err != nil {
			t.Fatal(err)
		}
		admitted = append(admitted, workload.Admitted{Process: w, Manifest: im.Digest, Effective: e})
	}
	events, err := c.Events(admitted)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// quoted are the registers of an attestation.
func quoted(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var a evidence.Attestation
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatal(err)
	}
	e, err := evidence.ParseTPM(a.TEEEvidence.Primary)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range e.Quote.PCRs {
		out = append(out, fmt.Sprintf("%x", v))
	}
	return out
}

// foldWords is PCR 11 after phases, SHA-256.
func foldWords(words []string) string {
	value := make([]byte, 32)
	for _, w := range words {
		value = sha(append(value, sha([]byte(w))...))
	}
	return fmt.Sprintf("%x", value)
}

// askGuest asks as the container does.
func askGuest(t *testing.T, s *State, f *fakeSite, method, path, body string, want int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), createTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+f.at()+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "127.0.0.1:8006"
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Errorf("%s %s: %s, %v, want %d: %s", method, path, resp.Status, err, want, b)
	}
	return string(b)
}
