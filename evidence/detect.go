package evidence

import (
	"encoding/json"
	"errors"
)

// Detect tells whose evidence it is, one of TEEs, by the keys that are there. A Parse
// function has still to be asked whether it is.
func Detect(primary []byte) (tee string, err error) {
	keys := map[string]json.RawMessage{}
	if err := parse("evidence of a TEE", primary, MaxEvidence, &keys); err != nil {
		return "", err
	}
	has := func(key string) bool { _, ok := keys[key]; return ok }
	switch {
	case has("attestation_report"):
		return TEESNP, nil
	case has("hcl_report") && has("vcek"):
		return TEEAzSNP, nil
	case has("hcl_report") && has("td_quote"):
		return TEEAzTDX, nil
	case has("tpm_quote") && has("ak_public"):
		return TEETPM, nil
	case has("quote") && !has("report"):
		return TEETDX, nil
	case has("svn") && has("report_data"):
		return TEESample, nil
	}
	return "", errors.New("evidence: of an unknown kind: want that of " + TEETPM + ", " + TEESNP + ", " + TEETDX + ", " + TEEAzSNP + ", " + TEEAzTDX + " or " + TEESample)
}
