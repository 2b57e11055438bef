package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/refvalue"
	"github.com/plinth-os/plinth/profiles"
)

// maxValues bounds a file of values that a user gives, in bytes.
const maxValues = 16 << 20

// Whose launch is measured.
const (
	launchOwn  = "image"
	launchKata = "kata"
)

// addValues defines the flags of every form that holds values.
func (f *exportFlags) addValues(s *pflag.FlagSet) {
	var tees []string
	for _, t := range refvalue.TEEs {
		tees = append(tees, string(t))
	}
	s.StringVar(&f.tee, "tee", "", "kind of guest: "+strings.Join(tees, ", ")+" (default: the image's platform; of a vTPM, tpm)")
	s.StringArrayVar(&f.labels, "label", nil, "name of an image in what is written, one for each DIR in their order (default: the profile's name)")
	s.StringArrayVar(&f.platform, "platform-value", nil, "what no image decides, NAME=VALUE; repeatable, also with one name")
	s.StringArrayVar(&f.platformFiles, "platform-values", nil, "the same from a JSON file, {NAME: VALUE or [VALUES]}; repeatable")
	s.StringVar(&f.phase, "phase", "", "when PCR 11 is read: the phases passed, joined by \":\", or none (default: the last that the agent comes to; of an image with a broker, also the one at which the agent asks for secrets)")
	s.IntSliceVar(&f.pcrs, "pcrs", nil, "registers of the TPM that a policy of one's own asks for, besides PCR 11: 4,8,9,14")
	s.StringArrayVar(&f.aks, "ak", nil, "attestation key of a guest's TPM, which the policy wants to know: public key or certificate, PEM, DER, or base64 as evidence has it; repeatable")
	s.StringVar(&f.expires, "expires", "", "until when the values hold: RFC 3339, or +90d, +12h from now")
	s.StringVar(&f.launch, "launch", launchOwn, "whose launch is measured: image, as it was built to be started, or kata")
	s.BoolVar(&f.check, "check", false, "say what Trustee's default policy will make of the guests; exit 7 when it would not accept them")
	s.StringVar(&f.diff, "diff", "", "say what is new against this message, payload or list of stored values")
}

func (f *exportFlags) addReport(s *pflag.FlagSet) {
	s.StringVar(&f.report, "report", "", "report of a guest (plinth boot DIR --json) that has to be of the image")
}

// A valueSet is what several forms write.
type valueSet struct {
	*refvalue.Set
	dirs   []string
	images []refvalue.Image // as dirs
}

// beside is the path of a file in the image's directory.
func (v *valueSet) beside(name string) string {
	if name == "" {
		return ""
	}
	return filepath.Join(v.dirs[0], name)
}

// values reads the images and makes the set.
func (c *common) values(dirs []string, f *exportFlags) (*valueSet, error) {
	expires, err := parseExpiry(f.expires, c.env.now())
	if err != nil {
		return nil, err
	}
	platform, err := f.platformValues()
	if err != nil {
		return nil, err
	}
	v := &valueSet{dirs: dirs}
	if v.images, err = f.images(dirs); err != nil {
		return nil, err
	}
	tee, err := f.kind(v.images)
	if err == nil {
		err = f.readAKs(tee, platform)
	}
	if err != nil {
		return nil, err
	}
	v.Set, err = refvalue.New(tee, v.images, platform, expires)
	switch {
	case errors.Is(err, refvalue.ErrUnfit), errors.Is(err, refvalue.ErrVolatile), errors.Is(err, refvalue.ErrTrivial):
		return nil, unsupportedError{err}
	case errors.Is(err, refvalue.ErrPlatform):
		return nil, usageError{err}
	}
	return v, err
}

// maxAK bounds the file of a public key or certificate, in bytes.
const maxAK = 64 << 10

// akName is what Trustee's policy calls attestation keys.
const akName = "trusted_aks"

