//go:build guest

package main

import "embed"

// The Makefile builds the guest's programs before this one.
//
//go:embed guest
var guestFS embed.FS

// embedded returns a guest program that this binary carries, nil without one.
func embedded(name string) []byte {
	b, err := guestFS.ReadFile("guest/" + name)
	if err != nil {
		return nil
	}
	return b
}
