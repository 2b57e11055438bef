package workload

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
)

func vector(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{testenv.Vectors(t), "guest"}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The digests of an event that guest-components' own tests expect:
// attestation-agent/src/eventlog/tcg2.rs.
func TestDigest(t *testing.T) {
	e := Event{"domain", "operation", "content"}
	for h, want := range map[crypto.Hash]string{
		crypto.SHA256: "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351",
		crypto.SHA384: "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02",
		crypto.SHA512: "b708d222ca8bd44dfe6ba0c4ca2cbb72379276fba8091025217064be45a813e5d6124ccf073219edb617d1faf007d55061465bdf34b7437dbdc9a7405bd4e9c0",
	} {
		if got := hex.EncodeToString(e.Digest(h)); got != want {
			t.Errorf("%v: got %s, want %s", h, got, want)
		}
	}
	if got := (Event{"domain", "operation", "contens"}).Digest(crypto.SHA256); hex.EncodeToString(got)[:8] == "46df8dac" {
		t.Error("another content, and the same digest")
	}
}

// replay extends a register from zero by digests.
func replay(h crypto.Hash, digests ...[]byte) string {
	value := make([]byte, h.Size())
	for _, d := range digests {
		x := h.New()
		x.Write(value)
		x.Write(d)
		value = x.Sum(nil)
	}
	return hex.EncodeToString(value)
}

// Logs as CoCo's agents write them, and what the registers end with.
func TestRecord(t *testing.T) {
	var expected map[string]struct{ Final, Event string }
	if err := json.Unmarshal(vector(t, "made/aael/expected.json"), &expected); err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + strings.Repeat("ab", 32)
	pulled, err := PullImage("docker.io/library/busybox:latest", digest)
	if err != nil {
		t.Fatal(err)
	}
	one := "aael-pullimage-pcr23-sha256.bin"
	if pulled.Text() != expected[one].Event {
		t.Errorf("got  %s\nwant %s", pulled.Text(), expected[one].Event)
	}
	if got := pulled.Record(CopyPCR, crypto.SHA256); !bytes.Equal(got, vector(t, "made/aael", one)) {
		t.Errorf("record: got %x", got)
	}
	if got := replay(crypto.SHA256, pulled.Digest(crypto.SHA256)); got != expected[one].Final {
		t.Errorf("register: got %s, want %s", got, expected[one].Final)
	}
	if with, err := PullImage("docker://docker.io/library/busybox:latest", digest); err != nil || with != pulled {
		t.Errorf("with its transport: %v, %v", with, err)
	}

	two := "aael-two-events-sha384.bin"
	events := []Event{{"domain", "operation", "content1"}, {"domain", "operation", "content2"}}
	var log []byte
	var digests [][]byte
	for _, e := range events {
		log = append(log, e.Record(RTMRIndex, crypto.SHA384)...)
		digests = append(digests, e.Digest(crypto.SHA384))
	}
	if want := vector(t, "made/aael", two); !bytes.Equal(log, want) {
		t.Errorf("got\n%x\nwant\n%x", log, want)
	}
	if got := replay(crypto.SHA384, digests...); got != expected[two].Final {
		t.Errorf("register: got %s, want %s", got, expected[two].Final)
	}
}

// A log of a trust domain at Alibaba Cloud: Trustee's verifier replays RTMR 3 to
// 5e4ecd49... The records that its agent appended are ours, byte by byte.
func TestRealLog(t *testing.T) {
	log := vector(t, "trustee/eventlog/CCEL_AAEL_alibabacloud")
	events := []Event{}
	rest := log
	for {
		i := bytes.Index(rest, []byte("LEAA"))
		if i < 0 {
			break
		}
		n := binary.LittleEndian.Uint32(rest[i+4:])
		f := strings.SplitN(string(rest[i+8:][:n]), " ", 3)
		events = append(events, Event{f[0], f[1], f[2]})
		rest = rest[i+8+int(n):]
	}
	if len(events) != 2 || events[0] != (Event{"coco.com", "some-operation", "some-content"}) {
		t.Fatalf("events %q", events)
	}
	var digests [][]byte
	var record []byte
	for _, e := range events {
		record = append(record, e.Record(RTMRIndex, crypto.SHA384)...)
		digests = append(digests, e.Digest(crypto.SHA384))
	}
	if !bytes.Contains(log, record) {
		t.Errorf("the log has not %x", record)
	}
	want := "5e4ecd49d3c7983d6f9ca36755b5cee0b423d7fa8c5a88aeb0681bd4698772bc37b4463dc5f722efe352a66417257dad"
	if got := replay(crypto.SHA384, digests...); got != want {
		t.Errorf("RTMR 3: got %s, want %s", got, want)
	}
}

// A TPM has several banks: TCG_PCR_EVENT2 has a digest for each.
func TestRecordOfBanks(t *testing.T) {
	e := Event{"d", "o", "c"}
	got := e.Record(14, crypto.SHA1, crypto.SHA256)
	want := slices.Concat([]byte{14, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 4, 0}, e.Digest(crypto.SHA1), []byte{0x0b, 0}, e.Digest(crypto.SHA256),
		[]byte{13, 0, 0, 0}, []byte("LEAA\x05\x00\x00\x00d o c"))
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
}

func TestEvents(t *testing.T) {
	c := sample()
	web, job := &c.Workloads[0], &c.Workloads[1]
	manifest := "sha256:" + strings.Repeat("01", 32)
	e := &Effective{Args: []string{"/app"}, Env: []string{"B=secret", "A="}, Dir: "/", Network: NetworkNAT, StopSignal: "SIGTERM"}
	digest, err := e.Digest()
	if err != nil {
		t.Fatal(err)
	}
	events, err := c.Events([]Admitted{{web, manifest, e}, {job, manifest, e}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, e.Text())
	}
	want := []string{
		// printf '{"default":[{"type":"reject"}]}' | sha256sum
		`github.com/plinth-os/plinth Policy {"admit":["encrypted+signed","plain+signed"],"policy":"sha256:` + rejectAll + `"}`,
		`github.com/confidential-containers PullImage {"digest":"` + manifest + `","image":"` + strings.TrimPrefix(web.Image, "docker://") + `"}`,
		`github.com/plinth-os/plinth Workload {"configuration":"` + digest + `","env":["A","B"],"image":"` + manifest + `","name":"web"}`,
		`github.com/confidential-containers PullImage {"digest":"` + manifest + `","image":"oci-archive:/dev/disk/by-id/virtio-job"}`,
		`github.com/plinth-os/plinth Workload {"configuration":"` + digest + `","env":["A","B"],"image":"` + manifest + `","name":"job"}`,
		`github.com/plinth-os/plinth Separator {"workloads":2}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if strings.Contains(strings.Join(got, "\n"), "secret") {
		t.Error("a value is in the log")
	}

	spaced := *c
	spaced.Policy = json.RawMessage("{\n  \"default\": [ {\"type\": \"reject\"} ]\n}\n")
	if again, err := spaced.Events([]Admitted{{web, manifest, e}, {job, manifest, e}}); err != nil || !slices.Equal(again, events) {
		t.Errorf("the policy with other spaces: %v, %v", again, err)
	}
	spaced.Policy = nil
	if none, err := spaced.Events([]Admitted{{web, manifest, e}, {job, manifest, e}}); err != nil || strings.Contains(none[0].Content, "policy") {
		t.Errorf("without a policy: %v, %v", none[0], err)
	}
}

// printf '{"default":[{"type":"reject"}]}' | sha256sum
const rejectAll = "20e8f8b595fb933723507c58838ee13ff50869eb7ae4ecaaec9476c214321c16"

func TestEventsRefuse(t *testing.T) {
	c := sample()
	web, job := &c.Workloads[0], &c.Workloads[1]
	manifest, e := "sha256:"+strings.Repeat("01", 32), &Effective{}
	for name, tt := range map[string]struct {
		admitted []Admitted
		want     string
	}{
		"one of two":      {[]Admitted{{web, manifest, e}}, "1 admitted, want all 2"},
		"another order":   {[]Admitted{{job, manifest, e}, {web, manifest, e}}, "job admitted, want web"},
		"digest in words": {[]Admitted{{web, "latest", e}, {job, manifest, e}}, `web: manifest "latest"`},
		"capitals":        {[]Admitted{{web, "sha256:" + strings.Repeat("0A", 32), e}, {job, manifest, e}}, "web: manifest"},
	} {
		if _, err := c.Events(tt.admitted); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	c.Policy = json.RawMessage(`{"default":[],"default":[]}`)
	if _, err := c.Events([]Admitted{{web, manifest, e}, {job, manifest, e}}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("policy with a key twice: %v", err)
	}
}

// The text of an event is one line of three words, whatever is in it.
// The largest log there can be, of three registers in four banks, fits a report; of a
// larger one no guest and no prediction takes the configuration.
func TestEventsFitReport(t *testing.T) {
	const names = 240
	c := &Config{}
	var admitted []Admitted
	for i := range maxWorkloads {
		p := Process{Name: fmt.Sprintf("w%d", i), Image: "docker://registry.example.com/app@sha256:" + strings.Repeat("ab", 32)}
		e := &Effective{Args: []string{"/app"}, Env: variables(names)}
		c.Workloads = append(c.Workloads, p)
		admitted = append(admitted, Admitted{&p, "sha256:" + strings.Repeat("ab", 32), e})
	}
	_, err := c.Events(admitted)
	for err == nil { // up to the bound
		admitted[0].Effective.Env = append(admitted[0].Effective.Env, strings.Repeat("A", 4000)+"=")
		_, err = c.Events(admitted)
	}
	if !strings.Contains(err.Error(), "want at most 262144") {
		t.Error(err)
	}
	last := len(admitted[0].Effective.Env) - 1
	admitted[0].Effective.Env = admitted[0].Effective.Env[:last]
	events, err := c.Events(admitted)
	if err != nil || last <= names {
		t.Fatalf("%d variables, %v", last, err)
	}
	size := 0
	for _, e := range events {
		size += 3 * len(e.Record(14, crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512))
	}
	if size > evidence.MaxWorkloadLog {
		t.Errorf("a log of %d bytes", size)
	}
}

func TestEventIsOneLine(t *testing.T) {
	e, err := PullImage("a\nb \"c", "sha256:"+strings.Repeat("01", 32))
	if err != nil {
		t.Fatal(err)
	}
	if text := e.Text(); strings.Contains(text, "\n") || !strings.HasSuffix(text, `"image":"a\nb \"c"}`) {
		t.Errorf("%q", text)
	}
}

// printf 'github.com/plinth-os/plinth NoInitdata' | sha256sum
func TestNoInitdata(t *testing.T) {
	if got, want := hex.EncodeToString(NoInitdata()), "f1c7f83c4737401a0bda32a11c472ee08580475c47ccc5fb0a839e6708256d2b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
