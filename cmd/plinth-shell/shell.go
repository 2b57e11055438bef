package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// script runs a command line.
func script(text string) error {
	runner, err := newRunner()
	if err != nil {
		return err
	}
	prog, err := syntax.NewParser().Parse(strings.NewReader(text), "")
	if err != nil {
		return err
	}
	return runner.Run(context.Background(), prog)
}

// interactive reads commands from standard input until its end or "exit". A
// line that cannot be parsed is dropped.
func interactive() error {
	runner, err := newRunner()
	if err != nil {
		return err
	}
	swallowInterrupts()
	for {
		err := converse(runner)
		var bad syntax.ParseError
		if !errors.As(err, &bad) {
			return err
		}
		fmt.Fprintln(os.Stderr, err)
	}
}

// converse runs statements until the end of input, "exit" or a syntax error. It
// returns the last one's error.
func converse(runner *interp.Runner) error {
	parser := syntax.NewParser()
	fmt.Print("# ")
	var last error
	err := parser.Interactive(os.Stdin, func(stmts []*syntax.Stmt) bool {
		if parser.Incomplete() {
			fmt.Print("> ")
			return true
		}
		for _, s := range stmts {
			last = runner.Run(context.Background(), s)
			if runner.Exited() {
				return false
			}
			if _, ok := interp.IsExitStatus(last); last != nil && !ok {
				fmt.Fprintln(os.Stderr, last)
			}
		}
		fmt.Print("# ")
		return true
	})
	if err != nil {
		return err
	}
	return last
}
