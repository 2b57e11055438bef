// This program reads a CoRIM with veraison's library and prints its reference
// values, named as Trustee's RVPS names them. The tests of this module build it
// within a checkout of that library. With a second argument, a public key in PEM,
// the CoRIM is a signed one and its signature is checked.
package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/veraison/corim/comid"
	"github.com/veraison/corim/corim"
)

type result struct {
	ID, Tag  string
	Signer   string
	Chain    []string
	NotAfter int64
	Names    []string
	Values   [][]string
}

func main() {
	log.SetFlags(0)
	b, err := os.ReadFile(os.Args[1])
	check(err)
	var r result
	u := &corim.UnsignedCorim{}
	if len(os.Args) > 2 {
		s := corim.NewSignedCorim()
		check(s.FromCOSE(b))
		check(s.Verify(publicKey(os.Args[2])))
		u, r.Signer = &s.UnsignedCorim, s.Meta.Signer.Name
		if s.SigningCert != nil {
			r.Chain = append(r.Chain, s.SigningCert.Subject.CommonName)
		}
		for _, c := range s.IntermediateCerts {
			r.Chain = append(r.Chain, c.Subject.CommonName)
		}
	} else {
		check(u.FromCBOR(b))
		check(u.Valid())
	}
	r.ID = u.GetID()
	if u.RimValidity != nil {
		r.NotAfter = u.RimValidity.NotAfter.Unix()
	}
	comids, failed := u.IterComids()
	for c := range comids {
		check(c.Valid())
		r.Tag = c.TagIdentity.TagID.String()
		for triple := range c.IterRefVals() {
			for _, m := range triple.Measurements.Values {
				r.add(triple.Environment.Class, &m)
			}
		}
	}
	check(failed())
	check(json.NewEncoder(os.Stdout).Encode(r))
}

func (r *result) add(class *comid.Class, m *comid.Measurement) {
	path := []string{class.GetVendor(), class.GetModel(), m.Key.Value.String()}
	if m.Val.Digests != nil {
		var list []string
		for _, d := range *m.Val.Digests {
			list = append(list, fmt.Sprintf("%x", d.Value))
		}
		r.Names = append(r.Names, strings.Join(append(path, "digests"), "/"))
		r.Values = append(r.Values, list)
	}
	if m.Val.RawValue != nil {
		r.Names = append(r.Names, strings.Join(append(path, "raw_bytes"), "/"))
		r.Values = append(r.Values, []string{fmt.Sprintf("%x", m.Val.RawValue.Bytes())})
	}
}

func publicKey(name string) any {
	b, err := os.ReadFile(name)
	check(err)
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	check(err)
	return key
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
