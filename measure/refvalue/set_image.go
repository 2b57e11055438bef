package refvalue

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/measure/tdx"
)

// gatherer collects the values of a set.
type gatherer struct {
	set     *Set
	trivial map[string]map[any]string // why a value says nothing, by name and value
}

// image adds what one image gives for the TEE.
func (b *gatherer) image(i Image) error {
	var err error
	switch b.set.TEE {
	case SNP:
		err = b.snp(i)
	case TDX:
		err = b.tdx(i)
	default:
		err = b.phases(i, PCRName(b.set.TEE, phasesPCR))
	}
	if err == nil {
		err = b.pcrs(i)
	}
	return err
}

func (b *gatherer) snp(i Image) error {
	m := i.Measurements
	why := ""
	if m.SNP != nil && m.SNP.KernelHashes == nil {
		why = "it covers the firmware alone: the image is not started with kernel hashes"
	}
	launch := register{name: "snp_launch_measurement", platform: measure.PlatformSNP, register: "launch_digest", bank: "sha384", trivial: why}
	if err := b.sole(i, launch); err != nil {
		return err
	}
	if m.SNP == nil {
		for _, name := range []string{"snp_guest_abi_major", "snp_guest_abi_minor", "snp_single_socket", "snp_smt_allowed"} {
			b.left(name, i.Label, "snp.policy", "the measurements do not say the guest's policy")
		}
		return nil
	}
	p, err := snp.ParsePolicy(m.SNP.Policy)
	if err != nil {
		return err
	}
	major, minor := p.ABI()
	b.fromPolicy(i, "snp_guest_abi_major", int64(major))
	b.fromPolicy(i, "snp_guest_abi_minor", int64(minor))
	b.fromPolicy(i, "snp_single_socket", p&snp.PolicySingleSocket != 0)
	b.fromPolicy(i, "snp_smt_allowed", p&snp.PolicySMT != 0)
	b.fact(i, "snp.policy_debug_allowed", p.Debug())
	b.fact(i, "snp.policy_migrate_ma", p&snp.PolicyMigrate != 0)
	return nil
}

func (b *gatherer) fromPolicy(i Image, name string, value any) {
	b.set.put(name, scalar(b.set.TEE, name), value, From{Image: i.Label, Register: "snp.policy", Value: fmt.Sprint(value)})
}

func (b *gatherer) tdx(i Image) error {
	if err := b.needed(i, register{name: "mr_td", platform: measure.PlatformTDX, register: "mrtd", bank: "sha384"}); err != nil {
		return err
	}
	rtmr1 := register{name: "rtmr_1", platform: measure.PlatformTDX, register: "rtmr1", bank: "sha384"}
	rtmr2 := register{name: "rtmr_2", platform: measure.PlatformTDX, register: "rtmr2", bank: "sha384"}
	if err := b.sole(i, rtmr1, rtmr2); err != nil {
		return err
	}
	b.event(i, "tdvfkernel", rtmr1, kernelEvent,
		"the policy looks for a kernel that QEMU was given by -kernel, and this image starts from a disk")
	b.event(i, "tdvfkernelparams", rtmr2, optionsEvent, "the kernel does not measure its load options")
	return b.tdFacts(i)
}

// Events whose digests the policy reads, as package eventlog describes them.
var (
	kernelEvent  = namedEvent{"EV_EFI_BOOT_SERVICES_APPLICATION", "image from -kernel"} // its device path has File(kernel)
	optionsEvent = namedEvent{"EV_EVENT_TAG", "load options"}                           // LOADED_IMAGE::LoadOptions
)

type namedEvent struct{ typ, name string }

// tdFacts adds what the profile says of the trust domain.
func (b *gatherer) tdFacts(i Image) error {
	facts := i.Measurements.TDX
	if facts == nil {
		facts = &measure.TDXFacts{}
	}
	if facts.XFAM == "" {
		b.left("xfam", i.Label, "tdx.xfam", "the profile does not say it: the host's processor and the VMM decide")
	} else {
		bits, err := measure.ParseBits(facts.XFAM)
		if err != nil {
			return err
		}
		text := hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, bits))
		b.set.put("xfam", false, text, From{Image: i.Label, Register: "tdx.xfam", Value: text})
	}
	if facts.Attributes != "" {
		bits, err := measure.ParseBits(facts.Attributes)
		if err != nil {
			return err
		}
		b.fact(i, "tdx.td_attributes.debug", tdx.Attributes(bits).Debug())
	}
	return nil
}

