package builder

import (
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// tdBanks are those of RTMRs.
var tdBanks = []eventlog.Alg{eventlog.SHA384}

// predictTD computes MRTD and RTMRs, and the first shape's CC event log.
func (i *Image) predictTD() (*measure.Measurements, *eventlog.Log, error) {
	b, err := i.TDBoot()
	if err != nil {
		return nil, nil, err
	}
	m, log, err := PredictShapes(i.Profile.Name, b, i.Machine)
	if err != nil {
		return nil, nil, err
	}
	p := i.Profile.TDX
	m.TDX = &measure.TDXFacts{Attributes: p.Attributes, XFAM: p.XFAM, MRConfigID: p.MRConfigID, MROwner: p.MROwner, MROwnerConfig: p.MROwnerConfig}
	names := [][2]string{{"firmware", FirmwareName}}
	switch {
	case b.Disk != nil:
		names = append(names, [2]string{"disk", DiskName})
	case b.UKI != nil:
		names = append(names, [2]string{"uki", UKIName})
	default:
		names = append(names, [2]string{"kernel", KernelName}, [2]string{"initrd", InitrdName}, [2]string{"cmdline", CmdlineName})
	}
	m.Inputs, err = i.inputs(names...)
	return m, log, err
}

// TDBoot says what the prediction of a trust domain needs to know, all but the
// machine's shape.
func (i *Image) TDBoot() (b measure.Boot, err error) {
	firmware, err := i.read(FirmwareName)
	if err != nil {
		return b, err
	}
	b = measure.Boot{Vars: firmware, Banks: tdBanks, TD: &measure.TD{Firmware: firmware}}
	if b.TD.Metadata, err = ovmf.ReadMetadata(firmware); err != nil {
		return b, err
	}
	if b.Firmware, err = CachedFirmware(i.Store, firmware); err != nil {
		return b, err
	}
	return b, i.fill(&b)
}
