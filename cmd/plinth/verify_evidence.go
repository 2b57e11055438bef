package main

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/measure"
)

// evidenceFlags are those of "verify --report", "--quote" and "--evidence".
type evidenceFlags struct {
	report, quote, evidence, against string
	now                              string
	certs, crls                      []string
	root                             string
	reportData                       string
	allowDebug                       bool

	product, policy, hostData, minTCB            string
	vmpl, minGuestSVN                            string
	familyID, imageID, idKeyDigest, authorDigest string
	ovmf                                         string

	tcbInfo, qeIdentity                                     string
	acceptTCB                                               []string
	minTEETCB                                               string
	attributes, xfam, configID, owner, ownerConfig, service string

	aks                          []string
	pcrs                         []int
	nonce, initdata, measurement string

	given []string // names of flags that are for one platform alone
}

// maxEvidence bounds a file of evidence or of what vouches for it, in bytes.
const maxEvidence = 1 << 20

// add defines the flags in groups, by the evidence that they are for.
func (f *evidenceFlags) add(cmd *cobra.Command) {
	both := pflag.NewFlagSet("both", pflag.ContinueOnError)
	both.StringVar(&f.against, "against", "", "measurements.json, or a directory with one: what is expected")
	both.StringVar(&f.now, "now", "", "time at which certificates have to be valid, RFC 3339 (default: now)")
	both.StringArrayVar(&f.certs, "certs", nil, "certificates: PEM, DER, the table a guest gets with its report, or a directory of such; repeatable")
	both.StringArrayVar(&f.crls, "crl", nil, "revocation list, DER or PEM; repeatable")
	both.StringVar(&f.root, "root", "", "trust these certificates, PEM, instead of AMD's or Intel's")
	both.StringVar(&f.reportData, "report-data", "", "what the guest was asked to sign, hex, at most 64 bytes; the rest is zeros")
	both.BoolVar(&f.allowDebug, "allow-debug", false, "accept a guest that its host can debug")

	snp := pflag.NewFlagSet("report", pflag.ContinueOnError)
	snp.StringVar(&f.product, "product", "", "product line: "+strings.Join(verify.Lines, ", "))
	snp.StringVar(&f.policy, "policy", "", "guest policy, as 0x30000 (default: that of --against)")
	snp.StringVar(&f.hostData, "host-data", "", "host data, hex, at most 32 bytes; the rest is zeros")
	snp.StringVar(&f.minTCB, "min-tcb", "", "least TCB, as bootloader=4,snp=24,microcode=219")
	snp.StringVar(&f.vmpl, "vmpl", "", "privilege level that asked for the report, 0 to 3")
	snp.StringVar(&f.minGuestSVN, "min-guest-svn", "", "least guest SVN of the ID block")
	snp.StringVar(&f.familyID, "family-id", "", "family ID of the ID block, hex")
	snp.StringVar(&f.imageID, "image-id", "", "image ID of the ID block, hex")
	snp.StringVar(&f.idKeyDigest, "id-key-digest", "", "digest of the key that signed the ID block, hex")
	snp.StringVar(&f.authorDigest, "author-key-digest", "", "digest of the key that signed that key, hex")
	snp.StringVar(&f.ovmf, "ovmf", "", "firmware, to name the host kernels and processors that would give another launch digest (default: firmware.fd beside --against)")

	tdx := pflag.NewFlagSet("quote", pflag.ContinueOnError)
	tdx.StringVar(&f.tcbInfo, "tcb-info", "", "Intel's TCB info of the platform, JSON; its signer is one of --certs")
	tdx.StringVar(&f.qeIdentity, "qe-identity", "", "Intel's identity of the TD quoting enclave, JSON")
	tdx.StringSliceVar(&f.acceptTCB, "accept-tcb", nil, "TCB statuses that are accepted (default: UpToDate)")
	tdx.StringVar(&f.minTEETCB, "min-tee-tcb", "", "least TEE TCB SVN, hex, 16 bytes")
	tdx.StringVar(&f.attributes, "attributes", "", "ATTRIBUTES, as 0x10000000 (default: that of --against)")
	tdx.StringVar(&f.xfam, "xfam", "", "XFAM, as 0x61ae7 (default: that of --against)")
	tdx.StringVar(&f.configID, "mr-config-id", "", "MRCONFIGID, hex (default: that of --against)")
	tdx.StringVar(&f.owner, "mr-owner", "", "MROWNER, hex (default: that of --against)")
	tdx.StringVar(&f.ownerConfig, "mr-owner-config", "", "MROWNERCONFIG, hex (default: that of --against)")
	tdx.StringVar(&f.service, "mr-service-td", "", "MRSERVICETD, hex (default: zeros, no service TD)")

	guest := pflag.NewFlagSet(kindEvidence, pflag.ContinueOnError)
	guest.IntSliceVar(&f.pcrs, "pcrs", nil, "registers of a TPM that have to be as predicted, 4,9,11 (default: all that are predicted)")
	guest.StringArrayVar(&f.aks, "ak", nil, "attestation key of a TPM that is trusted: public key or certificate, PEM, DER, or base64 as evidence has it; repeatable")
	guest.StringVar(&f.nonce, "nonce", "", "nonce that a whole attestation has to answer, as the broker gave it")
	guest.StringVar(&f.initdata, "initdata", "", "initdata that the guest has to have: the document, its annotation or disk")
	guest.StringVar(&f.measurement, "measurement", "", "launch digest or MRTD of Azure's paravisor, hex")

	fl := cmd.Flags()
	fl.StringVar(&f.report, "report", "", "check this SNP attestation report: bytes, hex or base64")
	fl.StringVar(&f.quote, "quote", "", "check this TDX quote: bytes, hex or base64")
	fl.StringVar(&f.evidence, kindEvidence, "", "check this evidence, JSON as a broker is shown it: that of a TEE, or a whole attestation")
	for _, set := range []struct {
		*pflag.FlagSet
		kind, prefix string
	}{{both, "both", "evidence: "}, {snp, kindReport, "report: "}, {tdx, kindQuote, "quote: "}, {guest, kindEvidence, "evidence: "}} {
		set.VisitAll(func(x *pflag.Flag) {
			x.Annotations = map[string][]string{forEvidence: {set.kind}}
			x.Usage = set.prefix + x.Usage
		})
		fl.AddFlagSet(set.FlagSet)
	}
}

