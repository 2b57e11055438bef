package fat

import "time"

// Times run from 1980 to 2107, in UTC as nothing says otherwise; FAT spec, "Date
// and Time Formats".
var (
	firstTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2107, 12, 31, 23, 59, 59, 0, time.UTC)
)

// encodeTime returns a time, limited to what FAT can hold, as date, time of day
// in units of 2 seconds, and the rest in units of 10 ms.
func encodeTime(epoch int64) (date, clock uint16, rest uint8) {
	epoch = max(firstTime.Unix(), min(epoch, lastTime.Unix()))
	t := time.Unix(epoch, 0).UTC()
	date = uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day())
	clock = uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
	return date, clock, uint8(t.Second() % 2 * 100)
}

// decodeTime takes any bits; a month 13 is the next year's first.
func decodeTime(date, clock uint16) time.Time {
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}
