package ovmf

import (
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
)

// Vendors of the variables that make up Secure Boot.
var (
	GlobalVariable    = mustGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c") // PK, KEK, BootOrder, ...
	ImageSecurity     = mustGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f") // db, dbx
	secureBootEnable  = mustGUID("f0a30bc7-af08-4556-99c4-001009c93a44")
	customModeEnable  = mustGUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
	authenticatedAttr = uint32(NonVolatile | BootServiceAccess | RuntimeAccess | TimeBasedAuthenticatedWrite)
	settingAttr       = uint32(NonVolatile | BootServiceAccess)
)

// Keys are the certificates, in DER, that own a machine and say what it boots.
type Keys struct {
	Owner GUID     // who enrolled: the owner of each signature
	PK    []byte   // owns the machine
	KEK   [][]byte // may change db
	DB    [][]byte // an image must be signed by one of them
	Epoch int64    // Unix time that the variables are signed at; later updates must be younger
}

// Enroll writes keys into an NVRAM flash and turns Secure Boot on, as if its
// owner had done so in the firmware's setup: dbx is left alone, other keys are
// replaced.
func Enroll(flash []byte, k Keys) ([]byte, error) {
	s, err := ParseVars(flash)
	if err != nil {
		return nil, err
	}
	if err := s.Enroll(k); err != nil {
		return nil, err
	}
	return s.Bytes()
}

// Enroll is Enroll on a parsed store.
func (s *VarStore) Enroll(k Keys) error {
	if k.Owner == (GUID{}) {
		return errors.New("ovmf: enroll: no owner GUID")
	}
	if k.Epoch < 0 || k.Epoch > maxEpoch {
		return fmt.Errorf("ovmf: enroll: epoch %d: want 0 to %d", k.Epoch, int64(maxEpoch))
	}
	for _, v := range []struct {
		name  string
		guid  GUID
		certs [][]byte
	}{
		{"db", ImageSecurity, k.DB},
		{"KEK", GlobalVariable, k.KEK},
		{"PK", GlobalVariable, [][]byte{k.PK}}, // last, as it ends setup mode
	} {
		data, err := certificates(k.Owner, v.certs)
		if err != nil {
			return fmt.Errorf("ovmf: enroll %s: %w", v.name, err)
		}
		if err := s.Set(Variable{Name: v.name, GUID: v.guid, Attributes: authenticatedAttr, Time: efiTime(k.Epoch), Data: data}); err != nil {
			return err
		}
	}
	if err := s.Set(Variable{Name: "CustomMode", GUID: customModeEnable, Attributes: settingAttr, Data: []byte{0}}); err != nil {
		return err
	}
	return s.Set(Variable{Name: "SecureBootEnable", GUID: secureBootEnable, Attributes: settingAttr, Data: []byte{1}})
}

// SetupMode takes the owner out of an NVRAM flash, or the one at the start of a
// whole flash: the next boot is in UEFI's setup mode, in which firmware checks no
// signature. Nobody can add keys beforehand, and in setup mode anybody can replace
// them, so those that PK guarded go with it; what is left are the variables that
// have nothing to do with Secure Boot. Firmware deletes SecureBootEnable itself
// when PK goes and writes CustomMode at every boot: edk2, AuthVariableLib.
func SetupMode(flash []byte) ([]byte, error) {
	s, err := ParseVars(flash)
	if err != nil {
		return nil, err
	}
	s.SetupMode()
	return s.Bytes()
}

// SetupMode is SetupMode on a parsed store.
func (s *VarStore) SetupMode() {
	for _, v := range []struct {
		name string
		guid GUID
	}{
		{"PK", GlobalVariable}, {"KEK", GlobalVariable},
		{"db", ImageSecurity}, {"dbx", ImageSecurity}, {"dbt", ImageSecurity}, {"dbr", ImageSecurity},
		{"SecureBootEnable", secureBootEnable}, {"CustomMode", customModeEnable},
	} {
		s.Delete(v.name, v.guid)
	}
}

// certificates puts each certificate in a list of its own: their sizes differ.
func certificates(owner GUID, ders [][]byte) ([]byte, error) {
	if len(ders) == 0 {
		return nil, errors.New("no certificate")
	}
	var b []byte
	for i, der := range ders {
		var seq asn1.RawValue
		rest, err := asn1.Unmarshal(der, &seq)
		if err != nil || len(rest) > 0 || seq.Tag != asn1.TagSequence {
			return nil, fmt.Errorf("certificate %d: %d bytes: not one in DER", i, len(der))
		}
		if b, err = AppendSignatureList(b, SignatureList{Type: CertX509, Signatures: []Signature{{owner, der}}}); err != nil {
			return nil, err
		}
	}
	return b, nil
}

const (
	day      = 24 * 60 * 60            // seconds
	maxEpoch = 2932896*day + (day - 1) // the end of year 9999, the last that EFI_TIME has
)

// efiTime writes a Unix time as EFI_TIME: u16 year, u8 month, day, hour, minute,
// second, and nine bytes that an authenticated variable wants zero. UEFI 2.10,
// sections 8.2.2 and 8.3.
func efiTime(epoch int64) (t [16]byte) {
	year, month, mday := civil(epoch / day)
	s := epoch % day
	binary.LittleEndian.PutUint16(t[:], uint16(year))
	t[2], t[3] = byte(month), byte(mday)
	t[4], t[5], t[6] = byte(s/3600), byte(s/60%60), byte(s%60)
	return t
}

// civil returns the date that is days after 1 January 1970.
func civil(days int64) (year, month, mday int64) {
	year = 1970
	for days >= 365+leap(year) {
		days -= 365 + leap(year)
		year++
	}
	lengths := [...]int64{31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
	for _, n := range lengths {
		if days < n {
			break
		}
		days -= n
		month++
	}
	return year, month + 1, days + 1
}

// leap is the number of leap days in a year.
func leap(year int64) int64 {
	if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
		return 1
	}
	return 0
}
