package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/profiles"
)

// printJSON prints one document.
func printJSON(w io.Writer, v any) error {
	b, err := strictjson.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// hexDigest is the SHA-256 of b in hexadecimal.
func hexDigest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func readerDigest(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// printExplain prints each value of a profile with the place it came from.
func printExplain(c *common, p *profiles.Profile) error {
	values := p.Explain()
	if c.json {
		return printJSON(c.env.stdout, values)
	}
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for _, v := range values {
		fmt.Fprintf(t, "%s\t%s\t%s\n", v.Key, v.Value, v.Origin)
	}
	return t.Flush()
}
