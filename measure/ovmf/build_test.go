package ovmf

import (
	"encoding/binary"

	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// Images made by package ovmftest. That real images have these parts too is for
// real_test.go.

var le = binary.LittleEndian

const (
	fileDriver = 0x07
	testBase   = ovmftest.Base
)

var (
	peiGUID = ovmftest.PEIFV
	dxeGUID = ovmftest.DXEFV

	putVolume   = ovmftest.Volume
	putFile     = ovmftest.File
	putSections = ovmftest.Sections
	putSection  = ovmftest.Section
	putLZMA     = ovmftest.LZMA
	putPE       = ovmftest.PE
	link        = ovmftest.Link
	testVolumes = ovmftest.Volumes
	testImage   = ovmftest.Code
	blankVars   = ovmftest.BlankVars
)
