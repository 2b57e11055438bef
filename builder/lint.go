package builder

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/uki"
)

// Severities of findings. An error is a hole in what the image promises, or an
// image that will not run; a warning is something to have a reason for; a notice
// is something to know, and never counts.
const (
	LintError   = "error"
	LintWarning = "warning"
	LintNotice  = "notice"
)

// A Finding is something about an image that its owner should know before it
// is given secrets.
type Finding struct {
	Severity string `json:"severity"`
	ID       string `json:"id"` // the rule's
	What     string `json:"what"`
	Where    string `json:"where"` // a file of the image, a key of the profile, a kernel argument
	Do       string `json:"do"`
}

// An Unchecked rule is one that had not enough to look at. It has not passed.
type Unchecked struct {
	ID  string `json:"id"`
	Why string `json:"why"`
}

// LintReport is what the rules say, in their order.
type LintReport struct {
	Findings   []Finding   `json:"findings"`
	NotChecked []Unchecked `json:"not_checked"`
	LeftOut    []string    `json:"left_out"` // rules that the caller did not want
}

// Count returns the number of findings of a severity.
func (r *LintReport) Count(severity string) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == severity {
			n++
		}
	}
	return n
}

// A lintRule looks at an image, or at a profile before there is one. Its check
// returns nil for nothing found, and an *uncheckedError where it cannot tell.
type lintRule struct {
	id       string
	severity string
	does     string // for people: what the rule looks for
	check    func(*lintImage) ([]lintFound, error)
}

type lintFound struct{ what, where, do string }

// lintRules are all rules, those that void an attestation first.
var lintRules = []lintRule{
	{"firmware-only", LintError, "an SNP guest started from a disk: the launch digest covers its firmware and nothing else", firmwareOnly},
	{"kernel-hashes", LintError, "SNP firmware without an area for the digests of kernel, initrd and command line", kernelHashes},
	{"firmware-platform", LintError, "firmware that cannot start a guest of the platform", firmwarePlatform},
	{"foreign-keys", LintError, "firmware that enforces Secure Boot with keys which did not sign the image", foreignKeys},
	{"debug-policy", LintError, "a guest policy or TD attributes that let the host read the guest's memory", debugPolicy},
	{"debug", LintError, "an agent that goes on after a failed check", debugAgent},
	{"shell", LintError, "a shell on the console", shellAgent},
	{"test-keys", LintError, "keys for tests, open in the image", testKeys},
	{"sample-tee", LintError, "evidence that proves nothing", sampleTEE},
	{"plain-broker", LintError, "a broker that is asked without TLS", plainBroker},
	{"no-broker", LintError, "secrets that nobody gives", noBroker},
	{"workload-unmeasured", LintError, "images by tag in a guest without a register that would show them", workloadUnmeasured},
	{"console", LintError, "a console that the host reads, on the measured command line", hostConsole},
	{"outside-code", LintError, "a kernel argument that runs or reads what the image does not hold", outsideCode},
	{"weakened", LintError, "a kernel argument that turns a protection off", weakened},
	{"guest-drivers", LintError, "a kernel that cannot ask the hardware for a report", guestDrivers},
	{"cloud-drivers", LintError, "an image in the form of a cloud, without the drivers of its disks and network", cloudDrivers},
	{"cmdline-override", LintWarning, "an unsigned image whose command line the host can replace", cmdlineOverride},
	{"acpi-code", LintWarning, "a kernel that runs the host's ACPI code unconfined", acpiCode},
	{"hardening", LintWarning, "a kernel argument of the stock profiles that is missing", hardening},
	{"fw-cfg", LintWarning, "the host's fw_cfg files, unmeasured, in the guest's sysfs", fwCfg},
	{"workload-unsigned", LintWarning, "container images that nobody signed", unsignedAdmitted},
	{"workload-console", LintWarning, "containers whose output the host reads", workloadConsole},
	{"workload-exec", LintWarning, "containers into which programs of the guest may run others", workloadExec},
	{"granted-key", LintWarning, "containers that get the private key of the guest's attestation", grantedKey},
	{"granted-evidence", LintWarning, "containers that can attest as the guest", grantedEvidence},
	{"wide-grant", LintWarning, "containers that may have secrets of the guest's own, or all of them", wideGrant},
	{"initdata-broker", LintWarning, "a broker that who starts the guest chooses", initdataBroker},
	{"resettable-pcr", LintWarning, "workloads measured into a register that the guest can reset", resettablePCR},
	{"cloud-console", LintWarning, "a cloud's serial console, which its operator reads", cloudConsole},
	{"volume-integrity", LintNotice, "encrypted disks that the host can change unseen", volumeIntegrity},
	{"no-console", LintNotice, "an image for a cloud that says nothing on the serial console", noConsole},
	{"cloud-firmware", LintNotice, "an image for a cloud, whose firmware fills registers that were predicted for another", cloudFirmware},
}

