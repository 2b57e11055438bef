package tdx

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// readCC reads one of the published CC logs; see the README beside them.
func readCC(t testing.TB, name string) *eventlog.Log {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "eventlog", "testdata", "cc", name+".bin"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.ParseCC(b)
	if err != nil {
		t.Fatal(err)
	}
	l.Describe()
	return l
}

// The registers of real trust domains are a second opinion on the replay of their
// logs. gce-cos-113 and dstack-app have them from a quote.
func TestPublishedRTMRs(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("..", "eventlog", "testdata", "cc", "*.rtmrs"))
	if err != nil || len(names) < 9 {
		t.Fatalf("%d files of registers: %v", len(names), err)
	}
	for _, path := range names {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".rtmrs")
		got, err := RTMRs(readCC(t, name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for line := range strings.Lines(string(text)) {
			var rtmr int
			var value string
			if _, err := fmt.Sscanf(line, "%d %s", &rtmr, &value); err != nil {
				t.Fatal(err)
			}
			if hex.EncodeToString(got[rtmr][:]) != value {
				t.Errorf("%s: RTMR %d: %x, want %s", name, rtmr, got[rtmr], value)
			}
		}
	}
}

// trustDomains are those of the published logs whose firmware's layout and whose
// memory follow from their hand-off blocks: no other size up to 128 GiB gives the
// digest.
var trustDomains = []struct {
	log       string
	firmware  *ovmf.Metadata
	memoryMiB int
	empty     bool // no keys in the variables, 4 MiB image
}{
	{"coco-kernel", intelTDX, 2048, true},
	{"intel-kernel", intelTDX, 8192, true},
	{"coco-grub", intelTDX, 10240, false},
	{"dstack-kernel", generic, 1024, true},
	{"dstack-app", intelTDX, 65536, true},
}

// What trust domains on TDX hardware measured into RTMR 0, as far as its bytes
// are known: hand-off blocks, Secure Boot's policy, boot options, and below the
// variables.
func TestPublishedTrustDomains(t *testing.T) {
	for _, td := range trustDomains {
		l := readCC(t, td.log)
		hob, err := HOB(td.firmware, td.memoryMiB)
		if err != nil {
			t.Fatal(err)
		}
		checkEvent(t, td.log, l, "TD hand-off blocks", hob)
		checkEvent(t, td.log, l, `boot option Boot0000 "UiApp"`, uiApp())
		if !td.empty {
			continue
		}
		checkEvent(t, td.log, l, "boot order", []byte{0, 0})
		secureBoot := secureBootVariables[0]
		if td.log == "intel-kernel" { // a build with Secure Boot, which is off
			secureBoot.Data = []byte{0}
		}
		checkEvent(t, td.log, l, "variable SecureBoot", secureBoot.Bytes())
		for _, v := range secureBootVariables[1:] {
			checkEvent(t, td.log, l, "variable "+v.Name, v.Bytes())
		}
	}
}

// The empty variable store is the same in every edk2 build of 4 MiB.
func TestPublishedVariables(t *testing.T) {
	cfv, _, err := CFV(machines(t)[0].firmware)
	if err != nil {
		t.Fatal(err)
	}
	for _, td := range trustDomains {
		if td.empty {
			checkEvent(t, td.log, readCC(t, td.log), "configuration firmware volume", cfv)
		}
	}
}

// checkEvent wants the digest of measured in the first event of that name.
func checkEvent(t *testing.T, log string, l *eventlog.Log, name string, measured []byte) {
	t.Helper()
	want := eventlog.SHA384.Sum(measured)
	for _, e := range l.Events {
		if strings.HasPrefix(e.Name, name) {
			if got := e.Digest(eventlog.SHA384); !bytes.Equal(got, want) {
				t.Errorf("%s: %s: computed %x, the log has %x", log, e.Name, want, got)
			}
			return
		}
	}
	t.Errorf("%s: no event %s", log, name)
}

// RTMR 2 of a live quote, published with the command line that made it: kernel by
// -kernel, no initrd. confidential-dot-ai/confidential-os-builder@c26e9fc,
// crates/tdx-measure/src/rtmr.rs (2026-07-08).
func TestPublishedCommandLine(t *testing.T) {
	const cmdline = `tsc=reliable no_timer_check rcupdate.rcu_expedited=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 i8042.noaux=1 noreplace-smp reboot=k cryptomgr.notests net.ifnames=0 pci=lastbus=0 dm-mod.create="dm-verity,,,ro,0 772096 verity 1 /dev/vda1 /dev/vda2 4096 4096 96512 0 sha256 768cd7e848f6cb7eb4f59467b26ee5c5e45ece570cb96a5c952d97dbc89bb150 63f8dacc786bd19f307be8668c7792a8fe07818df4aae55b63e76c4931d35c76" root=/dev/dm-0 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4 console=hvc0 console=hvc1 quiet systemd.show_status=false panic=1 nr_cpus=1 selinux=0 systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service systemd.mask=systemd-networkd.socket scsi_mod.scan=none agent.launch_process_timeout=6 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1`
	const want = "b595f9f179d8b699d1420000d36c1fba82e9853545e719caa6ddbb82fa2041a23b4459876af4a253a1c20c5956529b9a"
	var options []byte // UTF-16 with its terminating zero
	for _, c := range []byte(cmdline + "\x00") {
		options = append(options, c, 0)
	}
	l := &eventlog.Log{Algs: []eventlog.Alg{eventlog.SHA384}, Events: []eventlog.Event{{
		Register: 9, Type: eventlog.EventTag,
		Digests: []eventlog.Digest{{Alg: eventlog.SHA384, Value: eventlog.SHA384.Sum(options)}},
	}}}
	got, err := RTMRs(l)
	if err != nil || hex.EncodeToString(got[2][:]) != want {
		t.Errorf("RTMR 2: %x, %v: want %s", got[2], err, want)
	}
}
