package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Limits of what Parse accepts. Linux passes on at most 64 KiB from OVMF, and a
// few megabytes from servers that measure every driver.
const (
	maxLog    = 16 << 20 // bytes
	maxEvents = 1 << 16
)

// Registers that an event may name. NO_ACTION events extend none and may name
// any.
const (
	maxPCR     = 23
	maxCCIndex = 4
)

// ErrTruncated is wrapped by Parse for a log that ends inside an event.
var ErrTruncated = errors.New("truncated")

var specID03 = []byte("Spec ID Event03\x00")

// Parse reads a TCG log in either form. What follows the last event must be
// padding: only 0xff, or only 0.
func Parse(b []byte) (*Log, error) { return parse(b, &Log{}) }

// ParseCC reads the CC event log of a confidential VM, as ACPI's CCEL table
// points to it. It has the same records, but their registers are indices of
// measurement registers.
func ParseCC(b []byte) (*Log, error) { return parse(b, &Log{CC: true}) }

// ParseAny reads a log of which only the bytes are known: a CC log if its first
// record names register 1, as edk2 has it there, else a TCG log. A CC log of
// td-shim names register 0 and has to be read by ParseCC.
func ParseAny(b []byte) (*Log, error) {
	if bytes.HasPrefix(b, []byte{1, 0, 0, 0}) {
		return ParseCC(b)
	}
	return Parse(b)
}

func parse(b []byte, l *Log) (*Log, error) {
	if len(b) > maxLog {
		return nil, fmt.Errorf("eventlog: %d bytes: want at most %d", len(b), maxLog)
	}
	c := &cursor{b: b}
	first := legacyEvent(c)
	if c.short {
		return nil, fmt.Errorf("eventlog: first event: %w", ErrTruncated)
	}
	l.Legacy = first.Type != NoAction || !bytes.HasPrefix(first.Data, specID03)
	if l.Legacy && l.CC {
		return nil, errors.New("eventlog: first event: not the Spec ID event that a CC log begins with")
	}
	if l.Legacy {
		l.Algs = []Alg{SHA1}
		c.off = 0
	} else if err := parseSpecID(l, &first); err != nil {
		return nil, err
	}
	for end := padding(b); c.off < end; {
		if err := l.parseEvent(c); err != nil {
			return nil, fmt.Errorf("eventlog: event %d: %w", len(l.Events), err)
		}
	}
	return l, nil
}

func (l *Log) parseEvent(c *cursor) error {
	at := c.off
	var e Event
	var err error
	if l.Legacy {
		e = legacyEvent(c)
	} else {
		e, err = agileEvent(c, l.Algs)
	}
	if c.short {
		return fmt.Errorf("offset %#x: %w", at, ErrTruncated)
	}
	if err == nil {
		err = l.check(&e)
	}
	if err != nil {
		return fmt.Errorf("offset %#x: %w", at, err)
	}
	l.Events = append(l.Events, e)
	return nil
}

// check holds what one event may say after the events before it, and notes the
// startup locality.
func (l *Log) check(e *Event) error {
	limit := maxPCR
	if l.CC {
		limit = maxCCIndex
	}
	if e.Type != NoAction && e.Register > limit {
		return fmt.Errorf("register %d: want at most %d", e.Register, limit)
	}
	if len(l.Events) == maxEvents {
		return fmt.Errorf("more than %d events", maxEvents)
	}
	if loc, ok := locality(e); ok {
		if loc != 0 && loc != 3 && loc != 4 {
			return fmt.Errorf("startup locality %d: want 0, 3 or 4", loc)
		}
		if slices.ContainsFunc(l.Events, func(e Event) bool { _, ok := locality(&e); return ok }) {
			return errors.New("second startup locality")
		}
		l.StartupLocality = loc
	}
	return nil
}

// legacyEvent reads a TCG_PCR_EVENT: Profile, section 10.2.1.
func legacyEvent(c *cursor) Event {
	e := Event{Register: int(c.u32()), Type: Type(c.u32())}
	e.Digests = []Digest{{SHA1, c.take(uint64(SHA1.Size()))}}
	e.Data = c.take(uint64(c.u32()))
	return e
}

// agileEvent reads a TCG_PCR_EVENT2: Profile, section 10.2.2. A bank may be
// missing, it may not come twice.
func agileEvent(c *cursor, banks []Alg) (Event, error) {
	e := Event{Register: int(c.u32()), Type: Type(c.u32())}
	n := c.u32()
	if n > uint32(len(banks)) {
		return e, fmt.Errorf("%d digests: the log has %d banks", n, len(banks))
	}
	for range n {
		alg := Alg(c.u16())
		if !c.short && (!slices.Contains(banks, alg) || e.Digest(alg) != nil) {
			return e, fmt.Errorf("digest in bank %v: want each of %v once", alg, banks)
		}
		e.Digests = append(e.Digests, Digest{alg, c.take(uint64(alg.Size()))})
	}
	e.Data = c.take(uint64(c.u32()))
	return e, nil
}

// parseSpecID reads the TCG_EfiSpecIDEvent: Profile, section 10.4.5.1.
func parseSpecID(l *Log, first *Event) error {
	zeros := !slices.ContainsFunc(first.Digests[0].Value, func(b byte) bool { return b != 0 })
	zeroRegister := l.CC && first.Register == 0
	if first.Register != l.specRegister() && !zeroRegister || !zeros {
		return fmt.Errorf("eventlog: Spec ID event: register %d: want %d and a digest of zeros", first.Register, l.specRegister())
	}
	c := &cursor{b: first.Data, off: len(specID03)}
	l.Spec = SpecID{PlatformClass: c.u32(), Minor: c.u8(), Major: c.u8(), Errata: c.u8(), UintnSize: c.u8(), ZeroRegister: zeroRegister}
	n := c.u32()
	if n == 0 || n > uint32(len(algs)) {
		return fmt.Errorf("eventlog: Spec ID event: %d banks: want 1 to %d", n, len(algs))
	}
	for range n {
		alg, size := Alg(c.u16()), int(c.u16())
		if alg.Size() == 0 || alg.Size() != size {
			return fmt.Errorf("eventlog: Spec ID event: %v with digests of %d bytes: unsupported", alg, size)
		}
		if slices.Contains(l.Algs, alg) {
			return fmt.Errorf("eventlog: Spec ID event: bank %v comes twice", alg)
		}
		l.Algs = append(l.Algs, alg)
	}
	l.Spec.VendorInfo = c.take(uint64(c.u8()))
	if !c.done() {
		return fmt.Errorf("eventlog: Spec ID event: %d bytes: they do not match its fields", len(first.Data))
	}
	return nil
}

// padding returns where the run of equal bytes at the end of b begins, if they
// are 0xff or 0. An event that ends in such bytes reaches into the run; one that
// begins there is none: its register would be 0xffffffff, or it would have the
// type 0 and no digest.
func padding(b []byte) int {
	end := len(b)
	if end == 0 || b[end-1] != 0xff && b[end-1] != 0 {
		return end
	}
	for end > 0 && b[end-1] == b[len(b)-1] {
		end--
	}
	return end
}
