//go:build !amd64

package rdseed

// sources are the instructions that this package knows: confidential guests are of
// amd64, and the host command needs none.
func sources() []source { return nil }

func pause() {}