// readAKs adds attestation keys as the evidence of a guest has them: base64 of the
// SubjectPublicKeyInfo.
func (f *exportFlags) readAKs(tee refvalue.TEE, p refvalue.Platform) error {
	if len(f.aks) > 0 && tee != refvalue.TPM {
		return usagef("--ak: the policy wants no attestation key of %s", tee)
	}
	for _, path := range f.aks {
		b, err := readLimited(path, maxAK)
		if err != nil {
			return err
		}
		der, err := parseAK(b)
		if err != nil {
			return usageError{fmt.Errorf("--ak %s: %w", path, err)}
		}
		p[akName] = append(p[akName], base64.StdEncoding.EncodeToString(der))
	}
	return nil
}

// parseAK reads a public key or a certificate, and returns the SubjectPublicKeyInfo.
// Trustee verifies quotes of RSA keys alone: deps/verifier/src/tpm.
func parseAK(b []byte) ([]byte, error) {
	der, err := readPublicKey(b)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if _, ok := key.(*rsa.PublicKey); err == nil && !ok {
		err = fmt.Errorf("%T: want an RSA key: Trustee verifies quotes of no other", key)
	}
	return der, err
}

// images reads the measurements of every directory.
func (f *exportFlags) images(dirs []string) (out []refvalue.Image, err error) {
	if len(f.labels) > 0 && len(f.labels) != len(dirs) {
		return nil, usagef("%d times --label: want one for each of the %d images", len(f.labels), len(dirs))
	}
	names := map[string]int{}
	for _, dir := range dirs {
		i, err := f.image(dir)
		if err != nil {
			return nil, err
		}
		names[i.Label]++
		out = append(out, *i)
	}
	for i := range out {
		switch {
		case len(f.labels) > 0:
			out[i].Label = f.labels[i]
		case names[out[i].Label] > 1: // versions of one profile
			b, err := out[i].Measurements.Marshal()
			if err != nil {
				return nil, err
			}
			out[i].Label += "@" + hexDigest(b)[:12]
		}
		if slices.ContainsFunc(out[:i], func(o refvalue.Image) bool { return o.Label == out[i].Label }) {
			return nil, usagef("%s: the same image, or label, as another: %s", dirs[i], out[i].Label)
		}
	}
	return out, nil
}

// image reads one, and holds it to its manifest and to the evidence named.
func (f *exportFlags) image(dir string) (*refvalue.Image, error) {
	m, ms, err := readPredicted(dir)
	if err != nil {
		return nil, err
	}
	if f.report != "" {
		if err := matchReport(f.report, m, ms); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	}
	switch f.launch {
	case launchOwn:
	case launchKata:
		if ms, err = kataMeasurements(dir, m, ms); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	default:
		return nil, usagef("--launch is %q: want %s or %s", f.launch, launchOwn, launchKata)
	}
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return nil, mismatchError{fmt.Errorf("%s: %w", dir, err)}
	}
	return &refvalue.Image{Label: m.Name, Measurements: ms, Phase: f.phase, Asks: p.HasBroker(), PCRs: f.pcrs}, nil
}

// readPredicted reads manifest.json, and measurements.json if it is the one that
// the manifest names.
func readPredicted(dir string) (*builder.Manifest, *measure.Measurements, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, nil, err
	}
	f, _, err := openListed(dir, m, builder.MeasurementsName)
	if err != nil {
		return nil, nil, err
	}
	f.Close()
	ms, err := readMeasurements(dir)
	return m, ms, err
}

// kind is the TEE of all images.
func (f *exportFlags) kind(images []refvalue.Image) (refvalue.TEE, error) {
	if f.tee != "" {
		tee, err := refvalue.ParseTEE(f.tee)
		if err != nil {
			return "", usageError{fmt.Errorf("--tee: %w", err)}
		}
		return tee, nil
	}
	var first refvalue.TEE
	for _, i := range images {
		tees := refvalue.TEEsOf(i.Measurements)
		switch {
		case len(tees) == 0:
			return "", unsupportedError{fmt.Errorf("%s: %w that a policy reads", i.Label, refvalue.ErrUnfit)}
		case first != "" && tees[0] != first:
			return "", usagef("%s is for %s, and %s for %s: make a set of each", images[0].Label, first, i.Label, tees[0])
		}
		first = tees[0]
	}
	return first, nil
}