// LintRules returns the rules as pairs of name and purpose, for help texts.
func LintRules() (out [][2]string) {
	for _, r := range lintRules {
		out = append(out, [2]string{r.id, r.does})
	}
	return out
}

// uncheckedError is a rule's reason for saying nothing.
type uncheckedError struct{ why string }

func (e *uncheckedError) Error() string { return e.why }

func uncheckedf(format string, a ...any) error { return &uncheckedError{fmt.Sprintf(format, a...)} }

// Lint applies every rule but those named in skip. m and files are the manifest and
// the directory of the image; without m the profile alone is looked at, and the
// rules that need more are listed as not checked. A file that is not the one
// that the manifest names is a *LintDamage.
func Lint(p *profiles.Profile, m *Manifest, files fs.FS, skip []string) (*LintReport, error) {
	i := &lintImage{Profile: p, manifest: m, files: files, read: map[string][]byte{}}
	rep := &LintReport{Findings: []Finding{}, NotChecked: []Unchecked{}, LeftOut: []string{}}
	for _, r := range lintRules {
		if slices.Contains(skip, r.id) {
			rep.LeftOut = append(rep.LeftOut, r.id)
			continue
		}
		found, err := r.check(i)
		var unchecked *uncheckedError
		switch {
		case errors.As(err, &unchecked):
			rep.NotChecked = append(rep.NotChecked, Unchecked{r.id, unchecked.why})
		case err != nil:
			return nil, err
		}
		for _, f := range found {
			rep.Findings = append(rep.Findings, Finding{r.severity, r.id, f.what, f.where, f.do})
		}
	}
	return rep, nil
}

// A LintDamage is returned for a file that is not what the manifest says.
type LintDamage struct {
	File      string
	Got, Want cas.Digest
}

func (e *LintDamage) Error() string {
	return fmt.Sprintf("%s: sha256 is %s, %s says %s", e.File, e.Got, "manifest.json", e.Want)
}

// lintImage is what the rules look at. Files are read when a rule asks.
type lintImage struct {
	*profiles.Profile
	manifest *Manifest
	files    fs.FS
	read     map[string][]byte

	facts *kernelText
}

// errNoImage is for rules that a profile alone cannot answer.
var errNoImage = uncheckedf("there is no image yet: build it, and lint its directory")

// maxLintFile bounds what is read into memory, in bytes.
const maxLintFile = 1 << 30

// file returns an artefact, compared with the manifest.
func (i *lintImage) file(name string) ([]byte, error) {
	if b, ok := i.read[name]; ok {
		return b, nil
	}
	a, ok := i.artefact(name)
	switch {
	case i.manifest == nil:
		return nil, errNoImage
	case !ok:
		return nil, uncheckedf("the image has no %s", name)
	case a.Size > maxLintFile:
		return nil, uncheckedf("%s: %d bytes are too many", name, a.Size)
	}
	b, err := fs.ReadFile(i.files, name)
	if err != nil {
		return nil, err
	}
	if got := cas.Sum(b); got != a.Digest {
		return nil, &LintDamage{name, got, a.Digest}
	}
	i.read[name] = b
	return b, nil
}

func (i *lintImage) artefact(name string) (Artefact, bool) {
	if i.manifest != nil {
		for _, a := range i.manifest.Artefacts {
			if a.Name == name && a.Size > 0 {
				return a, true
			}
		}
	}
	return Artefact{}, false
}

// commandLine is the measured one.
func (i *lintImage) commandLine() string {
	if i.manifest != nil {
		return i.manifest.Cmdline
	}
	return strings.Join(i.Cmdline, " ")
}

