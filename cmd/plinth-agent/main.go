// Plinth-agent is PID 1 of a plinth guest.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/plinth-os/plinth/agent"
)

func main() {
	switch {
	case os.Getpid() == 1:
		agent.Run(version())
	case len(os.Args) == 2 && os.Args[1] == "--version":
		fmt.Println("plinth-agent", version())
	default:
		fmt.Fprintln(os.Stderr, "plinth-agent: this is PID 1 of a guest; it does nothing in another process")
		os.Exit(2)
	}
}

// version is the module's version, "devel" in a checkout.
func version() string {
	if i, ok := debug.ReadBuildInfo(); ok && i.Main.Version != "" && i.Main.Version != "(devel)" {
		return i.Main.Version
	}
	return "devel"
}