// parseExpiry reads a time, or one from now on in days, hours or what
// time.ParseDuration reads.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	var t time.Time
	span, relative := strings.CutPrefix(text, "+")
	days, isDays := strings.CutSuffix(span, "d")
	var err error
	switch {
	case text == "":
		return t, nil
	case relative && isDays:
		var n int
		n, err = strconv.Atoi(days)
		t = now.AddDate(0, 0, n)
	case relative:
		var d time.Duration
		d, err = time.ParseDuration(span)
		t = now.Add(d)
	default:
		t, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return t, usagef("--expires is %q: want a time as 2027-01-31T00:00:00Z, or +90d or +12h", text)
	}
	if t = t.UTC().Truncate(time.Second); !t.After(now) {
		return t, usagef("--expires is %q: it is over already", text)
	}
	return t, nil
}

// platformValues joins those of files and flags.
func (f *exportFlags) platformValues() (refvalue.Platform, error) {
	p := refvalue.Platform{}
	for _, path := range f.platformFiles {
		if err := readPlatform(path, p); err != nil {
			return nil, err
		}
	}
	for _, text := range f.platform {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, usagef("--platform-value is %q: want NAME=VALUE", text)
		}
		v, err := refvalue.ParsePlatformValue(name, value)
		if err != nil {
			return nil, usageError{fmt.Errorf("--platform-value %s: %w", text, err)}
		}
		p[name] = append(p[name], v)
	}
	return p, nil
}

// readPlatform adds the values of a file, which has the form of a payload. A list
// and a scalar are the same here: the policy decides which it is to be.
func readPlatform(path string, p refvalue.Platform) error {
	b, err := readLimited(path, maxValues)
	if err != nil {
		return err
	}
	s, err := refvalue.ParseRVPS(b)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", path, err)}
	}
	for _, v := range s.Values {
		p[v.Name] = append(p[v.Name], v.Any...)
	}
	return nil
}

// readLimited reads a file of at most that many bytes.
func readLimited(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, usagef("%s: more than %d bytes", path, most)
	}
	return b, err
}

// matchReport refuses a report of another image: one with another root file
// system, command line or PCR 11.
func matchReport(path string, m *builder.Manifest, ms *measure.Measurements) error {
	b, err := readLimited(path, evidence.MaxReport)
	if err != nil {
		return err
	}
	r, err := evidence.ParseReport(b)
	if err != nil {
		return mismatchError{fmt.Errorf("%s: %w", path, err)}
	}
	root, err := m.CheckRoot(r)
	if err != nil {
		return err
	}
	if !root.OK {
		return mismatchError{fmt.Errorf("%s: of another image: root is %s, want %s", path, root.Got, root.Want)}
	}
	if !strings.Contains(r.Cmdline, m.Cmdline) {
		return mismatchError{fmt.Errorf("%s: of another image: command line is %q, want %q", path, r.Cmdline, m.Cmdline)}
	}
	if m.Platform != profiles.PlatformVTPM {
		return nil // booted here, it ran under other firmware
	}
	for i := range ms.Values {
		if err := matchRegister(r, &ms.Values[i]); err != nil {
			return mismatchError{fmt.Errorf("%s: of another image: %w", path, err)}
		}
	}
	return nil
}

// matchRegister compares PCR 11, which holds the image and nothing else.
func matchRegister(r *evidence.Report, v *measure.Value) error {
	const register = 11
	if v.Register != fmt.Sprint("pcr", register) || v.Provenance == measure.Volatile {
		return nil
	}
	pcrs := r.Before
	if v.Phase != "" {
		pcrs = r.After
	}
	bank, ok := pcrs[v.Bank]
	if !ok {
		return nil // the TPM has no such bank
	}
	want := v.OneOf
	if want == nil {
		want = []string{v.Value}
	}
	if !slices.Contains(want, bank[register]) {
		return fmt.Errorf("PCR %d of bank %s is %s, want %s", register, v.Bank, bank[register], strings.Join(want, " or "))
	}
	return nil
}
