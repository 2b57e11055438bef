package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/workload"
)

// giveDisk gives a guest a disk.
func giveDisk(t *testing.T, s *State, name, serial string, content []byte) {
	t.Helper()
	mkdir(t, s, "sys/class/block/"+name+"/device")
	write(t, s, "sys/class/block/"+name+"/serial", serial+"\n")
	write(t, s, "dev/"+name, string(content))
}

// document is initdata with one workload, as a guest is given it.
func document(t *testing.T, a initdata.Algorithm) (raw, device []byte) {
	t.Helper()
	c := workload.Config{Schema: workload.Schema, Policy: json.RawMessage(`{"default":[{"type":"insecureAcceptAnything"}]}`),
		Workloads: []workload.Process{{Name: "web", Image: image("web")}}}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	raw, err = initdata.Build(a, map[string]string{workload.DataKey: string(b), "aa.toml": ""})
	if err != nil {
		t.Fatal(err)
	}
	device, err = initdata.Encode(raw, initdata.Device)
	if err != nil {
		t.Fatal(err)
	}
	return raw, device
}

// newInitdata is a guest whose workloads come from initdata.
func newInitdata(t *testing.T, spoil func(*config.Config)) (*State, *fakeMachine, *fakeSite) {
	t.Helper()
	return newWorkloads(t, func(c *config.Config) {
		c.Cmdline, c.Workloads, c.Phases = "plinth.workloads=initdata", nil, nil
		if spoil != nil {
			spoil(c)
		}
	})
}

// pcr8 is the register after one extend, by arithmetic of its own.
func pcr8(digest []byte) string {
	v := sha256.Sum256(append(make([]byte, 32), digest...))
	return hex.EncodeToString(v[:])
}

func TestInitdata(t *testing.T) {
	raw, device := document(t, initdata.SHA256)
	s, m, f := newInitdata(t, nil)
	giveDisk(t, s, "vda", "root", []byte("something else, of which nothing is read"))
	giveDisk(t, s, "vdb", "", append(device, make([]byte, 1<<20)...))
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	if got := f.lines(); !slices.Contains(got, "start web") {
		t.Errorf("got %q", got)
	}
	tpm := m.tpm.(*fakeTPM)
	sum := sha256.Sum256(raw)
	if got, want := hex.EncodeToString(tpm.pcrs[tpm.banks[1]][8]), pcr8(sum[:]); got != want {
		t.Errorf("PCR 8 is %s, want %s", got, want)
	}
	if got := tpm.pcrs[tpm.banks[0]][8]; !bytes.Equal(got, make([]byte, 20)) {
		t.Errorf("PCR 8 in bank sha1 is %x, want zero", got)
	}
	if e := s.Extender.Done()[0]; e.PCR != 8 || e.What != "initdata" || len(e.Digests) != 1 {
		t.Errorf("the first extend is %+v", e)
	}
}

// A guest that was given none says so, and runs nothing.
func TestNoInitdata(t *testing.T) {
	t.Parallel()
	_, device := document(t, initdata.SHA256)
	s, m, f := newInitdata(t, nil)
	giveDisk(t, s, "vda", "", []byte("init"))
	mkdir(t, s, "sys/class/block/loop0") // no disk of the host's
	write(t, s, "dev/loop0", string(device))
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	tpm := m.tpm.(*fakeTPM)
	if got, want := hex.EncodeToString(tpm.pcrs[tpm.banks[1]][8]), pcr8(workload.NoInitdata()); got != want {
		t.Errorf("PCR 8 is %s, want %s", got, want)
	}
	if got := f.lines(); !slices.Equal(got, []string{"network"}) {
		t.Errorf("got %q", got)
	}
}

