package refvalue

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/cbor"
)

// A CoRIM is what was read of one: its reference values, and what is said of all.
type CoRIM struct {
	ID        string
	Signed    bool  // it is in a COSE_Sign1, whose signature nobody has looked at yet
	NotBefore int64 // seconds since 1970; 0: not said
	NotAfter  int64
	Tags      []CoMID
	Others    int // tags of other kinds, which are not read
}

// A CoMID is one tag of a CoRIM.
type CoMID struct {
	ID         string
	Version    int64
	References []Reference
}

// A Reference is one measurement of one reference triple.
type Reference struct {
	Vendor, Model string // of the environment's class
	MKey          string // text, UUID, or "claim7" for the number 7, as Trustee has them
	Name, Serial  string // of the measurement
	Digests       []Digest
	Raw           []byte
}

// A CoRIMValue is a reference value as Trustee's RVPS takes it from a CoRIM.
type CoRIMValue struct {
	Name  string
	Value any // []string of digests, or a string; lower-case hex
}

// RVPS returns the values of all tags as Trustee's RVPS does, in its order. Of
// equal names it keeps the last. (rvps/src/extractors/corim/mod.rs at
// PolicyCommit.)
func (c *CoRIM) RVPS() (out []CoRIMValue) {
	for _, t := range c.Tags {
		for i := range t.References {
			out = append(out, t.References[i].RVPS()...)
		}
	}
	return out
}

// RVPS returns the values of one measurement; one that has neither digests nor
// raw bytes has none.
func (r *Reference) RVPS() (out []CoRIMValue) {
	var path []string
	for _, part := range []string{r.Vendor, r.Model, r.MKey, r.Name, r.Serial} {
		if part != "" {
			path = append(path, part)
		}
	}
	if r.Digests != nil {
		list := []string{}
		for _, d := range r.Digests {
			list = append(list, hex.EncodeToString(d.Value))
		}
		out = append(out, CoRIMValue{strings.Join(append(path, "digests"), "/"), list})
	}
	if r.Raw != nil {
		out = append(out, CoRIMValue{strings.Join(append(path[:len(path):len(path)], "raw_bytes"), "/"), hex.EncodeToString(r.Raw)})
	}
	return out
}

// Limits on what a CoRIM holds: names of a value are repeated with each, so that a
// long one makes a short file large.
const (
	maxCoRIM      = 4 << 20 // bytes
	maxTags       = 1 << 10
	maxReferences = 1 << 11 // in one tag
	maxDigests    = 1 << 13 // of one measurement
	maxName       = 256     // bytes
)

// limit fails when n is beyond what is allowed of something.
func limit(d *cbor.Decoder, n, most int, of string) {
	if n > most {
		d.Fail("more than %d %s", most, of)
	}
}

// name reads a text that becomes part of names.
func name(d *cbor.Decoder) string {
	s := d.Text()
	limit(d, len(s), maxName, "bytes in a name")
	return s
}

// ParseCoRIM reads a CoRIM, signed or not, and no signature. Of it only CoMIDs,
// and of those only reference triples are read. A CoRIM that ends early, says
// something twice, or has data behind it is refused; what it says that nobody here
// knows is skipped. What it returns aliases b.
func ParseCoRIM(b []byte) (*CoRIM, error) {
	if len(b) > maxCoRIM {
		return nil, fmt.Errorf("refvalue: CoRIM: %d bytes: want at most %d", len(b), maxCoRIM)
	}
	c := &CoRIM{}
	if err := c.parse(b, false); err != nil {
		return nil, fmt.Errorf("refvalue: CoRIM: %w", err)
	}
	return c, nil
}

func (c *CoRIM) parse(b []byte, inner bool) error {
	d := cbor.NewDecoder(b)
	tag := d.Tag()
	for range 2 {
		if tag == tagOldCoRIM || tag == tagOldSigned {
			tag = d.Tag()
		}
	}
	switch {
	case d.Err() != nil:
		return d.Err()
	case tag == tagCoRIM:
		c.corimMap(d)
	case tag == tagCOSESign1 && !inner:
		payload := signedPayload(d)
		if err := d.End(); err != nil {
			return err
		}
		c.Signed = true
		return c.parse(payload, true)
	default:
		return fmt.Errorf("tag %d: want %d (a CoRIM) or %d (a signed one)", tag, tagCoRIM, tagCOSESign1)
	}
	if err := d.End(); err != nil {
		return err
	}
	if c.ID == "" {
		return errors.New("no identifier")
	}
	return nil
}

// signedPayload reads a COSE_Sign1 and returns what it is around.
func signedPayload(d *cbor.Decoder) (payload []byte) {
	items := 0
	d.Array(func(i int) {
		if items++; i == 2 {
			payload = d.Bytes()
			return
		}
		d.Skip()
	})
	if items != 4 {
		d.Fail("a COSE_Sign1 of %d items: want 4", items)
	}
	return payload
}

