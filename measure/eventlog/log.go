// Package eventlog reads, writes, replays, names and compares the event logs of
// measured boot: the TCG log that a TPM's firmware keeps, in its crypto-agile
// and its older SHA-1 form, and the CC event log of a confidential VM.
//
// A log is a claim by whoever holds it. A replay that ends in the registers'
// values, read from the TPM or from a quote, makes its digests true; only
// [Log.Inconsistent] ties the text of an event to its digest, and it can do so
// only for the types whose digest is over the data itself.
//
// Documents: TCG PC Client Platform Firmware Profile 1.06, section 10; TCG EFI
// Protocol 1.00, section 5; UEFI 2.10, section 38.4.1.
package eventlog

import "bytes"

// Digest is the digest of one event in one bank.
type Digest struct {
	Alg   Alg
	Value []byte
}

// Event is one line of a log: a register was extended, in each bank, by a
// digest that stands for Data or for what Data describes.
type Event struct {
	Register int // PCR; in a CC log the measurement register index
	Type     Type
	Digests  []Digest // in the order of the log, usually that of its banks
	Data     []byte

	// Name is what a person calls the event, "variable SecureBoot", and
	// Source is where its bytes come from, "ESP /EFI/BOOT/BOOTX64.EFI". No
	// log has them: Describe fills Name, a prediction fills both.
	Name   string
	Source string
}

// Digest returns the event's digest in one bank, nil if it has none.
func (e *Event) Digest(alg Alg) []byte {
	for _, d := range e.Digests {
		if d.Alg == alg {
			return d.Value
		}
	}
	return nil
}

// Log is an event log.
type Log struct {
	Algs            []Alg // the banks, in the order of the Spec ID event
	StartupLocality uint8 // of TPM2_Startup: the last byte of PCR 0 before the first extend
	CC              bool  // registers are measurement register indices: 0 MRTD, 1 to 4 RTMR 0 to 3
	Legacy          bool  // records of the SHA-1 form, without a Spec ID event
	Spec            SpecID
	Events          []Event // without the Spec ID event
}

// SpecID is what the first record of a crypto-agile log says besides the banks.
type SpecID struct {
	PlatformClass uint32 // 0 client, 1 server
	Minor, Major  uint8  // of the specification
	Errata        uint8
	UintnSize     uint8 // 1: 32-bit firmware, 2: 64-bit
	VendorInfo    []byte

	// ZeroRegister is set for a CC log whose first record names register 0, as
	// td-shim writes it, and not 1 as edk2 does. It means nothing.
	ZeroRegister bool
}

// EDK2 is the Spec ID that edk2 writes on 64-bit platforms.
var EDK2 = SpecID{Major: 2, UintnSize: 2}

// Extend returns H(register ‖ digest): what an extend makes of a register.
func Extend(alg Alg, register, digest []byte) []byte { return alg.Sum(register, digest) }

// localityTag begins the data of the NO_ACTION event that names the locality
// of TPM2_Startup. The byte after it is 0, 3 or 4 (Profile, section 10.4.5.3).
var localityTag = []byte("StartupLocality\x00")

// locality returns the locality that e reports.
func locality(e *Event) (uint8, bool) {
	if e.Type != NoAction || e.Register != 0 || len(e.Data) != len(localityTag)+1 || !bytes.HasPrefix(e.Data, localityTag) {
		return 0, false
	}
	return e.Data[len(localityTag)], true
}
