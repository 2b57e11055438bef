package attester

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/plinth-os/plinth/evidence"
	"golang.org/x/sys/unix"
)

// reportData is the size of the field for it in an SNP report and in a TD report, in
// bytes.
const reportData = 64

const sevGuest = "/dev/sev-guest"

// NewSNP returns an attester by reports of AMD's secure processor. root is where the
// kernel's paths are found, "/" in a guest. It is an error if neither way to the
// processor is there.
func NewSNP(root string) (Attester, error) {
	a := &snp{
		tsm:    tsm{osFiles{}, filepath.Join(root, tsmReports)},
		device: filepath.Join(root, sevGuest),
		ask:    extendedReport,
	}
	_, err := os.Stat(a.tsm.dir)
	if err == nil {
		return a, nil
	}
	if _, err2 := os.Stat(a.device); err2 != nil {
		return nil, fmt.Errorf("attester: snp: %w", errors.Join(err, err2))
	}
	return a, nil
}

type snp struct {
	tsm    tsm
	device string
	ask    func(device string, data [reportData]byte) (response, certs []byte, err error)
}

func (*snp) TEE() string { return evidence.TEESNP }

// Evidence cannot be cancelled while the processor is at work.
func (a *snp) Evidence(ctx context.Context, data []byte) (json.RawMessage, error) {
	report, table, err := a.report(ctx, fit(data, reportData))
	if err != nil {
		return nil, fmt.Errorf("attester: snp: %w", err)
	}
	e, err := evidence.NewSNP(report, table)
	if err != nil {
		return nil, fmt.Errorf("attester: %w", err)
	}
	return e.Marshal()
}

// report asks configfs-tsm and, where the kernel has none or it has no provider,
// the device that came before it.
func (a *snp) report(ctx context.Context, data []byte) (report, table []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	report, table, err = a.tsm.report(providerSNP, data)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) { // ENXIO: tsm_report_make_item without a provider
		report, table, err = a.fromDevice([reportData]byte(data))
	}
	if err != nil {
		return nil, nil, err
	}
	return report, table, reflects(report, snpReportData, data)
}

// snpReportData is where REPORT_DATA is: AMD 56860, ATTESTATION_REPORT.
const snpReportData = 0x50

// reflects tells whether a report is about data.
func reflects(report []byte, offset int, data []byte) error {
	if len(report) < offset+len(data) {
		return fmt.Errorf("report of %d bytes", len(report))
	}
	if string(report[offset:][:len(data)]) != string(data) {
		return errors.New("the report is about other data")
	}
	return nil
}

// fromDevice takes the report out of the processor's response, MSG_REPORT_RSP: status,
// size of the report, reserved, report. AMD 56860, section 7.3.
func (a *snp) fromDevice(data [reportData]byte) (report, table []byte, err error) {
	const header = 32
	response, certs, err := a.ask(a.device, data)
	if err != nil {
		return nil, nil, err
	}
	if len(response) < header {
		return nil, nil, fmt.Errorf("%s: response of %d bytes", a.device, len(response))
	}
	status, size := binary.LittleEndian.Uint32(response), binary.LittleEndian.Uint32(response[4:])
	if status != 0 || int64(size) > int64(len(response)-header) {
		return nil, nil, fmt.Errorf("%s: status %#x, report of %d bytes in %d", a.device, status, size, len(response)-header)
	}
	return response[header:][:size], certs, nil
}

// Structures of Linux, include/uapi/linux/sev-guest.h.
type (
	snpExtReportReq struct {
		userData  [reportData]byte
		vmpl      uint32
		_         [28]byte
		certs     uint64 // address
		certsSize uint32 // bytes, whole pages
		_         [4]byte
	}
	snpReportResp struct{ data [4000]byte }
	snpRequest    struct {
		version  uint8 // of the message, 1
		_        [7]byte
		request  uint64 // address
		response uint64
		fwError  uint32
		vmmError uint32
	}
)

const (
	snpGetExtReport = 3<<30 | 32<<16 | 'S'<<8 | 2 // SNP_GET_EXT_REPORT, _IOWR of snpRequest
	snpCertsSize    = 16 << 10                    // SEV_FW_BLOB_MAX_SIZE: the kernel takes no more
)

// extendedReport asks the device, for VMPL 0 as CoCo's attester does.
func extendedReport(device string, data [reportData]byte) (response, certs []byte, err error) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	table, rsp := new([snpCertsSize]byte), new(snpReportResp)
	req := &snpExtReportReq{userData: data, certsSize: snpCertsSize}
	var p runtime.Pinner // the collector sees numbers where the kernel finds addresses
	defer p.Unpin()
	p.Pin(table)
	p.Pin(rsp)
	p.Pin(req)
	req.certs = address(unsafe.Pointer(table))
	call := &snpRequest{version: 1, request: address(unsafe.Pointer(req)), response: address(unsafe.Pointer(rsp))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), snpGetExtReport, uintptr(unsafe.Pointer(call))); errno != 0 {
		return nil, nil, fmt.Errorf("%s: SNP_GET_EXT_REPORT: firmware %#x, host %#x: %w", device, call.fwError, call.vmmError, errno)
	}
	return rsp.data[:], table[:], nil
}

func address(p unsafe.Pointer) uint64 { return uint64(uintptr(p)) }
