package qemu

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// A CommandLine is what a QEMU command line, written by somebody else, says of
// what a launch measures. Paths are as they stand there.
type CommandLine struct {
	Machine   string // machine type; "": not said
	CPU       string // model without properties; "": not said
	Signature CPUSignature
	VCPUs     int     // at launch
	MemoryMiB int     // QEMU's default where nothing is said
	Firmware  string  // -bios, or what stands for pflash unit 0
	Vars      string  // pflash unit 1
	IGVM      string  // file of an igvm-cfg object; it takes the place of all the rest
	Kernel    string  // -kernel
	Initrd    string  // -initrd
	Append    *string // -append; nil: not given, which is not the same as empty
	Guest     *GuestObject
	Rest      []Option // what is not in the fields above, in its order
}

// CPUSignature are the parts of CPUID Fn1 EAX that properties of -cpu change;
// -1 is what none changes.
type CPUSignature struct{ Family, Model, Stepping int }

// A GuestObject is the object that makes the guest confidential.
type GuestObject struct {
	Type       string // "sev-guest", "sev-snp-guest", "tdx-guest"
	properties properties
}

// An Option is one of QEMU's, without the dash; Value is "" for one that takes
// none. An argument that belongs to no option has no Name.
type Option struct {
	Name, Value string
	Line        int // of the text, from 1
}

func (o Option) String() string {
	if o.Name == "" {
		return o.Value
	}
	return strings.TrimSpace("-" + o.Name + " " + o.Value)
}

// maxCommandLine is in bytes; a command line of libvirt has some ten thousand.
const maxCommandLine = 64 << 10

// Memory and vCPUs of a machine about which nothing is said, in QEMU.
const (
	defaultMemoryMiB = 128
	defaultVCPUs     = 1
)

// ParseCommandLine reads a QEMU command line in one of these forms:
//
//   - as typed into a shell: quotes, backslashes, continued lines, comments. A
//     script or a log of libvirt may hold other commands, but one of QEMU.
//     Nothing is expanded: "$", a backquote and "~" outside of quotes are errors.
//   - one argument a line, or an option and its value on one line; a value is
//     taken as it stands, unless it is in quotes.
//   - as in /proc/PID/cmdline, each argument followed by a NUL.
//
// What an option says is judged by QEMU's rules: the last of several counts,
// "key=value" lists know ",,", -object and -blockdev take JSON too. Paths are not
// looked at.
func ParseCommandLine(text []byte) (*CommandLine, error) {
	if len(text) > maxCommandLine {
		return nil, fmt.Errorf("qemu: command line: %d bytes: want at most %d", len(text), maxCommandLine)
	}
	words, err := commandWords(string(text))
	if err != nil {
		return nil, fmt.Errorf("qemu: command line: %w", err)
	}
	p := &commandParser{nodes: map[string]properties{}, objects: map[string]properties{}, machine: properties{}, smp: properties{}, memory: properties{}}
	for _, o := range options(words) {
		if err := p.take(o); err != nil {
			return nil, fmt.Errorf("qemu: command line: line %d: -%s: %w", o.Line, o.Name, err)
		}
	}
	if err := p.finish(); err != nil {
		return nil, fmt.Errorf("qemu: command line: %w", err)
	}
	return &p.line, nil
}

// without are the options of qemu-system-x86_64 that take no argument.
var without = map[string]bool{}

func init() {
	for _, name := range strings.Fields(`h help version nodefaults no-user-config nouserconfig nographic no-acpi no-hpet
		no-reboot no-shutdown S s enable-kvm no-fd-bootchk full-screen usb daemonize snapshot singlestep one-insn-per-tb
		win2k-hack alt-grab ctrl-grab no-quit no-frame sdl curses portrait preconfig mem-prealloc audio-help xen-attach
		xen-domid-restrict only-migratable async-teardown enable-sync-profile enable-fips tdf-hack semihosting`) {
		without[name] = true
	}
}

