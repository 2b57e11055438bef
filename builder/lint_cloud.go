package builder

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/profiles"
)

// cloudDrivers wants, for every form that the image is written in, what a guest
// needs in a place that takes it.
func cloudDrivers(i *lintImage) (found []lintFound, _ error) {
	forms := i.Outputs.Forms()
	if len(forms) == 0 {
		return nil, nil
	}
	have, err := i.drivers()
	if err != nil {
		return nil, err
	}
	var unsure []string
	for _, name := range forms {
		f, err := FindForm(name)
		if err != nil {
			return nil, err
		}
		g := gapFor(f, have)
		switch {
		case g == nil:
		case i.driversKnown():
			found = append(found, lintFound{f.File + ": " + g.what(), "initrd", g.do()})
		default:
			unsure = append(unsure, g.lacks[0]...)
		}
	}
	if len(unsure) > 0 {
		return found, uncheckedf("kernel.modules does not demand %s; %s", strings.Join(unsure, ", "), i.whyUnknown())
	}
	return found, nil
}

// drivers are the modules that the guest has: loaded by the agent or built in. Of
// a profile alone they are those that it demands, or the build fails.
func (i *lintImage) drivers() (map[string]bool, error) {
	if i.manifest != nil {
		have, err := i.loaded()
		if err != nil {
			return nil, err
		}
		for _, name := range i.manifest.BuiltIn {
			have[name] = true
		}
		return have, nil
	}
	have := map[string]bool{}
	for _, m := range i.Kernel.Modules {
		have[moduleName(strings.Fields(m)[0])] = true // not with a leading ?
	}
	return have, nil
}

// driversKnown tells whether a driver that drivers does not list is not there: of a
// kernel that came without its module directory nobody knows what is built in.
func (i *lintImage) driversKnown() bool {
	return i.manifest != nil && (i.Kernel.File == "" || i.Kernel.ModulesDir != "")
}

func (i *lintImage) whyUnknown() string {
	if i.manifest == nil {
		return "only the image shows whether the kernel has them built in"
	}
	return "kernel.file came without kernel.modules_dir, which tells what is built in"
}

// A DriverError is returned for a form that an image has not the drivers for.
type DriverError struct{ File, What, Do string }

func (e *DriverError) Error() string { return e.File + ": " + e.What }

// Hint says what to do.
func (e *DriverError) Hint() string {
	return e.Do + ", and build again; --force writes the form all the same"
}

// Is makes it an unsupported combination.
func (e *DriverError) Is(target error) bool { return target == profiles.ErrUnsupported }

// CheckDrivers returns a *DriverError when an image, m and files, has not what a
// guest needs in any of the places that take a form. Where that cannot be told it
// returns nil.
func CheckDrivers(m *Manifest, files fs.FS, f *Form) error {
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return err
	}
	i := &lintImage{Profile: p, manifest: m, files: files, read: map[string][]byte{}}
	have, err := i.drivers()
	if err != nil {
		return err
	}
	if g := gapFor(f, have); g != nil && i.driversKnown() {
		return &DriverError{f.File, g.what(), g.do()}
	}
	return nil
}

// cloudSerial tells whether a device is the serial console of a place that the
// image is made for, and nobody can type on it.
func (i *lintImage) cloudSerial(device string) bool {
	return !i.Agent.Shell && slices.ContainsFunc(cloudsFor(i.Profile), func(c cloud) bool { return c.serial == device })
}

// serial returns the argument that names such a console, "" if there is none.
func (i *lintImage) serial() string {
	for word := range strings.FieldsSeq(i.commandLine()) {
		value, ok := strings.CutPrefix(word, "console=")
		device, _, _ := strings.Cut(value, ",")
		if ok && i.cloudSerial(device) {
			return word
		}
	}
	return ""
}

func cloudConsole(i *lintImage) ([]lintFound, error) {
	word := i.serial()
	if word == "" {
		return nil, nil
	}
	return []lintFound{{
		"kernel, agent and services print to the serial console, which the cloud stores and its operator reads",
		"kernel argument " + word,
		"let no service print a secret; without the argument the guest is silent, and nobody sees why one does not start",
	}}, nil
}

func noConsole(i *lintImage) ([]lintFound, error) {
	clouds := cloudsFor(i.Profile)
	if len(clouds) == 0 || i.Agent.Shell || i.serial() != "" {
		return nil, nil
	}
	return []lintFound{{
		"nothing is printed on the serial console: a guest that does not start in " + clouds[0].name + " says nothing",
		"cmdline",
		"add console=" + clouds[0].serial + " to find out why, and take it away again if the operator is to read nothing",
	}}, nil
}

func cloudFirmware(i *lintImage) ([]lintFound, error) {
	notes := cloudNotes(i.Profile)
	if len(notes) == 0 {
		return nil, nil
	}
	f := foreign[i.Platform]
	do := "compare the launch digest with one that is computed from the cloud's firmware (plinth measure snp)"
	if f.holds != "" {
		do = fmt.Sprintf("compare %s with measurements.json; take the others from the cloud, which may publish them, or leave them out", f.holds)
	}
	return []lintFound{{notes[0], MeasurementsName, do}}, nil
}
