package agent

import (
	"errors"
	"reflect"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
)

// failingTPM has a bank and does not extend it.
type failingTPM struct{}

func (failingTPM) Banks() []Bank                     { return knownBanks[:1] }
func (failingTPM) Read() (evidence.PCRs, error)      { return nil, errors.New("no") }
func (failingTPM) ReadRegister(int) (values, error)  { return values{"sha1": make([]byte, 20)}, nil }
func (failingTPM) Extend(int, map[Bank][]byte) error { return errors.New("locality") }

// The digests are those of "printf ready | sha1sum" and "... | sha256sum".
func TestExtend(t *testing.T) {
	f := newFakeTPM("sha1", "sha256")
	d, err := newDevice(f)
	if err != nil {
		t.Fatal(err)
	}
	e := newExtender(d, newWAL(t, d))
	if err := e.Extend(11, "ready"); err != nil {
		t.Fatal(err)
	}
	const sha1, sha256 = "75c0533730caf1f78561c0883fb87bc8d98ef04b", "b24d6d33736ecd5604a4b17bc9c6481039fac362bb7df044ef1c10a2bfd21db6"
	if want := []string{"11 sha1 " + sha1, "11 sha256 " + sha256}; !reflect.DeepEqual(f.log, want) {
		t.Errorf("the TPM got %q, want %q", f.log, want)
	}
	want := []evidence.Extend{{PCR: 11, What: "ready", Digests: map[string]string{"sha1": sha1, "sha256": sha256}}}
	if got := e.Done(); !reflect.DeepEqual(got, want) {
		t.Errorf("recorded %+v, want %+v", got, want)
	}
}

// newWAL is a journal of a TPM's registers.
func newWAL(t *testing.T, tpm TPM) *wal {
	t.Helper()
	s := &State{Root: t.TempDir(), TPM: tpm}
	return s.journal()
}

// An extend that failed, and of which the register shows nothing, is in no record.
func TestExtendFails(t *testing.T) {
	e := newExtender(failingTPM{}, newWAL(t, failingTPM{}))
	wantError(t, e.Extend(11, "ready"), `PCR 11 with "ready": locality`)
	if got := len(e.Done()); got != 0 {
		t.Errorf("%d extends are recorded, want none", got)
	}
}

func TestPhases(t *testing.T) {
	for _, tt := range []struct {
		name   string
		phases []string
		want   int
	}{
		{"all", config.Phases, 4},
		{"none", nil, 0},
		{"some", []string{config.EnterInitrd, config.Ready}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, m := newGuest(t, config.Config{Phases: tt.phases})
			if err := s.useTPM(m.tpm); err != nil {
				t.Fatal(err)
			}
			for _, p := range config.Phases {
				if err := extendPhase(p)(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for _, e := range s.Extender.Done() {
				got = append(got, e.What)
			}
			if len(got) != tt.want || (tt.want > 0 && !reflect.DeepEqual(got, tt.phases)) {
				t.Errorf("extended %q, want %q", got, tt.phases)
			}
		})
	}
}

func TestPhaseWithoutTPM(t *testing.T) {
	s, _ := newGuest(t, config.Config{Phases: config.Phases})
	wantError(t, extendPhase(config.Ready)(t.Context(), s), "no TPM")
}
