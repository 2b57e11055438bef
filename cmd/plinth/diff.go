package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/measure"
)

func newDiff(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "diff A B",
		Short: "Say what changed between two images and which registers move",
		Long:  "Compares two image directories: packages, artefacts, sections of the UKI, files of the initrd, and the predicted registers with the events that differ.",
		Args:  cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, a []string) error {
			d, err := diffImages(a[0], a[1])
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(c.env.stdout, d)
			}
			return d.print(c)
		},
	}
}

// A change is one name whose content differs; a side that lacks it is "".
type change struct {
	Name string `json:"name"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// A difference is everything in which two images differ.
type difference struct {
	Packages  []change                 `json:"packages"`
	Artefacts []change                 `json:"artefacts"`
	Sections  []change                 `json:"sections"`
	Files     []change                 `json:"initrd_files"`
	Registers []measure.RegisterChange `json:"registers"`
}

func diffImages(a, b string) (*difference, error) {
	ma, err := readManifest(a)
	if err != nil {
		return nil, err
	}
	mb, err := readManifest(b)
	if err != nil {
		return nil, err
	}
	d := &difference{
		Packages:  changes(packageVersions(ma), packageVersions(mb)),
		Artefacts: changes(artefactDigests(ma), artefactDigests(mb)),
	}
	for _, part := range []struct {
		read func(dir string) (map[string]string, error)
		into *[]change
	}{{sectionDigests, &d.Sections}, {initrdFiles, &d.Files}} {
		fa, err := part.read(a)
		if err != nil {
			return nil, err
		}
		fb, err := part.read(b)
		if err != nil {
			return nil, err
		}
		*part.into = changes(fa, fb)
	}
	pa, err := readMeasurements(a)
	if err != nil {
		return nil, err
	}
	pb, err := readMeasurements(b)
	if err != nil {
		return nil, err
	}
	d.Registers = measure.Compare(pa, pb)
	return d, nil
}

// changes lists the names whose values differ, sorted.
func changes(a, b map[string]string) []change {
	out := []change{}
	for name, v := range a {
		if b[name] != v {
			out = append(out, change{name, v, b[name]})
		}
	}
	for name, v := range b {
		if _, ok := a[name]; !ok {
			out = append(out, change{name, "", v})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func packageVersions(m *builder.Manifest) map[string]string {
	out := map[string]string{}
	for _, p := range m.Lock.Packages {
		out[p.Name] = p.Version
	}
	return out
}

func artefactDigests(m *builder.Manifest) map[string]string {
	out := map[string]string{}
	for _, a := range m.Artefacts {
		out[a.Name] = a.Digest.String()
	}
	return out
}

func sectionDigests(dir string) (map[string]string, error) {
	f, size, err := openSized(filepath.Join(dir, "image.efi"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := pe.Parse(f, size)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, s := range p.Sections {
		d, err := readerDigest(p.Measured(s))
		if err != nil {
			return nil, err
		}
		out[s.Name] = d
	}
	return out, nil
}

// initrdFiles digests the files of an initrd, whatever its compression.
func initrdFiles(dir string) (map[string]string, error) {
	f, err := os.Open(filepath.Join(dir, "initrd"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := initrd.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s/initrd: %w", dir, err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if out[e.Path], err = entryDigest(e); err != nil {
			return nil, fmt.Errorf("%s/initrd: %s: %w", dir, e.Path, err)
		}
	}
	return out, nil
}

// entryDigest is over all that an entry is.
func entryDigest(e tree.Entry) (string, error) {
	head := fmt.Sprintf("%o %d:%d %d:%d %q %q ", e.Mode, e.UID, e.GID, e.Major, e.Minor, e.Target, e.Link)
	if e.Content.Open == nil {
		return hexDigest([]byte(head)), nil
	}
	r, err := e.Content.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	return readerDigest(io.MultiReader(strings.NewReader(head), r))
}

func (d *difference) print(c *common) error {
	w := c.env.stdout
	for _, part := range []struct {
		title string
		list  []change
		short bool
	}{{"packages", d.Packages, false}, {"artefacts", d.Artefacts, true}, {"sections of image.efi", d.Sections, true}, {"files of the initrd", d.Files, true}} {
		if len(part.list) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\n", part.title)
		for _, ch := range part.list {
			a, b := ch.A, ch.B
			if part.short {
				a, b = short(a), short(b)
			}
			fmt.Fprintf(w, "  %s  %s -> %s\n", ch.Name, orNone(a), orNone(b))
		}
	}
	if len(d.Registers) == 0 {
		_, err := fmt.Fprintln(w, "no register moves")
		return err
	}
	fmt.Fprintln(w, "registers")
	for i, r := range d.Registers {
		if last := i - 1; i > 0 && r.Register == d.Registers[last].Register && r.CPU == d.Registers[last].CPU && r.Phase == d.Registers[last].Phase {
			continue // another bank or shape of the same
		}
		fmt.Fprintf(w, "  %s\n", strings.Join(strings.Fields(r.Register+" "+r.CPU+" "+r.Phase), " "))
		for _, e := range r.Events {
			fmt.Fprintf(w, "    %s\n", e)
		}
	}
	return nil
}

func short(s string) string {
	if len(s) > 12 {
		return s[:12]
	}
	return s
}
