package attester

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// tsmReports is where the kernel makes reports: Linux,
// Documentation/ABI/testing/configfs-tsm-report.
const tsmReports = "/sys/kernel/config/tsm/report"

// Providers of reports.
const (
	providerSNP = "sev_guest"
	providerTDX = "tdx_guest"
)

// maxBlob bounds what the kernel may hand out: a quote with its certificates has
// 5 to 8 KiB, a table of certificates at most 16 KiB (SEV_FW_BLOB_MAX_SIZE).
const maxBlob = 128 << 10 // bytes

// Report has the kernel ask the platform for a report about data, which fills the
// platform's field. provider is whose it must be: "sev_guest" or "tdx_guest". aux is
// what came with it, empty where that is nothing. root is where the kernel's paths are
// found, "/" in a guest.
func Report(root, provider string, data []byte) (out, aux []byte, err error) {
	return tsm{osFiles{}, filepath.Join(root, tsmReports)}.report(provider, data)
}

// files is how configfs is reached. A directory made there has its files at once, and
// goes with them.
type files interface {
	MkdirTemp(dir, pattern string) (string, error)
	ReadFile(name string) ([]byte, error)
	WriteFile(name string, b []byte) error
	RemoveAll(dir string) error
}

type osFiles struct{}

func (osFiles) MkdirTemp(dir, pattern string) (string, error) { return os.MkdirTemp(dir, pattern) }

func (osFiles) ReadFile(name string) ([]byte, error) { return readFile(name, maxBlob) }

// readFile reads a file of at most max bytes, whose size the kernel need not know.
func readFile(name string, max int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s: more than %d bytes", name, max)
	}
	return b, err
}

// WriteFile writes b in one call: each starts a request of its own.
func (osFiles) WriteFile(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// RemoveAll is one rmdir: configfs takes its own files away, and nobody else can.
func (osFiles) RemoveAll(dir string) error { return os.Remove(dir) }

type tsm struct {
	files files
	dir   string
}

// report makes an entry of its own: what others ask the same platform is in theirs.
func (c tsm) report(provider string, data []byte) (out, aux []byte, err error) {
	entry, err := c.files.MkdirTemp(c.dir, "plinth-")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, c.files.RemoveAll(entry)) }()
	r := tsmEntry{c.files, entry}
	if err := r.from(provider); err != nil {
		return nil, nil, err
	}
	writes, err := r.ask(data)
	if err != nil {
		return nil, nil, err
	}
	if out, err = r.files.ReadFile(entry + "/outblob"); err != nil {
		return nil, nil, err
	}
	aux, err = r.files.ReadFile(entry + "/auxblob")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // tdx_guest has none
		return nil, nil, err
	}
	if err := r.untouched(writes); err != nil {
		return nil, nil, err
	}
	return out, aux, nil
}

type tsmEntry struct {
	files files
	dir   string
}

func (r tsmEntry) from(provider string) error {
	got, err := r.files.ReadFile(r.dir + "/provider")
	if err == nil && string(bytes.TrimSpace(got)) != provider {
		err = fmt.Errorf("reports are by %.40q, want %s", bytes.TrimSpace(got), provider)
	}
	return err
}

// ask writes what the report shall be about, and returns in how many writes. Where a
// paravisor has the higher privilege levels, the report is about the highest of ours.
func (r tsmEntry) ask(data []byte) (writes int, err error) {
	floor, err := r.number("privlevel_floor")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if floor > 0 {
		if err := r.files.WriteFile(r.dir+"/privlevel", []byte(strconv.Itoa(floor))); err != nil {
			return 0, err
		}
		writes++
	}
	return writes + 1, r.files.WriteFile(r.dir+"/inblob", data)
}

// untouched tells whether nobody but us wrote into the entry. The kernel counts, and
// refuses to read a report that does not belong to the last write.
func (r tsmEntry) untouched(writes int) error {
	got, err := r.number("generation")
	if err == nil && got != writes {
		err = fmt.Errorf("somebody else asked in the same place: generation %d, want %d", got, writes)
	}
	return err
}

func (r tsmEntry) number(name string) (int, error) {
	b, err := r.files.ReadFile(r.dir + "/" + name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