// options pairs names and values. Of an option that is not in without, the next
// word is the value, whatever it looks like: QEMU reads it so.
func options(words []word) (out []Option) {
	for i := 0; i < len(words); i++ {
		w := words[i]
		name, dash := strings.CutPrefix(w.text, "-")
		if !dash || name == "" {
			out = append(out, Option{Value: w.text, Line: w.line})
			continue
		}
		o := Option{Name: strings.TrimPrefix(name, "-"), Line: w.line}
		if !without[o.Name] && i+1 < len(words) {
			i++
			o.Value = words[i].text
		}
		out = append(out, o)
	}
	return out
}

// A commandParser holds what options of the same name add up to.
type commandParser struct {
	line                 CommandLine
	bios                 string
	pflash               []string              // by unit
	machine, smp, memory properties            // -machine, -smp, -m
	nodes                map[string]properties // -blockdev, by node name
	objects              map[string]properties // -object, by id
}

func (p *commandParser) take(o Option) error {
	switch o.Name {
	case "machine", "M":
		return p.machine.merge(o.Value, "type")
	case "smp":
		return p.smp.merge(o.Value, "cpus")
	case "m":
		return p.memory.merge(o.Value, "size")
	case "cpu":
		return p.takeCPU(o.Value)
	case "bios":
		p.bios = o.Value
	case "pflash":
		return p.flash(o.Value, "")
	case "kernel":
		p.line.Kernel = o.Value
	case "initrd":
		p.line.Initrd = o.Value
	case "append":
		p.line.Append = &o.Value
	case "object":
		return p.named(o, p.objects, "qom-type", "id")
	case "blockdev":
		return p.named(o, p.nodes, "driver", "node-name")
	case "drive":
		return p.drive(o)
	case "readconfig":
		return errors.New("the file is not read: write its options out")
	default:
		p.line.Rest = append(p.line.Rest, o)
	}
	return nil
}

// maxNamed bounds the objects, and the block nodes, of one machine.
const maxNamed = 256

// named takes an option whose value has a name of its own.
func (p *commandParser) named(o Option, into map[string]properties, implied, key string) error {
	v, err := parseProperties(o.Value, implied)
	if err != nil {
		return err
	}
	name := v[key]
	if len(into) == maxNamed {
		return fmt.Errorf("more than %d", maxNamed)
	}
	if _, twice := into[name]; twice && name != "" {
		return fmt.Errorf("%s %q is there twice", key, name)
	}
	if name == "" && o.Name == "object" {
		return errors.New("no id")
	}
	into[name] = v
	if o.Name == "object" {
		p.line.Rest = append(p.line.Rest, o)
	}
	return nil
}

func (p *commandParser) drive(o Option) error {
	v, err := parseProperties(o.Value, "")
	if err != nil {
		return err
	}
	if v["if"] != "pflash" {
		p.line.Rest = append(p.line.Rest, o)
		return nil
	}
	unit := v["unit"]
	if unit == "" {
		unit = v["index"]
	}
	return p.flash(v["file"], unit)
}

// maxFlash is the number of flash devices that a PC has.
const maxFlash = 2

// flash notes the file of a flash device; without a unit it is the next one.
func (p *commandParser) flash(file, unit string) error {
	n := len(p.pflash)
	if unit != "" {
		var err error
		if n, err = strconv.Atoi(unit); err != nil {
			return fmt.Errorf("unit %q: want a number", unit)
		}
	}
	if n < 0 || n >= maxFlash {
		return fmt.Errorf("unit %d: a PC has flash units 0 and 1", n)
	}
	for len(p.pflash) <= n {
		p.pflash = append(p.pflash, "")
	}
	p.pflash[n] = file
	return nil
}

func (p *commandParser) takeCPU(value string) error {
	model, rest, _ := strings.Cut(value, ",")
	p.line.CPU, p.line.Signature = model, CPUSignature{-1, -1, -1}
	v := properties{}
	for _, item := range strings.Split(rest, ",") {
		key, value, _ := strings.Cut(item, "=")
		v[key] = value // "+feature" too; these are not in the signature
	}
	for key, to := range map[string]*int{
		"family": &p.line.Signature.Family, "model": &p.line.Signature.Model, "stepping": &p.line.Signature.Stepping,
	} {
		if _, ok := v[key]; !ok {
			continue
		}
		n, err := strconv.ParseUint(v[key], 0, 16)
		if err != nil {
			return fmt.Errorf("%s=%q: want a number", key, v[key])
		}
		*to = int(n)
	}
	return nil
}

