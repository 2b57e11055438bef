package qemu

import (
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// typed is a launch as AMD's documentation has it.
const typed = `#!/bin/sh
# the guest of the day
modprobe kvm_amd sev_snp=1; cd /srv
sudo -E ./usr/local/bin/qemu-system-x86_64 \
  -enable-kvm -cpu EPYC-v4,+avx,host-phys-bits=true \
  -smp 4,maxcpus=255 -m 2048M,slots=5,maxmem=10240M -no-reboot \
  -machine q35,confidential-guest-support=sev0,vmport=off -M memory-backend=ram1 \
  -object memory-backend-memfd,id=ram1,size=2048M,share=true,prealloc=false \
  -object "sev-snp-guest,id=sev0,policy=0x30000,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on,host-data=aGk=" \
  -bios ./OVMF.amdsev.fd \
  -kernel 'vmlinuz 6.12' -initrd initrd\ one -append "console=ttyS0 quiet \"a b\"" \
  -netdev user,id=vmnic -device virtio-net-pci,netdev=vmnic,romfile= \
  -nographic 2>&1 > log.txt &
`

// libvirt is as it writes its logs: environment, JSON, flash by node name.
const libvirt = `2026-01-01 10:00:00.000+0000: starting up libvirt version: 10.0.0, qemu version: 9.2.0, kernel: 6.12.1, hostname: host
LC_ALL=C \
PATH=/usr/local/sbin:/usr/sbin \
XDG_CACHE_HOME=/var/lib/libvirt/qemu/domain-1-guest/.cache \
/usr/bin/qemu-system-x86_64 \
-name guest=guest,debug-threads=on \
-S \
-blockdev '{"driver":"file","filename":"/usr/share/ovmf/OVMF,v2.fd","node-name":"libvirt-pflash0-storage","auto-read-only":true,"discard":"unmap"}' \
-blockdev '{"node-name":"libvirt-pflash0-format","read-only":true,"driver":"raw","file":"libvirt-pflash0-storage"}' \
-blockdev '{"driver":"raw","node-name":"vars","file":{"driver":"file","filename":"/var/lib/vars.fd"}}' \
-machine pc-q35-9.2,usb=off,confidential-guest-support=lsec0,pflash0=libvirt-pflash0-format,pflash1=vars,memory-backend=pc.ram,acpi=on \
-cpu EPYC-Milan,svm=off,family=25,model=0x11,stepping=2 \
-m size=1572864k \
-object '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":1610612736}' \
-smp 2,sockets=1,dies=1,clusters=1,cores=2,threads=1 \
-object '{"qom-type":"sev-snp-guest","id":"lsec0","cbitpos":51,"reduced-phys-bits":1,"policy":196608,"kernel-hashes":true,"vcek-disabled":false}' \
-kernel /boot/vmlinuz \
-append '' \
-chardev socket,id=charmonitor,fd=35,server=on,wait=off \
-msg timestamp=on
char device redirected to /dev/pts/2 (label charserial0)
`

// perLine is a file of arguments, one, or one with its option, a line.
const perLine = `# a trust domain
-accel kvm
-machine
q35,kernel-irqchip=split,confidential-guest-support=tdx
-object {"qom-type":"tdx-guest","id":"tdx","mrconfigid":"AAAA","quote-generation-socket":{"type":"vsock","cid":"2","port":"4050"}}
-smp cores=2,threads=2
-m 4G
-bios OVMF.inteltdx.fd
--kernel image.efi
-append
console=hvc0  quiet 
-nodefaults
`

func TestParseCommandLine(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       CommandLine
		guest      string
		rest       []string
	}{
		{"typed", typed, CommandLine{
			Machine: "q35", CPU: "EPYC-v4", Signature: CPUSignature{-1, -1, -1}, VCPUs: 4, MemoryMiB: 2048, Firmware: "./OVMF.amdsev.fd",
			Kernel: "vmlinuz 6.12", Initrd: "initrd one", Append: ptr(`console=ttyS0 quiet "a b"`),
		}, "sev-snp-guest", []string{
			"-enable-kvm", "-no-reboot", "-object memory-backend-memfd,id=ram1,size=2048M,share=true,prealloc=false",
			"-netdev user,id=vmnic", "-device virtio-net-pci,netdev=vmnic,romfile=", "-nographic",
		}},
		{"libvirt", libvirt, CommandLine{
			Machine: "pc-q35-9.2", CPU: "EPYC-Milan", Signature: CPUSignature{25, 17, 2}, VCPUs: 2, MemoryMiB: 1536,
			Firmware: "/usr/share/ovmf/OVMF,v2.fd", Vars: "/var/lib/vars.fd", Kernel: "/boot/vmlinuz", Append: ptr(""),
		}, "sev-snp-guest", []string{
			"-name guest=guest,debug-threads=on", "-S",
			`-object {"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":1610612736}`,
			"-chardev socket,id=charmonitor,fd=35,server=on,wait=off", "-msg timestamp=on",
		}},
		{"argument a line", perLine, CommandLine{
			Machine: "q35", Signature: CPUSignature{-1, -1, -1}, VCPUs: 4, MemoryMiB: 4096, Firmware: "OVMF.inteltdx.fd",
			Kernel: "image.efi", Append: ptr("console=hvc0  quiet "),
		}, "tdx-guest", []string{"-accel kvm", "-nodefaults"}},
		{"of a process", "/usr/bin/kvm\x00-smp\x001,maxcpus=8\x00-append\x00-v $HOME 'x'\x00-drive\x00if=pflash,file=a,,b,format=raw\x00-drive\x00if=pflash,unit=1,file=c\x00-bios\x00d\x00disk.qcow2\x00-append\x00\x00",
			CommandLine{
				Signature: CPUSignature{-1, -1, -1}, VCPUs: 1, MemoryMiB: 128, Firmware: "a,b", Vars: "c", Append: ptr(""),
			}, "", []string{"disk.qcow2", "-bios d"}},
		{"the last one counts", "qemu-system-x86_64 -kernel a -kernel b -bios c -bios d -m 1G -m 2G -cpu x,family=6 -cpu y -machine pc -machine accel=kvm -smp 3 -smp cpus=5",
			CommandLine{Machine: "pc", CPU: "y", Signature: CPUSignature{-1, -1, -1}, VCPUs: 5, MemoryMiB: 2048, Firmware: "d", Kernel: "b"}, "", nil},
		{"older names", "qemu-system-x86_64 -machine q35,memory-encryption=s,kernel=k,initrd=i,append=x -object sev-guest,id=s,policy=5 -pflash f -pflash v",
			CommandLine{Machine: "q35", Signature: CPUSignature{-1, -1, -1}, VCPUs: 1, MemoryMiB: 128, Firmware: "f", Vars: "v", Kernel: "k", Initrd: "i", Append: ptr("x")},
			"sev-guest", nil},
		{"igvm", "kvm -machine q35,igvm-cfg=i -object igvm-cfg,id=i,file=a.igvm",
			CommandLine{Machine: "q35", Signature: CPUSignature{-1, -1, -1}, VCPUs: 1, MemoryMiB: 128, IGVM: "a.igvm"}, "",
			[]string{"-object igvm-cfg,id=i,file=a.igvm"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseCommandLine([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			guest := ""
			if got.Guest != nil {
				guest = got.Guest.Type
			}
			var rest []string
			for _, o := range got.Rest {
				rest = append(rest, o.String())
			}
			if guest != test.guest || !slices.Equal(rest, test.rest) {
				t.Errorf("guest %q, want %q; rest\n%q, want\n%q", guest, test.guest, rest, test.rest)
			}
			got.Guest, got.Rest = nil, nil
			if !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got  %+v\nwant %+v", *got, test.want)
			}
		})
	}
}

func ptr(s string) *string { return &s }

func TestGuestObject(t *testing.T) {
	text := `kvm -machine confidential-guest-support=a -object sev-snp-guest,id=a,policy=0x30000,n=9x,kernel-hashes,no-vcek,on=maybe,host-data=aGk=,bad=%`
	l, err := ParseCommandLine([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	g := l.Guest
	if v, ok, err := g.Uint("policy"); v != 0x30000 || !ok || err != nil {
		t.Errorf("policy: %#x, %v, %v", v, ok, err)
	}
	if _, ok, err := g.Uint("none"); ok || err != nil {
		t.Errorf("no number: %v, %v", ok, err)
	}
	if _, _, err := g.Uint("n"); err == nil {
		t.Error("n=9x is a number")
	}
	for name, want := range map[string]bool{"kernel-hashes": true, "-vcek": false, "none": false} {
		if v, err := g.Bool(name); v != want || err != nil {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if _, err := g.Bool("on"); err == nil {
		t.Error("on=maybe is a switch")
	}
	if b, err := g.Bytes("host-data"); string(b) != "hi" || err != nil {
		t.Errorf("host-data: %q, %v", b, err)
	}
	if _, err := g.Bytes("bad"); err == nil {
		t.Error("bad=% is base64")
	}
	if v, ok := g.Text("policy"); v != "0x30000" || !ok {
		t.Errorf("text: %q, %v", v, ok)
	}
	got := g.Unknown("policy", "kernel-hashes", "host-data", "n", "on", "bad")
	if !slices.Equal(got, []string{"-vcek"}) {
		t.Errorf("unknown: %q", got)
	}
}

func TestSizes(t *testing.T) {
	for size, want := range map[string]int{"512": 512, "1.5G": 1536, "2g": 2048, "1048576k": 1024, "1T": 1 << 20, "1073741824B": 1024} {
		if got, err := memoryMiB(properties{"size": size}); got != want || err != nil {
			t.Errorf("-m %s: got %d, %v, want %d", size, got, err, want)
		}
	}
	for _, size := range []string{"", "0", "-1", "x", "0x10M", "1e400", "NaN", "Inf", "1b", "9E", "1_0"} {
		if got, err := memoryMiB(properties{"size": size}); err == nil {
			t.Errorf("-m %q: got %d", size, got)
		}
	}
	for smp, want := range map[string]int{"": 1, "8": 8, "sockets=2,cores=3,threads=2": 12, "maxcpus=6": 6, "2,maxcpus=6": 2, "cpus=0,cores=4": 4} {
		p, err := parseProperties(smp, "cpus")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := vcpus(p); got != want || err != nil {
			t.Errorf("-smp %s: got %d, %v, want %d", smp, got, err, want)
		}
	}
}

func TestCommandLineRefused(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "no QEMU command"},
		{"ls -l\n# qemu-system-x86_64 -S\n", "no QEMU command"},
		{"kvm -S\nkvm -s", "lines 1 and 2"},
		{"kvm -kernel 'a", "line 1: the quote ' is never closed"},
		{"kvm \\\n-kernel \"a\nb", "line 2: the quote \" is never closed"},
		{"kvm -kernel $KERNEL", "line 1: '$' is not expanded"},
		{`kvm -kernel "a$b"`, "'$' is not expanded"},
		{"kvm -kernel `ls`", "'`' is not expanded"},
		{"kvm -kernel ~/a", "'~' is not expanded"},
		{"kvm -kernel (a)", "'(' is not expanded"},
		{"-kernel 'a' b\n-S", "line 1: more than one word"},
		{"kvm -readconfig f", "-readconfig: the file is not read"},
		{"kvm -smp 5000", "-smp: cpus=\"5000\": want a number up to 4096"},
		{"kvm -smp cores=100,threads=100", "more than 4096 vCPUs"},
		{"kvm -smp many", "want a number"},
		{"kvm -m much", `-m: "much": want a size`},
		{"kvm -cpu x,family=old", `line 1: -cpu: family="old": want a number`},
		{"kvm -pflash a -pflash b -pflash c", "unit 2: a PC has flash units 0 and 1"},
		{"kvm -drive if=pflash,unit=x", `unit "x": want a number`},
		{"kvm -drive if=pflash,unit=-1", "unit -1"},
		{"kvm -machine pflash0=n", `no -blockdev has the node-name "n"`},
		{"kvm -machine pflash0=n -blockdev driver=raw,node-name=n,file=n", `no file within 4 nodes`},
		{"kvm -machine confidential-guest-support=n", `no -object has the id "n"`},
		{"kvm -machine igvm-cfg=n", `no -object has the id "n"`},
		{"kvm -object tdx-guest", "no id"},
		{"kvm -object tdx-guest,id=a -object tdx-guest,id=a", `id "a" is there twice`},
		{`kvm -object '{"id":"a"'`, "JSON: offset 9: unexpected EOF"},
		{`kvm -object '{"id":"a"} x'`, "JSON"},
		{`kvm -object '{"id":"a","id":"b"}'`, `"id" is there twice`},
		{`kvm -object '{"id":"a",` + strings.Repeat(`"a":{`, 9) + `'`, "nested deeper than 8"},
		{"kvm -machine " + numbered("a", 65), "more than 64 properties"},
		{`kvm -object '{` + numberedJSON(65) + `'`, "more than 64 properties"},
		{"kvm -S" + strings.Repeat(" a", 4096), "more than 4096 arguments"},
		{"kvm\x00-S" + strings.Repeat("\x00a", 4096), "more than 4096 arguments"},
		{"-S\n-s\n" + strings.Repeat("a\n", 4096), "more than 4096 arguments"},
		{"kvm -S" + numberedOptions(300), "more than 256"},
		{"kvm -S " + strings.Repeat("a", maxCommandLine), "want at most 65536"},
	} {
		_, err := ParseCommandLine([]byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.60q: got %v, want %q", test.text, err, test.want)
		}
	}
}

func numbered(s string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s%d,", s, i)
	}
	return b.String()
}

func numberedJSON(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"a%d":1,`, i)
	}
	return b.String()
}

func numberedOptions(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " -object a,id=%d", i)
	}
	return b.String()
}

// TestCommandLineMemory: the largest texts of the most expensive kinds stay
// within four times their size and a MiB.
func TestCommandLineMemory(t *testing.T) {
	long := func(head, s string) []byte {
		return []byte((head + strings.Repeat(s, maxCommandLine))[:maxCommandLine])
	}
	for name, text := range map[string][]byte{
		"words":      long("kvm -S", " a"),
		"arguments":  long("kvm\x00-S", "\x00a"),
		"lines":      long("-S\n-s\n", "a\n"),
		"commands":   long("", "a;"),
		"properties": long("kvm -machine ", "a,"),
		"options":    long("kvm -S", " -machine a,b,c,d,e,f,g,h"),
		"objects":    []byte("kvm -S" + numberedOptions(256)),
		"json":       long(`kvm -object '{"id":[`, "1,"),
		"deep json":  long(`kvm -object '{"id":`, "["),
		"quotes":     long("kvm -S", " ''"),
		"libvirt":    []byte(libvirt),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = ParseCommandLine(text)
		runtime.ReadMemStats(&after)
		if got, want := after.TotalAlloc-before.TotalAlloc, uint64(4*len(text)+1<<20); got > want {
			t.Errorf("%s: %d bytes for %d: want at most %d", name, got, len(text), want)
		}
	}
}

func FuzzParseCommandLine(f *testing.F) {
	for _, s := range []string{typed, libvirt, perLine, "kvm\x00-smp\x002\x00", "kvm -m 1.5G -drive if=pflash,file=a,,b", `kvm -append "a\"b" 'c'`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseCommandLine(text)
		if err != nil {
			return
		}
		if l.VCPUs < 1 || l.VCPUs > maxVCPUs || l.MemoryMiB < 1 {
			t.Errorf("%d vCPUs, %d MiB", l.VCPUs, l.MemoryMiB)
		}
		words, _ := commandWords(string(text))
		if len(words) == 0 {
			return
		}
		// Any words survive a shell's quotes, unless they hold a NUL.
		quoted := "kvm -S"
		for _, w := range words {
			quoted += " '" + strings.ReplaceAll(w.text, "'", `'\''`) + "'"
		}
		again, err := commandWords(quoted)
		if strings.Contains(quoted, "\x00") {
			return
		}
		if argumentPerLine(quoted) || strings.Contains(quoted, "\r\n") {
			return
		}
		if err != nil || len(again) != len(words)+1 {
			t.Fatalf("%q: %d words, %v, want %d", quoted, len(again), err, len(words)+1)
		}
		for i, w := range words {
			if again[i+1].text != w.text {
				t.Errorf("word %d: got %q, want %q", i, again[i+1].text, w.text)
			}
		}
	})
}
