package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

func newOCIImage(c *common) *cobra.Command {
	return group(&cobra.Command{
		Use:   "image",
		Short: "Look at and pull container images as a guest would",
	}, newImageInspect(c), newImageExplain(c), newImagePull(c), newImageVerify(c),
		newImageList(c), newImageRemove(c), newImagePrune(c), newImageEncrypt(c))
}

// pullFlags say where images come from.
type pullFlags struct {
	conf, lookaside, auth, ca, platform string
}

func (f *pullFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.conf, "registries-conf", "", "registries.conf, version 2: mirrors, blocked and insecure registries")
	fl.StringVar(&f.lookaside, "registries-d", "", "directory of YAML files that say where signatures lie")
	fl.StringVar(&f.auth, "authfile", "", "credentials: auth.json, or config.json of Docker")
	fl.StringVar(&f.ca, "ca", "", "certificates in PEM that registries are trusted by (default: the system's)")
	fl.StringVar(&f.platform, "platform", "linux/"+runtime.GOARCH, "which image of an index")
}

// judgeFlags say which images are taken.
type judgeFlags struct {
	policy string
	admit  []string
}

func (f *judgeFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.policy, "policy", "", "policy.json")
	fl.StringSliceVar(&f.admit, "admit", nil, "kinds of images that are taken at all: encrypted+signed, encrypted+unsigned, plain+signed, plain+unsigned (default: the signed ones)")
}

// apply gives the puller what decides.
func (f *judgeFlags) apply(p *imagepull.Puller, now time.Time) error {
	if f.policy == "" {
		return usagef("--policy is needed: without one everything is rejected")
	}
	b, err := os.ReadFile(f.policy)
	if err != nil {
		return err
	}
	if p.Policy, err = policy.Parse(b); err != nil {
		return usagef("%s: %w", f.policy, err)
	}
	if p.Admit, err = imagepull.ParseAdmit(f.admit); err != nil {
		return usageError{err}
	}
	p.Trust = policy.Trust{ReadFile: os.ReadFile, Now: now}
	return nil
}

func newImageInspect(c *common) *cobra.Command {
	f := &pullFlags{}
	cmd := &cobra.Command{
		Use:     "inspect REF",
		Short:   "Print what an image consists of",
		Long:    "Fetches the manifest that REF leads to and prints its digest and layers. No policy is asked.",
		Example: "  plinth image inspect docker://registry.example.com/app:1",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, a []string) error { return c.imageInspect(cmd.Context(), f, a[0]) },
	}
	f.add(cmd)
	return cmd
}

func newImageExplain(c *common) *cobra.Command {
	f, j := &pullFlags{}, &judgeFlags{}
	cmd := &cobra.Command{
		Use:   "explain REF --policy FILE",
		Short: "Say whether a policy admits an image, and why",
		Long: `Fetches the manifest and the signatures of REF, judges it by FILE, a policy.json as
containers-policy.json(5) describes it, and prints which scope matched, which key met
which requirement, and what was not met. Of an index, a signature of the index will
do, or one of the platform's manifest. Ends with exit code 7 where the image is
rejected.`,
		Example: "  plinth image explain docker://registry.example.com/app:1 --policy policy.json --registries-d /etc/containers/registries.d",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, a []string) error { return c.imageExplain(cmd.Context(), f, j, a[0]) },
	}
	f.add(cmd)
	j.add(cmd)
	return cmd
}

func (c *common) imageInspect(ctx context.Context, f *pullFlags, ref string) error {
	p, n, err := f.puller(ref)
	if err != nil {
		return err
	}
	im, err := p.Inspect(ctx, n)
	if err != nil {
		return err
	}
	return c.printOCIImage(im)
}

func (c *common) imageExplain(ctx context.Context, f *pullFlags, j *judgeFlags, ref string) error {
	p, n, err := f.puller(ref)
	if err != nil {
		return err
	}
	if err := j.apply(p, c.env.now()); err != nil {
		return err
	}
	im, err := p.Explain(ctx, n)
	if err != nil {
		return err
	}
	if err := c.printOCIImage(im); err != nil {
		return err
	}
	if err := im.Err(); err != nil {
		return mismatchError{fmt.Errorf("%s: %w", n, err)}
	}
	return nil
}

