// Package synthetic makes a folder of .deb files that plinth builds a whole image
// from in a moment: a kernel, its modules, a stub and firmware with the right
// outsides and nothing in them. No machine could boot the image.
package synthetic

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/pe/petest"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// Release is what uname -r of the kernel would say.
const Release = "6.12.99-synthetic"

// Profile is the text of a profile that builds from a folder of packages beside
// it, called debs.
const Profile = `schema   = 1
platform = "vtpm"
seed     = "synthetic"
epoch    = 1767225600
cmdline  = ["panic=-1"]

[sources.local]
debs = "debs"

[kernel]
package = "linux-image-synthetic"
modules = ["leaf"]

[stub]
package = "systemd-boot-efi"

[firmware]
package = "ovmf"
code    = "usr/share/OVMF/OVMF_CODE_4M.fd"
vars    = "usr/share/OVMF/OVMF_VARS_4M.fd"

[root]
kind     = "initrd"
packages = ["motd"]
`

// SNPProfile is Profile for an SEV-SNP guest, and TDXProfile for a trust domain.
var (
	SNPProfile = guestProfile("snp", "ovmf-amdsev", "usr/share/ovmf/OVMF.amdsev.fd") + "path = \"kernel\"\n[snp]\nvcpu_types = [\"EPYC-v4\", \"EPYC-Milan\"]\n"
	TDXProfile = guestProfile("tdx", "ovmf-inteltdx", "usr/share/ovmf/OVMF.inteltdx.ms.fd")
)

// guestProfile is Profile with the firmware of another platform, its own being
// the one for other machines. It ends in the table of the machine.
func guestProfile(platform, pkg, member string) string {
	return strings.NewReplacer(
		`platform = "vtpm"`, fmt.Sprintf("platform = %q", platform),
		"[firmware]\n", fmt.Sprintf("[firmware]\npackage = %q\ncode = %q\n\n[firmware.generic]\n", pkg, member),
	).Replace(Profile) + "\n[agent]\nphases = []\n\n[machine]\nvcpus = [1, 2]\n"
}

