package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
)

const exportLong = `Writes what others load: the disk in the container that a hypervisor or cloud
takes, or the predicted values in the form that a key broker reads.

The same image gives the same bytes. A disk form does not change the disk itself,
so what was predicted holds; what a cloud's own firmware measures (PCR 0 to 7) is
the cloud's.

Reference values have the names that Trustee's default policy reads for --tee.
Several DIRs make one set, for the time in which one image replaces the other.
What no image decides, as the versions of a platform's firmware, is given with
--platform-value, and the attestation key of a TPM with --ak. Registers that the
default policy does not read are for one's own policy: --pcrs adds them, and says
how a policy asks for them. --check says for each condition of the policy what meets it, and
ends with exit code 7 when the policy would not accept the guests; with --to, too,
the form is written only when it would. --diff says what is new against an older
set.

trustee registers the values over the broker's admin API: it asks for each, sends
what differs, and asks again. A value is replaced as a whole, so one call has to
name all images that are to be accepted.

The command line that Kata Containers starts a guest with is Kata's own, and so are
the digests that cover it: kata writes the configuration and says which these are,
--launch kata makes the values of other forms those.`

const exportExample = `  plinth export out/vtpm --to qcow2
  plinth export out/azure --to vhd -o azure.vhd
  plinth export out/snp --to rvps
  plinth export out/snp --to rvps --check --platform-values genoa.json -o -
  plinth export out/old out/new --to trustee --url https://kbs.example.com:8080 --token-file token --ca ca.pem --dry-run
  plinth export out/snp --to corim --sign key.pem
  plinth export out/snp --to k8s --expires +90d -o values.yaml
  plinth export out/vtpm --to rvps --ak ak.pem --pcrs 4,8,9,14
  plinth export out/snp --diff values-of-last-month.json`

// A form is what --to names, other than the container of a disk.
type form struct {
	name  string
	file  string // written beside the image when -o does not say otherwise; "" for none
	does  string
	write func(context.Context, *common, *exportFlags, *valueSet) error // nil: it holds no set; see common.export
}

// forms are in the order in which the help lists them.
var forms = []form{
	{"rvps", "reference-values.json", "message that Trustee's RVPS registers", writeRVPS},
	{"sample", "reference-values.sample.json", "its payload, names and values alone", writeSample},
	{"trustee", "", "the same, registered with a broker now", registerValues},
	{"k8s", "reference-values.yaml", "ConfigMap or Secret in which RVPS finds them", writeObject},
	{"corim", "reference-values.corim", "CoRIM, which RVPS reads, too; with --sign a COSE_Sign1 beside it", writeCoRIM},
	{"intoto", "", "in-toto statements of the measurements and of the build (SLSA); with --sign DSSE envelopes", nil},
	{"kata", "", "configuration for Kata Containers, and the disk that it attaches", nil},
}

// exportFlags are what plinth export takes.
type exportFlags struct {
	to, out string

	tee, phase, expires, launch, report, diff string
	labels, platform, platformFiles, aks      []string
	pcrs                                      []int
	check, force                              bool

	trusteeFlags
	signFlags
	object  export.Object
	nodeDir string
}

// forForms annotates a flag with the forms that it is for.
const forForms = "forms"

func newExport(c *common) *cobra.Command {
	f := &exportFlags{}
	cmd := &cobra.Command{
		Use:     "export DIR... --to FORM",
		Short:   "Write a disk for a cloud, or reference values for a key broker",
		Long:    exportLong + "\n\n" + formList(),
		Example: exportExample,
		Args:    f.args,
		RunE:    func(cmd *cobra.Command, a []string) error { return c.export(cmd.Context(), a, f) },
	}
	f.add(cmd)
	return cmd
}

func (f *exportFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.to, "to", "", "form to write")
	fl.StringVarP(&f.out, "out", "o", "", "file to write, - for stdout; of intoto the directory (default: beside the image)")
	add := func(forms []string, define func(*pflag.FlagSet)) {
		set := pflag.NewFlagSet("", pflag.ContinueOnError)
		define(set)
		set.VisitAll(func(x *pflag.Flag) {
			x.Annotations = map[string][]string{forForms: forms}
			if len(forms) == 1 {
				x.Usage = forms[0] + ": " + x.Usage
			}
		})
		fl.AddFlagSet(set)
	}
	add(diskForms(), func(s *pflag.FlagSet) {
		s.BoolVar(&f.force, "force", false, "write a disk whose drivers the guest lacks")
	})
	add(valueForms, f.addValues)
	add(append([]string{"intoto"}, valueForms...), f.addReport)
	add([]string{"corim", "intoto"}, f.addSign)
	add([]string{"corim"}, f.addCert)
	add([]string{"trustee"}, f.addTrustee)
	add([]string{"k8s"}, func(s *pflag.FlagSet) {
		s.StringVar(&f.object.Kind, "kind", export.ObjectKinds[0], strings.Join(export.ObjectKinds, " or "))
		s.StringVar(&f.object.Name, "name", export.ObjectName, "name of the object")
		s.StringVar(&f.object.Namespace, "namespace", export.ObjectSpace, "its name space")
	})
	add([]string{"kata"}, func(s *pflag.FlagSet) {
		s.StringVar(&f.nodeDir, "node-dir", "", "where the files lie on the node (default: /opt/plinth/NAME)")
	})
}

