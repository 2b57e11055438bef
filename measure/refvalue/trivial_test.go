package refvalue

import (
	"crypto/sha512"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure"
)

func TestTrivialDigest(t *testing.T) {
	separator := sha512.Sum384([]byte{0xff, 0xff, 0xff, 0xff})
	separated := sha512.Sum384(append(make([]byte, 48), separator[:]...))
	for _, row := range []struct{ bank, value, want string }{
		{"sha256", strings.ToLower(separatorPCR), trivialSeparator},
		{"sha384", hex.EncodeToString(separated[:]), trivialSeparator},
		{"sha1", sum(20, 0), trivialUnset},
		{"sha256", sum(32, 0xff), trivialUnset}, // PCR 17 to 22
		{"sha256", sum(32, 1), ""},
		{"sha256", zero48, ""}, // of another bank
		{"md5", sum(16, 0), ""},
		{"sha256", "text", ""},
	} {
		if got := TrivialDigest(row.bank, row.value); got != row.want {
			t.Errorf("%s %s: %q", row.bank, row.value, got)
		}
	}
}

func TestTrivialByEvents(t *testing.T) {
	separator, image := event("EV_SEPARATOR", "separator", zero32), event("EV_EFI_BOOT_SERVICES_APPLICATION", "image", zero32)
	for name, row := range map[string]struct {
		v     measure.Value
		value string
		want  string
	}{
		"separators":    {measure.Value{Platform: "tpm", Register: "pcr2", Bank: "sha256", Events: []measure.EventRef{separator, separator}}, sum(32, 1), trivialSeparator},
		"image":         {measure.Value{Platform: "tpm", Register: "pcr4", Bank: "sha256", Events: []measure.EventRef{separator, image}}, sum(32, 1), ""},
		"unset":         {measure.Value{Platform: "tdx", Register: "rtmr3", Bank: "sha384"}, zero48, trivialUnset},
		"set somehow":   {measure.Value{Platform: "tdx", Register: "rtmr3", Bank: "sha384"}, sum(48, 1), ""},
		"launch digest": {measure.Value{Platform: "snp", Register: "launch_digest", Bank: "sha384"}, zero48, ""}, // no register that starts from zeros
	} {
		if got := Trivial(&row.v, row.value); got != row.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