// forEvidence annotates a flag with the evidence that it is for: both, or one of the
// kinds.
const forEvidence = "evidence"

// Kinds of evidence, by the flag that names the file. That of a TEE is one of the others
// in another form, or of a TPM.
const (
	kindReport   = "report"
	kindQuote    = "quote"
	kindEvidence = "evidence"
)

// kind tells which of them is given; "" for none.
func (f *evidenceFlags) kind() (kind string, err error) {
	for _, x := range []struct{ kind, path string }{{kindReport, f.report}, {kindQuote, f.quote}, {kindEvidence, f.evidence}} {
		switch {
		case x.path == "":
		case kind != "":
			return "", usagef("--%s and --%s exclude each other", kind, x.kind)
		default:
			kind = x.kind
		}
	}
	return kind, nil
}

// check refuses combinations of flags and arguments that make no sense.
func (f *evidenceFlags) check(cmd *cobra.Command, args []string) error {
	kind, err := f.kind()
	if err != nil {
		return err
	}
	cmd.Flags().Visit(func(x *pflag.Flag) {
		of := x.Annotations[forEvidence]
		switch {
		case err != nil || x.Name == kindReport || x.Name == kindQuote || x.Name == kindEvidence || cmd.InheritedFlags().Lookup(x.Name) != nil:
		case kind == "" && of != nil:
			err = usagef("--%s does not apply: give --report, --quote or --evidence", x.Name)
		case kind == kindEvidence && of != nil:
			if of[0] == kindReport || of[0] == kindQuote {
				f.given = append(f.given, of[0]+" "+x.Name) // whether it applies, the file says
			}
		case kind != "" && (of == nil || of[0] != "both" && of[0] != kind):
			err = usagef("--%s does not apply to --%s", x.Name, kind)
		}
	})
	switch {
	case err != nil:
		return err
	case kind == "":
		return cobra.ExactArgs(1)(cmd, args)
	case len(args) > 0:
		return usagef("an image directory and --%s exclude each other; the directory may be given as --against", kind)
	case f.against == "":
		return usagef("--%s needs --against measurements.json", kind)
	}
	return nil
}

// verifyEvidence checks a report or a quote and prints each check.
func (c *common) verifyEvidence(f *evidenceFlags) error {
	if f.evidence != "" {
		return c.verifyShown(f)
	}
	m, dir, err := f.expected()
	if err != nil {
		return err
	}
	name, run := f.report, f.verifyReport
	if f.quote != "" {
		name, run = f.quote, f.verifyQuote
	}
	now, err := f.time(c.env.now)
	if err != nil {
		return err
	}
	r, err := run(m, now)
	var bad *verify.MalformedError
	switch {
	case errors.As(err, &bad):
		return mismatchError{fmt.Errorf("%s: %w", name, err)}
	case err != nil:
		return err
	}
	if err := c.printVerdicts(name, r); err != nil || r.OK {
		return err
	}
	return mismatchError{&evidenceError{name: name, failures: r.Failures(), hint: f.hint(r, m, dir)}}
}

