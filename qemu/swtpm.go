package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// Commands of swtpm's control channel; swtpm_ioctls(3). Each is a big-endian
// u32 before its arguments; answers are big-endian too.
const (
	ctrlGetCapability = 0x01 // answer: u64 of flags
	ctrlInit          = 0x02 // u32 flags; answer: u32 result
	ctrlSetDataFD     = 0x10 // a socket as SCM_RIGHTS; answer: u32 result
)

// banks are the PCR banks that a guest finds, as TPM_ALG_ID. swtpm would
// activate sha512 too, and what swtpm_setup chooses depends on the host.
var banks = []uint16{0x0004, 0x000b, 0x000c} // sha1, sha256, sha384

const algSHA512 = 0x000d

// startTPM starts swtpm on the state in dir, an absolute path, or on a fresh one
// there, and allocates its banks. control is the end of the control channel that
// QEMU inherits. The process ends with kill alone.
func startTPM(ctx context.Context, binary, dir string, wait time.Duration) (c *child, control *os.File, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nil, err
	}
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	c, err = startChild(binary, []string{"socket", "--tpm2",
		"--tpmstate", "dir=" + dir + ",mode=0600", "--ctrl", "type=unixio,clientfd=3"}, theirs)
	theirs.Close()
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, c.kill) // which ends the exchange
	defer stop()
	if err = setupTPM(conn, time.Now().Add(wait)); err == nil {
		control, err = conn.File()
	}
	if err != nil {
		return nil, nil, tpmFailure(ctx, c, err)
	}
	return c, control, nil
}

// tpmFailure ends swtpm and says why it failed: its own words, if it has any.
func tpmFailure(ctx context.Context, c *child, err error) error {
	// When swtpm ends, its channel breaks a moment before it can be reaped.
	exited := disconnected(err) && c.waitFor(time.Second)
	c.kill()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("qemu: swtpm: %w", ctx.Err())
	case exited && c.err != nil:
		return fmt.Errorf("qemu: %w", c.failure())
	}
	return fmt.Errorf("qemu: swtpm: %w", err)
}

// setupTPM powers the TPM on, allocates its banks and shuts it down. The
// allocation holds from QEMU's own power-on.
func setupTPM(ctrl *net.UnixConn, deadline time.Time) error {
	if err := ctrl.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := control(ctrl, nil, 8, ctrlGetCapability); err != nil {
		return err
	}
	data, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer data.Close()
	err = controlResult(ctrl, theirs, ctrlSetDataFD)
	theirs.Close() // or the channel would not break when swtpm dies
	if err != nil {
		return err
	}
	if err := controlResult(ctrl, nil, ctrlInit, 0); err != nil {
		return err
	}
	if err := data.SetDeadline(deadline); err != nil {
		return err
	}
	if err := allocateBanks(data); err != nil {
		return err
	}
	// swtpm sees the end of this data channel at the latest together with the
	// next control command; without that QEMU's channel could be refused.
	data.Close()
	_, err = control(ctrl, nil, 8, ctrlGetCapability)
	return err
}

// controlResult sends a command that is answered by a result.
func controlResult(ctrl *net.UnixConn, pass *os.File, words ...uint32) error {
	b, err := control(ctrl, pass, 4, words...)
	if err != nil {
		return err
	}
	if result := binary.BigEndian.Uint32(b); result != 0 {
		return fmt.Errorf("control command %#x: result %#x", words[0], result)
	}
	return nil
}

// control sends words, with a descriptor if pass is not nil, and reads an
// answer of size bytes.
func control(ctrl *net.UnixConn, pass *os.File, size int, words ...uint32) ([]byte, error) {
	var msg, rights []byte
	for _, w := range words {
		msg = binary.BigEndian.AppendUint32(msg, w)
	}
	if pass != nil {
		rights = syscall.UnixRights(int(pass.Fd()))
	}
	if _, _, err := ctrl.WriteMsgUnix(msg, rights, nil); err != nil {
		return nil, fmt.Errorf("control command %#x: %w", words[0], err)
	}
	answer := make([]byte, size)
	if _, err := io.ReadFull(ctrl, answer); err != nil {
		return nil, fmt.Errorf("control command %#x: answer: %w", words[0], err)
	}
	return answer, nil
}

// allocateBanks makes banks the active ones. TPM 2.0 Part 3, 22.5
// TPM2_PCR_Allocate: authorized by the platform, whose password is empty after
// power-on, and effective from the next one.
func allocateBanks(tpm io.ReadWriter) error {
	const (
		sessions, noSessions       = 0x8002, 0x8001
		startup, shutdown          = 0x144, 0x145
		pcrAllocate                = 0x12b
		platform, password         = 0x4000000c, 0x40000009
		clear, sessionSize, noAuth = uint16(0), uint32(9), uint16(0)
	)
	body := be(uint32(platform), sessionSize, uint32(password), noAuth, uint8(0), noAuth)
	body = append(body, be(uint32(len(banks)+1))...)
	for _, alg := range banks {
		body = append(body, be(alg, [4]byte{3, 0xff, 0xff, 0xff})...) // all of 24 PCRs
	}
	body = append(body, be(uint16(algSHA512), [4]byte{3, 0, 0, 0})...) // none

	if _, err := tpmCommand(tpm, noSessions, startup, be(clear)); err != nil {
		return err
	}
	answer, err := tpmCommand(tpm, sessions, pcrAllocate, body)
	if err != nil {
		return err
	}
	// u32 parameter size, u8 allocationSuccess, and sizes that nobody needs
	if len(answer) < 5 || answer[4] != 1 {
		return fmt.Errorf("TPM command %#x: answer %x: want allocationSuccess", pcrAllocate, answer)
	}
	_, err = tpmCommand(tpm, noSessions, shutdown, be(clear))
	return err
}

// tpmCommand sends one command and returns the answer behind its header, which
// is u16 tag, u32 size, u32 code in both directions. Part 1, 18.
func tpmCommand(tpm io.ReadWriter, tag uint16, code uint32, body []byte) ([]byte, error) {
	const header, largest = 10, 4096
	if _, err := tpm.Write(append(be(tag, uint32(header+len(body)), code), body...)); err != nil {
		return nil, fmt.Errorf("TPM command %#x: %w", code, err)
	}
	head := make([]byte, header)
	if _, err := io.ReadFull(tpm, head); err != nil {
		return nil, fmt.Errorf("TPM command %#x: answer: %w", code, err)
	}
	size, rc := binary.BigEndian.Uint32(head[2:]), binary.BigEndian.Uint32(head[6:])
	switch {
	case rc != 0:
		return nil, fmt.Errorf("TPM command %#x: response code %#x", code, rc)
	case size < header || size > largest:
		return nil, fmt.Errorf("TPM command %#x: answer of %d bytes: want %d to %d", code, size, header, largest)
	}
	rest := make([]byte, size-header)
	if _, err := io.ReadFull(tpm, rest); err != nil {
		return nil, fmt.Errorf("TPM command %#x: answer: %w", code, err)
	}
	return rest, nil
}

// be is the concatenation of values of fixed size, big-endian.
func be(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		binary.Write(&b, binary.BigEndian, v) // fails on a type of no fixed size only
	}
	return b.Bytes()
}
