package builder

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/profiles"
)

// initdataKey is the profile's key, and so what the lock calls the file.
const initdataKey = "initdata"

// putInitdata stores the initdata that a profile names, in its plain form, once
// the guest's platform could be bound to it.
func putInitdata(p *profiles.Profile) func(context.Context, *cas.Store, string) (cas.Ref, error) {
	return func(_ context.Context, st *cas.Store, path string) (cas.Ref, error) {
		raw, err := ReadInitdata(path)
		if err != nil {
			return cas.Ref{}, err
		}
		if _, err := bindInitdata(p.Platform, raw); err != nil {
			return cas.Ref{}, &ValueError{path, err} // Import names the key
		}
		return st.Put(raw)
	}
}

// ReadInitdata reads a document in any form that initdata comes in.
func ReadInitdata(path string) ([]byte, error) {
	raw, _, err := ReadInitdataForm(path)
	return raw, err
}

// ReadInitdataForm says the form, too. Of a block device it reads only what may
// hold the document.
func ReadInitdataForm(path string) ([]byte, initdata.Form, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, initdata.MaxFile))
	if err != nil {
		return nil, "", err
	}
	raw, form, err := initdata.Decode(b)
	if err != nil {
		return nil, "", &ValueError{path, err}
	}
	return raw, form, nil
}

// platforms are what initdata calls those of profiles.
var platforms = map[string]initdata.Platform{
	profiles.PlatformVTPM: initdata.TPM,
	profiles.PlatformSNP:  initdata.SNP,
	profiles.PlatformTDX:  initdata.TDX,
}

// bound is a document and what the evidence of a platform holds of it.
type bound struct {
	*initdata.Document
	*initdata.Binding
}

func bindInitdata(platform string, raw []byte) (b bound, err error) {
	if b.Document, err = initdata.Parse(raw); err != nil {
		return b, err
	}
	b.Binding, err = b.Bind(platforms[platform])
	return b, err
}

// initdata hands the locked document to a prediction, and to the user.
func (w *work) initdata(i *Image) error {
	if w.Profile.Initdata == "" {
		return nil
	}
	r, err := w.file(initdataKey)
	if err != nil {
		return err
	}
	if i.Initdata, err = w.Store.ReadFile(r.Digest); err != nil {
		return err
	}
	w.out[InitdataName] = r
	return nil
}

// giveInitdata adds what evidence of a guest shows that is given i.Initdata, or
// that looks for initdata of which nothing is known.
func (i *Image) giveInitdata(m *measure.Measurements) error {
	looks := i.Profile.Workloads.From == profiles.FromInitdata
	if i.Initdata == nil {
		if looks && i.Profile.Platform == profiles.PlatformVTPM {
			return m.UnknownInitdata(unknownInitdata)
		}
		return nil
	}
	b, err := bindInitdata(i.Profile.Platform, i.Initdata)
	if err != nil {
		return err
	}
	value := hex.EncodeToString(b.Value)
	switch i.Profile.Platform {
	case profiles.PlatformSNP:
		m.SNP.HostData = value
	case profiles.PlatformTDX:
		if said := m.TDX.MRConfigID; said != "" && said != value {
			return &ValueError{"tdx.mr_config_id", fmt.Errorf("%s: the initdata makes it %s", said, value)}
		}
		m.TDX.MRConfigID = value
	default:
		digest, err := b.Extend()
		if err != nil {
			return err
		}
		if looks {
			return m.RequireInitdata(digest)
		}
		return m.ExtendInitdata(digest)
	}
	return nil
}
