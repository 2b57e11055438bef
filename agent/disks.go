package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/verity"
)

// A partition is one that the kernel shows.
type partition struct {
	id     gpt.GUID
	path   string // "/dev/vda2"
	number string // "254:2"
}

// A candidate is a pair of partitions of one disk that have the names of the
// root's. Names are all that is known of it: the host can give them to any disk.
type candidate struct{ data, hash partition }

func (c candidate) String() string {
	return filepath.Base(c.data.path) + "+" + filepath.Base(c.hash.path)
}

// candidates looks at all disks. One whose partition table cannot be read is
// passed over: the root may be on the next.
func (s *State) candidates(r *verity.Root) (out []candidate) {
	dataID, hashID := r.PartitionIDs()
	names, _ := filepath.Glob(s.path("/sys/class/block/*")) // the pattern is well-formed
	for _, disk := range names {
		var data, hash []partition
		for _, p := range s.partitions(disk) {
			switch p.id {
			case gpt.FromUUID(dataID):
				data = append(data, p)
			case gpt.FromUUID(hashID):
				hash = append(hash, p)
			}
		}
		for _, d := range data {
			for _, h := range hash {
				out = append(out, candidate{d, h})
			}
		}
	}
	return out
}

// partitions returns the partitions of a disk with the identifiers that its
// table gives them; none of what is not a disk.
func (s *State) partitions(disk string) (out []partition) {
	parts, _ := filepath.Glob(filepath.Join(disk, "*", "partition"))
	if len(parts) == 0 {
		return nil
	}
	table, err := s.readTable(disk)
	if err != nil {
		return nil
	}
	for _, file := range parts {
		dir := filepath.Dir(file)
		for _, e := range table.Partitions {
			if attribute(dir, "start") == e.First*uint64(table.SectorSize)/512 {
				number, _ := os.ReadFile(filepath.Join(dir, "dev"))
				out = append(out, partition{e.ID, s.path("/dev/" + filepath.Base(dir)), strings.TrimSpace(string(number))})
			}
		}
	}
	return out
}

func (s *State) readTable(disk string) (*gpt.Table, error) {
	f, err := os.Open(s.path("/dev/" + filepath.Base(disk)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return gpt.Read(f, int64(attribute(disk, "size"))*512)
}

// attribute returns a number of sysfs in sectors of 512 bytes, the largest there
// is when it cannot be read.
func attribute(dir, name string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 1<<64 - 1
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 54)
	if err != nil {
		return 1<<64 - 1
	}
	return n
}
