package tracer

import "iter"

// Counters counts every transition of every TCP socket of the host since the
// tracer was attached.
type Counters struct {
	cells [numStates][numStates]uint64
}

// Count returns how often sockets went from t.Old to t.New.
func (c *Counters) Count(t Transition) uint64 {
	if !t.Old.valid() || !t.New.valid() {
		return 0
	}
	return c.cells[t.Old][t.New]
}

// Add counts t n times more. One that cannot be is not counted.
func (c *Counters) Add(t Transition, n uint64) {
	if t.Old.valid() && t.New.valid() {
		c.cells[t.Old][t.New] += n
	}
}

// All yields every transition that has happened at least once, with its count.
func (c *Counters) All() iter.Seq2[Transition, uint64] {
	return func(yield func(Transition, uint64) bool) {
		for _, from := range States() {
			for _, to := range States() {
				if n := c.cells[from][to]; n > 0 && !yield(Transition{from, to}, n) {
					return
				}
			}
		}
	}
}

// Total returns the number of all transitions.
func (c *Counters) Total() uint64 {
	var total uint64
	for _, n := range c.All() {
		total += n
	}
	return total
}

// Sub returns what has been counted since earlier, a snapshot of the same tracer.
func (c *Counters) Sub(earlier *Counters) Counters {
	var d Counters
	for from := range c.cells {
		for to := range c.cells[from] {
			d.cells[from][to] = c.cells[from][to] - earlier.cells[from][to]
		}
	}
	return d
}

// Ledger says what became of every transition since the tracer was attached,
// and counts everything that went wrong.
type Ledger struct {
	// Seen is the number of transitions, wanted or not: Counters.Total.
	Seen uint64
	// Emitted is the number of events that the kernel gave to the ring buffer.
	// Seen - Emitted - RingFull - NotHeld did not pass the filter, or have not
	// yet: see Filter.Ports.
	Emitted uint64

	// RingFull is the number of events lost because the ring buffer was full.
	// Counters have them.
	RingFull uint64
	// NotHeld is the number of events lost because they were to be told with
	// the socket's next, and the kernel refused memory to remember them.
	// Counters have them.
	NotHeld uint64
	// Recursion is the number of transitions that were missed, because the
	// kernel does not run a program that interrupts itself on one CPU (since
	// Linux 6.1): of full sockets, those after which another transition shows
	// the gap. They are missing from Counters and Seen too.
	Recursion uint64
	// TakenOver is the number of transitions that would have been, had not
	// another program been there for them. Nothing is missing of them.
	TakenOver uint64
	// Decode is the number of records that were not understood.
	Decode uint64

	// StorageFailed is the number of times that the kernel refused memory for
	// what is known of a socket: those transitions lack dwell and owner.
	StorageFailed uint64
	// Unfollowed is the number of times that a mini-socket was found to have
	// no place among Options.MiniSockets: the end of its TIME_WAIT lacks dwell
	// and owner, or is not seen.
	Unfollowed uint64
	// HandoffFull is the number of mini-sockets that could not be linked to
	// their socket: its FIN_WAIT2→TIME_WAIT was told as FIN_WAIT2→CLOSE.
	HandoffFull uint64
	// WatchFull is the number of mini-sockets that could not be watched:
	// their next transition is told late.
	WatchFull uint64
	// UnknownState is the number of transitions with a state that this
	// version does not know. They are neither counted nor emitted.
	UnknownState uint64
	// RequestsFull is the number of half-open connections that found no place
	// among the 65,536 that are followed: their end has no dwell, or is not seen.
	RequestsFull uint64
	// CompletedFull is the number of half-open connections that could not be
	// linked to their socket: NEW_SYN_RECV→SYN_RECV was told as CLOSE→SYN_RECV.
	CompletedFull uint64
	// NetnsFull is the number of transitions in network namespaces that found
	// no place among the 1024 that have gauges of their own.
	NetnsFull uint64
	// StackFailed is the number of times that the kernel's stack could not be
	// read, which says why a socket has ended, and with EvidenceTimer that it has.
	StackFailed uint64
	// Stale is the number of mini-sockets and half-open connections whose end
	// was missed, as an audit found.
	Stale uint64
	// Corrected is by how many sockets the gauges were wrong, as audits found;
	// they have been put right.
	Corrected uint64
	// SYNCookies is the number of connections that a SYN cookie opened. They
	// were never half-open, and come as CLOSE→SYN_RECV. (A Fast Open
	// connection without data in its SYN is counted here too.)
	SYNCookies uint64
	// ConnsSeen is the number of connections that have ended, wanted or not, if
	// Options.Conns is set.
	ConnsSeen uint64
	// ConnsEmitted is the number of those that the kernel gave to the ring
	// buffer of Conns.
	ConnsEmitted uint64
	// ConnsLost is the number of those that passed the filter and
	// Options.Conns, and ended while that was full.
	ConnsLost uint64
	// ConnsPartial is the number of connections that were told without the walk
	// and the counts of their full socket, or will be: their mini-sockets found
	// no place among Options.MiniSockets.
	ConnsPartial uint64
	// SweepFailed is the number of times that the mini-sockets that tell
	// nothing themselves could not be looked at; it is done again soon after.
	SweepFailed uint64
	// ProfileFull is the number of dwell times, known or not, that found no
	// histogram of their own among the 8192 of a profile: they are in the one
	// of their state in GroupOthers.
	ProfileFull uint64
}

// All yields every entry with its name, such as "ring_full", in the order of the
// fields.
func (l *Ledger) All() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for _, e := range []struct {
			name string
			n    uint64
		}{
			{"seen", l.Seen}, {"emitted", l.Emitted},
			{"ring_full", l.RingFull}, {"not_held", l.NotHeld}, {"recursion", l.Recursion}, {"taken_over", l.TakenOver},
			{"decode", l.Decode}, {"storage_failed", l.StorageFailed}, {"unfollowed", l.Unfollowed},
			{"handoff_full", l.HandoffFull}, {"watch_full", l.WatchFull}, {"unknown_state", l.UnknownState},
			{"requests_full", l.RequestsFull}, {"completed_full", l.CompletedFull}, {"netns_full", l.NetnsFull},
			{"stack_failed", l.StackFailed}, {"stale", l.Stale}, {"corrected", l.Corrected}, {"syn_cookies", l.SYNCookies},
			{"conns_seen", l.ConnsSeen}, {"conns_emitted", l.ConnsEmitted}, {"conns_lost", l.ConnsLost},
			{"conns_partial", l.ConnsPartial}, {"sweep_failed", l.SweepFailed}, {"profile_full", l.ProfileFull},
		} {
			if !yield(e.name, e.n) {
				return
			}
		}
	}
}

// Lost returns the number of transitions that passed the filter, or may have,
// and of which no event came.
func (l *Ledger) Lost() uint64 {
	return l.RingFull + l.NotHeld + l.Recursion + l.Decode + l.UnknownState
}

// Impaired returns the number of transitions that were told with less than
// what could have been known.
func (l *Ledger) Impaired() uint64 {
	return l.StorageFailed + l.Unfollowed + l.HandoffFull + l.WatchFull + l.RequestsFull + l.CompletedFull + l.StackFailed
}
