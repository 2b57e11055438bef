package attester

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// emptyLog is a log with its header alone, for a guest whose firmware left none: a
// TCG_PCR_EVENT, EV_NO_ACTION, and in it TCG_EfiSpecIDEvent with the one algorithm of
// RTMRs. TCG PC Client Platform Firmware Profile 1.06, section 10.4.5.1.
var emptyLog = append(
	append([]byte{0, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...), // index, type, SHA-1
	append([]byte{33, 0, 0, 0}, "Spec ID Event03\x00"+
		"\x00\x00\x00\x00"+ // platform class: client
		"\x00\x02\x00\x02"+ // version 2.0, errata 0, size of UINTN: 8 bytes
		"\x01\x00\x00\x00"+"\x0c\x00\x30\x00"+ // SHA-384, 48 bytes
		"\x00"...)...)

// endOfLog is what CoCo's verifiers take for the end: guest-components,
// attestation-agent/attester/src/utils.rs.
var endOfLog = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// digestSizes are those of the algorithms that a log may name, in bytes: TCG Algorithm
// Registry 1.34.
var digestSizes = map[uint16]int{4: 20, 0xb: 32, 0xc: 48, 0xd: 64, 0x12: 32}

var errShortLog = errors.New("log ends in the middle of an event")

// usedLog is the part of log that has events. What the firmware did not use of its
// memory follows: bytes of 0 or 0xff.
func usedLog(log []byte) ([]byte, error) {
	if unused(log) {
		return nil, nil
	}
	at, err := skipHeader(log)
	for err == nil && !unused(log[at:]) {
		var n int
		if n, err = eventSize(log[at:]); err != nil {
			return nil, fmt.Errorf("event at %#x: %w", at, err)
		}
		at += n
	}
	return log[:max(at, 0)], err
}

// unused tells whether no event starts at b: fewer bytes than one has, or what no index
// and type of an event are.
func unused(b []byte) bool {
	if len(b) < 8 {
		return true
	}
	v := binary.LittleEndian.Uint64(b)
	return v == 0 || v == ^uint64(0)
}

// skipHeader is the size of the first event, a TCG_PCR_EVENT.
func skipHeader(b []byte) (int, error) {
	const fixed, evNoAction = 4 + 4 + 20 + 4, 3
	if len(b) < fixed {
		return 0, errShortLog
	}
	if t := binary.LittleEndian.Uint32(b[4:]); t != evNoAction {
		return 0, fmt.Errorf("header of type %#x, want EV_NO_ACTION", t)
	}
	return withData(b, fixed)
}

// eventSize is the size of a TCG_PCR_EVENT2: index, type, number of digests, digests,
// size of the data, data.
func eventSize(b []byte) (int, error) {
	if len(b) < 12 {
		return 0, errShortLog
	}
	at, digests := 12, binary.LittleEndian.Uint32(b[8:])
	for range digests {
		if len(b) < at+2 {
			return 0, errShortLog
		}
		size, ok := digestSizes[binary.LittleEndian.Uint16(b[at:])]
		if !ok {
			return 0, fmt.Errorf("digest of algorithm %#x", binary.LittleEndian.Uint16(b[at:]))
		}
		at += 2 + size
	}
	return withData(b, at+4)
}

// withData adds the data, whose size stands before at.
func withData(b []byte, at int) (int, error) {
	if len(b) < at {
		return 0, errShortLog
	}
	size := binary.LittleEndian.Uint32(b[at-4:])
	if int64(size) > int64(len(b)-at) {
		return 0, errShortLog
	}
	return at + int(size), nil
}
