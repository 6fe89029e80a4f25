package tracer

import (
	"fmt"
	"net/netip"
	"time"
)

// Conn is one connection, when it has ended: the whole of it, however many
// kernel objects carried it. See [Tracer.Conns].
//
// Fields that the kernel could not tell are zero, and the documentation of
// each says how to see that.
type Conn struct {
	// Start is when its first state began: SYN_SENT of a client, NEW_SYN_RECV
	// (or SYN_RECV, where a SYN cookie or Fast Open left no half-open state) of
	// a server. It is the zero time for a connection that is older than the
	// tracer. End is when its last state ended. Both are of the kernel's
	// monotonic clock, given as wall-clock time in UTC.
	Start, End time.Time

	// Cookie is the socket cookie that ss -e prints as sk:, 0 if unknown.
	Cookie uint64
	// Netns is the inode number of the network namespace.
	Netns uint32
	// Family is the socket's address family. An IPv6 socket that carries
	// IPv4 has FamilyIPv6 and IPv4 addresses in Local and Remote.
	Family Family
	// Local and Remote are the socket's addresses. The local port is 0 if
	// connect failed before the kernel had chosen one.
	Local, Remote netip.AddrPort
	// Owner is the process that opened the socket, as far as it was known in
	// the end.
	Owner Owner
	// Role is the socket's side of the connection.
	Role Role

	visits  [numStates]Visit
	visited int

	// Counted tells that the kernel's own numbers of the connection are valid:
	// BytesSent to SRTT. They are not for a connection that ended half-open, nor
	// for one of which the tracer has seen no more than its mini-socket.
	Counted bool
	// BytesSent and BytesReceived are the bytes of the application's data:
	// what was sent, each byte once, and what came in order, and may have been
	// read or not.
	BytesSent, BytesReceived uint64
	// SegmentsSent and SegmentsReceived are all segments, those without data
	// too, as tcpi_segs_out and tcpi_segs_in. Retransmits is how many of
	// those sent were sent again. The mini-socket's are not among them.
	SegmentsSent, SegmentsReceived, Retransmits uint32
	// SRTT is the smoothed round-trip time in the end, 0 if none was measured.
	SRTT time.Duration

	// Reason says why the connection has ended. One that went through
	// TIME_WAIT has ended by ReasonFIN: both sides have closed.
	Reason Reason
	// TimeWaitReason says why TIME_WAIT has ended, if it has:
	// ReasonExpired as a rule, or ReasonReused.
	TimeWaitReason Reason
	// Side says who closed first.
	Side Side
}

// Visit is the stay of a connection in one state.
type Visit struct {
	State State
	// Dwell is how long it stayed. Valid only if DwellKnown: the state in
	// which the tracer found an older connection has none.
	Dwell      time.Duration
	DwellKnown bool
}

// Walk returns the states that the connection was in, in their order. The slice
// is valid as long as c.
func (c *Conn) Walk() []Visit { return c.visits[:c.visited] }

// SetWalk sets what Walk returns. It is for tests and for connections that do
// not come from the kernel. There are no more than 12 states.
func (c *Conn) SetWalk(walk ...Visit) { c.visited = copy(c.visits[:], walk) }

// walkOrder has the states of a connection in the only order in which it can
// go through them, each at most once.
var walkOrder = []State{
	StateNewSynRecv, StateSynSent, StateSynRecv, StateEstablished, StateFinWait1, StateClosing, StateFinWait2,
	StateCloseWait, StateLastAck, StateTimeWait,
}

// ConnOptions chooses the connections of which [Tracer.Conns] tells. The
// kernel applies it: a connection that is not wanted costs no more than its
// counting. With neither Slow nor Reasons all are told that pass
// Options.Filter; with both, those that fulfil the one or the other.
type ConnOptions struct {
	// Slow has connections told that were at least as long in one of these
	// states, when they have ended.
	Slow map[State]time.Duration
	// Reasons has connections told that ended for one of these reasons, or
	// whose TIME_WAIT did.
	Reasons []Reason
	// Buffer is the size in bytes of the ring buffer between the kernel and
	// Conns, a power of two and at least a page. A connection takes 264 bytes.
	// Default 4 MiB.
	Buffer int
	// AtTimeWait has a connection told when TIME_WAIT begins, and not when it
	// ends.
	AtTimeWait bool
}

func (o *ConnOptions) validate() error {
	if o == nil {
		return nil
	}
	if err := validateBuffer("connection buffer", o.Buffer); err != nil {
		return err
	}
	for s, d := range o.Slow {
		switch {
		case !s.valid() || s == StateClose || s == StateListen:
			return fmt.Errorf("slow: no connection is in %v", s)
		case d <= 0:
			return fmt.Errorf("slow: %v in %v is no time to be in it", d, s)
		case s == StateTimeWait && o.AtTimeWait:
			return fmt.Errorf("slow: connections are told before they have been in %v", s)
		}
	}
	for _, r := range o.Reasons {
		if int(r) >= len(reasonNames) {
			return fmt.Errorf("unknown reason %d", r)
		}
	}
	return nil
}
