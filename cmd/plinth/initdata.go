package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/initdata"
)

const initdataLong = `Initdata is what a confidential guest is given at launch, by a host that it need
not trust: the configuration of its attestation agent (aa.toml) and data hub
(cdh.toml), and the policy of its container agent (policy.rego), in one TOML
document. Evidence holds its digest: HOSTDATA of SEV-SNP, MRCONFIGID of TDX, RPV of
CCA, or PCR 8 of a TPM, which the guest extends. The host can read all of it.

FILE is the document, or what it is delivered as: the annotation of a pod, or a
block device.`

func newInitdata(c *common) *cobra.Command {
	return group(&cobra.Command{
		Use:   "initdata",
		Short: "Make and read initdata, and say what evidence will hold of it",
		Long:  initdataLong,
	}, newInitdataBuild(c), newInitdataInspect(c), newInitdataDigest(c))
}

// initdataFlags say what a document is made of, and what it becomes.
type initdataFlags struct {
	agent, hub, policy             string // files
	data                           []string
	algorithm, form, platform, out string
}

func newInitdataBuild(c *common) *cobra.Command {
	f := &initdataFlags{}
	cmd := &cobra.Command{
		Use:   "build [FILE]",
		Short: "Write initdata from its parts, or FILE in another form",
		Long: `Writes a document of the parts that are given. The same parts give the same bytes,
and so the same digest. With FILE, nothing of the document changes but its form.

Forms are toml, the document itself; annotation, base64 of gzip, for a pod's
` + initdata.AnnotationName + `; and device, a block
device for Kata's agent. The digest is that of the document in all of them.

A TPM wants --algorithm sha256: with --platform, another one is refused.`,
		Example: `  plinth initdata build --aa aa.toml --cdh cdh.toml --policy policy.rego -o initdata.toml
  plinth initdata build initdata.toml --form annotation
  plinth initdata build pod.img --form toml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			read := f.build
			if len(a) > 0 {
				read = func() ([]byte, error) { return f.reuse(cmd, a[0]) }
			}
			raw, err := read()
			if err != nil {
				return asUsage(err)
			}
			return c.writeInitdata(f, raw)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.agent, "aa", "", "configuration of the attestation agent: aa.toml")
	fl.StringVar(&f.hub, "cdh", "", "configuration of the confidential data hub: cdh.toml")
	fl.StringVar(&f.policy, "policy", "", "policy of the container agent: policy.rego")
	fl.StringArrayVar(&f.data, "data", nil, "another part, KEY=FILE; repeatable")
	fl.StringVar(&f.algorithm, "algorithm", string(initdata.SHA256), "hash algorithm: sha256, sha384 or sha512")
	fl.StringVar(&f.form, "form", string(initdata.Plain), "what to write: toml, annotation or device")
	fl.StringVar(&f.platform, "platform", "", "platform that it must serve: "+initdataPlatforms())
	fl.StringVarP(&f.out, "out", "o", "", "file to write (default: stdout)")
	return cmd
}

// initdataPlatforms lists them for help texts.
func initdataPlatforms() string { return strings.Trim(fmt.Sprint(initdata.Platforms()), "[]") }

// asUsage makes a usage error of one that is about the content of a file.
func asUsage(err error) error {
	if code := exitCode(err); code != exitOther {
		return err
	}
	return usageError{err}
}

// reuse reads a document that is there, and that no flag may change.
func (f *initdataFlags) reuse(cmd *cobra.Command, path string) ([]byte, error) {
	for _, name := range []string{"aa", "cdh", "policy", "data", "algorithm"} {
		if cmd.Flags().Changed(name) {
			return nil, usagef("--%s has no meaning with %s, whose bytes stay as they are", name, path)
		}
	}
	return builder.ReadInitdata(path)
}

// build makes a document of its parts.
func (f *initdataFlags) build() ([]byte, error) {
	alg, err := initdata.ParseAlgorithm(f.algorithm)
	if err != nil {
		return nil, usagef("--algorithm is %q: want sha256, sha384 or sha512", f.algorithm)
	}
	parts := [][2]string{{initdata.AgentConfig, f.agent}, {initdata.HubConfig, f.hub}, {initdata.Policy, f.policy}}
	for _, text := range f.data {
		key, path, ok := strings.Cut(text, "=")
		if !ok || key == "" || path == "" {
			return nil, usagef("--data is %q: want KEY=FILE", text)
		}
		parts = append(parts, [2]string{key, path})
	}
	data := map[string]string{}
	for _, p := range parts {
		if p[1] == "" {
			continue
		}
		if _, twice := data[p[0]]; twice {
			return nil, usagef("%s is given twice", p[0])
		}
		if data[p[0]], err = readPart(p[1]); err != nil {
			return nil, err
		}
	}
	if len(data) == 0 {
		return nil, usagef("nothing to put into it: --aa, --cdh, --policy or --data is needed, or FILE")
	}
	return initdata.Build(alg, data)
}

// readPart reads a file that becomes part of a document.
func readPart(path string) (string, error) {
	f, size, err := openSized(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := readAll(f, size, initdata.MaxSize)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(b), nil
}

func (c *common) writeInitdata(f *initdataFlags, raw []byte) error {
	d, err := initdata.Parse(raw)
	if err != nil {
		return asUsage(err)
	}
	if f.platform != "" {
		if _, err := bindTo(d, f.platform); err != nil {
			return err
		}
	}
	b, err := initdata.Encode(raw, initdata.Form(f.form))
	if err != nil {
		return asUsage(err)
	}
	if !c.quiet {
		for _, note := range notesOn(d) {
			fmt.Fprintf(c.env.stderr, "plinth: note: %s\n", note)
		}
	}
	if f.out == "" {
		_, err = c.env.stdout.Write(b)
		return err
	}
	if err := builder.WriteFile(f.out, b); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.env.stdout, "%s: %s digest %x\n", f.out, d.Algorithm, d.Digest())
	return err
}

// notesOn are a document's remarks, and what of it guests pass over.
func notesOn(d *initdata.Document) (out []string) {
	for _, key := range d.Unknown {
		out = append(out, key+": not known to guests, which pass over it")
	}
	return append(out, d.Remarks...)
}

// bindTo binds a document to a platform that the user named.
func bindTo(d *initdata.Document, name string) (*initdata.Binding, error) {
	p, err := initdata.ParsePlatform(name)
	if err != nil {
		return nil, usagef("--platform is %q: want one of %s", name, initdataPlatforms())
	}
	return d.Bind(p)
}

// An initdataView is a document for people and as JSON.
type initdataView struct {
	Schema    int           `json:"schema"`
	Form      string        `json:"form"`
	Version   string        `json:"version"`
	Algorithm string        `json:"algorithm"`
	Size      int           `json:"size"` // bytes of the document
	Digest    string        `json:"digest"`
	Data      []partView    `json:"data"`
	Unknown   []string      `json:"unknown"`
	Remarks   []string      `json:"remarks"`
	Bindings  []bindingView `json:"bindings"`
	doc       *initdata.Document
}

type partView struct {
	Key   string `json:"key"`
	Size  int    `json:"size"`
	Known bool   `json:"known"`
}

type bindingView struct {
	Platform string `json:"platform"`
	Field    string `json:"field"`
	Value    string `json:"value"` // hex; "" when refused
	Fitted   string `json:"fitted"`
	Refused  string `json:"refused"`
}

// readInitdata reads a document in any form.
func readInitdata(path string) (*initdataView, error) {
	raw, form, err := builder.ReadInitdataForm(path)
	if err != nil {
		return nil, asUsage(err)
	}
	d, err := initdata.Parse(raw)
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	v := &initdataView{
		Schema: 1, Form: string(form), Version: initdata.Version, Algorithm: string(d.Algorithm), Size: len(raw), Digest: hex.EncodeToString(d.Digest()),
		Data: []partView{}, Unknown: append([]string{}, d.Unknown...), Remarks: append([]string{}, d.Remarks...), doc: d,
	}
	for _, key := range slices.Sorted(maps.Keys(d.Data)) {
		v.Data = append(v.Data, partView{key, len(d.Data[key]), slices.Contains(initdata.Keys, key)})
	}
	for _, p := range initdata.Platforms() {
		b, err := d.Bind(p)
		if err != nil {
			v.Bindings = append(v.Bindings, bindingView{Platform: string(p), Field: fmt.Sprintf("PCR %d", initdata.PCR), Refused: err.Error()})
			continue
		}
		v.Bindings = append(v.Bindings, bindingView{Platform: string(p), Field: b.Field, Value: hex.EncodeToString(b.Value), Fitted: b.Fitted})
	}
	return v, nil
}

func (v *initdataView) text(w io.Writer) error {
	fmt.Fprintf(w, "initdata %s, %s, %s, %d bytes\ndigest %s\n", v.Version, v.Form, v.Algorithm, v.Size, v.Digest)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range v.Data {
		fmt.Fprintf(t, "  %s\t%d bytes\n", p.Key, p.Size)
	}
	for _, b := range v.Bindings {
		value := b.Value
		if b.Refused != "" {
			value = "refused"
		}
		fmt.Fprintf(t, "%s\n", strings.TrimRight(strings.Join([]string{b.Platform, b.Field, value, b.Fitted}, "\t"), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range v.notes() {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	return nil
}

// notes are what a reader should know: unknown keys, remarks, and why a platform
// is refused, once.
func (v *initdataView) notes() []string {
	out := notesOn(v.doc)
	for _, b := range v.Bindings {
		if b.Refused != "" {
			return append(out, strings.TrimPrefix(b.Refused, "initdata: "))
		}
	}
	return out
}

func newInitdataInspect(c *common) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Print what is in initdata, and what the evidence of each platform will hold",
		Long: `Prints algorithm, digest, the parts and the keys that guests pass over, and for
each platform the field of its evidence with its value. With --key, one part as it
is, and nothing else.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			v, err := readInitdata(a[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("key") {
				text, ok := v.doc.Data[key]
				if !ok {
					return usagef("%s: no key %q: there are %s", a[0], key, strings.Join(slices.Sorted(maps.Keys(v.doc.Data)), ", "))
				}
				_, err = io.WriteString(c.env.stdout, text)
				return err
			}
			if c.json {
				return printJSON(c.env.stdout, v)
			}
			return v.text(c.env.stdout)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "print the part of this name")
	return cmd
}

func newInitdataDigest(c *common) *cobra.Command {
	var platform, format string
	cmd := &cobra.Command{
		Use:   "digest FILE",
		Short: "Print the digest of initdata, or what a platform's evidence holds of it",
		Long: `Prints the digest of the document's bytes, as delivered, by the algorithm that it
names. With --platform, the value of the field that is bound to it: a digest that is
too long is cut, and one that is too short gets zeros behind it. PCR 8 of a TPM is
its value once the digest, and nothing else, has been extended in bank sha256.`,
		Example: `  plinth initdata digest initdata.toml
  plinth initdata digest initdata.toml --platform snp --output-format base64   # QEMU: sev-snp-guest,host-data=
  plinth initdata digest initdata.toml --platform az-snp-vtpm`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			if format != "hex" && format != "base64" {
				return usagef("--output-format is %q: want hex or base64", format)
			}
			v, err := readInitdata(a[0])
			if err != nil {
				return err
			}
			b := &initdata.Binding{Value: v.doc.Digest()}
			if platform != "" {
				if b, err = bindTo(v.doc, platform); err != nil {
					return err
				}
			}
			value := hex.EncodeToString(b.Value)
			if format == "base64" {
				value = base64.StdEncoding.EncodeToString(b.Value)
			}
			if c.json {
				return printJSON(c.env.stdout, digestView{1, v.Algorithm, platform, b.Field, value})
			}
			_, err = fmt.Fprintln(c.env.stdout, value)
			return err
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "platform: "+initdataPlatforms())
	cmd.Flags().StringVar(&format, "output-format", "hex", "hex or base64")
	return cmd
}

type digestView struct {
	Schema    int    `json:"schema"`
	Algorithm string `json:"algorithm"`
	Platform  string `json:"platform"` // "": the digest itself
	Field     string `json:"field"`
	Value     string `json:"value"`
}
