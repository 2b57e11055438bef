package export

import (
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/ident"
	"github.com/plinth-os/plinth/internal/vdisk"
	"github.com/plinth-os/plinth/profiles"
)

// A Container is a form in which a hypervisor or cloud takes the disk.
type Container struct {
	Name string // "qcow2"
	File string // how the file is called: "image.qcow2"
	For  string // who takes it
	// Multiple is what the disk's size must be a multiple of, in bytes. It cannot
	// be made so here: the partition table is measured.
	Multiple int64

	write func(io.Writer, vdisk.Disk, params) error
}

// params are what a container holds besides the disk.
type params struct {
	epoch int64
	id    [16]byte
	file  string
}

// Containers are all of them.
var Containers = []Container{
	{"qcow2", "image.qcow2", "QEMU, libvirt, OpenStack", 512, func(w io.Writer, d vdisk.Disk, _ params) error { return vdisk.Qcow2(w, d) }},
	{"vhd", "image.vhd", "Azure, Hyper-V", 1 << 20, func(w io.Writer, d vdisk.Disk, p params) error { return vdisk.VHD(w, d, p.epoch, p.id) }},
	{"vmdk", "image.vmdk", "VMware", 512, func(w io.Writer, d vdisk.Disk, p params) error { return vdisk.VMDK(w, d, p.file) }},
	{"gce", "image.tar.gz", "Google Compute Engine", 1 << 30, func(w io.Writer, d vdisk.Disk, p params) error { return vdisk.GCE(w, d, p.epoch) }},
}

// FindContainer returns the one of that name.
func FindContainer(name string) (*Container, error) {
	var names []string
	for i := range Containers {
		if Containers[i].Name == name {
			return &Containers[i], nil
		}
		names = append(names, Containers[i].Name)
	}
	return nil, fmt.Errorf("%q: want one of %s", name, strings.Join(names, ", "))
}

// Convert writes the disk of an image. The same image gives the same bytes.
func (c *Container) Convert(w io.Writer, m *builder.Manifest, disk *io.SectionReader) error {
	if disk.Size()%c.Multiple != 0 {
		return fmt.Errorf("the disk has %d bytes, %s wants a multiple of %d", disk.Size(), c.Name, c.Multiple)
	}
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return err
	}
	digest := m.Artefact(builder.DiskName).Digest
	return c.write(w, vdisk.Disk{ReaderAt: disk, Size: disk.Size()}, params{
		epoch: m.Epoch, id: ident.UUID(p.Seed, c.Name, digest[:]), file: c.File,
	})
}
