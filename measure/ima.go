package measure

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/pcr"
)

// registerIMA is CONFIG_IMA_MEASURE_PCR_IDX.
const registerIMA = 10

// ima predicts PCR 10. A kernel with IMA extends it before userspace with an
// entry for "boot_aggregate", the SHA-256 over PCR 0 to 9 (Linux,
// security/integrity/ima/ima_init.c, ima_crypto.c), and with Secure Boot on with
// an entry for every module that is loaded (ima_efi.c). Whether a kernel has IMA,
// the rule for modules, and which template of entries, are options of its build
// that the image does not show: hence one of a list.
func (p *predictor) ima() {
	if !behaviour(imaAggregate).holds(p.os.release) {
		return
	}
	measured, err := p.measuredModules()
	if reason := p.imaUnknown(); reason != "" || err != nil {
		if err != nil {
			reason = err.Error()
		}
		p.variants[registerIMA] = [][]Event{{{
			Event:      eventlog.Event{Register: registerIMA, Type: eventlog.IPL, Name: "IMA boot_aggregate", Source: "kernel"},
			Provenance: Volatile,
			Reason:     reason,
			Unlogged:   true,
		}}}
		return
	}
	var lists [][]Event
	for _, aggregate := range p.aggregates() {
		for _, template := range []string{"ima-sig", "ima-ng"} {
			for _, padded := range []bool{false, true} {
				list := []Event{p.imaEvent(aggregate, "boot_aggregate", template, padded)}
				alone := list[:1:1]
				for _, m := range measured {
					list = append(list, p.imaEvent(m.digest, m.path, template, padded))
				}
				if lists = append(lists, list); len(measured) > 0 {
					lists = append(lists, alone)
				}
			}
		}
	}
	p.variants[registerIMA] = append(lists, nil)
}

// imaUnknown returns why the first entry cannot be known.
func (p *predictor) imaUnknown() string {
	if strings.Contains(" "+p.os.cmdline, " ima_") {
		return "the command line changes what IMA measures"
	}
	for r := range registerIMA {
		if len(volatileReasons(p.lists(r))) > 0 {
			return fmt.Sprintf("IMA's boot_aggregate covers PCR 0 to 9, and PCR %d is not known", r)
		}
	}
	return ""
}

// measuredModule is a module of which IMA makes an entry.
type measuredModule struct {
	path   string
	digest []byte
}

func (p *predictor) measuredModules() (out []measuredModule, err error) {
	if !p.vars.enforced(p.Firmware) || !behaviour(imaModules).holds(p.os.release) {
		return nil, nil
	}
	if p.Modules == nil {
		return nil, errors.New("with Secure Boot on, a kernel with IMA measures every module that it loads, and those are not known")
	}
	for _, m := range p.Modules {
		d, err := hex.DecodeString(m.SHA256)
		if err != nil || len(d) != eventlog.SHA256.Size() {
			return nil, fmt.Errorf("module %s: no SHA-256 digest", m.Path)
		}
		out = append(out, measuredModule{m.Path, d})
	}
	return out, nil
}

// aggregates are the possible SHA-256 digests over PCR 0 to 9.
func (p *predictor) aggregates() [][]byte {
	prefixes := [][]byte{nil}
	for r := range registerIMA {
		var longer [][]byte
		for _, prefix := range prefixes {
			for _, list := range p.lists(r) {
				longer = append(longer, slices.Concat(prefix, fold(eventlog.SHA256, r, list)))
			}
		}
		prefixes = longer
	}
	for i := range prefixes {
		prefixes[i] = eventlog.SHA256.Sum(prefixes[i])
	}
	return prefixes
}

// imaEvent makes an entry: Linux, Documentation/security/IMA-templates.rst.
// Fields have their length before them; ima-sig ends with a signature, which is
// empty here. In a bank whose hash the kernel cannot compute when IMA starts, it
// extends SHA-1 with zeros after it (padded).
func (p *predictor) imaEvent(digest []byte, name, template string, padded bool) Event {
	entry := appendField(nil, append([]byte("sha256:\x00"), digest...))
	entry = appendField(entry, append([]byte(name), 0))
	if template == "ima-sig" {
		entry = appendField(entry, nil)
	}
	e := Event{
		Event:      eventlog.Event{Register: registerIMA, Type: eventlog.IPL, Name: fmt.Sprintf("IMA %s, template %s", name, template), Source: "kernel"},
		Provenance: p.firmwareProvenance(),
		Unlogged:   true,
	}
	for _, bank := range p.banks {
		d := bank.Sum(entry)
		if padded && bank != eventlog.SHA256 {
			d = make([]byte, bank.Size())
			copy(d, eventlog.SHA1.Sum(entry))
		}
		e.Digests = append(e.Digests, eventlog.Digest{Alg: bank, Value: d})
	}
	return e
}

// firmwareProvenance is that of PCR 0 to 9 together.
func (p *predictor) firmwareProvenance() Provenance {
	for r := range registerIMA {
		for _, e := range p.lists(r)[0] {
			if e.Provenance == Recorded {
				return Recorded
			}
		}
	}
	return Predicted
}

func appendField(b, field []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(field))), field...)
}

// variantReason says why a register is one of several values.
func (p *predictor) variantReason(register int) string {
	switch register {
	case p.register(5):
		return "the kernel's first call of ExitBootServices may fail when the stub has written to the disk; it is then made again"
	case registerIMA:
		return "options of the kernel's build: no IMA, or IMA with template ima-sig or ima-ng, with or without a rule for modules"
	}
	return ""
}

// phases are the events that the guest adds.
func (p *predictor) phases() (out []Event) {
	for _, e := range pcr.Phases(p.banks, p.Phases) {
		out = append(out, Event{Event: e, Provenance: Predicted, Unlogged: true})
	}
	return out
}
