// Package oracle compares plinth with independent implementations of the same
// formats. It is a module of its own, so that their dependencies are not
// plinth's, and holds tests alone.
package oracle
