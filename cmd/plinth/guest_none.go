//go:build !guest

package main

func embedded(string) []byte { return nil }