func (f *evidenceFlags) time(clock func() time.Time) (time.Time, error) {
	if f.now == "" {
		return clock(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, f.now); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--now is %q: want a time as 2026-11-20T12:00:00Z", f.now)
}

// evidenceError is evidence that is not to be believed.
type evidenceError struct {
	name     string
	failures []string
	hint     string
}

func (e *evidenceError) Error() string {
	return fmt.Sprintf("%s: refused: %s", e.name, strings.Join(e.failures, ", "))
}

func (e *evidenceError) Hint() string { return e.hint }

// readBounded reads a file of at most maxEvidence bytes.
func readBounded(path string) ([]byte, error) { return readAtMost(path, maxEvidence) }

func readAtMost(path string, max int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, max+1))
	if err == nil && int64(len(b)) > max {
		err = mismatchError{fmt.Errorf("%s: more than %d bytes", path, max)}
	}
	return b, err
}

// readEvidence reads evidence that may be text.
func readEvidence(path string) ([]byte, error) {
	b, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	if b, err = verify.Decode(b); err != nil {
		return nil, mismatchError{fmt.Errorf("%s: %w", path, err)}
	}
	return b, nil
}

// certificateFiles are the names in a directory that --certs reads.
var certificateFiles = []string{".pem", ".der", ".crt", ".cer"}

func readCertificates(paths []string) (out []*x509.Certificate, err error) {
	for _, path := range paths {
		files := []string{path}
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			if files, err = certificatesIn(path); err != nil {
				return nil, err
			}
		}
		for _, file := range files {
			b, err := readBounded(file)
			if err != nil {
				return nil, err
			}
			certs, err := verify.ParseCertificates(b)
			if err != nil {
				return nil, mismatchError{fmt.Errorf("%s: %w", file, err)}
			}
			out = append(out, certs...)
		}
	}
	return out, nil
}

func certificatesIn(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if slices.Contains(certificateFiles, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	if out == nil {
		return nil, usagef("--certs: %s: no file in it whose name ends in %s", dir, strings.Join(certificateFiles, ", "))
	}
	return out, nil
}

// vouchers are what --certs, --root and --crl name.
type vouchers struct {
	certs, roots []*x509.Certificate
	crls         []*x509.RevocationList
}

func (f *evidenceFlags) vouchers() (v vouchers, err error) {
	if v.certs, err = readCertificates(f.certs); err != nil {
		return v, err
	}
	if f.root != "" {
		if v.roots, err = readCertificates([]string{f.root}); err != nil {
			return v, err
		}
	}
	for _, path := range f.crls {
		b, err := readBounded(path)
		if err != nil {
			return v, err
		}
		crl, err := verify.ParseCRL(b)
		if err != nil {
			return v, mismatchError{fmt.Errorf("%s: %w", path, err)}
		}
		v.crls = append(v.crls, crl)
	}
	return v, nil
}

// hexFlag reads bytes in hex; nil without a flag. With fill, fewer bytes than
// size are the first ones and zeros follow.
func hexFlag(flag, s string, size int, fill bool) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(strings.TrimPrefix(s, "0x"))
	switch {
	case err != nil || len(b) > size || len(b) == 0:
		return nil, usagef("--%s is %q: want %d bytes in hexadecimal", flag, s, size)
	case len(b) < size && !fill:
		return nil, usagef("--%s has %d bytes: want %d", flag, len(b), size)
	}
	return append(b, make([]byte, size-len(b))...), nil
}

// numberFlag reads a number; nil without a flag.
func numberFlag(flag, s string, bits int) (*uint64, error) {
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(s, 0, bits)
	if err != nil {
		return nil, usagef("--%s is %q: want a number of %d bits", flag, s, bits)
	}
	return &n, nil
}

func narrow(n *uint64) *uint32 {
	if n == nil {
		return nil
	}
	v := uint32(*n)
	return &v
}

// verifyReport checks an SNP report.
func (f *evidenceFlags) verifyReport(m *measure.Measurements, now time.Time) (*verify.Result, error) {
	o, err := f.snpOptions(m)
	if err != nil {
		return nil, err
	}
	o.Now = now
	b, err := readEvidence(f.report)
	if err != nil {
		return nil, err
	}
	return verify.SNP(b, *o)
}

