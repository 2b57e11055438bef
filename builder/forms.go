package builder

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/ctxio"
	"github.com/plinth-os/plinth/internal/ident"
	"github.com/plinth-os/plinth/internal/vdisk"
	"github.com/plinth-os/plinth/profiles"
)

// A Form is a container in which a hypervisor or cloud takes the disk. A build
// writes those that outputs.kinds names; any other can be made of the image later,
// with the same bytes.
type Form struct {
	Name string // as outputs.kinds has it: "qcow2"
	File string // how the file is called: "image.qcow2"
	For  string // who takes it

	// multiple is what the disk's size must be a multiple of, in bytes. It is made
	// so when the disk is: the partition table, whose backup is at the end, is
	// measured.
	multiple int64

	write func(io.Writer, vdisk.Disk, formParams) error
}

// formParams are what a container holds besides the disk.
type formParams struct {
	epoch int64
	id    [16]byte
	file  string
}

// Forms are all of them.
var Forms = []Form{
	{"qcow2", "image.qcow2", "QEMU, libvirt, OpenStack", 512, func(w io.Writer, d vdisk.Disk, _ formParams) error { return vdisk.Qcow2(w, d) }},
	{"vhd", "image.vhd", "Azure, Hyper-V", 1 << 20, func(w io.Writer, d vdisk.Disk, p formParams) error { return vdisk.VHD(w, d, p.epoch, p.id) }},
	{"vmdk", "image.vmdk", "VMware, AWS", 512, func(w io.Writer, d vdisk.Disk, p formParams) error { return vdisk.VMDK(w, d, p.file) }},
	{"gce", "image.tar.gz", "Google Compute Engine", 1 << 30, func(w io.Writer, d vdisk.Disk, p formParams) error { return vdisk.GCE(w, d, p.epoch) }},
}

// FindForm returns the form of that name.
func FindForm(name string) (*Form, error) {
	var names []string
	for i := range Forms {
		if Forms[i].Name == name {
			return &Forms[i], nil
		}
		names = append(names, Forms[i].Name)
	}
	return nil, fmt.Errorf("%q: want one of %s", name, strings.Join(names, ", "))
}

// A FormSizeError is returned for a disk that a form cannot hold.
type FormSizeError struct {
	Form           string
	Size, Multiple int64 // bytes
}

func (e *FormSizeError) Error() string {
	return fmt.Sprintf("the disk has %d bytes, %s wants a multiple of %d", e.Size, e.Form, e.Multiple)
}

// Hint says what to do.
func (e *FormSizeError) Hint() string {
	return fmt.Sprintf("name %q in outputs.kinds and build again: the size is part of what is measured (PCR 5)", e.Form)
}

// Is makes it an unsupported combination.
func (e *FormSizeError) Is(target error) bool { return target == profiles.ErrUnsupported }

// Convert writes the disk of an image. The same image gives the same bytes.
func (f *Form) Convert(w io.Writer, m *Manifest, disk *io.SectionReader) error {
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return err
	}
	return f.convert(w, disk, disk.Size(), m.Artefact(DiskName).Digest, p.Seed, m.Epoch)
}

func (f *Form) convert(w io.Writer, disk io.ReaderAt, size int64, digest cas.Digest, seed string, epoch int64) error {
	if size%f.multiple != 0 {
		return &FormSizeError{f.Name, size, f.multiple}
	}
	p := formParams{epoch: epoch, id: ident.UUID(seed, f.Name, digest[:]), file: f.File}
	return f.write(w, vdisk.Disk{ReaderAt: disk, Size: size}, p)
}

// otherForms tells whether the disk is wanted in another form than raw.
func otherForms(s *Spec) bool { return len(s.Profile.Outputs.Forms()) > 0 }

// diskMultiple is what the size of the disk is to be a multiple of, in bytes, so
// that it fits every form that the profile names; 0 where none of them asks for
// more than the disk has anyway.
func (s *Spec) diskMultiple() (n int64) {
	for _, name := range s.Profile.Outputs.Forms() {
		if f, err := FindForm(name); err == nil && f.multiple > diskAlignment {
			n = max(n, f.multiple) // powers of two
		}
	}
	return n
}

// diskAlignment is what every disk's size is a multiple of, in bytes.
const diskAlignment = 1 << 20

// runForms makes the disk in the forms that the profile names.
func runForms(ctx context.Context, w *work) error {
	r, err := w.ref("disk", "image.raw")
	if err != nil {
		return err
	}
	f, size, err := w.open("disk", "image.raw")
	if err != nil {
		return err
	}
	defer f.Close() // read only
	for _, name := range w.Profile.Outputs.Forms() {
		form, err := FindForm(name)
		if err != nil {
			return fmt.Errorf("outputs.kinds: %w", err)
		}
		err = w.write(ctx, form.File, func(cw *cas.Writer) error {
			b := bufio.NewWriterSize(cw, 1<<20)
			if err := form.convert(b, ctxio.ReaderAt(ctx, f), size, r.Digest, w.Profile.Seed, w.Profile.Epoch); err != nil {
				return err
			}
			return b.Flush()
		})
		if err != nil {
			return fmt.Errorf("%s: %w", form.File, err)
		}
	}
	return nil
}
