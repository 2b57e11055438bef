package measure

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"regexp"

	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/uki"
)

var (
	globalVariable   = ovmf.GlobalVariable
	imageSecurity    = ovmf.ImageSecurity
	secureBootEnable = mustGUID("f0a30bc7-af08-4556-99c4-001009c93a44")
)

var mustGUID = ovmf.MustGUID

// nvram is what the variables of a machine mean for its boot.
type nvram struct {
	store *ovmf.VarStore
	flash []byte
}

func readNVRAM(flash []byte) (*nvram, error) {
	s, err := ovmf.ParseVars(flash)
	if err != nil {
		return nil, fmt.Errorf("measure: NVRAM: %w", err)
	}
	v := &nvram{s, flash}
	for _, name := range []string{"dbt", "dbr"} {
		if len(v.data(name, imageSecurity)) > 0 {
			return nil, fmt.Errorf("measure: NVRAM: variable %s: not supported", name)
		}
	}
	return v, nil
}

func (v *nvram) data(name string, guid ovmf.GUID) []byte {
	b, _, _ := v.store.Get(name, guid)
	return b
}

// enforced tells whether the firmware will verify images. It does when there is
// a platform key, unless it was told not to (SecurityPkg, AuthVariableLib,
// AuthVariableLibInitialize).
func (v *nvram) enforced(f *Firmware) bool {
	_, _, owned := v.store.Get("PK", globalVariable)
	enable, _, set := v.store.Get("SecureBootEnable", secureBootEnable)
	return f.SecureBoot && owned && (!set || len(enable) == 1 && enable[0] == 1)
}

// secureBoot returns the data of the variable SecureBoot, which the firmware
// makes anew in each boot, and which a build without Secure Boot has not.
func (v *nvram) secureBoot(f *Firmware) []byte {
	switch {
	case !f.does(secureBootVariable):
		return nil
	case v.enforced(f):
		return []byte{1}
	}
	return []byte{0}
}

var bootVariable = regexp.MustCompile(`^(BootOrder|BootNext|Boot[0-9A-F]{4})$`)

// bootOptions returns the digest of the flash when it has boot options of its
// own, on which those that the firmware makes depend, else "".
func (v *nvram) bootOptions() string {
	for _, x := range v.store.List() {
		if x.GUID == globalVariable && bootVariable.MatchString(x.Name) {
			sum := sha256.Sum256(v.flash)
			return hex.EncodeToString(sum[:])
		}
	}
	return ""
}

// authority returns the entry of db that verifies an image: the first
// certificate in the order of db that is its signer's. What edk2 also takes, and
// what is not supported here: certificates that issued the signer's, digests of
// images in db, and dbx.
func (v *nvram) authority(image *io.SectionReader) ([]byte, error) {
	lists, err := ovmf.ParseSignatureLists(v.data("db", imageSecurity))
	if err != nil {
		return nil, fmt.Errorf("measure: db: %w", err)
	}
	for _, l := range lists {
		if l.Type != ovmf.CertX509 {
			continue
		}
		for _, s := range l.Signatures {
			cert, err := x509.ParseCertificate(s.Data)
			if err != nil {
				continue // as the firmware passes over what it cannot use
			}
			if uki.VerifySignature(image, image.Size(), cert) == nil {
				return append(s.Owner[:len(s.Owner):len(s.Owner)], s.Data...), nil
			}
		}
	}
	return nil, errRefused
}
