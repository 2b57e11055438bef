package snp

import (
	"crypto/sha256"
	"fmt"
	"hash"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// SEV returns the launch digest of plain SEV, over firmware and hash table: h is
// nil if the firmware is to check no kernel. It is what LAUNCH_MEASURE signs, not
// the signed measurement itself. Source: AMD Secure Encrypted Virtualization API
// (55766), LAUNCH_UPDATE_DATA.
func SEV(firmware []byte, h *Hashes) ([32]byte, error) {
	d, _, err := flatDigest(firmware, h)
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(d.Sum(nil)), nil
}

// SEVES returns the launch digest of SEV-ES, over firmware, hash table and the
// register page of each vCPU, under QEMU on a host of the newest era.
func SEVES(firmware []byte, h *Hashes, v VCPUs) ([32]byte, error) {
	return Eras[0].SEVES(firmware, h, v)
}

// SEVES is the same on a host of another era. The features of SEV-ES are those
// of SNP without SNPActive: none, or DebugSwap.
func (e Era) SEVES(firmware []byte, h *Hashes, v VCPUs) ([32]byte, error) {
	if err := v.checkCount(); err != nil {
		return [32]byte{}, err
	}
	if v.Features == 0 {
		v.Features = e.Features &^ featureSNP
	}
	if v.Features&featureSNP != 0 {
		return [32]byte{}, fmt.Errorf("snp: features %#x: bit 0, SNPActive, is set for SEV-ES", v.Features)
	}
	d, m, err := flatDigest(firmware, h)
	if err != nil {
		return [32]byte{}, err
	}
	d.Write(startArea(QEMU, e, bootEIP, v).page())
	if v.Count > 1 {
		if m.Reset == nil {
			return [32]byte{}, errNoReset(v.Count)
		}
		page := startArea(QEMU, e, *m.Reset, v).page()
		for range v.Count - 1 {
			d.Write(page)
		}
	}
	return [32]byte(d.Sum(nil)), nil
}

// flatDigest begins the digest that SEV and SEV-ES have over bytes, not pages.
func flatDigest(firmware []byte, h *Hashes) (hash.Hash, *ovmf.Metadata, error) {
	m, err := readSEV(fileFirmware, firmware)
	if err != nil {
		return nil, nil, err
	}
	d := sha256.New()
	d.Write(firmware)
	if h != nil {
		if err := checkArea(m.Hashes); err != nil {
			return nil, nil, err
		}
		d.Write(h.Table())
	}
	return d, m, nil
}
