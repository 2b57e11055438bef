package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/cas"
)

func newSBOM(c *common) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "sbom DIR",
		Short: "Print what is inside the root file system of an image",
		Long: `Prints the packages in the root file system of the image in DIR, with version and
licence. --format prints the whole bill of materials, every file with its digest:
spdx is SPDX 2.3, cyclonedx is CycloneDX 1.6, both JSON. The build wrote both and
names them in manifest.json; one that is not the file named there is refused.`,
		Example: "  plinth sbom out/vtpm\n  plinth sbom out/vtpm --format cyclonedx >vtpm.cdx.json",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.sbom(a[0], format) },
	}
	cmd.Flags().StringVar(&format, "format", "", "spdx or cyclonedx: print that document")
	return cmd
}

func (c *common) sbom(dir, format string) error {
	name := builder.SPDXName
	switch format {
	case "", "spdx":
	case "cyclonedx":
		name = builder.CycloneDXName
	default:
		return usagef("--format %q: want spdx or cyclonedx", format)
	}
	doc, err := sbomOf(dir, name)
	if err != nil {
		return err
	}
	if format != "" {
		_, err := c.env.stdout.Write(doc)
		return err
	}
	v := packagesView{}
	if err := json.Unmarshal(doc, &v); err != nil {
		return mismatchError{fmt.Errorf("%s: %w", filepath.Join(dir, name), err)}
	}
	if c.json {
		return printJSON(c.env.stdout, v)
	}
	return c.printPackages(v)
}

// sbomOf reads an artefact and compares it with the manifest.
func sbomOf(dir, name string) ([]byte, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	for _, a := range m.Artefacts {
		if a.Name != name {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if got := cas.Sum(b); got != a.Digest {
			return nil, mismatchError{&builder.LintDamage{File: filepath.Join(dir, name), Got: got, Want: a.Digest}}
		}
		return b, nil
	}
	return nil, mismatchError{fmt.Errorf("%s: the image has no %s", dir, name)}
}

// A packagesView is the packages of an SPDX document.
type packagesView struct {
	Packages []struct {
		ID       string `json:"SPDXID"`
		Name     string `json:"name"`
		Version  string `json:"versionInfo"`
		Licence  string `json:"licenseDeclared"`
		Supplier string `json:"supplier"`
	} `json:"packages"`
}

func (c *common) printPackages(v packagesView) error {
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for _, p := range v.Packages {
		if p.Version != "" { // the image itself has none
			fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, p.Version, p.Licence)
		}
	}
	return t.Flush()
}
