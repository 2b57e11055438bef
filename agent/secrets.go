package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/workload"
)

// resources is how secrets of a broker are named.
const resources = "kbs:"

// key returns what a broker has under a name: after attestation, if need be. It is the
// caller's to clear.
func (s *State) key(ctx context.Context, id string) ([]byte, error) {
	if k, ok := s.Config.TestKeys[id]; ok && s.debug() {
		return bytes.Clone(k), nil
	}
	if s.work.attestation.brokers == nil {
		return nil, fmt.Errorf("key %s: this guest has no key provider", id)
	}
	return s.work.attestation.brokers.Resource(ctx, id)
}

// secret returns what a broker has under a name, or what was sealed.
func (s *State) secret(ctx context.Context, name string) ([]byte, error) {
	if strings.HasPrefix(name, kbs.SealedPrefix) {
		return kbs.Unseal(ctx, s.key, []byte(name))
	}
	return s.key(ctx, name)
}

// An opened process has the secrets of one run of a container in the places of their
// names.
type opened struct {
	effective *workload.Effective
	files     map[string][]byte // by where they are mounted
}

// clear forgets what need not be kept. Of variables Go keeps what it likes.
func (o *opened) clear() {
	for _, b := range o.files {
		clear(b)
	}
}

// maxVariable bounds a variable with its name, in bytes: MAX_ARG_STRLEN of the kernel,
// execve(2).
const maxVariable = 128<<10 - 1

// openSecrets gets the secrets of a workload. What an image calls a secret is none:
// only the measured configuration names them.
func (s *State) openSecrets(ctx context.Context, w *workload.Admitted) (*opened, error) {
	o := &opened{effective: w.Effective}
	e := *w.Effective
	e.Env = nil
	for _, v := range w.Effective.Env {
		name, value, _ := strings.Cut(v, "=")
		if ours, ok := w.Process.Env[name]; ok && ours == value && strings.HasPrefix(value, kbs.SealedPrefix) {
			b, err := s.secret(ctx, value)
			if err == nil && (strings.ContainsRune(string(b), 0) || !utf8.Valid(b) || len(name)+1+len(b) > maxVariable) {
				err = errors.New("what was sealed is not the value of a variable")
			}
			if err != nil {
				return nil, fmt.Errorf("variable %s: %w", name, err)
			}
			v, o.effective = name+"="+string(b), &e
		}
		e.Env = append(e.Env, v)
	}
	for _, m := range w.Effective.Mounts {
		if m.Secret == "" {
			continue
		}
		b, err := s.secret(ctx, m.Secret)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, err)
		}
		if o.files == nil {
			o.files = map[string][]byte{}
		}
		o.files[m.Path] = b
	}
	return o, nil
}

// getSecrets gets those of all containers for their first run, while the guest can
// still be told from one that runs programs.
func getSecrets(ctx context.Context, s *State) error {
	for i := range s.work.admit {
		w := &s.work.admit[i]
		o, err := s.openSecrets(ctx, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.Process.Name, err)
		}
		s.work.opened = append(s.work.opened, o)
	}
	return nil
}

// auth gets the credentials for registries.
func (s *State) auth(ctx context.Context, id string) (*registry.AuthFile, error) {
	if id == "" {
		return nil, nil
	}
	b, err := s.key(ctx, id)
	if err != nil {
		return nil, err
	}
	a, err := registry.ParseAuthFile(b)
	if err != nil {
		return nil, fmt.Errorf("%s: not an auth.json", id) // the cause may quote it
	}
	return a, nil
}

// policyFrom gets the policy where the configuration names one of the broker's. What
// came is measured as one that the configuration has.
func (s *State) policyFrom(ctx context.Context) error {
	c := s.work.config
	if c.PolicyFrom == "" || c.Policy != nil {
		return nil
	}
	b, err := s.key(ctx, c.PolicyFrom)
	if err != nil {
		return err
	}
	s.work.config, err = c.WithPolicy(b)
	return err
}

// readTrusted reads a key that a policy names: a file of the measured root, whatever
// links there are, or what a broker has.
func (s *State) readTrusted(ctx context.Context, name string) ([]byte, error) {
	if strings.HasPrefix(name, resources) {
		return s.key(ctx, name)
	}
	if !path.IsAbs(name) {
		return nil, fmt.Errorf("%s: want an absolute path", name)
	}
	const limit = 1 << 20
	fi, err := os.Stat(s.path(name))
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a file")}
	}
	return s.readFile(name, limit)
}