// puller reads the files that the flags name.
func (f *pullFlags) puller(ref string) (*imagepull.Puller, policy.Name, error) {
	n, err := policy.ParseName(absolute(ref))
	if err != nil {
		return nil, n, usageError{err}
	}
	system, arch, ok := strings.Cut(f.platform, "/")
	if !ok {
		return nil, n, usagef("--platform %q: want linux/amd64", f.platform)
	}
	client := &registry.Client{Proxy: http.ProxyFromEnvironment, UserAgent: "plinth"}
	p := &imagepull.Puller{Registry: client, Platform: v1.Platform{OS: system, Architecture: arch}}
	for _, read := range []struct {
		path string
		into func([]byte) error
	}{
		{f.conf, func(b []byte) (err error) { client.Config, err = registry.ParseConfig(b); return err }},
		{f.auth, func(b []byte) (err error) { client.Auth, err = registry.ParseAuthFile(b); return err }},
		{f.ca, func(b []byte) (err error) { client.Roots, err = readRoots(b); return err }},
	} {
		if read.path == "" {
			continue
		}
		b, err := os.ReadFile(read.path)
		if err != nil {
			return nil, n, err
		}
		if err := read.into(b); err != nil {
			return nil, n, usagef("%s: %w", read.path, err)
		}
	}
	p.Lookaside, err = f.readLookaside()
	return p, n, err
}

func readRoots(b []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("no certificate in PEM")
	}
	return pool, nil
}

func (f *pullFlags) readLookaside() (*imagepull.Lookaside, error) {
	if f.lookaside == "" {
		return nil, nil
	}
	names, err := filepath.Glob(filepath.Join(f.lookaside, "*.yaml"))
	if err != nil {
		return nil, usageError{err}
	}
	if len(names) == 0 {
		return nil, usagef("--registries-d %s: no file *.yaml", f.lookaside)
	}
	var files [][]byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		files = append(files, b)
	}
	l, err := imagepull.ParseLookaside(files...)
	if err != nil {
		return nil, usagef("%s: %w", f.lookaside, err)
	}
	return l, nil
}

func (c *common) printOCIImage(im *imagepull.Image) error {
	if c.json {
		return printJSON(c.env.stdout, im)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", im.Name)
	if im.Index != "" {
		fmt.Fprintf(&b, "  index     %s\n", im.Index)
	}
	fmt.Fprintf(&b, "  manifest  %s  %s\n  config    %s\n", im.Digest, im.Platform, im.Config.Digest)
	for _, l := range im.Layers {
		fmt.Fprintf(&b, "  layer     %s  %d bytes, %s\n", l.Digest, l.Size, l.MediaType)
	}
	if v := im.Verdict; v != nil {
		printVerdict(&b, im)
	}
	_, err := io.WriteString(c.env.stdout, b.String())
	return err
}

func printVerdict(w io.Writer, im *imagepull.Image) {
	v, rule := im.Verdict, "default"
	if v.Transport != "" {
		rule = fmt.Sprintf("%s %q", v.Transport, v.Scope)
	}
	fmt.Fprintf(w, "  judged    %s\n  scope     %s\n", im.Judged, rule)
	for _, o := range v.Requirements {
		if o.Accepted {
			fmt.Fprintf(w, "  met       %s  %s  %s\n", o.Type, o.By, o.Key)
		} else {
			fmt.Fprintf(w, "  not met   %s: %s\n", o.Type, o.Why)
		}
	}
	verdict := "accepted"
	switch err := im.Err(); {
	case !v.Accepted:
		verdict = "rejected"
	case err != nil:
		verdict = "rejected: " + err.Error()
	}
	fmt.Fprintf(w, "  kind      %s\n  %s\n", im.Kind, verdict)
}