// metadata is the firmware's.
func (i *lintImage) metadata() (*ovmf.Metadata, error) {
	b, err := i.file("firmware.fd")
	if err != nil {
		return nil, err
	}
	m, err := ovmf.ReadMetadata(b)
	if err != nil {
		return nil, fmt.Errorf("firmware.fd: %w", err)
	}
	return m, nil
}

// direct tells whether kernel, or UKI, and command line are QEMU's.
func (i *lintImage) direct() bool { return i.Machine.BootPath() != profiles.PathDisk }

// started is the EFI program that the firmware is to start.
func (i *lintImage) started() string {
	if i.Machine.BootPath() == profiles.PathKernel {
		return "vmlinuz"
	}
	return "image.efi"
}

func firmwareOnly(i *lintImage) ([]lintFound, error) {
	if i.Platform != profiles.PlatformSNP || i.direct() {
		return nil, nil
	}
	return []lintFound{{
		"nothing but the firmware is measured: SNP has no registers for what a firmware loads, so a report of this guest says nothing of kernel, initrd, command line or disk",
		"machine.path",
		`set machine.path = "kernel" or "uki", with firmware that takes kernel hashes: then the launch digest covers them`,
	}}, nil
}

func kernelHashes(i *lintImage) ([]lintFound, error) {
	if i.Platform != profiles.PlatformSNP || !i.direct() {
		return nil, nil
	}
	m, err := i.metadata()
	if err != nil || m.HasSEV(ovmf.SEVKernelHashes) && m.Hashes != nil {
		return nil, err
	}
	return []lintFound{{
		"the firmware has no page for the digests of kernel, initrd and command line: the host can replace all three and the launch digest stays",
		"firmware.fd",
		"take the AmdSev build of OVMF (package ovmf-amdsev), or a build with a kernel-hashes section",
	}}, nil
}

func firmwarePlatform(i *lintImage) ([]lintFound, error) {
	if i.Platform == profiles.PlatformVTPM {
		return nil, nil
	}
	m, err := i.metadata()
	if err != nil {
		return nil, err
	}
	if i.Platform == profiles.PlatformSNP && m.SEV == nil {
		return []lintFound{{"the firmware has no SEV metadata: no SNP guest starts with it", "firmware.fd", "take a build of OVMF for SEV (package ovmf-amdsev)"}}, nil
	}
	if i.Platform == profiles.PlatformTDX && m.TDX == nil {
		return []lintFound{{"the firmware has no TDX metadata: no trust domain starts with it", "firmware.fd", "take a build of OVMF for TDX (package ovmf-inteltdx)"}}, nil
	}
	return nil, nil
}

func foreignKeys(i *lintImage) ([]lintFound, error) {
	db, enforced, err := i.secureBoot()
	if err != nil || !enforced {
		return nil, err
	}
	b, err := i.file(i.started())
	if err != nil {
		return nil, err
	}
	info, err := uki.Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.started(), err)
	}
	if db.admits(info) {
		return nil, nil
	}
	what := "the firmware checks signatures, and " + i.started() + " has none: it will not start"
	if len(info.Signers) > 0 {
		what = "the firmware checks signatures, and none of those of " + i.started() + " is by a certificate in db: it will not start, unless one in db has issued them"
	}
	return []lintFound{{what, i.varsFile(), "sign the image and enroll its certificate ([secure_boot] key, cert, enroll), or set secure_boot.setup_mode"}}, nil
}

// varsFile is where the firmware keeps its variables.
func (i *lintImage) varsFile() string {
	if _, ok := i.artefact("firmware.vars.fd"); ok {
		return "firmware.vars.fd"
	}
	return "firmware.fd"
}

// admitted is what db lets the firmware start: SHA-256, in hexadecimal, of
// certificates and of images.
type admitted map[string]bool

func (d admitted) admits(i *uki.Info) bool {
	for _, s := range i.Signers {
		if d[s.SHA256] {
			return true
		}
	}
	return d[i.Authenticode.SHA256]
}

var secureBootEnable = mustGUID("f0a30bc7-af08-4556-99c4-001009c93a44")

var mustGUID = ovmf.MustGUID

