package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/qemu"
)

// TestClouds: the example for each cloud builds with the kernel that Debian makes
// for clouds, nothing is wrong with it, and it comes up from the very file that the
// cloud is given, on the kind of disk that the cloud has.
func TestClouds(t *testing.T) {
	needs(t, append([]string{"qemu-img"}, bootTools...)...)
	t.Parallel() // a boot keeps one core busy
	for _, c := range []struct {
		example, form, file string
		driver              string // QEMU's for the form, "" for a raw disk in an archive
		device              []string
	}{
		{"azure", "vhd", "image.vhd", "vpc", []string{"-device", "nvme,serial=1,drive=disk"}}, // as newer machines have it
		{"gce", "gce", "image.tar.gz", "", []string{"-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"}},
		{"aws", "vmdk", "image.vmdk", "vmdk", []string{"-device", "nvme,serial=1,drive=disk"}},
	} {
		t.Run(c.example, func(t *testing.T) {
			dir := workdir(t)
			must(t, dir, "init", "mine", "--example", c.example)
			if err := os.Rename(filepath.Join(dir, "vtpm.lock"), filepath.Join(dir, "profiles/mine.lock")); err != nil {
				t.Fatal(err)
			}
			must(t, dir, "build", "mine", "--locked")
			out := filepath.Join(dir, "out/mine")
			must(t, dir, "lint", "out/mine")
			must(t, dir, "export", "out/mine", "--to", c.form, "-o", "again")
			if !bytes.Equal(read(t, filepath.Join(dir, "again")), read(t, filepath.Join(out, c.file))) {
				t.Errorf("export makes another %s than build", c.file)
			}
			disk, driver := filepath.Join(out, c.file), c.driver
			if driver == "" {
				disk, driver = unpacked(t, disk), "raw"
			}
			var info struct {
				Size int64 `json:"virtual-size"`
			}
			decode(t, qemuImg(t, "info", "--output=json", "-f", driver, disk), &info)
			if fi, err := os.Stat(filepath.Join(out, builder.DiskName)); err != nil || fi.Size() != info.Size {
				t.Errorf("%s is a disk of %d bytes: %v, %v", c.file, info.Size, fi, err)
			}
			qemuImg(t, "compare", "-f", driver, "-F", "raw", disk, filepath.Join(out, builder.DiskName))
			if driver == "vmdk" { // QEMU checks no VHD
				qemuImg(t, "check", "-f", driver, disk)
			}
			holdsThere(t, out, bootFrom(t, out, disk, driver, c.device))
		})
	}
}

// unpacked is the disk of a GCE archive: whole GiB of it.
func unpacked(t *testing.T, archive string) string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	h, err := r.Next()
	if err != nil || h.Name != "disk.raw" || h.Size == 0 || h.Size%(1<<30) != 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	writeTo(t, path, func(w *os.File) error {
		piece := make([]byte, 1<<20)
		for at := int64(0); at < h.Size; at += int64(len(piece)) { // with holes
			if _, err := io.ReadFull(r, piece); err != nil {
				return err
			}
			if len(bytes.Trim(piece, "\x00")) == 0 {
				continue
			}
			if _, err := w.WriteAt(piece, at); err != nil {
				return err
			}
		}
		return w.Truncate(h.Size)
	})
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("behind disk.raw: %v", err)
	}
	return path
}

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(testenv.Tool("qemu-img"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// bootFrom boots the image in dir from a disk in some form.
func bootFrom(t *testing.T, dir, disk, driver string, device []string) *evidence.Report {
	t.Helper()
	link := filepath.Join(shared.work, "disk") // a test's own folder has commas in its name
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(link) })
	m := qemu.Machine{
		TPM: true, ReportPort: config.ReportPort,
		Firmware: filepath.Join(dir, builder.FirmwareName), Vars: filepath.Join(dir, builder.VarsName),
		ExtraArgs: append([]string{"-blockdev", "driver=" + driver + ",node-name=disk,read-only=on,file.driver=file,file.filename=" + link}, device...),
	}
	vm, err := qemu.Start(t.Context(), m, qemu.Options{Timeout: 3 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	b, err := vm.Report(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, vm.ConsoleTail())
	}
	r, err := evidence.ParseReport(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// holdsThere wants the registers that a cloud's firmware does not fill as they were
// predicted. This machine is another than the predicted one, as a cloud's is.
func holdsThere(t *testing.T, dir string, r *evidence.Report) {
	t.Helper()
	m, err := measure.ParseMeasurements(read(t, filepath.Join(dir, builder.MeasurementsName)))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Notes) == 0 {
		t.Error("no note about the cloud's firmware")
	}
	compared := 0
	for _, v := range m.Values {
		registers := map[string]int{"pcr8": 8, "pcr9": 9, "pcr11": 11, "pcr12": 12, "pcr13": 13, "pcr14": 14, "pcr15": 15}
		n, ok := registers[v.Register]
		if !ok || v.Bank != "sha256" {
			continue
		}
		got := r.After
		if v.Register == "pcr11" && v.Phase == "" {
			got = r.Before
		}
		compared++
		if x := got["sha256"][n]; x != v.Value {
			t.Errorf("%s %q: %s, predicted %s", v.Register, v.Phase, x, v.Value)
		}
	}
	if compared != 8 {
		t.Errorf("%d values compared, want 8", compared)
	}
	if r.Root != evidence.RootVerity || r.RootTable == "" {
		t.Errorf("root %q, %q", r.Root, r.RootTable)
	}
}

// TestCloudCheck: an image for a cloud is booted and checked like any other. Here
// Hyper-V's bus is missing, and the guest comes up without its drivers.
func TestCloudCheck(t *testing.T) {
	needs(t, bootTools...)
	t.Parallel() // a boot keeps one core busy
	dir := workdir(t)
	must(t, dir, "init", "mine", "--example", "azure")
	if err := os.Rename(filepath.Join(dir, "vtpm.lock"), filepath.Join(dir, "profiles/mine.lock")); err != nil {
		t.Fatal(err)
	}
	r := boots(t, dir, "boot", "mine", "--record", "--check", "--json", "--set", "machine.vcpus=[1]")
	if r.code != 0 {
		t.Fatalf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	allPredicted(t, r.stdout)
}
