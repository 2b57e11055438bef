package builder

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/verity"
	"github.com/plinth-os/plinth/workload"
)

// Root is what an image says of its verity root.
type Root struct {
	RootHash string `json:"root_hash"`
	Argument string `json:"argument"` // on the command line; see verity.Root
	// KataParams is kernel_verity_params of a Kata configuration.
	KataParams string `json:"kernel_verity_params"`
	// DMCreate is the value of dm-mod.create, with which a kernel sets the root up
	// before any program runs, beside root=/dev/dm-0 rootfstype=erofs. DMInit says
	// whether the image's kernel can: "yes", or why not. It is not how the image
	// boots.
	DMCreate string `json:"dm_mod_create"`
	DMInit   string `json:"dm_init"`
}

func newRoot(r *verity.Root) *Root {
	return &Root{
		RootHash: fmt.Sprintf("%x", r.RootHash),
		Argument: verity.Argument + "=" + r.String(),
		KataParams: fmt.Sprintf("root_hash=%x,salt=%x,data_blocks=%d,data_block_size=%d,hash_block_size=%d",
			r.RootHash, r.Salt, r.DataBlocks, r.DataBlockSize, r.HashBlockSize),
		DMCreate: dmCreate(r),
	}
}

// dmCreate is a device that is read-only, with neither UUID nor minor number given:
// Linux, Documentation, device-mapper/dm-init.rst.
func dmCreate(r *verity.Root) string {
	data, hash := r.PartitionIDs()
	v := verityTable(r)
	v.Data, v.Hash = "PARTUUID="+gpt.FromUUID(data).String(), "PARTUUID="+gpt.FromUUID(hash).String()
	return "plinth-root,,,ro," + tableLine(v.Target())
}

// verityTable is the device-mapper's table of a root, without the devices.
func verityTable(r *verity.Root) *dm.Verity {
	return &dm.Verity{
		Format: r.Format, DataBlockSize: r.DataBlockSize, HashBlockSize: r.HashBlockSize,
		DataBlocks: r.DataBlocks, HashStart: r.HashStart, Algorithm: string(r.Algorithm), RootHash: r.RootHash, Salt: r.Salt,
		Options: []string{r.OnCorruption.Option()},
	}
}

func tableLine(t dm.Target) string {
	return fmt.Sprintf("%d %d %s %s", t.Start, t.Length, t.Type, t.Params)
}

// check tells whether r is what newRoot makes and stands on a command line.
func (r *Root) check(cmdline string) error {
	root, err := r.parse()
	if err != nil {
		return err
	}
	want := newRoot(root)
	want.DMInit = r.DMInit // of the kernel
	if *want != *r {
		return fmt.Errorf("root: %+v: want %+v", *r, *want)
	}
	if !slices.Contains(strings.Fields(cmdline), r.Argument) {
		return fmt.Errorf("root: cmdline %q: want %s in it", cmdline, r.Argument)
	}
	return nil
}

// parse returns the root in full.
func (r *Root) parse() (*verity.Root, error) {
	value, _ := strings.CutPrefix(r.Argument, verity.Argument+"=")
	return verity.ParseRoot(value)
}

// A RootCheck compares the root that a guest reports with the one that its image
// was built for.
type RootCheck struct {
	OK   bool   `json:"ok"`
	Want string `json:"want"` // "initrd", or the device-mapper's table of a verity root
	Got  string `json:"got"`
}

// CheckRoot judges a report of an image. The numbers of the two devices are not
// the image's: what the table says of them is taken as it is.
func (m *Manifest) CheckRoot(r *evidence.Report) (*RootCheck, error) {
	c := &RootCheck{Want: evidence.RootInitrd, Got: r.Root}
	if m.Root != nil {
		root, err := m.Root.parse()
		if err != nil {
			return nil, err
		}
		c.Got = r.RootTable
		c.Want = rootTable(root, r.RootTable)
	}
	c.OK = c.Got == c.Want && (m.Root == nil) == (r.RootTable == "" && r.RootDevice == "") && (r.Root == evidence.RootVerity) == (m.Root != nil)
	return c, nil
}

// rootTable is the table of a root with the devices that a reported table has:
// start and length in sectors, target, parameters.
func rootTable(root *verity.Root, reported string) string {
	v := verityTable(root)
	v.Data, v.Hash = "DATA", "HASH"
	const params = 3 // words before the parameters
	if f := strings.Fields(reported); len(f) > params {
		if got, err := dm.ParseVerity(strings.Join(f[params:], " ")); err == nil && isDevice(got.Data) && isDevice(got.Hash) && got.Data != got.Hash {
			v.Data, v.Hash = got.Data, got.Hash
		}
	}
	return tableLine(v.Target())
}

var device = regexp.MustCompile(`^[0-9]{1,10}:[0-9]{1,10}$`)

func isDevice(s string) bool { return device.MatchString(s) }

// rootOutput is where the verity step leaves a Root.
const rootOutput = "root.json"

// root returns what the verity step says, nil where the initrd is the root.
func (w *work) root() (*Root, error) {
	if !w.Profile.Verity() {
		return nil, nil
	}
	r, err := w.ref("verity", rootOutput)
	if err != nil {
		return nil, err
	}
	return loadRoot(w.Store, r)
}

// readRoot is root for the results of a run, with what its kernel can do.
func readRoot(st *cas.Store, results map[string]Outputs) (*Root, error) {
	r, ok := results["verity"][rootOutput]
	if !ok {
		return nil, nil
	}
	root, err := loadRoot(st, r)
	if err != nil {
		return nil, err
	}
	config, ok := results["kernel"]["config"]
	if !ok {
		root.DMInit = "unknown: the kernel came without its configuration"
		return root, nil
	}
	b, err := st.ReadFile(config.Digest)
	if err != nil {
		return nil, err
	}
	v, err := root.parse()
	if err != nil {
		return nil, err
	}
	root.DMInit = dmInit(b, v.Algorithm)
	return root, nil
}

// dmInit says whether a kernel of that configuration can set up a verity root by
// itself: what it takes must be built in, because modules are on the root.
func dmInit(config []byte, hash verity.Algorithm) string {
	set := map[string]bool{}
	for line := range strings.Lines(string(config)) {
		if option, ok := strings.CutSuffix(strings.TrimSpace(line), "=y"); ok {
			set[option] = true
		}
	}
	var lacks []string
	for _, option := range []string{"BLK_DEV_DM", "DM_INIT", "DM_VERITY", "EROFS_FS", "CRYPTO_" + strings.ToUpper(string(hash))} {
		if !set["CONFIG_"+option] {
			lacks = append(lacks, "CONFIG_"+option)
		}
	}
	if len(lacks) > 0 {
		return "no: not built in: " + strings.Join(lacks, " ")
	}
	return "yes"
}

func loadRoot(st *cas.Store, r cas.Ref) (*Root, error) {
	b, err := st.ReadFile(r.Digest)
	if err != nil {
		return nil, err
	}
	root := &Root{}
	return root, json.Unmarshal(b, root)
}

// cmdline is the kernel command line: measured, and compared by the agent. root
// is nil where the initrd is the root.
func (s *Spec) cmdline(root *Root) string {
	words := slices.Clone(s.Profile.Cmdline)
	if from := s.Profile.Workloads.From; from != "" {
		words = append(words, workload.Argument+"="+from)
	}
	if root != nil {
		words = append(words, root.Argument)
	}
	return strings.Join(words, " ")
}
