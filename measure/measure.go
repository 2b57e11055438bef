// Package measure says what the firmware, the stub and the kernel of a virtual
// machine will measure: every event, in the order of the log, and from it the
// value of every register, before the machine ever runs.
//
// Predict works from the files alone. What only the firmware, the VMM and the
// machine's shape decide is taken from a platform record; see Record. Check
// compares a real boot with a prediction as it was written down.
//
// What changes with the version of a component is data, in behaviour.go.
package measure
