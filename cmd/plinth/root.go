package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

const rootLong = `plinth builds the guest image of a confidential VM from one profile, computes
beforehand what firmware, stub and kernel will measure, boots the image under
QEMU with OVMF and swtpm, and compares.

Results go to stdout, progress and errors to stderr. Flags beat environment
variables, and these beat the profile.

Exit codes: 0 ok, 1 other, 2 usage or profile, 3 unsupported combination,
4 this host lacks something, 5 network or mirror, 6 I/O, 7 verification or
measurement mismatch, 8 boot failed, 9 lock out of date.`

// common are the flags that several commands take.
type common struct {
	env *env

	out      string
	lock     string
	locked   bool
	offline  bool
	mirrors  []string
	keyrings []string
	set      []string
	cache    string
	jobs     int
	agent    string
	json     bool
	progress string
	quiet    bool
	verbose  bool
}

func newRoot(e *env) *cobra.Command {
	c := &common{env: e}
	root := group(&cobra.Command{
		Use:           "plinth",
		Short:         "Build, predict and boot guest images of confidential VMs",
		Long:          rootLong,
		SilenceErrors: true,
		SilenceUsage:  true,
	},
		newBuild(c), newPlan(c), newLock(c), newMeasure(c), newBoot(c), newInspect(c), newDiff(c),
		newVerify(c), newVerity(c), newLint(c), newExport(c), newSBOM(c), newOCIImage(c), newKeys(), newInitdata(c), newSecret(c), newRefvalues(c), newDoctor(c), newInit(c), newSchema(c), newMan(c), newVersion(c),
	)
	f := root.PersistentFlags()
	f.StringVar(&c.cache, "cache-dir", "", "directory of the store (PLINTH_CACHE; default: plinth in the user's cache directory)")
	f.BoolVar(&c.json, "json", false, "print one JSON document on stdout")
	f.StringVar(&c.progress, "progress", "auto", "progress on stderr: auto, plain, json or none")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "print nothing but errors")
	f.BoolVarP(&c.verbose, "verbose", "v", false, "print what is downloaded, and the events behind each measurement")
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			onlyGroup(cmd)
		}
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	return root
}

// group makes a command that only holds others: alone it prints its help.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	return onlyGroup(cmd)
}

// onlyGroup makes a command refuse what is none of its commands.
func onlyGroup(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, a []string) error {
		if len(a) == 0 {
			return nil
		}
		err := fmt.Errorf("unknown command %q for %q", a[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(a[0]); len(near) > 0 {
			err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
		}
		return err
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, e *env) int {
	root := newRoot(e)
	root.SetArgs(args)
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !understood { // it never ran: cobra refused flags or arguments
		err = usagef("%w; see %q", err, cmd.CommandPath()+" --help")
	}
	printError(e.stderr, err)
	return exitCode(err)
}

// profileFlags are for commands that read a profile and its lock.
func (c *common) profileFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.lock, "lock", "", "lock file (default: NAME.lock beside the profile; ./NAME.lock for a built-in one)")
	f.BoolVar(&c.locked, "locked", false, "never write the lock; fail when it does not fit")
	f.BoolVar(&c.offline, "offline", false, "use no network")
	f.StringArrayVar(&c.mirrors, "mirror", nil, "archive root: URL, SUITE=URL or NAME=URL; repeatable (PLINTH_MIRROR)")
	f.StringArrayVar(&c.keyrings, "keyring", nil, "file of further OpenPGP keys that may sign an archive; repeatable")
	f.StringArrayVar(&c.set, "set", nil, "override one value of the profile, key=value; repeatable")
	f.IntVar(&c.jobs, "jobs", 0, "steps and downloads at a time (0: as many as there are)")
	f.StringVar(&c.agent, "agent", "", "a guest agent of your own instead of the one inside this program")
}

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (u usageError) Error() string { return u.err.Error() }
func (u usageError) Unwrap() error { return u.err }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

var errNotImage = errors.New("no image directory")