// The platform shows what a guest was launched with, and the document must be that.
func TestInitdataBound(t *testing.T) {
	t.Parallel()
	raw, device := document(t, initdata.SHA384)
	sum := initdata.SHA384.Sum(raw)
	other := bytes.Repeat([]byte{1}, 48)
	snp := func(value []byte) func(*testing.T, *State, *fakeMachine) {
		return func(t *testing.T, s *State, _ *fakeMachine) {
			report := make([]byte, snpReportSize)
			copy(report[0xc0:], value[:32])
			write(t, s, snpDevice, "")
			giveReports(t, s, "sev_guest", report)
		}
	}
	mrconfigid := func(value []byte) func(*testing.T, *State, *fakeMachine) {
		return func(t *testing.T, s *State, _ *fakeMachine) {
			write(t, s, tdxDevice, "")
			write(t, s, tdxMeasured+"/mrconfigid", string(value))
		}
	}
	tdreport := func(value []byte) func(*testing.T, *State, *fakeMachine) {
		return func(t *testing.T, s *State, m *fakeMachine) {
			write(t, s, tdxDevice, "")
			m.tdreport = make([]byte, 1024)
			copy(m.tdreport[0x240:], value) // Intel TDX Module 1.5 ABI: TDINFO at 0x200, MRCONFIGID at 0x40 of it
		}
	}
	for _, tt := range []struct {
		name, want string
		given      bool
		platform   func(*testing.T, *State, *fakeMachine)
	}{
		{"SNP", "", true, snp(sum)},
		{"SNP, another document", "workloads: initdata: HOSTDATA is 0101", true, snp(other)},
		{"SNP, none and zero", "", false, snp(make([]byte, 48))},
		{"SNP, withheld", "workloads: initdata: HOSTDATA is ", false, snp(sum)},
		{"TDX by sysfs", "", true, mrconfigid(sum)},
		{"TDX by sysfs, another document", "workloads: initdata: MRCONFIGID is 0101", true, mrconfigid(other)},
		{"TDX by sysfs, short", "workloads: initdata: MRCONFIGID: 3 bytes, want 48", true, mrconfigid([]byte("abc"))},
		{"TDX by report", "", true, tdreport(sum)},
		{"TDX by report, another document", "workloads: initdata: MRCONFIGID is 0101", true, tdreport(other)},
		{"TDX that does not answer", "workloads: initdata: MRCONFIGID: ", true, func(t *testing.T, s *State, _ *fakeMachine) { write(t, s, tdxDevice, "") }},
		{"SNP that does not answer", "workloads: initdata: HOSTDATA: ", true, func(t *testing.T, s *State, _ *fakeMachine) { write(t, s, snpDevice, "") }},
		{"SNP, reports of another", `workloads: initdata: HOSTDATA: reports are by tdx_guest`, true, func(t *testing.T, s *State, _ *fakeMachine) {
			write(t, s, snpDevice, "")
			giveReports(t, s, "tdx_guest", make([]byte, snpReportSize))
		}},
		{"SNP, short report", "workloads: initdata: HOSTDATA: report of 100 bytes", true, func(t *testing.T, s *State, _ *fakeMachine) {
			write(t, s, snpDevice, "")
			giveReports(t, s, "sev_guest", make([]byte, 100))
		}},
		{"nothing that binds", "workloads: initdata: neither a TPM", true, func(*testing.T, *State, *fakeMachine) {}},
		{"nothing that binds its absence", "workloads: initdata: neither a TPM", false, func(*testing.T, *State, *fakeMachine) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, m, f := newInitdata(t, func(c *config.Config) { c.TPM = config.TPMOptional })
			m.tpm = nil
			if tt.given {
				giveDisk(t, s, "vda", "", device)
			}
			tt.platform(t, s, m)
			ran := tt.want == "" && tt.given
			wantError(t, bootWorkloads(t, s), tt.want)
			if got := slices.Contains(f.lines(), "start web"); got != ran {
				t.Errorf("web runs: %v, want %v", got, ran)
			}
		})
	}
}

// A guest whose workloads are the image's asks the platform for no document.
func TestImageAsksNoPlatform(t *testing.T) {
	t.Parallel()
	s, _, f := newWorkloads(t, nil)
	write(t, s, snpDevice, "") // which does not answer
	wantError(t, bootWorkloads(t, s), "")
	if !slices.Contains(f.lines(), "start web") {
		t.Errorf("got %q", f.lines())
	}
}

// giveReports makes the kernel of a guest report.
func giveReports(t *testing.T, s *State, provider string, report []byte) {
	t.Helper()
	s.machine.(*fakeMachine).reports = func(want string) ([]byte, error) {
		if want != provider {
			return nil, fmt.Errorf("reports are by %s, want %s", provider, want)
		}
		return report, nil
	}
}

// A TPM takes documents of SHA-256 alone; one that nobody asks for need not.
func TestInitdataAlgorithm(t *testing.T) {
	t.Parallel()
	raw, device := document(t, initdata.SHA384)
	s, _, _ := newInitdata(t, nil)
	giveDisk(t, s, "vda", "", device)
	wantError(t, bootWorkloads(t, s), "workloads: initdata: algorithm \"sha384\": a TPM wants sha256")

	s, _, f := newInitdata(t, func(c *config.Config) { c.TPM = config.TPMOptional })
	giveDisk(t, s, "vda", "", device)
	write(t, s, tdxDevice, "")
	write(t, s, tdxMeasured+"/mrconfigid", string(initdata.SHA384.Sum(raw)))
	wantError(t, bootWorkloads(t, s), "")
	if !slices.Contains(f.lines(), "start web") {
		t.Errorf("got %q", f.lines())
	}
}

