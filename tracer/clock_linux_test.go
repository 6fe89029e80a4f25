//go:build linux

package tracer

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// A new measurement changes the offset only if the wall clock was set.
func TestClockKeepsOrder(t *testing.T) {
	var c clock
	at := uint64(now(unix.CLOCK_MONOTONIC))
	first := c.wall(at)
	qt.Check(t, qt.IsTrue(time.Since(first).Abs() < time.Second))
	for range 100 {
		c.measuredAt = 1 // long ago
		qt.Assert(t, qt.Equals(c.wall(at), first))
	}
	c.offset -= int64(time.Hour) // the wall clock has been set forward since
	c.measuredAt = 1
	qt.Check(t, qt.IsTrue(c.wall(at).Sub(first).Abs() < time.Millisecond))
}