// secureBoot tells whether the firmware will check what it starts, and reads db.
func (i *lintImage) secureBoot() (db admitted, enforced bool, err error) {
	b, err := i.file(i.varsFile())
	if err != nil {
		return nil, false, err
	}
	store, err := ovmf.ParseVars(b)
	if errors.Is(err, ovmf.ErrNoStore) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", i.varsFile(), err)
	}
	_, _, owned := store.Get("PK", ovmf.GlobalVariable)
	enable, _, set := store.Get("SecureBootEnable", secureBootEnable)
	if !owned || set && !bytes.Equal(enable, []byte{1}) {
		return nil, false, nil
	}
	code, err := i.file("firmware.fd")
	if err != nil {
		return nil, false, err
	}
	if f, err := ovmf.Parse(code); err == nil && !f.SecureBoot {
		return nil, false, nil // a build that checks nothing, whatever its variables say
	}
	data, _, _ := store.Get("db", ovmf.ImageSecurity)
	lists, err := ovmf.ParseSignatureLists(data)
	if err != nil {
		return nil, false, fmt.Errorf("%s: db: %w", i.varsFile(), err)
	}
	db = admitted{}
	for _, l := range lists {
		for _, s := range l.Signatures {
			switch l.Type {
			case ovmf.CertX509:
				db[fmt.Sprintf("%x", sha256.Sum256(s.Data))] = true
			case ovmf.CertSHA256:
				db[fmt.Sprintf("%x", s.Data)] = true
			}
		}
	}
	return db, true, nil
}

// Bits that open a guest's memory to its host: SEV-SNP ABI (AMD 56860), guest
// policy, DEBUG; Intel TDX module ABI, ATTRIBUTES, DEBUG.
const (
	snpPolicyDebug    = 1 << 19
	tdAttributesDebug = 1 << 0
)

func debugPolicy(i *lintImage) ([]lintFound, error) {
	for _, row := range []struct {
		key, value string
		bit        uint64
	}{
		{"snp.policy", i.SNP.Policy, snpPolicyDebug},
		{"tdx.attributes", i.TDX.Attributes, tdAttributesDebug},
	} {
		v, err := strconv.ParseUint(row.value, 0, 64)
		if err == nil && v&row.bit != 0 {
			return []lintFound{{"the host may read and write the guest's memory", row.key, fmt.Sprintf("clear bit %#x: %#x", row.bit, v&^row.bit)}}, nil
		}
	}
	return nil, nil
}

func debugAgent(i *lintImage) ([]lintFound, error) {
	if !i.Agent.Debug {
		return nil, nil
	}
	return []lintFound{{"the agent goes on after a failed check, with a command line or files that nobody measured", "agent.debug", "set agent.debug = false for a guest with secrets"}}, nil
}

func shellAgent(i *lintImage) ([]lintFound, error) {
	if !i.Agent.Shell {
		return nil, nil
	}
	return []lintFound{{"whoever has the console, which is the host, has root in the guest", "agent.shell", "set agent.shell = false"}}, nil
}

func cmdlineOverride(i *lintImage) ([]lintFound, error) {
	if i.Platform == profiles.PlatformSNP || i.Machine.BootPath() == profiles.PathKernel {
		return nil, nil // covered by the launch digest; or the command line is QEMU's anyway
	}
	enforced := i.SecureBoot.Enroll
	if i.manifest != nil {
		var err error
		if _, enforced, err = i.secureBoot(); err != nil {
			return nil, err
		}
	}
	if enforced {
		return nil, nil
	}
	shows := "PCR 9 and 12 show it"
	if i.Platform == profiles.PlatformTDX {
		shows = "RTMR 2 shows it"
	}
	refuses := ", and the agent powers off"
	if i.Agent.Debug {
		refuses = ", but an agent with agent.debug goes on"
	}
	return []lintFound{{
		"Secure Boot is off, so the host can pass a command line that takes the place of the image's .cmdline; " + shows + refuses,
		"image.efi .cmdline",
		"sign the image and enroll its certificate ([secure_boot] key, cert, enroll), or have every verifier demand the predicted value of that register",
	}}, nil
}

func fwCfg(i *lintImage) ([]lintFound, error) {
	if !i.Agent.FWCfg {
		return nil, nil
	}
	return []lintFound{{"the guest loads qemu_fw_cfg: files that the host chooses and nothing measures appear in /sys/firmware/qemu_fw_cfg", "agent.fw_cfg", "set agent.fw_cfg = false, or trust nothing from there"}}, nil
}
