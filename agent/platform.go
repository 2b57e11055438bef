package agent

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/plinth-os/plinth/initdata"
)

// What a confidential platform holds of the guest's launch, and where the kernel
// shows it.
const (
	tdxDevice   = "/dev/tdx_guest"
	tdxMeasured = "/sys/devices/virtual/misc/tdx_guest/measurements" // since Linux 6.16: Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest
	snpDevice   = "/dev/sev-guest"
)

// Layout of the two reports, in bytes.
const (
	snpReportSize = 1184 // SEV-SNP ABI 1.58, table 23, ATTESTATION_REPORT
	snpHostData   = 0xc0 // HOST_DATA

	tdReportSize = 1024             // Intel TDX Module 1.5 ABI, TDREPORT_STRUCT
	tdConfigID   = 512 + 8 + 8 + 48 // TDINFO_STRUCT behind ATTRIBUTES, XFAM and MRTD: MRCONFIGID
)

// A launch is what the platform says the guest was launched with.
type launch struct {
	platform initdata.Platform
	field    string
	value    []byte
}

// launched asks the platform, nil where it is none that the agent knows. A host can
// hide the device; it cannot make one that shows what it likes and is part of the
// guest's evidence, and without evidence the guest gets no keys.
func (s *State) launched() (*launch, error) {
	switch {
	case s.there(tdxDevice):
		v, err := s.configID()
		return &launch{initdata.TDX, "MRCONFIGID", v}, err
	case s.there(snpDevice):
		v, err := s.hostData()
		return &launch{initdata.SNP, "HOSTDATA", v}, err
	}
	return nil, nil
}

// configID is MRCONFIGID: from sysfs, which older kernels lack, or out of a report.
func (s *State) configID() ([]byte, error) {
	const size = 48
	b, err := s.readFile(tdxMeasured+"/mrconfigid", size)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = s.machine.tdReport(s.path(tdxDevice)); err == nil && len(b) == tdReportSize {
			b = b[tdConfigID:][:size]
		}
	}
	if err == nil && len(b) != size {
		err = fmt.Errorf("%d bytes, want %d", len(b), size)
	}
	if err != nil {
		return nil, fmt.Errorf("MRCONFIGID: %w", err)
	}
	return b, nil
}

// hostData is HOSTDATA, out of a report. Nobody checks the report's signature here:
// it comes from the firmware by a channel that the host cannot read or write.
func (s *State) hostData() ([]byte, error) {
	b, err := s.machine.report(s.Root, "sev_guest", make([]byte, 64))
	if err == nil && len(b) < snpReportSize {
		err = fmt.Errorf("report of %d bytes, want %d", len(b), snpReportSize)
	}
	if err != nil {
		return nil, fmt.Errorf("HOSTDATA: %w", err)
	}
	return b[snpHostData:][:32], nil
}

// holds tells whether the launch is that of a guest with this document, nil for one
// without any.
func (l *launch) holds(d *initdata.Document) error {
	want := make([]byte, len(l.value))
	if d != nil {
		b, err := d.Bind(l.platform)
		if err != nil {
			return err
		}
		want = b.Value
	}
	if !bytes.Equal(l.value, want) {
		return fmt.Errorf("%s is %s, want %s", l.field, hex.EncodeToString(l.value), hex.EncodeToString(want))
	}
	return nil
}
