//go:build linux

package tracer

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// clockAge is how long an offset between the clocks is used before it is
// measured again, since the wall clock can be set.
const clockAge = uint64(time.Second)

// clock turns the kernel's monotonic time into wall-clock time.
type clock struct {
	offset     int64  // wall - monotonic
	error      int64  // by how much that may be off
	measuredAt uint64 // monotonic
}

// wall returns the wall-clock time of a monotonic one, in UTC.
func (c *clock) wall(monotonic uint64) time.Time {
	if c.measuredAt == 0 || monotonic > c.measuredAt+clockAge {
		c.measure()
	}
	return time.Unix(0, int64(monotonic)+c.offset).UTC()
}

// measure reads both clocks a few times and goes by the quickest: in between,
// the thread may have been off its CPU. What NTP does, it does to both clocks, so
// that the offset stays what it was, as far as can be told, unless the wall clock
// is set: two events do not change places because one came after a measurement.
func (c *clock) measure() {
	const attempts = 5
	offset, best := int64(0), int64(math.MaxInt64)
	for range attempts {
		before := now(unix.CLOCK_MONOTONIC)
		wall := now(unix.CLOCK_REALTIME)
		after := now(unix.CLOCK_MONOTONIC)
		if took := after - before; took < best {
			best, offset = took, wall-before-took/2
		}
		c.measuredAt = uint64(after)
	}
	if off := max(offset-c.offset, c.offset-offset); c.offset == 0 || off > best+c.error {
		c.offset, c.error = offset, best
	}
}

func now(id int32) int64 {
	var ts unix.Timespec
	unix.ClockGettime(id, &ts) // cannot fail: the clocks exist, the pointer is valid
	return ts.Nano()
}
