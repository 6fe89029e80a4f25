//go:build linux

package tracer

import (
	"time"

	"golang.org/x/sys/unix"
)

// clockAge is how long an offset between the clocks is used before it is
// measured again, since the wall clock is stepped and slewed.
const clockAge = uint64(time.Second)

// clock turns the kernel's monotonic time into wall-clock time.
type clock struct {
	offset     int64  // wall - monotonic
	measuredAt uint64 // monotonic
}

// wall returns the wall-clock time of a monotonic one, in UTC.
func (c *clock) wall(monotonic uint64) time.Time {
	if c.measuredAt == 0 || monotonic > c.measuredAt+clockAge {
		c.measure()
	}
	return time.Unix(0, int64(monotonic)+c.offset).UTC()
}

func (c *clock) measure() {
	before := now(unix.CLOCK_MONOTONIC)
	wall := now(unix.CLOCK_REALTIME)
	after := now(unix.CLOCK_MONOTONIC)
	c.offset = wall - before - (after-before)/2
	c.measuredAt = uint64(after)
}

func now(id int32) int64 {
	var ts unix.Timespec
	unix.ClockGettime(id, &ts) // cannot fail: the clocks exist, the pointer is valid
	return ts.Nano()
}