func (c *CoRIM) corimMap(d *cbor.Decoder) {
	d.Map(func(key int64) bool {
		switch key {
		case 0:
			c.ID = tagID(d)
		case 1:
			d.Array(func(int) { c.tag(d) })
		case 4:
			d.Map(func(key int64) bool {
				switch key {
				case 0:
					c.NotBefore = seconds(d)
				case 1:
					c.NotAfter = seconds(d)
				default:
					return false
				}
				return true
			})
		default:
			return false
		}
		return true
	})
}

func seconds(d *cbor.Decoder) int64 {
	if tag := d.Tag(); tag != tagTime {
		d.Fail("tag %d: want %d, a time in seconds", tag, tagTime)
	}
	return d.Int()
}

// tagID is a text or a UUID.
func tagID(d *cbor.Decoder) string {
	if d.IsBytes() {
		return uuidText(d, d.Bytes())
	}
	return name(d)
}

func uuidText(d *cbor.Decoder, u []byte) string {
	if len(u) != 16 {
		d.Fail("a UUID of %d bytes: want 16", len(u))
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// tag reads one element of tags: a CoMID in a byte string, or something else.
func (c *CoRIM) tag(d *cbor.Decoder) {
	if tag := d.Tag(); tag != tagCoMID {
		c.Others++
		d.Skip()
		return
	}
	in := cbor.NewDecoder(d.Bytes())
	var t CoMID
	in.Map(func(key int64) bool {
		switch key {
		case 1:
			t.identity(in)
		case 4:
			t.triples(in)
		default:
			return false
		}
		return true
	})
	if err := in.End(); err != nil && d.Err() == nil {
		d.Fail("CoMID %d: %w", len(c.Tags), err)
	}
	c.Tags = append(c.Tags, t)
	limit(d, len(c.Tags), maxTags, "tags")
}

func (t *CoMID) identity(d *cbor.Decoder) {
	d.Map(func(key int64) bool {
		switch key {
		case 0:
			t.ID = tagID(d)
		case 1:
			t.Version = d.Int()
		default:
			return false
		}
		return true
	})
}

// triples reads reference triples, key 0 of a triples-map.
func (t *CoMID) triples(d *cbor.Decoder) {
	d.Map(func(key int64) bool {
		if key != 0 {
			return false
		}
		d.Array(func(int) { t.triple(d) })
		return true
	})
}

func (t *CoMID) triple(d *cbor.Decoder) {
	var class Reference
	items := 0
	d.Array(func(i int) {
		switch items++; i {
		case 0:
			class.environment(d)
		case 1:
			d.Array(func(int) {
				r := class
				r.measurement(d)
				t.References = append(t.References, r)
				limit(d, len(t.References), maxReferences, "measurements")
			})
		default:
			d.Skip()
		}
	})
	if items != 2 {
		d.Fail("a reference triple of %d items: want 2", items)
	}
}

func (r *Reference) environment(d *cbor.Decoder) {
	d.Map(func(key int64) bool {
		if key != 0 {
			return false
		}
		d.Map(func(key int64) bool {
			switch key {
			case 1:
				r.Vendor = name(d)
			case 2:
				r.Model = name(d)
			default:
				return false
			}
			return true
		})
		return true
	})
}

func (r *Reference) measurement(d *cbor.Decoder) {
	d.Map(func(key int64) bool {
		switch key {
		case 0:
			r.mkey(d)
		case 1:
			d.Map(func(key int64) bool { return r.value(d, key) })
		default:
			return false
		}
		return true
	})
}

// mkey reads a measured element's type; one that Trustee does not know has no
// name.
func (r *Reference) mkey(d *cbor.Decoder) {
	switch {
	case d.IsText():
		r.MKey = name(d)
	case d.IsInt():
		r.MKey = "claim" + strconv.FormatInt(d.Int(), 10)
	case d.IsTag():
		if d.Tag() != tagUUID {
			d.Skip()
			return
		}
		r.MKey = uuidText(d, d.Bytes())
	default:
		d.Skip()
	}
}

func (r *Reference) value(d *cbor.Decoder, key int64) bool {
	switch key {
	case 2:
		r.Digests = []Digest{}
		d.Array(func(i int) {
			limit(d, i+1, maxDigests, "digests")
			r.Digests = append(r.Digests, digest(d))
		})
	case 4:
		if d.Tag() != tagBytes {
			d.Skip()
			return true
		}
		r.Raw = d.Bytes()
	case 8:
		r.Serial = name(d)
	case 11:
		r.Name = name(d)
	default:
		return false
	}
	return true
}

func digest(d *cbor.Decoder) (out Digest) {
	items := 0
	d.Array(func(i int) {
		switch items++; i {
		case 0:
			out.Algorithm = d.Int()
		case 1:
			out.Value = d.Bytes()
		default:
			d.Skip()
		}
	})
	if items != 2 {
		d.Fail("a digest of %d items: want 2", items)
	}
	if want := digestSize(out.Algorithm); want != 0 && len(out.Value) != want {
		d.Fail("a digest of %d bytes by algorithm %d: want %d", len(out.Value), out.Algorithm, want)
	}
	return out
}