// phases adds PCR 11 of an image with a TPM.
func (b *gatherer) phases(i Image, name string) error {
	r := register{name: name, platform: measure.PlatformTPM, register: fmt.Sprintf("pcr%d", phasesPCR), bank: "sha256"}
	paths, err := readPhases(&i, r)
	if err != nil {
		return err
	}
	var registers []register
	for _, p := range paths {
		r.phase = p
		registers = append(registers, r)
	}
	return b.sole(i, registers...)
}

// passed counts the phases of a path.
func passed(path string) int {
	if path == "" {
		return 0
	}
	return 1 + strings.Count(path, ":")
}

// A register is where in the measurements a reference value is.
type register struct {
	name, platform, register, bank, phase string

	trivial string // why its values say nothing, where that does not follow from them
}

// is tells whether v is a value of the register, at any phase.
func (r register) is(v *measure.Value) bool {
	return v.Platform == r.platform && v.Register == r.register && v.Bank == r.bank
}

func (r register) unfit() error {
	return fmt.Errorf("%s, %s: %w", r.register, r.bank, ErrUnfit)
}

// sole adds the registers by which the policy knows an image. They must not say
// nothing of it, all of them.
func (b *gatherer) sole(i Image, registers ...register) error {
	var whys []string
	for _, r := range registers {
		if err := b.needed(i, r); err != nil {
			return err
		}
		for _, why := range b.trivial[r.name] {
			whys = append(whys, r.register+": "+why)
		}
	}
	if len(whys) > 0 && !b.told(i, registers) {
		slices.Sort(whys)
		return fmt.Errorf("%w: %s", ErrTrivial, strings.Join(slices.Compact(whys), "; "))
	}
	return nil
}

// told tells whether each machine's values of the registers say something of the image.
func (b *gatherer) told(i Image, registers []register) bool {
	for _, r := range registers {
		v, _ := b.set.Value(r.name)
		ok := true
		for _, f := range v.From {
			if f.Image == i.Label && b.trivial[r.name][f.Value] != "" {
				ok = false
			}
		}
		if ok {
			return true
		}
	}
	return false
}

// needed adds the values of a register without which the policy accepts nothing.
func (b *gatherer) needed(i Image, r register) error {
	found, used := false, false
	var reasons []string
	for _, v := range i.Measurements.Values {
		if !r.is(&v) || v.Phase != r.phase {
			continue
		}
		found = true
		if v.Provenance == measure.Volatile {
			b.left(r.name, i.Label, r.register, about(&v, v.Reason))
			reasons = append(reasons, about(&v, v.Reason))
			continue
		}
		used = true
		b.add(i, r, &v)
	}
	switch {
	case !found:
		return r.unfit()
	case !used:
		return fmt.Errorf("%s: %w: %s", r.register, ErrVolatile, strings.Join(reasons, "; "))
	}
	return nil
}

// add adds the values of one register in one machine.
func (b *gatherer) add(i Image, r register, v *measure.Value) {
	values := v.OneOf
	if v.Provenance != measure.OneOf {
		values = []string{v.Value}
	}
	for _, x := range values {
		b.set.put(r.name, scalar(b.set.TEE, r.name), x, From{
			Image: i.Label, Register: r.register, Bank: r.bank, Phase: v.Phase, For: machine(v), Value: x,
		})
		if why := r.trivial; why != "" {
			b.mark(r.name, x, why)
		} else if why := Trivial(v, x); why != "" {
			b.mark(r.name, x, why)
		}
	}
}

func (b *gatherer) mark(name string, value any, why string) {
	if b.trivial == nil {
		b.trivial = map[string]map[any]string{}
	}
	if b.trivial[name] == nil {
		b.trivial[name] = map[any]string{}
	}
	b.trivial[name][value] = why
}

// machine says for which machine a value is, where that matters.
func machine(v *measure.Value) string {
	var out []string
	if v.Shape != nil {
		out = append(out, fmt.Sprintf("%d vCPUs, %d MiB", v.Shape.VCPUs, v.Shape.MemoryMiB))
	}
	if v.CPU != "" {
		out = append(out, v.CPU)
	}
	return strings.Join(out, ", ")
}

func about(v *measure.Value, reason string) string {
	if m := machine(v); m != "" {
		return m + ": " + reason
	}
	return reason
}

// event adds the digest of one named event behind a register.
func (b *gatherer) event(i Image, name string, r register, event namedEvent, absent string) {
	reason := absent
	for _, v := range i.Measurements.Values {
		if !r.is(&v) {
			continue
		}
		for _, e := range v.Events {
			if e.Type != event.typ || e.Name != event.name {
				continue
			}
			if e.Digest == "" {
				reason = "the digest of the event is not known"
				continue
			}
			b.set.put(name, true, e.Digest, From{Image: i.Label, Register: r.register + ", " + event.name, Bank: r.bank, Value: e.Digest})
			reason = ""
		}
	}
	if reason != "" {
		b.left(name, i.Label, r.register, reason)
	}
}

