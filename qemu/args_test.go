package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/*.args")

func TestArgs(t *testing.T) {
	sockets := Sockets{QMP: 3, Console: 4, Report: 5, TPM: 6}
	for name, m := range map[string]Machine{
		"least": {},
		"disk": {Firmware: "/s/code.fd", Vars: "/r/vars.fd", Disk: "/o/image.raw", VCPUs: 2, MemoryMiB: 512,
			TPM: true, ReportPort: "org.plinth.report"},
		"network": {Network: &Network{Forward: []Forward{{"tcp", 8080, 80}, {"udp", 5353, 53}}},
			Disks: []Disk{{Path: "/o/app,1.tar", Serial: "app"}, {Path: "/o/scratch.raw", Serial: "scratch", Writable: true}}},
		"kvm": {Accel: "kvm", Firmware: "/s/code.fd", Vars: "/r/vars.fd", Disk: "/o/image.raw", TPM: true, TPMDevice: "tpm-crb"},
		"kernel": {Firmware: "/s/code.fd", Vars: "/r/vars.fd", Kernel: "/o/vmlinuz", Initrd: "/o/initrd",
			Append: "panic=-1 a,b", ReportPort: "org.plinth.report"},
		"secboot": {Type: "pc-q35-7.2", CPU: "EPYC-v4", Firmware: "/s/code.secboot.fd", Vars: "/r/vars.fd", SMM: true, Disk: "/o/image.raw", TPM: true},
		"escaped": {NoSandbox: true, Firmware: "/a,b/code.fd", Vars: "/a,b/vars.fd", Disk: "/a,,b/x=y.raw", Kernel: "/a,b/uki.efi",
			ExtraArgs: []string{"-name", "x,y"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(Args(m, sockets), "\n") + "\n"
			golden := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("arguments differ from %s (go test -update writes it)\ngot:\n%swant:\n%s", golden, got, want)
			}
		})
	}
}