// Write fills the folder dir with packages.
func Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, b := range Packages() {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Packages returns .deb files by name.
func Packages() map[string][]byte {
	modules := "usr/lib/modules/" + Release + "/"
	all := map[string][]byte{}
	add := func(name, version, fields string, files map[string][]byte) {
		all[name+"_"+version+"_amd64.deb"] = Deb(name, version, fields, files)
	}
	add("linux-image-synthetic", "6.12.99", "Source: linux\nDepends: linux-image-"+Release+" (= 6.12.99)", nil)
	add("linux-image-"+Release, "6.12.99", "Source: linux", map[string][]byte{
		"boot/config-" + Release:            []byte("CONFIG_BLK_DEV_DM=m\nCONFIG_DM_VERITY=m\nCONFIG_EROFS_FS=m\nCONFIG_CRYPTO_SHA256=y\n"),
		"boot/vmlinuz-" + Release:           Kernel(Release),
		modules + "modules.builtin":         []byte("kernel/built_in.ko\nkernel/sha256_generic.ko\nkernel/sha512_generic.ko\nkernel/nvme.ko\nkernel/virtio_pci.ko\n"),
		modules + "modules.builtin.modinfo": []byte("sha256_generic.alias=crypto-sha256\x00sha512_generic.alias=crypto-sha512\x00"),
		modules + "kernel/dm-verity.ko":     Module("depends="),
		modules + "kernel/erofs.ko":         Module("depends="),
		modules + "kernel/overlay.ko":       Module("depends="),
		modules + "kernel/leaf.ko":          Module("depends=root,built-in"),
		modules + "kernel/root.ko":          Module("depends="),
		modules + "kernel/unwanted.ko":      Module("depends="),
		modules + "kernel/hv_vmbus.ko":      Module("depends="),
		modules + "kernel/hv_storvsc.ko":    Module("depends=hv_vmbus"),
		modules + "kernel/hv_netvsc.ko":     Module("depends=hv_vmbus"),
		modules + "kernel/sd_mod.ko":        Module("depends="),
		modules + "kernel/ena.ko":           Module("depends="),
		modules + "kernel/virtio_blk.ko":    Module("depends="),
		"usr/share/doc/linux/copyright":     []byte("none\n"),
	})
	add("systemd-boot-efi", "257.9-1", "", map[string][]byte{
		"usr/lib/systemd/boot/efi/linuxx64.efi.stub": petest.Stub("257.9-1").Bytes(),
	})
	add("ovmf", "2025.02-8", "", map[string][]byte{
		"usr/share/OVMF/OVMF_CODE_4M.fd": ovmftest.Code(ovmftest.Volumes("2025.02-8")),
		"usr/share/OVMF/OVMF_VARS_4M.fd": ovmftest.BlankVars(0x84000),
	})
	add("ovmf-amdsev", "2026.08-1", "Source: edk2", map[string][]byte{"usr/share/ovmf/OVMF.amdsev.fd": ovmftest.AmdSev("2026.08-1")})
	add("ovmf-inteltdx", "2026.08-1", "Source: edk2", map[string][]byte{"usr/share/ovmf/OVMF.inteltdx.ms.fd": ovmftest.IntelTDX("2026.08-1")})
	add("motd", "1", "Depends: motd-text", map[string][]byte{"etc/issue": []byte("synthetic\n")})
	add("motd-text", "1", "", map[string][]byte{"etc/motd": []byte("hello\n")})
	return all
}

// Kernel is a bzImage: an EFI application whose headers leave room for the setup
// header. Linux, Documentation/arch/x86/boot.rst.
func Kernel(release string) []byte {
	const textAt = 0x300
	b := petest.Kernel().Bytes()
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(b[0x20e:], textAt-0x200)
	copy(b[textAt:], release+" (builder@host) #1 SMP\x00")
	return b
}

// Module is a kernel module without code: an ELF file with a .modinfo section of
// the given fields. System V ABI, ELF-64.
func Module(fields ...string) []byte {
	const header, names = 64, "\x00.modinfo\x00.shstrtab\x00"
	le := binary.LittleEndian
	modinfo := strings.Join(fields, "\x00") + "\x00"
	b := make([]byte, header)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)  // relocatable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(header+len(modinfo)+len(names)))
	le.PutUint16(b[52:], header)
	le.PutUint16(b[58:], 64) // bytes a section header
	le.PutUint16(b[60:], 3)  // section headers
	le.PutUint16(b[62:], 2)  // the one of the names
	b = append(append(b, modinfo...), names...)
	section := func(name, kind uint32, offset, size int) {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], kind)
		le.PutUint64(h[24:], uint64(offset))
		le.PutUint64(h[32:], uint64(size))
		b = append(b, h...)
	}
	section(0, 0, 0, 0)
	section(1, 1, header, len(modinfo))
	section(10, 3, header+len(modinfo), len(names))
	return b
}

// Deb is a package, deb(5). fields are further lines of its control file.
func Deb(name, version, fields string, files map[string][]byte) []byte {
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: none\nDescription: synthetic\n", name, version)
	if fields != "" {
		control += fields + "\n"
	}
	b := []byte("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar.gz", tarball(map[string][]byte{"control": []byte(control)})},
		{"data.tar.gz", tarball(files)},
	} {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		b = append(b, m.data...)
		if len(m.data)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

// tarball packs files and the directories above them. Writing into memory does
// not fail.
func tarball(files map[string][]byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755})
	seen := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for _, dir := range above(name) {
			if !seen[dir] {
				seen[dir] = true
				w.WriteHeader(&tar.Header{Name: "./" + dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
			}
		}
		w.WriteHeader(&tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))})
		w.Write(files[name])
	}
	w.Close()
	z.Close()
	return out.Bytes()
}

// above lists the directories that hold path, the outermost first.
func above(path string) (dirs []string) {
	for i, c := range path {
		if c == '/' {
			dirs = append(dirs, path[:i])
		}
	}
	return dirs
}
