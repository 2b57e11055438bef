package storage

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

// A stage is what one pull writes. No device shows any of it before Publish.
type stage struct {
	pool *Pool

	taken uint64 // blocks that its writers have; the pool's lock guards it

	mu       sync.Mutex // guards what follows; taken before the pool's
	contents map[digest.Digest]*writer
	tree     *writer
	over     bool
}

var errOver = errors.New("storage: the pull is over")

// Content takes the content of a layer's files.
func (s *stage) Content(diffID digest.Digest) (io.WriteCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, errOver
	}
	if s.contents[diffID] != nil {
		return nil, fmt.Errorf("storage: layer %s: content twice", diffID)
	}
	w, err := newWriter(s.pool, &s.taken)
	if err != nil {
		return nil, err
	}
	s.contents[diffID] = w
	return w, nil
}

// Tree takes the EROFS image.
func (s *stage) Tree() (io.WriteCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, errOver
	}
	if s.tree != nil {
		return nil, errors.New("storage: tree twice")
	}
	w, err := newWriter(s.pool, &s.taken)
	if err != nil {
		return nil, err
	}
	s.tree = w
	return w, nil
}

// Publish makes all of it visible, or nothing. What another pull has published in
// the meantime is taken from there.
func (s *stage) Publish(pulled *imagepull.Pulled) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return errOver
	}
	// What can fail comes before the first change.
	layers, err := s.layers(pulled)
	if err != nil {
		return err
	}
	t, err := s.newTree(pulled)
	if err != nil {
		return err
	}
	if err := s.commit(pulled, layers, t); err != nil {
		return err
	}
	return s.end()
}

// commit takes over what is new. Its files are the pool's then.
func (s *stage) commit(pulled *imagepull.Pulled, layers map[digest.Digest]*layer, t *tree) error {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	for _, id := range pulled.DiffIDs {
		if p.layers[id] == nil && layers[id] == nil {
			return fmt.Errorf("storage: layer %s: is not there", id)
		}
	}
	if p.trees[pulled.ChainID] == nil {
		if t == nil {
			return fmt.Errorf("storage: image %s: no tree", pulled.ChainID)
		}
		p.trees[pulled.ChainID] = t
		s.tree = nil
	}
	for id, l := range layers {
		if p.layers[id] == nil {
			p.layers[id] = l
			delete(s.contents, id)
		}
	}
	return nil
}

// layers packs what the pull brought, which takes a while.
func (s *stage) layers(pulled *imagepull.Pulled) (map[digest.Digest]*layer, error) {
	if len(pulled.Layers) != len(pulled.DiffIDs) {
		return nil, fmt.Errorf("storage: %d layers, want %d", len(pulled.Layers), len(pulled.DiffIDs))
	}
	out := map[digest.Digest]*layer{}
	for i, id := range pulled.DiffIDs {
		w := s.contents[id]
		if w == nil || out[id] != nil {
			continue
		}
		l, err := pack(pulled.Layers[i])
		if err != nil {
			return nil, fmt.Errorf("storage: layer %s: %w", id, err)
		}
		if l.file = w.file(); l.file == nil {
			return nil, fmt.Errorf("storage: layer %s: its content is not complete", id)
		}
		if got, want := l.file.blocks(), uint64(pulled.Layers[i].Blocks()); got != want {
			return nil, fmt.Errorf("storage: layer %s: content of %d blocks, want %d", id, got, want)
		}
		out[id] = l
	}
	return out, nil
}

// newTree returns the tree that the pull brought, nil if none: it was there before.
func (s *stage) newTree(pulled *imagepull.Pulled) (*tree, error) {
	if s.tree == nil {
		return nil, nil
	}
	t := &tree{file: s.tree.file(), layers: slices.Clone(pulled.DiffIDs)}
	if t.file == nil || t.file.blocks() == 0 {
		return nil, fmt.Errorf("storage: image %s: its tree is not complete", pulled.ChainID)
	}
	for _, i := range pulled.Devices {
		if i < 0 || i >= len(pulled.DiffIDs) || pulled.Layers[i].Blocks() == 0 {
			return nil, fmt.Errorf("storage: image %s: device of layer %d: it has no content", pulled.ChainID, i)
		}
		t.devices = append(t.devices, pulled.DiffIDs[i])
	}
	return t, nil
}

// Discard gives up what was not published.
func (s *stage) Discard() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	return s.end()
}

// end gives back what was not taken over.
func (s *stage) end() error {
	var rest []extent
	for _, w := range s.contents {
		rest = append(rest, w.stop()...)
	}
	if s.tree != nil {
		rest = append(rest, s.tree.stop()...)
	}
	s.contents, s.tree, s.over = nil, nil, true
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	s.pool.stages--
	_, err := s.pool.release(rest)
	return err
}

// pack keeps what a layer says in little memory.
func pack(l *unpack.Layer) (*layer, error) {
	b, err := l.MarshalBinary()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	z, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(b); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return &layer{meta: out.Bytes()}, nil
}

func (l *layer) unpack() (*unpack.Layer, error) {
	b, err := io.ReadAll(flate.NewReader(bytes.NewReader(l.meta)))
	if err != nil {
		return nil, err
	}
	out := new(unpack.Layer)
	return out, out.UnmarshalBinary(b)
}
