package agent

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
)

// list is a TPML_PCR_SELECTION.
func list(selections ...[]byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(selections))), bytes.Join(selections, nil)...)
}

func TestActiveBanks(t *testing.T) {
	all := []byte{0xff, 0xff, 0xff}
	for _, tt := range []struct {
		name      string
		assigned  []byte
		want, err string
	}{
		{"two", list(selection(4, all...), selection(0xb, all...)), "sha1 sha256", ""},
		{"one is off", list(selection(4, 0, 0, 0), selection(0xb, all...), selection(0xd, all...)), "sha256 sha512", ""},
		{"unknown and off", list(selection(0x12, 0, 0, 0), selection(0xc, all...)), "sha384", ""},
		{"more registers than we use", list(selection(0xb, 0xff, 0xff, 0xff, 0x03)), "sha256", ""},
		{"unknown and on", list(selection(0x12, all...), selection(0xb, all...)), "", "bank 0x12 is active"},
		{"registers left out", list(selection(0xb, 0xff, 0xf7, 0xff)), "", "bank 0xb: registers"},
		{"only the upper ones", list(selection(0xb, 0, 0, 0, 0xff, 0xff, 0xff)), "", "bank 0xb: registers"},
		{"none is on", list(selection(0xb, 0, 0, 0)), "", "no PCR bank"},
		{"none at all", list(), "", "no PCR bank"},
		{"truncated", []byte{0, 0, 0, 1, 0, 0xb, 3, 0xff}, "", "TPM2_GetCapability"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			banks, err := activeBanks(&fakeTPM{assigned: tt.assigned})
			wantError(t, err, tt.err)
			var names []string
			for _, b := range banks {
				names = append(names, b.Name)
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReadFake(t *testing.T) {
	f := newFakeTPM("sha1", "sha384")
	for i, b := range f.banks {
		for r := range f.pcrs[b] {
			f.pcrs[b][r][0], f.pcrs[b][r][1] = byte(i+1), byte(r)
		}
	}
	d, err := newDevice(f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range f.banks {
		if len(got[b.Name]) != evidence.Registers {
			t.Errorf("%s: got %d registers, want %d", b.Name, len(got[b.Name]), evidence.Registers)
		}
		for r, v := range got[b.Name] {
			if want := hex.EncodeToString(f.pcrs[b][r]); v != want {
				t.Errorf("%s PCR %d: got %s, want %s", b.Name, r, v, want)
			}
		}
	}
}

// What a TPM must not answer to TPM2_PCR_Read. The answer of an honest one is:
// counter (4), one selection (4+2+1+3), count (4), values of 2+20 bytes.
func TestReadRefuses(t *testing.T) {
	value := append([]byte{0, 20}, make([]byte, 20)...)
	answer := func(bits []byte, values ...[]byte) []byte {
		out := append([]byte{0, 0, 0, 0}, list(selection(4, bits...))...)
		return append(binary.BigEndian.AppendUint32(out, uint32(len(values))), bytes.Join(values, nil)...)
	}
	for _, tt := range []struct {
		name, want string
		lie        []byte
	}{
		{"nothing", "0 values for registers []", answer([]byte{0, 0, 0})},
		{"another bank", "want bank sha1 alone", append(append([]byte{0, 0, 0, 0}, list(selection(0xb, 1, 0, 0))...), 0, 0, 0, 0)},
		{"two banks", "want bank sha1 alone", append(append([]byte{0, 0, 0, 0}, list(selection(4, 1, 0, 0), selection(4, 2, 0, 0))...), 0, 0, 0, 0)},
		{"fewer values than registers", "1 values for registers [0 1]", answer([]byte{3, 0, 0}, value)},
		{"more values than registers", "2 values for registers [0]", answer([]byte{1, 0, 0}, value, value)},
		{"register 24", "PCR 24 was not asked for", answer([]byte{0, 0, 0, 1}, value)},
		{"short value", "PCR 0 has 4 bytes, want 20", answer([]byte{1, 0, 0}, []byte{0, 4, 1, 2, 3, 4})},
		{"empty value", "PCR 0 has 0 bytes, want 20", answer([]byte{1, 0, 0}, []byte{0, 0})},
		{"truncated", "TPM2_PCR_Read", []byte{0, 0, 0}},
		{"count without values", "TPM2_PCR_Read", append(append([]byte{0, 0, 0, 0}, list(selection(4, 1, 0, 0))...), 0xff, 0xff, 0xff, 0xff)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeTPM("sha1")
			lie := tt.lie
			f.lie = func(cc uint32, honest []byte) []byte {
				if cc == ccPCRRead && lie != nil {
					honest, lie = lie, nil
				}
				return honest
			}
			d, err := newDevice(f)
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.Read()
			wantError(t, err, tt.want)
		})
	}
}

// A TPM that answers the same again and again is not asked for ever.
func TestReadRepeats(t *testing.T) {
	f := newFakeTPM("sha1")
	var first []byte
	f.lie = func(cc uint32, honest []byte) []byte {
		if cc != ccPCRRead {
			return honest
		}
		if first == nil {
			first = honest
		}
		return first
	}
	d, err := newDevice(f)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Read()
	wantError(t, err, "PCR 0 was not asked for")
}

// rawTPM answers every command with the same bytes.
type rawTPM []byte

func (r rawTPM) Send([]byte) ([]byte, error) { return r, nil }

// FuzzTPM: whatever a TPM answers, what is accepted is 24 registers of the
// bank's size.
func FuzzTPM(f *testing.F) {
	honest := newFakeTPM("sha1")
	for _, cc := range []uint32{ccGetCapability, ccPCRRead} {
		honest.lie = func(command uint32, answer []byte) []byte {
			out := binary.BigEndian.AppendUint16(nil, 0x8001)
			out = binary.BigEndian.AppendUint32(out, uint32(10+len(answer)))
			out = append(binary.BigEndian.AppendUint32(out, 0), answer...)
			if command == cc {
				f.Add(out)
			}
			return answer
		}
		d, err := newDevice(honest)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := d.Read(); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		if banks, err := activeBanks(rawTPM(answer)); err == nil && len(banks) == 0 {
			t.Fatal("no bank and no error")
		}
		d := &device{rawTPM(answer), knownBanks[:1]}
		pcrs, err := d.Read()
		if err != nil {
			return
		}
		for r := range evidence.Registers {
			if v := pcrs["sha1"][r]; len(v) != 40 {
				t.Fatalf("PCR %d is %q", r, v)
			}
		}
	})
}

func TestOpenTPMWaits(t *testing.T) {
	s, m := newGuest(t, config.Config{})
	m.tpm = nil
	wantError(t, openTPM(short(t), s), "no TPM")
	if s.TPM != nil || s.Extender != nil {
		t.Errorf("got a TPM out of nothing")
	}
}

// The device may be there and still be no TPM.
func TestLinuxOpenTPM(t *testing.T) {
	name := filepath.Join(t.TempDir(), "tpm0")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (linux{}).openTPM(name); err == nil {
		t.Error("a plain file was opened as a TPM")
	}
	if _, err := (linux{}).openTPM(name + "x"); !os.IsNotExist(err) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
}

// softTPM starts a TPM emulator and returns the address that tpm2-tools use and a
// connection.
func softTPM(t *testing.T) (string, transport.TPM) {
	t.Helper()
	testenv.Need(t, "swtpm")
	dir := t.TempDir()
	socket := filepath.Join(dir, "tpm")
	cmd := exec.Command(testenv.Tool("swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	// The socket is there before anybody listens on it.
	for range 1000 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	c, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	return "swtpm:path=" + socket, c
}

// pcrread returns the registers as tpm2-tools see them.
func pcrread(t *testing.T, tcti string) evidence.PCRs {
	t.Helper()
	out, err := exec.Command(testenv.Tool("tpm2_pcrread"), "-T", tcti).Output()
	if err != nil {
		t.Fatalf("tpm2_pcrread: %v", err)
	}
	pcrs := evidence.PCRs{}
	bank := ""
	for _, line := range strings.Split(string(out), "\n") {
		if m := regexp.MustCompile(`^ *(sha\d+):`).FindStringSubmatch(line); m != nil {
			bank = m[1]
		}
		if m := regexp.MustCompile(`^ *(\d+) *: 0x([0-9A-F]+)$`).FindStringSubmatch(line); m != nil {
			if pcrs[bank] == nil {
				pcrs[bank] = map[int]string{}
			}
			n := 0
			for _, c := range m[1] {
				n = 10*n + int(c-'0')
			}
			pcrs[bank][n] = strings.ToLower(m[2])
		}
	}
	return pcrs
}

// TestAgainstTPM reads and extends a TPM and compares with tpm2-tools and with a
// fold done here.
func TestAgainstTPM(t *testing.T) {
	tcti, c := softTPM(t)
	testenv.Need(t, "tpm2_pcrread")
	d, err := newDevice(c)
	if err != nil {
		t.Fatal(err)
	}
	before, err := d.Read()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "before", before, pcrread(t, tcti))
	if err := checkZero(before, overridesPCR, extensionsPCR); err != nil {
		t.Error(err)
	}

	e := newExtender(d, newWAL(t, d))
	words := []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}
	for _, w := range words {
		if err := e.Extend(phasePCR, w); err != nil {
			t.Fatal(err)
		}
	}
	after, err := d.Read()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "after", after, pcrread(t, tcti))
	for bank, hash := range map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512} {
		value := make([]byte, hash.Size())
		for _, w := range words {
			digest := hash.New()
			digest.Write([]byte(w))
			fold := hash.New()
			fold.Write(value)
			fold.Write(digest.Sum(nil))
			value = fold.Sum(nil)
		}
		if before[bank] != nil && after[bank][phasePCR] != hex.EncodeToString(value) {
			t.Errorf("%s: PCR %d is %s, want %x", bank, phasePCR, after[bank][phasePCR], value)
		}
	}
	if err := checkZero(after, phasePCR); err == nil {
		t.Error("an extended register passed for zero")
	}
}

func compare(t *testing.T, when string, got, want evidence.PCRs) {
	t.Helper()
	if len(got) != len(want) || len(want) == 0 {
		t.Errorf("%s: got banks %q, want %q", when, sortedKeys(got), sortedKeys(want))
	}
	for bank := range want {
		for r := range evidence.Registers {
			if got[bank][r] != want[bank][r] {
				t.Errorf("%s: %s PCR %d: got %s, want %s", when, bank, r, got[bank][r], want[bank][r])
			}
		}
	}
}