func (f *evidenceFlags) snpOptions(m *measure.Measurements) (*verify.SNPOptions, error) {
	v, err := f.vouchers()
	if err != nil {
		return nil, err
	}
	o := &verify.SNPOptions{Certs: v.certs, Roots: v.roots, CRLs: v.crls, Product: f.product, AllowDebug: f.allowDebug}
	if m != nil { // else the document is of the vTPM
		if err := expectSNP(o, m); err != nil {
			return nil, err
		}
	}
	if f.product != "" && !slices.Contains(verify.Lines, f.product) {
		return nil, usagef("--product is %q: want %s", f.product, strings.Join(verify.Lines, ", "))
	}
	if f.minTCB != "" {
		if o.MinTCB, err = verify.ParseFloor(f.minTCB); err != nil {
			return nil, usagef("--min-tcb: %w", err)
		}
	}
	vmpl, err := numberFlag("vmpl", f.vmpl, 2)
	if err != nil {
		return nil, err
	}
	svn, err := numberFlag("min-guest-svn", f.minGuestSVN, 32)
	if err != nil {
		return nil, err
	}
	o.VMPL = narrow(vmpl)
	if svn != nil {
		o.MinGuestSVN = narrow(svn)
	}
	if f.policy != "" {
		if o.Policy, err = numberFlag("policy", f.policy, 64); err != nil {
			return nil, err
		}
	}
	return o, hexFlags(
		hexTarget{"report-data", f.reportData, 64, true, &o.ReportData},
		hexTarget{"host-data", f.hostData, 32, true, &o.HostData},
		hexTarget{"family-id", f.familyID, 16, false, &o.FamilyID},
		hexTarget{"image-id", f.imageID, 16, false, &o.ImageID},
		hexTarget{"id-key-digest", f.idKeyDigest, 48, false, &o.IDKeyDigest},
		hexTarget{"author-key-digest", f.authorDigest, 48, false, &o.AuthorKeyDigest},
	)
}

// hexTarget is a flag and where its bytes go; without the flag, what is there
// stays.
type hexTarget struct {
	flag, text string
	size       int
	fill       bool
	to         *[]byte
}

func hexFlags(targets ...hexTarget) error {
	for _, t := range targets {
		b, err := hexFlag(t.flag, t.text, t.size, t.fill)
		if err != nil {
			return err
		}
		if b != nil {
			*t.to = b
		}
	}
	return nil
}

// verifyQuote checks a TDX quote.
func (f *evidenceFlags) verifyQuote(m *measure.Measurements, now time.Time) (*verify.Result, error) {
	o, err := f.tdxOptions(m)
	if err != nil {
		return nil, err
	}
	o.Now = now
	b, err := readEvidence(f.quote)
	if err != nil {
		return nil, err
	}
	return verify.TDX(b, *o)
}

func (f *evidenceFlags) tdxOptions(m *measure.Measurements) (*verify.TDXOptions, error) {
	v, err := f.vouchers()
	if err != nil {
		return nil, err
	}
	o := &verify.TDXOptions{Certs: v.certs, Roots: v.roots, CRLs: v.crls, AllowDebug: f.allowDebug, AcceptTCB: f.acceptTCB}
	if m != nil { // else the document is of the vTPM
		if err := expectTDX(o, m); err != nil {
			return nil, err
		}
	}
	for _, x := range []struct {
		path string
		to   *[]byte
	}{{f.tcbInfo, &o.TCBInfo}, {f.qeIdentity, &o.QEIdentity}} {
		if x.path == "" {
			continue
		}
		if *x.to, err = readBounded(x.path); err != nil {
			return nil, err
		}
	}
	for _, x := range []struct {
		flag, text string
		to         **uint64
	}{{"attributes", f.attributes, &o.Attributes}, {"xfam", f.xfam, &o.XFAM}} {
		n, err := numberFlag(x.flag, x.text, 64)
		if err != nil {
			return nil, err
		}
		if n != nil {
			*x.to = n
		}
	}
	return o, hexFlags(
		hexTarget{"report-data", f.reportData, 64, true, &o.ReportData},
		hexTarget{"min-tee-tcb", f.minTEETCB, 16, false, &o.MinTEETCB},
		hexTarget{"mr-config-id", f.configID, 48, false, &o.MRConfigID},
		hexTarget{"mr-owner", f.owner, 48, false, &o.MROwner},
		hexTarget{"mr-owner-config", f.ownerConfig, 48, false, &o.MROwnerConfig},
		hexTarget{"mr-service-td", f.service, 48, false, &o.MRServiceTD},
	)
}
