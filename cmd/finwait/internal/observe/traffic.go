package observe

import (
	"net/netip"
	"time"

	"github.com/finwait/finwait/tracer"
)

// Source is who saw what happened to connections.
type Source string

// The sources.
const (
	SourceKernel Source = "kernel" // a tracer of our own
	SourceAgent  Source = "agent"  // the counters of one that runs already
	SourceLog    Source = "log"    // what one has written
)

// Traffic is what happened to connections, between Since and Until.
type Traffic struct {
	Source       Source
	Since, Until time.Time

	// Opened is the number of sockets that came to be ESTABLISHED: a connection within
	// the host has two. Endings has how sockets ended, TIME_WAIT's own end among them.
	Opened  uint64
	Endings tracer.Endings

	// Flows has them by process and service, those with the most connections first; nil
	// if the source does not tell connections apart.
	Flows []Flow
	// Unplaced is the number of records that are in no flow, for lack of room.
	Unplaced uint64
	// Lost is the number of transitions of which nothing is known but their number.
	Lost uint64
	// Estimated tells that a sample was recorded, and that the numbers are projected. Weight
	// is how many connections one that was recorded stands for, at the most.
	Estimated bool
	Weight    uint64
}

// Enough reports whether n, of which something was counted, stands for least or more that
// were seen: a single one of a sample is none to go by, whatever it stands for.
func (t *Traffic) Enough(n, least uint64) bool { return n >= least*max(t.Weight, 1) }

// Duration returns how long it was watched.
func (t *Traffic) Duration() time.Duration { return t.Until.Sub(t.Since) }

// Rate returns how many a second n are.
func (t *Traffic) Rate(n uint64) float64 {
	if d := t.Duration().Seconds(); d > 0 {
		return float64(n) / d
	}
	return 0
}

// FlowKey is what the connections of a flow have in common.
type FlowKey struct {
	Netns uint32
	Role  tracer.Role
	// Owner is the process that opened them, with the PID 0 if it is not known.
	Owner Process
	// Service is the local address and port of a server's connections, and the remote
	// ones of a client's.
	Service netip.AddrPort
}

// Flow is the connections of one process with one service.
type Flow struct {
	FlowKey
	// Opened is the number of sockets that came to be ESTABLISHED, TimeWait of those that
	// went on to TIME_WAIT: this side closed first.
	Opened, TimeWait uint64
	// Endings has how sockets ended, TIME_WAIT's own end among them.
	Endings map[tracer.Ending]uint64
	// SynSent and CloseWait are how long sockets stayed in these states, of those that
	// have left them. Handshake is what of SynSent is about connections that came to be.
	SynSent, CloseWait, Handshake tracer.Histogram
}

// Ended returns how many sockets ended for that reason, in whatever state.
func (f *Flow) Ended(reason tracer.Reason) (n uint64) {
	for way, count := range f.Endings {
		if way.Reason == reason {
			n += count
		}
	}
	return n
}
