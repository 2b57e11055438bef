#include "textflag.h"

// The instructions set the carry flag when there was a number; moves leave it.
// Intel SDM, volume 2B, RDRAND and RDSEED.

// func seed64() (v uint64, ok bool)
TEXT ·seed64(SB), NOSPLIT, $0-9
	RDSEEDQ AX
	MOVQ AX, v+0(FP)
	SETCS ok+8(FP)
	RET

// func rand64() (v uint64, ok bool)
TEXT ·rand64(SB), NOSPLIT, $0-9
	RDRANDQ AX
	MOVQ AX, v+0(FP)
	SETCS ok+8(FP)
	RET

// func pause()
TEXT ·pause(SB), NOSPLIT, $0-0
	PAUSE
	RET
