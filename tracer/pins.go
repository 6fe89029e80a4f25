package tracer

import (
	"errors"
	"strconv"
	"time"
)

// ErrNotPinned says that no tracer keeps its counters in a folder.
var ErrNotPinned = errors.New("no tracer keeps its counters there")

// Counts is what a tracer has counted at one moment, with those before it of which
// it has taken over the counters (Options.PinPath). It is a plain value. See
// [PinnedCounts].
type Counts struct {
	// Time is when it was read, in UTC, and Since when the first of those tracers
	// began to count. What happened while none ran is not counted.
	Time, Since time.Time
	// Counters has the transitions, and Endings how the sockets have ended.
	Counters Counters
	Endings  Endings
}

// A PinHeldError says that another tracer keeps its counters in the same folder.
type PinHeldError struct {
	Path string
	// PID is the process that has the tracer, 0 if it cannot be known.
	PID uint32
}

// Error implements error.
func (e *PinHeldError) Error() string {
	who := "another tracer"
	if e.PID != 0 {
		who = "process " + strconv.FormatUint(uint64(e.PID), 10)
	}
	return who + " keeps its counters in " + e.Path + ": end it, or choose another folder"
}