// valueForms are those that hold reference values; "" is --check or --diff alone.
var valueForms = []string{"", "rvps", "sample", "trustee", "k8s", "corim"}

// args refuses flags and arguments that make no sense together. A flag that does
// not apply is refused, not ignored.
func (f *exportFlags) args(cmd *cobra.Command, a []string) error {
	if err := cobra.MinimumNArgs(1)(cmd, a); err != nil {
		return err
	}
	if f.to == "" && !f.check && f.diff == "" {
		return usagef("--to is needed, or --check or --diff")
	}
	if f.to != "" && !slices.Contains(formNames(), f.to) {
		return usagef("--to is %q: want one of %s", f.to, strings.Join(formNames(), ", "))
	}
	if err := f.applicable(cmd); err != nil {
		return err
	}
	about := slices.ContainsFunc([]string{"admin-role", "admin-issuer", "admin-audience"}, cmd.Flags().Changed)
	switch {
	case about && f.adminKey == "":
		return usagef("--admin-role, --admin-issuer and --admin-audience say something of a token that is made: give --admin-key")
	case f.out == stdoutName && slices.Contains(diskForms(), f.to):
		return usagef("a disk is not written to stdout: -o has to name a file")
	case f.out != "" && (f.to == "" || f.to == "trustee"):
		return usagef("-o does not apply: nothing is written")
	case len(a) > 1 && !slices.Contains(valueForms, f.to):
		return usagef("--to %s takes one DIR", f.to)
	case len(a) > 1 && f.out == "" && f.to != "" && f.to != "trustee":
		return usagef("of several images, -o has to say where to write")
	}
	return nil
}

// applicable refuses a flag that is for other forms.
func (f *exportFlags) applicable(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(x *pflag.Flag) {
		of := x.Annotations[forForms]
		switch {
		case err != nil || of == nil || slices.Contains(of, f.to):
		case f.to == "":
			err = usagef("--%s does not apply without --to %s", x.Name, strings.Join(of, " or "))
		default:
			err = usagef("--%s does not apply to --to %s", x.Name, f.to)
		}
	})
	return err
}

func (c *common) export(ctx context.Context, dirs []string, f *exportFlags) error {
	switch {
	case slices.Contains(diskForms(), f.to):
		return c.exportDisk(ctx, dirs[0], f.to, f.out, f.force)
	case f.to == "kata":
		return c.exportKata(dirs[0], f)
	case f.to == "intoto":
		return c.exportInToto(ctx, dirs[0], f)
	}
	v, err := c.values(dirs, f)
	if err != nil {
		return err
	}
	if err := c.judge(v, f); err != nil || f.to == "" {
		return err
	}
	i := slices.IndexFunc(forms, func(x form) bool { return x.name == f.to })
	if f.out == "" {
		f.out = v.beside(forms[i].file)
	}
	return forms[i].write(ctx, c, f, v)
}

// diskForms are the containers of a disk.
func diskForms() (out []string) {
	for _, d := range builder.Forms {
		out = append(out, d.Name)
	}
	return out
}

func formNames() []string {
	out := diskForms()
	for _, f := range forms {
		out = append(out, f.name)
	}
	return out
}

// formList is the list of forms for the help text.
func formList() string {
	var b strings.Builder
	b.WriteString("Forms:\n")
	for _, d := range builder.Forms {
		fmt.Fprintf(&b, "  %-8s  disk for %s\n", d.Name, d.For)
	}
	for _, f := range forms {
		fmt.Fprintf(&b, "  %-8s  %s\n", f.name, f.does)
	}
	b.WriteString(`gce takes only a disk of whole GiB: name it in outputs.kinds when the image is built.
A disk whose guest lacks the drivers of the place that takes the form is refused with
code 3, unless --force is given.`)
	return b.String()
}
