package builder

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/measure"
)

// LoadedModules lists the modules that the agent in an initrd loads, in its
// order: with Secure Boot on, a kernel's IMA measures each of them.
func LoadedModules(r io.Reader) ([]measure.Module, error) {
	files, c, err := readAgent(r)
	if err != nil {
		return nil, err
	}
	out := []measure.Module{}
	for _, m := range c.Modules {
		b, err := content(files, m.Path)
		if err != nil {
			return nil, err
		}
		out = append(out, measure.Module{Path: m.Path, SHA256: fmt.Sprintf("%x", sha256.Sum256(b))})
	}
	return out, nil
}

// readAgent reads an initrd: its files by their paths, and what it tells the agent.
func readAgent(r io.Reader) (map[string]tree.Entry, *config.Config, error) {
	entries, err := initrd.Read(r)
	if err != nil {
		return nil, nil, err
	}
	files := map[string]tree.Entry{}
	for _, e := range entries {
		files["/"+e.Path] = e
	}
	b, err := content(files, config.Path)
	if err != nil {
		return nil, nil, err
	}
	c, err := config.Parse(b)
	return files, c, err
}

func content(files map[string]tree.Entry, path string) ([]byte, error) {
	e, ok := files[path]
	if !ok || e.Content.Open == nil {
		return nil, fmt.Errorf("initrd: no file %s", path)
	}
	r, err := e.Content.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
