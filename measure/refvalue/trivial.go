package refvalue

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// Why a register says nothing.
const (
	trivialUnset     = "nothing extends it"
	trivialSeparator = "only a separator is in it, which every boot has"

	sameForAll = "the same for all" // beginning: a value that does say something, but not which image
)

// Trivial returns why a predicted value of a register says nothing of the image,
// "" when it does say something.
func Trivial(v *measure.Value, value string) string {
	if v.Platform != measure.PlatformTPM && !strings.HasPrefix(v.Register, "rtmr") {
		return "" // pages, not events
	}
	if len(v.Events) > 0 {
		if slices.ContainsFunc(v.Events, func(e measure.EventRef) bool { return e.Type != eventlog.Separator.String() }) {
			return ""
		}
		return trivialSeparator
	}
	return TrivialDigest(v.Bank, value)
}

// TrivialDigest does the same for a value whose events are not known: one that no
// extend has changed, or that one separator has.
func TrivialDigest(bank, value string) string {
	alg, err := eventlog.ParseAlg(bank)
	if err != nil {
		return ""
	}
	b, err := hex.DecodeString(value)
	if err != nil || len(b) != alg.Size() {
		return ""
	}
	zero := make([]byte, alg.Size())
	ones := bytes.Repeat([]byte{0xff}, alg.Size()) // PCR 17 to 22 before a dynamic launch
	if bytes.Equal(b, zero) || bytes.Equal(b, ones) {
		return trivialUnset
	}
	for _, s := range separators {
		if bytes.Equal(b, eventlog.Extend(alg, zero, alg.Sum(s))) {
			return trivialSeparator
		}
	}
	return ""
}

// separators are the contents of an EV_SEPARATOR that ends the firmware's part
// without an error: TCG PC Client Platform Firmware Profile 1.06, section 3.3.2.2.
var separators = [][]byte{{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}}
