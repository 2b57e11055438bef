package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/plinth-os/plinth/builder/export"
)

// maxSecret bounds a token, certificate or PIN that a user gives, in bytes.
const maxSecret = 1 << 20

// trusteeFlags are for the broker.
type trusteeFlags struct {
	url, tokenFile, ca               string
	adminKey, role, issuer, audience string
	timeout                          time.Duration
	dryRun, plain                    bool
}

func (f *trusteeFlags) addTrustee(s *pflag.FlagSet) {
	s.StringVar(&f.url, "url", "", "root of the broker, https://HOST:PORT (PLINTH_KBS_URL)")
	s.StringVar(&f.tokenFile, "token-file", "", "file with the admin token (or the token itself in PLINTH_KBS_TOKEN)")
	s.StringVar(&f.adminKey, "admin-key", "", "private key to make the token with: PEM file or pkcs11: URI")
	s.StringVar(&f.role, "admin-role", "kbs-admin", "role in that token, which the broker's ACL names")
	s.StringVar(&f.issuer, "admin-issuer", "", "issuer in that token")
	s.StringVar(&f.audience, "admin-audience", "", "audience in that token")
	s.StringVar(&f.ca, "ca", "", "authorities that the broker's certificate may come from, PEM, instead of this machine's")
	s.DurationVar(&f.timeout, "timeout", 30*time.Second, "give up after this time")
	s.BoolVar(&f.dryRun, "dry-run", false, "print the requests and make none")
	s.BoolVar(&f.plain, "insecure-http", false, "send the token over http to another machine, where anybody on the way can take it")
}

// registerValues makes a broker have the values.
func registerValues(ctx context.Context, c *common, f *exportFlags, v *valueSet) error {
	t, err := c.trustee(ctx, &f.trusteeFlags)
	if err != nil {
		return err
	}
	if f.dryRun {
		requests, err := t.Requests(v.Set)
		if err != nil {
			return usageError{err}
		}
		return c.printRequests(requests)
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	outcomes, err := t.Register(ctx, v.Set)
	var refused *export.RefusedError
	if errors.As(err, &refused) {
		err = mismatchError{err}
	}
	if err != nil {
		return err
	}
	return c.printOutcomes(outcomes)
}

// trustee is the broker that the flags name, with what it needs to be asked.
func (c *common) trustee(ctx context.Context, f *trusteeFlags) (*export.Trustee, error) {
	t := &export.Trustee{URL: cmp.Or(f.url, c.env.getenv("PLINTH_KBS_URL"))}
	if t.URL == "" {
		return nil, usagef("--url is needed, or PLINTH_KBS_URL")
	}
	if err := t.Check(); err != nil {
		return nil, usageError{err}
	}
	if f.timeout <= 0 {
		return nil, usagef("--timeout is %v: want more than nothing", f.timeout)
	}
	var err error
	if t.Token, err = c.adminToken(ctx, f); err != nil {
		return nil, err
	}
	if t.Token != "" && t.Plain() && !f.plain && !f.dryRun {
		return nil, usagef("%s: a token is not sent without TLS to another machine; --insecure-http does it all the same", t.URL)
	}
	t.Client, err = f.client()
	return t, err
}

// client trusts the authorities given, or the machine's.
func (f *trusteeFlags) client() (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		b, err := readLimited(f.ca, maxSecret)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, usagef("--ca %s: no certificate in PEM form", f.ca)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: transport}, nil
}

// adminToken is the token given, or one made with the key given. Without either
// the broker is asked without a token, which those for development allow.
func (c *common) adminToken(ctx context.Context, f *trusteeFlags) (string, error) {
	switch {
	case f.tokenFile != "" && f.adminKey != "":
		return "", usagef("--token-file and --admin-key exclude each other")
	case f.adminKey != "":
		key, err := c.signer(ctx, f.adminKey)
		if err != nil {
			return "", err
		}
		// Long enough for the requests, and for a clock that is a little off.
		token, err := export.AdminToken(key, export.AdminClaims{
			Role: f.role, Issuer: f.issuer, Audience: f.audience, Issued: c.env.now(), Lifetime: f.timeout + 5*time.Minute,
		})
		if err != nil {
			return "", usageError{err}
		}
		return token, nil
	case f.tokenFile != "":
		b, err := readLimited(f.tokenFile, maxSecret)
		if err != nil {
			return "", err
		}
		return cleanToken(f.tokenFile, string(b))
	}
	return cleanToken("PLINTH_KBS_TOKEN", c.env.getenv("PLINTH_KBS_TOKEN"))
}

// cleanToken refuses what cannot stand in a header: RFC 6750, section 2.1.
func cleanToken(from, text string) (string, error) {
	text = strings.TrimSpace(text)
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	if strings.Trim(text, allowed) != "" || text == "" && from != "PLINTH_KBS_TOKEN" {
		return "", usagef("%s: no token: want letters, digits and -._~+/=", from)
	}
	return text, nil
}

func (c *common) printRequests(requests []export.Request) error {
	if c.json {
		return printJSON(c.env.stdout, requests)
	}
	for _, r := range requests {
		if _, err := fmt.Fprintf(c.env.stdout, "%s %s\n%s\n%s\n", r.Method, r.URL, r.Header, r.Body); err != nil {
			return err
		}
	}
	return nil
}

func (c *common) printOutcomes(outcomes []export.Outcome) error {
	if c.json {
		return printJSON(c.env.stdout, outcomes)
	}
	says := map[export.State]string{
		export.StateSame: "has it already", export.StateNew: "set", export.StateChanged: "replaced", export.StateUnknown: "set, not read back: the token may not",
	}
	for _, o := range outcomes {
		if _, err := fmt.Fprintf(c.env.stdout, "%s: %s\n", o.Name, says[o.State]); err != nil {
			return err
		}
		if o.State == export.StateChanged {
			fmt.Fprintf(c.env.stdout, "  - %s\n  + %s\n", o.Was, o.Value)
		}
	}
	return nil
}
