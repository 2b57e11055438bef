// Plinth-shell is the shell of debug profiles: a POSIX shell and the few tools
// to look around with, in one static binary, from u-root and mvdan.cc/sh.
//
//	plinth-shell               on a terminal: an interactive shell
//	plinth-shell -c COMMAND    runs a command
//	plinth-shell TOOL ARGS     runs a tool; so does a link named TOOL
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"

	"mvdan.cc/sh/v3/interp"
)

func main() { os.Exit(run(os.Args)) }

func run(args []string) int {
	if name := filepath.Base(args[0]); tools[name] != nil {
		return exitCode(name, tools[name](args[1:]))
	}
	switch {
	case len(args) == 1:
		return exitCode("sh", interactive())
	case args[1] == "-c" && len(args) == 3:
		return exitCode("sh", script(args[2]))
	case tools[args[1]] != nil:
		return exitCode(args[1], tools[args[1]](args[2:]))
	}
	fmt.Fprintf(os.Stderr, "usage: plinth-shell [-c COMMAND | TOOL ARGS]\ntools: %s\n", strings.Join(toolNames(), " "))
	return 2
}

// exitCode prints an error as name's, unless it is nothing but a status.
func exitCode(name string, err error) int {
	if err == nil {
		return 0
	}
	if status, ok := interp.IsExitStatus(err); ok {
		return int(status)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return 1
}

func toolNames() []string {
	var names []string
	for n := range tools {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// newRunner returns a shell that finds its tools where PATH has none of that name.
func newRunner() (*interp.Runner, error) {
	return interp.New(
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.ExecHandlers(func(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
			return func(ctx context.Context, args []string) error {
				h := interp.HandlerCtx(ctx)
				if _, err := interp.LookPathDir(h.Dir, h.Env, args[0]); err != nil && tools[args[0]] != nil {
					// A process of its own, so that Ctrl-C ends it and not the shell.
					args = append([]string{"/proc/self/exe"}, args...)
				}
				return next(ctx, args)
			}
		}),
	)
}

// swallowInterrupts keeps the shell alive when Ctrl-C is meant for what it runs.
// Ignoring the signal would be inherited.
func swallowInterrupts() {
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
}
