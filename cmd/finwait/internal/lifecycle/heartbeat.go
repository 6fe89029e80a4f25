package lifecycle

import (
	"fmt"
	"sync/atomic"
	"time"
)

// A Heartbeat notices when a loop hangs. Its methods may be called from several
// goroutines.
type Heartbeat struct {
	limit time.Duration
	start time.Time
	last  atomic.Int64 // after start
}

// NewHeartbeat returns one that has just beaten, and may be silent for limit.
func NewHeartbeat(limit time.Duration) *Heartbeat {
	return &Heartbeat{limit: limit, start: time.Now()}
}

// Beat says that the loop goes on. A loop that waits beats too, more often than
// the limit.
func (h *Heartbeat) Beat() { h.last.Store(int64(time.Since(h.start))) }

// Check returns an error if the last beat is too long ago.
func (h *Heartbeat) Check() error {
	if silent := time.Since(h.start) - time.Duration(h.last.Load()); silent > h.limit {
		return fmt.Errorf("no progress for %v", silent.Truncate(time.Second))
	}
	return nil
}
