package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

const verifyLong = `With DIR, checks every artefact in it against SHA256SUMS and manifest.json; with
--rebuild, builds the image once more in an empty step store, from the profile
and the lock that the manifest carries, and compares every byte.

With --report or --quote, checks evidence of a guest: an SNP attestation report,
alone or with the certificates behind it, or a TDX quote. The chain of signatures
has to reach AMD's or Intel's root, which this program brings, and the values have
to be those of --against. Nothing is fetched: the VCEK or VLEK is given with
--certs, or behind the report; the PCK certificates are in the quote; collateral
and revocation lists are files, if there are any.

Each check is printed with what was found and what was wanted. One that could not
be made is "not checked", with the reason. The evidence is refused, with exit code
7, when a check failed, and when chain, signature, debugging, launch digest, or
MRTD, RTMR 1 and RTMR 2 could not be checked. A report or quote without
--report-data may be an old one.

With --evidence, checks what a broker is shown, JSON: the evidence of a TPM, an SNP
guest, a trust domain or a guest of Azure, alone or in a whole attestation with the
nonce, key and initdata that it is bound to. Of a TPM, the quote has to be signed by
--ak, the event log has to lead to each register, and each register has to be as
--against predicts it: PCR 11 in any boot phase, PCR 14 with all workloads or
none, PCR 8 with the initdata of --initdata or of the image's profile. What came
with the evidence is the host's and counts for nothing. A register that differs is
named with the event.`

const verifyExample = `  plinth verify out/vtpm --rebuild
  plinth verify --report report.bin --certs vcek.pem --against out/snp --report-data "$NONCE"
  plinth verify --report report.bin --certs /etc/snp --against measurements.json --policy 0x30000 --min-tcb snp=24,microcode=219
  plinth verify --quote quote.bin --against out/tdx --tcb-info tcb.json --qe-identity qe.json --certs tcb-signing.pem --json
  plinth verify --evidence attestation.json --against out/vtpm --ak ak.pem --nonce "$NONCE" --initdata initdata.toml`

func newVerify(c *common) *cobra.Command {
	var rebuild bool
	f := &evidenceFlags{}
	cmd := &cobra.Command{
		Use:     "verify DIR | --report FILE --against MEASUREMENTS | --quote FILE --against MEASUREMENTS | --evidence FILE --against MEASUREMENTS",
		Short:   "Check an image directory, or a report, quote or other evidence of a guest, offline",
		Long:    verifyLong,
		Example: verifyExample,
		Args:    f.check,
		RunE: func(cmd *cobra.Command, a []string) error {
			if len(a) == 0 {
				return c.verifyEvidence(f)
			}
			if err := verifyDir(a[0]); err != nil {
				return err
			}
			if rebuild {
				if err := c.rebuild(cmd.Context(), a[0]); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintf(c.env.stdout, "%s: ok\n", a[0])
			return err
		},
	}
	c.profileFlags(cmd)
	cmd.Flags().BoolVar(&rebuild, "rebuild", false, "build again from the manifest's inputs and compare")
	f.add(cmd)
	return cmd
}

// readManifest reads DIR/manifest.json.
func readManifest(dir string) (*builder.Manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, export.ManifestName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, usagef("%s: %w: no %s in it", dir, errNotImage, export.ManifestName)
	}
	if err != nil {
		return nil, err
	}
	m, err := builder.ParseManifest(b)
	if err != nil {
		return nil, mismatchError{fmt.Errorf("%s: %w", filepath.Join(dir, export.ManifestName), err)}
	}
	return m, nil
}

// readSums reads DIR/SHA256SUMS: digests by name.
func readSums(dir string) (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, export.SumsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, mismatchError{fmt.Errorf("%s: no %s: the build did not finish", dir, export.SumsName)}
	}
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		digest, name, ok := strings.Cut(s.Text(), "  ")
		if !ok || name != filepath.Base(name) {
			return nil, mismatchError{fmt.Errorf("%s/%s: malformed line %q", dir, export.SumsName, s.Text())}
		}
		sums[name] = digest
	}
	return sums, s.Err()
}