func (b *gatherer) left(name, image, register, reason string) {
	l := Left{Name: name, Image: image, Register: register, Reason: reason}
	if !slices.Contains(b.set.Left, l) {
		b.set.Left = append(b.set.Left, l)
	}
}

func (b *gatherer) fact(i Image, claim string, value any) {
	b.set.Facts = append(b.set.Facts, Fact{Image: i.Label, Claim: claim, Value: value})
}

// platform adds what no image decides.
func (b *gatherer) platform(p Platform) error {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if v, ok := b.set.Value(name); ok {
			return fmt.Errorf("%s: %w: image %s decides it", name, ErrPlatform, v.From[0].Image)
		}
		values := p[name]
		if len(values) == 0 {
			return fmt.Errorf("%s: %w: nothing is given", name, ErrPlatform)
		}
		for _, v := range values {
			v = kindOf(name).spell(v)
			if err := checkPlatform(name, v); err != nil {
				return err
			}
			b.set.put(name, scalar(b.set.TEE, name), v, From{Register: "given", Value: fmt.Sprint(v)})
		}
		if v, _ := b.set.Value(name); v.Scalar && len(v.Any) > 1 {
			return fmt.Errorf("%s: %w: the policy compares it with ==, so that one value is all it can have: got %v", name, ErrPlatform, v.Any)
		}
		b.set.Left = slices.DeleteFunc(b.set.Left, func(l Left) bool { return l.Name == name })
	}
	return nil
}

func checkPlatform(name string, v any) error {
	if k := kindOf(name); k != "" {
		if err := k.check(v); err != nil {
			return fmt.Errorf("%s: %w: %w", name, ErrPlatform, err)
		}
		return nil
	}
	switch v.(type) {
	case string, int64, bool:
		return nil
	}
	return fmt.Errorf("%s: %w: %T: want a text, a whole number or a boolean", name, ErrPlatform, v)
}

// finish looks at the set as a whole.
func (b *gatherer) finish(images []Image) error {
	b.dropConflicts()
	b.markTrivial(images)
	slices.SortFunc(b.set.Left, func(x, y Left) int {
		return strings.Compare(x.Name+"\x00"+x.Image+"\x00"+x.Register+"\x00"+x.Reason, y.Name+"\x00"+y.Image+"\x00"+y.Register+"\x00"+y.Reason)
	})
	slices.SortStableFunc(b.set.Facts, func(x, y Fact) int { return strings.Compare(x.Claim, y.Claim) })
	return nil
}

// dropConflicts leaves out what the policy compares with == and the images do not
// agree on. All such lines of the policy are in rules that have a second, weaker
// one behind them.
func (b *gatherer) dropConflicts() {
	b.set.Values = slices.DeleteFunc(b.set.Values, func(v Value) bool {
		if !v.Scalar || len(v.Any) == 1 {
			return false
		}
		b.left(v.Name, "", v.From[0].Register, fmt.Sprintf("the policy compares it with ==, and the images have %d values of it", len(v.Any)))
		return true
	})
}

// markTrivial says which values say nothing of an image: by themselves, or since
// they are the same for images that differ.
func (b *gatherer) markTrivial(images []Image) {
	differ := slices.ContainsFunc(b.set.Values, func(v Value) bool { return v.measured() && v.differs(images) })
	for i := range b.set.Values {
		v := &b.set.Values[i]
		if whys := slices.Compact(slices.Sorted(maps.Values(b.trivial[v.Name]))); len(whys) > 0 {
			v.Trivial = strings.Join(whys, "; ")
		} else if differ && v.measured() && !v.differs(images) {
			v.Trivial = fmt.Sprintf(sameForAll+" %d images: it tells none from another", len(images))
		}
	}
}

// measured tells whether v holds digests of registers.
func (v *Value) measured() bool {
	return slices.ContainsFunc(v.From, func(f From) bool { return f.Image != "" && f.Bank != "" })
}

// differs tells whether two images have different values.
func (v *Value) differs(images []Image) bool {
	by := map[string][]string{}
	for _, f := range v.From {
		by[f.Image] = append(by[f.Image], f.Value)
	}
	first := slices.Compact(slices.Sorted(slices.Values(by[images[0].Label])))
	for _, i := range images[1:] {
		if !slices.Equal(first, slices.Compact(slices.Sorted(slices.Values(by[i.Label])))) {
			return true
		}
	}
	return false
}
