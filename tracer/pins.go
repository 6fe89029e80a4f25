package tracer

import (
	"errors"
	"strconv"
)

// ErrNotPinned says that no tracer keeps its counters in a folder.
var ErrNotPinned = errors.New("no tracer keeps its counters there")

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
