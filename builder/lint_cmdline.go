package builder

import (
	"fmt"
	"slices"
	"strings"
)

// argument returns the value of a kernel argument, the last one if it is given
// more than once. The kernel takes - and _ in names as the same: lib/cmdline,
// parameqn.
func argument(cmdline, name string) (value string, ok bool) {
	spell := strings.NewReplacer("-", "_")
	for word := range strings.FieldsSeq(cmdline) {
		k, v, _ := strings.Cut(word, "=")
		if spell.Replace(k) == spell.Replace(name) {
			value, ok = v, true
		}
	}
	return value, ok
}

// quiet consoles reach no device that a host could read: tty0 has none in a
// guest without graphics drivers, ttynull nowhere.
var quiet = []string{"tty0", "ttynull", "null", ""}

// hostConsole looks at every console=, of which there may be several, and at the
// early ones. That of a cloud is for cloudConsole.
func hostConsole(i *lintImage) (found []lintFound, _ error) {
	for word := range strings.FieldsSeq(i.commandLine()) {
		name, value, _ := strings.Cut(word, "=")
		device, _, _ := strings.Cut(value, ",")
		switch name {
		case "console":
			if slices.Contains(quiet, device) || i.cloudSerial(device) {
				continue
			}
		case "earlyprintk", "earlycon", "netconsole":
		default:
			continue
		}
		found = append(found, lintFound{
			"the host reads what kernel and agent print, and may type",
			"kernel argument " + word,
			"remove it; console=tty0 keeps systemd-stub from adding one of its own",
		})
	}
	return found, nil
}

// outsideCode repeats what profiles refuse, for a manifest that was made
// otherwise.
func outsideCode(i *lintImage) (found []lintFound, _ error) {
	for _, row := range []struct{ name, what string }{
		{"initrd", "the kernel adds a file of the ESP, which the host can write, to the initrd"},
		{"init", "PID 1 is another program than the agent"},
		{"rdinit", "PID 1 is another program than the agent"},
		{"bootconfig", "the kernel takes arguments from what is appended to the initrd"},
	} {
		if v, ok := argument(i.commandLine(), row.name); ok {
			found = append(found, lintFound{row.what, "kernel argument " + join(row.name, v), "remove it"})
		}
	}
	return found, nil
}

// weakened looks for arguments that undo what the kernel does by default.
// Linux, Documentation/admin-guide/kernel-parameters.txt.
func weakened(i *lintImage) (found []lintFound, _ error) {
	for _, row := range []struct{ name, value, what string }{
		{"mitigations", "off", "no mitigation of processor vulnerabilities, which other guests of the host can use"},
		{"nokaslr", "", "the kernel lies where an attacker expects it"},
		{"nopti", "", "user space shares the kernel's page tables"},
		{"nosmep", "", "the kernel may execute user memory"},
		{"nosmap", "", "the kernel may read user memory by mistake"},
		{"iomem", "relaxed", "root may read and write the memory of devices that drivers use"},
		{"module.sig_enforce", "0", "modules need no signature"},
	} {
		if v, ok := argument(i.commandLine(), row.name); ok && v == row.value {
			found = append(found, lintFound{row.what, "kernel argument " + join(row.name, v), "remove it"})
		}
	}
	return found, nil
}

func join(name, value string) string {
	if value == "" {
		return name
	}
	return name + "=" + value
}

// hardening compares with the stock profiles, which give the reasons.
func hardening(i *lintImage) (found []lintFound, _ error) {
	for _, row := range []struct {
		name string
		good func(string) bool
		want string
		what string
	}{
		{"lockdown", is("integrity", "confidentiality"), "lockdown=integrity", "root can write kernel memory, load unsigned modules and start another kernel"},
		{"oops", is("panic"), "oops=panic", "a kernel that went wrong goes on in a state that nobody measured"},
		{"panic", func(v string) bool { return v != "" && v != "0" }, "panic=-1", "a kernel that panicked waits where its host can look at it"},
		{"random.trust_bootloader", is("off", "0", "n"), "random.trust_bootloader=off", "the seed that the host passes counts as entropy"},
		{"debugfs", is("off"), "debugfs=off", "debugfs, a large interface for developers, is open to root"},
	} {
		v, ok := argument(i.commandLine(), row.name)
		if ok && row.good(v) {
			continue
		}
		got := "kernel argument " + row.name + " is missing"
		if ok {
			got = fmt.Sprintf("kernel argument %s", join(row.name, v))
		}
		found = append(found, lintFound{row.what, got, "add " + row.want})
	}
	return found, nil
}

func is(values ...string) func(string) bool {
	return func(v string) bool { return slices.Contains(values, v) }
}
