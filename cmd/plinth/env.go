package main

import (
	"io"
	"os"
	"path/filepath"
	"time"
)

// env is everything a command takes from its surroundings, so that a test can
// hand in another one.
type env struct {
	stdin          io.Reader // of a guest's console, nothing else
	stdout, stderr io.Writer
	terminal       bool // stderr can be redrawn
	getenv         func(string) string
	now            func() time.Time // for the lock's Valid-Until check, provenance.json, --expires and admin tokens, nothing else
}

func hostEnv() *env {
	return &env{
		stdin:    os.Stdin,
		stdout:   os.Stdout,
		stderr:   os.Stderr,
		terminal: isTerminal(os.Stderr) && os.Getenv("TERM") != "dumb",
		getenv:   os.Getenv,
		now:      time.Now,
	}
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// cacheDir is where the store lives: flag, PLINTH_CACHE, the user's cache directory.
func (e *env) cacheDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if d := e.getenv("PLINTH_CACHE"); d != "" {
		return d, nil
	}
	if d := e.getenv("XDG_CACHE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "plinth"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usagef("no place for the store: HOME is not set; give --cache-dir or PLINTH_CACHE")
	}
	return filepath.Join(home, ".cache", "plinth"), nil
}
