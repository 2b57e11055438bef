package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// hostLacksError: this host, or this binary, is short of something; exit code 4.
type hostLacksError struct{ what, hint string }

func (e hostLacksError) Error() string { return e.what }
func (e hostLacksError) Hint() string  { return e.hint }

// guest brings the guest's programs that p needs into the store: the ones inside
// this binary, or, in a checkout, ones that the Go toolchain builds now.
func (c *common) guest(ctx context.Context, st *cas.Store, p *profiles.Profile) (g builder.Guest, err error) {
	if p.Agent.Shell {
		if g.Shell, err = c.program(ctx, st, "plinth-shell", ""); err != nil {
			return g, err
		}
	}
	g.Agent, err = c.program(ctx, st, "plinth-agent", c.agent)
	return g, err
}

func (c *common) program(ctx context.Context, st *cas.Store, name, own string) (cas.Ref, error) {
	if own != "" {
		f, err := os.Open(own)
		if err != nil {
			return cas.Ref{}, err
		}
		defer f.Close()
		return st.PutReader(ctx, f)
	}
	if b := embedded(name); b != nil {
		return st.Put(b)
	}
	return buildProgram(ctx, st, name)
}

// buildProgram compiles a guest program out of the checkout around the working
// directory, with the flags that the Makefile uses.
func buildProgram(ctx context.Context, st *cas.Store, name string) (cas.Ref, error) {
	lacks := hostLacksError{
		"this plinth has no guest agent inside, and there is no checkout with a Go toolchain to build it from",
		`run "make build" in a checkout and use bin/plinth, or give --agent FILE`,
	}
	root, err := checkout()
	if err != nil {
		return cas.Ref{}, lacks
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		return cas.Ref{}, lacks
	}
	dir, err := os.MkdirTemp("", "plinth-guest-")
	if err != nil {
		return cas.Ref{}, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, "./cmd/"+name)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOTOOLCHAIN=local")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return cas.Ref{}, fmt.Errorf("go build ./cmd/%s: %w\n%s", name, err, msg)
	}
	f, err := os.Open(out)
	if err != nil {
		return cas.Ref{}, err
	}
	defer f.Close()
	return st.PutReader(ctx, f)
}

// checkout returns the plinth checkout around the working directory.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "plinth-agent", "main.go")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not in a checkout")
		}
		dir = up
	}
}