// A TPM that nobody asks for is the host's: what it was extended by binds nothing.
func TestInitdataOptionalTPM(t *testing.T) {
	_, device := document(t, initdata.SHA256)
	s, _, f := newInitdata(t, func(c *config.Config) { c.TPM = config.TPMOptional })
	giveDisk(t, s, "vda", "", device)
	wantError(t, bootWorkloads(t, s), "workloads: initdata: neither a TPM")
	if len(f.lines()) != 0 {
		t.Errorf("got %q", f.lines())
	}
}

// Whatever the host gives, nothing of it is used before it was measured.
func TestHostileInitdata(t *testing.T) {
	_, device := document(t, initdata.SHA256)
	encode := func(text string) []byte {
		b, err := initdata.Encode([]byte(text), initdata.Device)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	with := func(content string) []byte {
		raw, err := initdata.Build(initdata.SHA256, map[string]string{workload.DataKey: content})
		if err != nil {
			t.Fatal(err)
		}
		return encode(string(raw))
	}
	for _, tt := range []struct {
		name, want string
		disks      [][]byte
		extends    int
	}{
		{"two documents", "workloads: initdata: ", [][]byte{device, device}, 0},
		{"truncated", "workloads: initdata: ", [][]byte{device[:20]}, 0},
		{"no TOML", "workloads: initdata: ", [][]byte{encode("x")}, 0},
		{"empty", "workloads: initdata: ", [][]byte{encode("")}, 0},
		{"unknown key", "workloads: initdata: ", [][]byte{with(`{"schema":1,"workloads":[],"x":1}`)}, 1},
		{"a volume that is not there", "workloads: initdata: workloads: web: mounts[0]: volume data: there is none", [][]byte{with(
			`{"schema":1,"workloads":[{"name":"web","image":"` + image("web") + `","mounts":[{"path":"/data","volume":"data"}]}]}`)}, 1},
		{"other program", "", [][]byte{encode("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"cdh.toml\" = \"\"\n")}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, f := newInitdata(t, nil)
			for i, d := range tt.disks {
				giveDisk(t, s, "vd"+string(rune('a'+i)), "", d)
			}
			wantError(t, bootWorkloads(t, s), tt.want)
			if n := len(s.Extender.Done()); n != tt.extends {
				t.Errorf("%d extends, want %d", n, tt.extends)
			}
			if got := f.lines(); len(got) != 0 && (tt.want != "" || !slices.Equal(got, []string{"network"})) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestDisk(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	giveDisk(t, s, "vda", "image0", []byte("content"))
	giveDisk(t, s, "vdb", "twice", nil)
	giveDisk(t, s, "vdc", "twice", nil)
	got, err := s.disk(t.Context(), "image0")
	if err != nil || got != s.path("dev/vda") {
		t.Errorf("got %s, %v", got, err)
	}
	_, err = s.disk(t.Context(), "twice")
	wantError(t, err, "vdb and ")
	_, err = s.disk(short(t), "absent")
	wantError(t, err, "disk absent: no virtio disk with this serial number")
	_, err = s.disk(short(t), "")
	wantError(t, err, "disk : no virtio disk")
	// It comes a moment later.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.disk(ctx, "late")
		done <- err
	}()
	giveDisk(t, s, "vdd", "late", nil)
	wantError(t, <-done, "")
}

func TestOpenImage(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	giveDisk(t, s, "vda", "image0", []byte("content"))
	write(t, s, "srv/app.tar", "tar")
	f, err := s.openImage(t.Context(), config.DiskPath+"image0")
	if err != nil {
		t.Fatal(err)
	}
	if size, err := f.Size(); err != nil || size != 7 {
		t.Errorf("%d bytes, %v, want 7", size, err)
	}
	if _, err := f.File.Write([]byte("x")); err == nil {
		t.Error("it can be written")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/dev/vda", config.DiskPath + "a/b", "/srv/app.tar"} {
		_, err := s.openImage(short(t), name)
		wantError(t, err, "want /dev/disk/by-id/virtio-SERIAL")
	}
}

func TestReadTrusted(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	write(t, s, "etc/key.pem", "key")
	mkdir(t, s, "etc/dir")
	write(t, s, "etc/large", strings.Repeat("x", 1<<20+1))
	if b, err := s.readTrusted(t.Context(), "/etc/key.pem"); err != nil || string(b) != "key" {
		t.Errorf("got %q, %v", b, err)
	}
	for name, want := range map[string]string{"etc/key.pem": "want an absolute path", "/etc/dir": "not a file", "/etc/large": "more than", "/dev/null": "not a file"} {
		_, err := s.readTrusted(t.Context(), name)
		wantError(t, err, want)
	}
}
