package builder

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// A cloud is a place where an image runs, and what the image must have to run
// there. The agent loads what it is told to and nothing else: no udev finds the
// driver of a disk, and once the guest is up no module can be loaded.
type cloud struct {
	name    string   // for people
	form    string   // of the disk: see Forms
	disk    []string // modules, without which the guest never finds its root
	network []string // modules, without which it reaches nobody
	more    []string // modules that newer kinds of machines use instead

	firmware bool   // the cloud brings firmware of its own
	serial   string // the device of the serial console that it shows; "" for a place that need not have one
}

// clouds are all of them. A disk behind a SCSI host wants sd_mod, too, which
// nothing that these modules say of themselves asks for.
//
// Azure: Microsoft, "Prepare Linux for imaging in Azure": Hyper-V's drivers in the
// initrd; machines of the sixth generation and later have NVMe disks and MANA
// behind Hyper-V's PCI. Google: "Requirements to build custom images": virtio-scsi
// or NVMe, virtio-net or gVNIC, of which confidential machine types have the
// latter. AWS: "Requirements for Nitro instances": NVMe and ENA.
var clouds = []cloud{
	{name: "QEMU", form: "qcow2", disk: []string{"virtio_pci", "virtio_blk"}},
	{
		name: "Azure", form: "vhd", firmware: true, serial: "ttyS0",
		disk: []string{"hv_vmbus", "hv_storvsc", "sd_mod"}, network: []string{"hv_netvsc"}, more: []string{"pci_hyperv", "nvme", "mana"},
	},
	{
		name: "Google Compute Engine", form: "gce", firmware: true, serial: "ttyS0",
		disk: []string{"virtio_pci", "virtio_scsi", "sd_mod", "nvme"}, network: []string{"virtio_net", "gve"},
	},
	{
		name: "AWS", form: "vmdk", firmware: true, serial: "ttyS0",
		disk: []string{"nvme"}, network: []string{"ena"},
	},
	{
		name: "VMware", form: "vmdk", firmware: true, serial: "ttyS0",
		disk: []string{"vmw_pvscsi", "sd_mod"}, network: []string{"vmxnet3"}, more: []string{"nvme"},
	},
}

// cloudsOf are the places that take a form.
func cloudsOf(form string) (out []cloud) {
	for _, c := range clouds {
		if c.form == form {
			out = append(out, c)
		}
	}
	return out
}

// needed are the modules that a guest there cannot do without.
func (c *cloud) needed() []string { return slices.Concat(c.disk, c.network) }

// lacks are those of needed that have does not hold.
func (c *cloud) lacks(have map[string]bool) (out []string) {
	for _, m := range c.needed() {
		if !have[m] {
			out = append(out, m)
		}
	}
	return out
}

// A driverGap is what an image lacks for a form that it is written in: as many
// lists of modules as there are places that take the form.
type driverGap struct {
	form   *Form
	places []cloud
	lacks  [][]string
}

// gapFor compares what the guest has with what the places that take a form want.
// It is nil when one of them has what it wants.
func gapFor(f *Form, have map[string]bool) *driverGap {
	g := &driverGap{form: f}
	for _, c := range cloudsOf(f.Name) {
		lacks := c.lacks(have)
		if len(lacks) == 0 {
			return nil
		}
		g.places, g.lacks = append(g.places, c), append(g.lacks, lacks)
	}
	return g
}

// what names the drivers that are missing, by place.
func (g *driverGap) what() string {
	var parts []string
	for i, c := range g.places {
		parts = append(parts, fmt.Sprintf("%s in %s", strings.Join(g.lacks[i], ", "), c.name))
	}
	return fmt.Sprintf("drivers that a guest needs for its disk or network are neither in the initrd nor built into the kernel: %s", strings.Join(parts, "; "))
}

// do is the line to add, for each place.
func (g *driverGap) do() string {
	var parts []string
	for i, c := range g.places {
		line := fmt.Sprintf("modules = { append = [%s] }", quoted(g.lacks[i]))
		if len(g.places) > 1 {
			line += " for " + c.name
		}
		parts = append(parts, line)
	}
	return "under [kernel] write " + strings.Join(parts, ", or ")
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(out, ", ")
}

// cloudModules are all modules that a row of clouds names, sorted.
func cloudModules() []string {
	var out []string
	for _, c := range clouds {
		out = append(append(out, c.needed()...), c.more...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// builtInOutput is where the initrd step leaves which of cloudModules the kernel
// has built in.
const builtInOutput = "built_in.json"

// builtIn lists those of cloudModules that are part of the kernel itself, by their
// names.
func builtIn(m *initrd.Modules) []string {
	out := []string{}
	for _, name := range cloudModules() {
		if m.BuiltIn(name) {
			out = append(out, name)
		}
	}
	return out
}

// readBuiltIn returns what the initrd step says of them.
func readBuiltIn(st *cas.Store, results map[string]Outputs) ([]string, error) {
	b, err := st.ReadFile(results["initrd"][builtInOutput].Digest)
	if err != nil {
		return nil, err
	}
	var names []string
	return names, json.Unmarshal(b, &names)
}

// cloudsFor are the places with firmware of their own that an image is made for.
func cloudsFor(p *profiles.Profile) (out []cloud) {
	for _, form := range p.Outputs.Forms() {
		for _, c := range cloudsOf(form) {
			if c.firmware {
				out = append(out, c)
			}
		}
	}
	return out
}

// foreign says which registers are not the image's to decide where the firmware is
// the cloud's. What it leaves out does not depend on the firmware: in those
// registers systemd-stub and the kernel measure the image.
var foreign = map[string]struct{ differs, holds string }{
	profiles.PlatformVTPM: {"PCR 0 to 7 differ, and PCR 10, in which IMA sums them up", "PCR 8, 9 and 11 to 15"},
	profiles.PlatformTDX:  {"MRTD, RTMR 0 and RTMR 1 differ", "RTMR 2"},
	profiles.PlatformSNP:  {"the launch digest differs", ""},
}

// cloudNotes say in measurements.json for what its values do not hold.
func cloudNotes(p *profiles.Profile) (out []string) {
	clouds := cloudsFor(p)
	if len(clouds) == 0 {
		return nil
	}
	var names []string
	for _, c := range clouds {
		names = append(names, c.name)
	}
	f := foreign[p.Platform]
	note := fmt.Sprintf("the values are those under QEMU and the image's firmware; in %s, with firmware of its own, %s", strings.Join(names, " or "), f.differs)
	if f.holds != "" {
		note += "; what holds is " + f.holds
	}
	return []string{note}
}
