package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/internal/fat"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/uki"
)

func newInspect(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Print what is inside a UKI, disk, firmware, variables file or event log",
		Long: `Prints the structure of FILE, found out from its content: sections, digests,
Authenticode digest, stub version and measured order of an EFI image; partitions
and ESP of a disk; events of a log. Of a firmware, volumes, version, variables, the
table at its end and what it asks of a VMM under SEV and TDX, and for which
platforms and boot paths it serves. What is damaged is said after what is not.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			f, size, err := openSized(a[0])
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := inspect(f, size)
			if err != nil {
				return fmt.Errorf("%s: %w", a[0], err)
			}
			if c.json {
				err = printJSON(c.env.stdout, v)
			} else {
				err = v.text(c.env.stdout)
			}
			if p, ok := v.(interface{ problem() error }); ok && err == nil {
				if err = p.problem(); err != nil {
					return fmt.Errorf("%s: %w", a[0], err)
				}
			}
			return err
		},
	}
}

// A viewer is the result of an inspection, for people and as JSON.
type viewer interface{ text(io.Writer) error }

// inspect finds out what a file is by its first bytes.
func inspect(r io.ReaderAt, size int64) (viewer, error) {
	head := make([]byte, min(size, 1024))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("MZ")):
		i, err := uki.Inspect(r, size)
		return efiView{i}, err
	case len(head) >= 520 && string(head[512:520]) == "EFI PART":
		return inspectDisk(r, size)
	case len(head) >= 44 && string(head[40:44]) == "_FVH", endsWithTable(r, size):
		return inspectFlash(r, size)
	case bytes.Contains(head[:min(len(head), 64)], []byte("Spec ID Event")):
		return inspectLog(r, size)
	}
	return nil, usagef("not an EFI image, GPT disk, firmware, variables file or event log")
}

type efiView struct{ *uki.Info }

func (v efiView) text(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s, %s, Authenticode sha256 %s\n", v.Kind, v.Machine, size(v.Size), v.Authenticode.SHA256)
	if v.Stub != nil {
		fmt.Fprintf(w, "systemd-stub %s, measures %s\n", v.Stub.Full, strings.Join(v.MeasuredOrder, " "))
	}
	if v.Uname != "" {
		fmt.Fprintf(w, "kernel %s\n", v.Uname)
	}
	if v.Cmdline != "" {
		fmt.Fprintf(w, "command line %q\n", v.Cmdline)
	}
	for _, s := range v.Signers {
		fmt.Fprintf(w, "signed by %s (certificate %s)\n", s.Subject, s.SHA256)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range v.Sections {
		fmt.Fprintf(t, "%s\toffset %#x\taddress %#x\t%d bytes\t%s\n", s.Name, s.Offset, s.Address, s.Size, s.SHA256)
	}
	return t.Flush()
}

// A diskView is a GPT disk with what its first ESP holds.
type diskView struct {
	Disk       string          `json:"disk_guid"`
	Partitions []partitionView `json:"partitions"`
}

type partitionView struct {
	Type  string   `json:"type"`
	Is    string   `json:"is,omitempty"` // what the type is called, where it is known
	Holds string   `json:"holds,omitempty"`
	GUID  string   `json:"guid"`
	Name  string   `json:"name"`
	First uint64   `json:"first_lba"`
	Last  uint64   `json:"last_lba"`
	Files []string `json:"files,omitempty"`
}

func inspectDisk(r io.ReaderAt, size int64) (viewer, error) {
	t, err := gpt.Read(r, size)
	if err != nil {
		return nil, err
	}
	v := diskView{Disk: t.DiskID.String()}
	for _, p := range t.Partitions {
		pv := partitionView{Type: p.Type.String(), Is: disk.TypeName(p.Type), GUID: p.ID.String(), Name: p.Name, First: p.First, Last: p.Last}
		off := int64(p.First) * int64(t.SectorSize)
		n := int64(p.Last-p.First+1) * int64(t.SectorSize)
		if esp, err := fat.Open(io.NewSectionReader(r, off, n), n); err == nil {
			pv.Files = espFiles(esp)
		}
		pv.Holds = contentOf(io.NewSectionReader(r, off, n))
		v.Partitions = append(v.Partitions, pv)
	}
	return v, nil
}

// contentOf names what a partition begins with, "" when it is nothing known.
func contentOf(r io.ReaderAt) string {
	if s, err := superblock(r, 0); err == nil {
		return fmt.Sprintf("dm-verity hash tree, %s over %d blocks of %d bytes", s.Algorithm, s.DataBlocks, s.DataBlockSize)
	}
	var magic [4]byte
	if n, _ := r.ReadAt(magic[:], erofsMagicAt); n == len(magic) && magic == erofsMagic {
		return "EROFS"
	}
	return ""
}

// The magic number of an EROFS, little-endian: Linux, fs/erofs/erofs_fs.h.
var erofsMagic = [4]byte{0xe2, 0xe1, 0xf5, 0xe0}

const erofsMagicAt = 1024

func espFiles(esp fs.FS) []string {
	var out []string
	fs.WalkDir(esp, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // a damaged directory shows as missing files; boot and verify judge it
		}
		if fi, err := d.Info(); err == nil {
			out = append(out, fmt.Sprintf("%s %d", path, fi.Size()))
		}
		return nil
	})
	return out
}

func (v diskView) text(w io.Writer) error {
	fmt.Fprintf(w, "GPT disk %s\n", v.Disk)
	for i, p := range v.Partitions {
		fmt.Fprintf(w, "%d  %q  sectors %d-%d\n   type %s\n   guid %s\n", i+1, p.Name, p.First, p.Last, strings.TrimSpace(p.Type+"  "+p.Is), p.GUID)
		if p.Holds != "" {
			fmt.Fprintf(w, "   holds %s\n", p.Holds)
		}
		for _, f := range p.Files {
			fmt.Fprintf(w, "   file %s\n", f)
		}
	}
	return nil
}

// A logView is an event log with the registers that it replays to.
type logView struct {
	Log       *eventlog.Log                `json:"log"`
	Registers map[string]map[string]string `json:"registers"` // bank, name of the register, value
	Holds     map[string]string            `json:"holds"`     // name of a register that is extended, what it stands for
}

// maxLogFile bounds an event log, in bytes.
const maxLogFile = 16 << 20

func inspectLog(r io.ReaderAt, size int64) (viewer, error) {
	b, err := readAll(r, size, maxLogFile)
	if err != nil {
		return nil, err
	}
	l, err := eventlog.ParseAny(b)
	if err != nil {
		return nil, err
	}
	return viewLog(l)
}

func viewLog(l *eventlog.Log) (viewer, error) {
	l.Describe()
	v := logView{Log: l, Registers: map[string]map[string]string{}, Holds: map[string]string{}}
	for _, alg := range l.Algs {
		if alg.Hash() == 0 {
			continue // SM3 for instance: the events are shown, the registers are not computed
		}
		values, err := l.Replay(alg)
		if err != nil {
			return nil, err
		}
		bank := map[string]string{}
		for reg, x := range values {
			name := l.RegisterName(reg)
			bank[name], v.Holds[name] = fmt.Sprintf("%x", x), l.RegisterHolds(reg)
		}
		v.Registers[alg.String()] = bank
	}
	return v, nil
}

func (v logView) text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range v.Log.Events {
		digest := ""
		if len(e.Digests) > 0 {
			digest = short(fmt.Sprintf("%x", e.Digests[len(e.Digests)-1].Value))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.Log.RegisterName(e.Register), e.Type, digest, e.Name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, alg := range v.Log.Algs {
		bank := v.Registers[alg.String()]
		regs := make([]string, 0, len(bank))
		for r := range bank {
			regs = append(regs, r)
		}
		sort.Slice(regs, func(i, j int) bool {
			return len(regs[i]) < len(regs[j]) || len(regs[i]) == len(regs[j]) && regs[i] < regs[j]
		})
		for _, r := range regs {
			fmt.Fprintf(w, "%s %s %s\n", alg, r, bank[r])
		}
	}
	for _, r := range slices.Sorted(maps.Keys(v.Holds)) {
		if v.Holds[r] != "" {
			fmt.Fprintf(t, "%s\t%s\n", r, v.Holds[r])
		}
	}
	return t.Flush()
}

// openSized opens a file and says how long it is.
func openSized(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = usagef("%s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func readAll(r io.ReaderAt, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%d bytes; at most %d are read", size, limit)
	}
	return io.ReadAll(io.NewSectionReader(r, 0, size))
}
