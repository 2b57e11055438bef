// Command plinth builds the guest image of a confidential VM, predicts what the
// hardware and the vTPM will measure, boots the image and compares.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], hostEnv())
	stop()
	os.Exit(code)
}
