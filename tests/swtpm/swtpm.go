// Package swtpm starts a software TPM for tests, outside of a machine: on its own, or
// on the state that qemu.Machine.TPMState keeps, to say which keys its guest has.
package swtpm

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/google/go-tpm/tpmutil"

	"github.com/plinth-os/plinth/internal/testenv"
)

// A TPM runs until the test ends, or Close.
type TPM struct {
	Socket string // a stream of commands and answers; one connection at a time
	stop   func()
}

// Start starts a TPM, powered on, with its state in dir; "": a fresh one that nobody
// keeps. The test is skipped where there is no swtpm.
func Start(t testing.TB, dir string) *TPM {
	t.Helper()
	testenv.Need(t, "swtpm")
	private, err := os.MkdirTemp("", "plinth-swtpm-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(testenv.Tool("swtpm"), private, dir)
	if err != nil {
		os.RemoveAll(private)
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// start starts swtpm with its socket in private, which goes with it.
func start(binary, private, dir string) (*TPM, error) {
	if dir == "" {
		dir = private
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &TPM{Socket: filepath.Join(private, "socket")}
	var said bytes.Buffer // to be read when the program is over
	cmd := exec.Command(binary, "socket", "--tpm2", "--tpmstate", "dir="+dir+",mode=0600",
		"--server", "type=unixio,path="+s.Socket, "--flags", "not-need-init,startup-clear")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(over)
	}()
	s.stop = func() {
		_ = cmd.Process.Kill() // it may be over
		<-over
		os.RemoveAll(private)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", s.Socket); err == nil {
			return s, c.Close()
		}
		select {
		case <-over:
			return nil, fmt.Errorf("swtpm: %s", &said)
		default:
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("swtpm: no socket after 10 s: %s", &said)
		}
	}
}

// Close powers it off.
func (s *TPM) Close() { s.stop() }

// Open connects to it.
func (s *TPM) Open(t testing.TB) transport.TPMCloser {
	t.Helper()
	c, err := linuxudstpm.Open(s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Legacy connects to it for go-tpm-tools.
func (s *TPM) Legacy() io.ReadWriteCloser { return tpmutil.NewEmulatorReadWriteCloser(s.Socket) }

// AK is the public attestation key (RSA) that go-tpm-tools makes on the state in dir,
// as SubjectPublicKeyInfo. No machine may run on it.
func AK(t testing.TB, dir string) []byte {
	t.Helper()
	return public(t, dir, client.AttestationKeyRSA)
}

// EK is the public endorsement key (RSA) in the same form.
func EK(t testing.TB, dir string) []byte {
	t.Helper()
	return public(t, dir, client.EndorsementKeyRSA)
}

func public(t testing.TB, dir string, make func(io.ReadWriter) (*client.Key, error)) []byte {
	t.Helper()
	s := Start(t, dir)
	defer s.Close()
	tpm := s.Legacy()
	defer tpm.Close()
	key, err := make(tpm)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	der, err := x509.MarshalPKIXPublicKey(key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return der
}
