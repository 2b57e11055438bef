// Package qemu runs an image in a virtual machine and brings back what the
// guest reports.
//
// Start makes QEMU's arguments (Args), starts a software TPM and QEMU, and
// watches them over QMP. Whatever happens to the guest, to QEMU, to the caller's
// context or to this process, no process, socket or file stays behind; the
// files of a process that was killed go with the next run.
package qemu
