package output

import (
	"strconv"
	"time"
)

// AppendDuration appends d in at most five columns, cut off rather than
// rounded: 850ns, 1.2ms, 42ms, 60.3s, 9m59s, 42m, 2h05m, 36h, 12d.
func AppendDuration(dst []byte, d time.Duration) []byte {
	switch {
	case d < 0:
		return append(dst, "<0"...)
	case d < time.Microsecond:
		return appendUnit(dst, d, time.Nanosecond, "ns")
	case d < time.Millisecond:
		return appendUnit(dst, d, time.Microsecond, "µs")
	case d < time.Second:
		return appendUnit(dst, d, time.Millisecond, "ms")
	case d < 100*time.Second:
		return append(appendTenths(dst, d, time.Second), 's')
	case d < 10*time.Minute:
		return appendPair(dst, d, time.Minute, 'm', 's')
	case d < time.Hour:
		return appendUnit(dst, d, time.Minute, "m")
	case d < 10*time.Hour:
		return appendPair(dst, d, time.Hour, 'h', 'm')
	case d < 100*time.Hour:
		return appendUnit(dst, d, time.Hour, "h")
	}
	return appendUnit(dst, d, 24*time.Hour, "d")
}

// appendUnit appends whole units, with one decimal below ten of the units that
// have one.
func appendUnit(dst []byte, d, unit time.Duration, name string) []byte {
	if d < 10*unit && unit > time.Nanosecond && unit < time.Second {
		dst = appendTenths(dst, d, unit)
	} else {
		dst = strconv.AppendInt(dst, int64(d/unit), 10)
	}
	return append(dst, name...)
}

func appendTenths(dst []byte, d, unit time.Duration) []byte {
	dst = strconv.AppendInt(dst, int64(d/unit), 10)
	return append(dst, '.', '0'+byte(d%unit/(unit/10)))
}

// appendPair appends whole units and the rest in sixtieths: 2h05m.
func appendPair(dst []byte, d, unit time.Duration, major, minor byte) []byte {
	rest := byte(d % unit / (unit / 60))
	dst = strconv.AppendInt(dst, int64(d/unit), 10)
	return append(dst, major, '0'+rest/10, '0'+rest%10, minor)
}