// finish draws what several options say together.
func (p *commandParser) finish() (err error) {
	l := &p.line
	if l.CPU == "" {
		l.Signature = CPUSignature{-1, -1, -1}
	}
	l.Machine = p.machine["type"]
	if l.VCPUs, err = vcpus(p.smp); err != nil {
		return fmt.Errorf("-smp: %w", err)
	}
	if l.MemoryMiB, err = memoryMiB(p.memory); err != nil {
		return fmt.Errorf("-m: %w", err)
	}
	p.legacyKernel()
	if err := p.findFirmware(); err != nil {
		return err
	}
	return p.findGuest()
}

// legacyKernel takes the three from -machine, of which -kernel, -initrd and
// -append are other spellings.
func (p *commandParser) legacyKernel() {
	l := &p.line
	if v, ok := p.machine["kernel"]; ok && l.Kernel == "" {
		l.Kernel = v
	}
	if v, ok := p.machine["initrd"]; ok && l.Initrd == "" {
		l.Initrd = v
	}
	if v, ok := p.machine["append"]; ok && l.Append == nil {
		l.Append = &v
	}
}

// findFirmware: flash comes before -bios, which QEMU then does not load.
func (p *commandParser) findFirmware() error {
	for unit := range maxFlash {
		node, ok := p.machine[fmt.Sprintf("pflash%d", unit)]
		if !ok {
			continue
		}
		file, err := p.nodeFile(node)
		if err != nil {
			return fmt.Errorf("-machine: pflash%d: %w", unit, err)
		}
		if err := p.flash(file, strconv.Itoa(unit)); err != nil {
			return err
		}
	}
	files := append(p.pflash, "", "")
	p.line.Firmware, p.line.Vars = files[0], files[1]
	if p.line.Firmware == "" {
		p.line.Firmware = p.bios
	} else if p.bios != "" {
		p.line.Rest = append(p.line.Rest, Option{Name: "bios", Value: p.bios})
	}
	return nil
}

// maxLayers is how many block nodes may stand above a file.
const maxLayers = 4

// nodeFile follows a block node down to its file.
func (p *commandParser) nodeFile(name string) (string, error) {
	for range maxLayers {
		node, ok := p.nodes[name]
		if !ok {
			return "", fmt.Errorf("no -blockdev has the node-name %q", name)
		}
		for _, key := range []string{"filename", "file.filename", "file.file.filename"} {
			if file := node[key]; file != "" {
				return file, nil
			}
		}
		name = node["file"]
	}
	return "", fmt.Errorf("node %q: no file within %d nodes", name, maxLayers)
}

func (p *commandParser) findGuest() error {
	if id, ok := p.machine["igvm-cfg"]; ok {
		o, ok := p.objects[id]
		if !ok {
			return fmt.Errorf("-machine: igvm-cfg: no -object has the id %q", id)
		}
		p.line.IGVM = o["file"]
	}
	id, ok := p.machine["confidential-guest-support"]
	if !ok {
		id, ok = p.machine["memory-encryption"] // its name before QEMU 6.0
	}
	if !ok {
		return nil
	}
	o, ok := p.objects[id]
	if !ok {
		return fmt.Errorf("-machine: confidential-guest-support: no -object has the id %q", id)
	}
	p.line.Guest = &GuestObject{Type: o["qom-type"], properties: o}
	p.dropObject(id)
	return nil
}

// dropObject takes the guest's object out of what is left over.
func (p *commandParser) dropObject(id string) {
	kept := p.line.Rest[:0]
	for _, o := range p.line.Rest {
		if v, err := parseProperties(o.Value, "qom-type"); o.Name == "object" && err == nil && v["id"] == id {
			continue
		}
		kept = append(kept, o)
	}
	p.line.Rest = kept
}

// program tells whether a word can be the name of QEMU.
func program(s string) bool {
	base := path.Base(s)
	return strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm" || base == "qemu"
}
