package tdx

import (
	"errors"
	"fmt"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// CFV returns the configuration firmware volume, the variables in the firmware
// file. MRTD covers only where they are; the firmware extends RTMR 0 with all of
// data when it starts.
func CFV(firmware []byte) (data []byte, s ovmf.TDXSection, err error) {
	m, err := metadata(firmware)
	if err != nil {
		return nil, s, err
	}
	found := false
	for _, x := range m.TDX {
		if x.Type != ovmf.TDXCFV {
			continue
		}
		if found {
			return nil, s, errors.New("tdx: firmware: a second configuration firmware volume")
		}
		s, found = x, true
	}
	if !found || s.Size == 0 {
		return nil, s, errors.New("tdx: firmware: no configuration firmware volume")
	}
	if data, err = m.Content(firmware, s); err != nil {
		return nil, s, fmt.Errorf("tdx: firmware: %w", err)
	}
	return data, s, nil
}
