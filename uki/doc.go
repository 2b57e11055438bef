// Package uki writes, reads, signs and verifies unified kernel images: kernel,
// initrd and command line as sections of one PE file, behind the stub of
// systemd that measures them and starts the kernel.
//
// It is arithmetic over bytes: no files, no clock, no randomness. Equal
// arguments give equal bytes, signatures included.
//
// Documents: UAPI group, "Unified Kernel Image"; systemd-stub(7);
// Microsoft, "PE Format" and "Windows Authenticode Portable Executable
// Signature Format"; UEFI 2.10, chapter 32; systemd-measure(1).
// Not supported: more than one profile, .dtbauto, .hwids, .efifw, addons,
// architectures other than amd64.
package uki