// verifyDir checks the files of a directory against both lists of digests.
func verifyDir(dir string) error {
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	sums, err := readSums(dir)
	if err != nil {
		return err
	}
	var bad []error
	for _, a := range m.Artefacts {
		if sums[a.Name] != a.Digest.String() {
			bad = append(bad, fmt.Errorf("%s: %s says %s, %s says %s", a.Name, export.SumsName, orNone(sums[a.Name]), export.ManifestName, a.Digest))
		}
	}
	for name, want := range sums {
		got, err := fileDigest(filepath.Join(dir, name))
		switch {
		case err != nil:
			bad = append(bad, err)
		case got != want:
			bad = append(bad, fmt.Errorf("%s: sha256 is %s, want %s", filepath.Join(dir, name), got, want))
		}
	}
	if len(bad) > 0 {
		return mismatchError{errors.Join(bad...)}
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// rebuild runs the pipeline on the manifest's inputs with no step result to
// lean on; fetched packages are taken from the store, for their digests are
// pinned by the lock.
func (c *common) rebuild(ctx context.Context, dir string) error {
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return mismatchError{fmt.Errorf("%s: profile: %w", filepath.Join(dir, export.ManifestName), err)}
	}
	tmp, err := os.MkdirTemp("", "plinth-rebuild-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fresh, err := cas.Open(filepath.Join(tmp, "store"))
	if err != nil {
		return err
	}
	if err := c.lend(ctx, m, fresh); err != nil {
		return err
	}
	again, err := c.buildAgain(ctx, m, p, fresh)
	if err != nil {
		return err
	}
	return compareArtefacts(m, again)
}

// buildAgain builds what m describes, in the store st.
func (c *common) buildAgain(ctx context.Context, m *builder.Manifest, p *profiles.Profile, st *cas.Store) (*builder.Manifest, error) {
	r, err := c.newReporter()
	if err != nil {
		return nil, err
	}
	w, err := c.workplace(p, st, r)
	if err != nil {
		return nil, err
	}
	g, err := c.guest(ctx, st, p)
	if err != nil {
		return nil, err
	}
	if g != m.Guest {
		return nil, mismatchError{fmt.Errorf("the image was built with agent %s, this plinth brings %s; use the plinth that %s names", m.Guest.Agent.Digest.Short(), g.Agent.Digest.Short(), export.ProvenanceName)}
	}
	spec := &builder.Spec{Profile: p, Lock: m.Lock, Guest: g, Records: []byte(m.Records)}
	return builder.Build(ctx, spec, builder.Options{Store: st, Workplace: w, Jobs: c.jobs, Progress: r.event})
}

// lend copies the inputs that the user's store holds into another store.
func (c *common) lend(ctx context.Context, m *builder.Manifest, to *cas.Store) error {
	from, err := c.store()
	if err != nil {
		return err
	}
	var refs []cas.Ref
	for _, p := range m.Lock.Packages {
		refs = append(refs, p.Ref())
	}
	for _, f := range m.Lock.Files {
		refs = append(refs, cas.Ref{Digest: f.SHA256, Size: f.Size})
	}
	for _, r := range refs {
		if !from.Holds(r) {
			continue // fetched again, or reported as missing by the step that needs it
		}
		f, err := from.Open(r)
		if err != nil {
			return err
		}
		_, err = to.PutReader(ctx, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func compareArtefacts(want, got *builder.Manifest) error {
	have := map[string]cas.Ref{}
	for _, a := range got.Artefacts {
		have[a.Name] = a.Ref
	}
	var bad []error
	for _, a := range want.Artefacts {
		if have[a.Name] != a.Ref {
			bad = append(bad, fmt.Errorf("%s: built again it has sha256 %s, want %s", a.Name, have[a.Name].Digest, a.Digest))
		}
	}
	if len(bad) > 0 {
		return mismatchError{errors.Join(bad...)}
	}
	return nil
}
