package tracer

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// StuckOptions says which sockets [Tracer.Stuck] looks for. A nil *StuckOptions
// stands for the zero value. Which sockets are looked at at all, the tracer's
// filter says: its States and Transitions apart.
type StuckOptions struct {
	// Over is how long is too long, by state. A state that is not in it is not
	// looked for. Default: DefaultStuckOver.
	Over map[State]time.Duration
}

// DefaultStuckOver returns the states in which a socket can be stuck, and how
// long none that is well stays there.
func DefaultStuckOver() map[State]time.Duration {
	return map[State]time.Duration{
		// The peer has closed and the process has not: whoever reads the end
		// of the stream closes at once, if not after some more writing.
		StateCloseWait: time.Minute,
		// The process has closed and its FIN is not acknowledged, which takes
		// a round trip. The kernel repeats it seven times within 30 seconds,
		// and gives up after about 100 where nobody owns the socket.
		StateFinWait1: 30 * time.Second,
		StateClosing:  30 * time.Second,
		StateLastAck:  30 * time.Second,
		// The peer has acknowledged the FIN and does not close. The kernel
		// gives up after net.ipv4.tcp_fin_timeout, 60 seconds by default,
		// where nobody owns the socket.
		StateFinWait2: 2 * time.Minute,
		// Nobody answers: the SYN has been repeated after 1, 3 and 7 seconds.
		StateSynSent: 10 * time.Second,
	}
}

func (o *StuckOptions) over() map[State]time.Duration {
	if o == nil || o.Over == nil {
		return DefaultStuckOver()
	}
	return o.Over
}

func (o *StuckOptions) validate() error {
	for state, over := range o.over() {
		switch {
		case !state.valid() || state == StateClose || state == StateListen:
			return fmt.Errorf("no socket is stuck in %v", state)
		case over <= 0:
			return fmt.Errorf("%v in %v is no time to be stuck for", over, state)
		}
	}
	return nil
}

// Stuck is the sockets that had been in their state for too long at one moment.
// See [Tracer.Stuck].
type Stuck struct {
	// Time is the moment for which it is told, in UTC.
	Time time.Time
	// Sockets are those that had, the oldest first.
	Sockets []StuckSocket
	// Maybe has the number of other sockets in each state that may have: they
	// are older than the tracer, and nothing says since when they are there. A
	// tracer that has run for as long as is too long knows.
	Maybe StateCounts
	// Missed is what could not be looked at.
	Missed CensusMissed
	// Namespaces is the number of network namespaces that were looked at.
	Namespaces int
}

// StuckSocket is a socket that has been in its state for too long.
type StuckSocket struct {
	// State is the state that it is in, and Age the time since it entered it.
	// If AtLeast, it may have been there for longer: the socket is older than
	// the tracer, and Age is what the kernel can vouch for.
	State   State
	Age     time.Duration
	AtLeast bool

	// The others are as in Event.
	Cookie        uint64
	Netns         uint32
	Family        Family
	Local, Remote netip.AddrPort
	Owner         Owner
	Role          Role
}

// StuckGroup is the sockets of one owner that are stuck in one state.
type StuckGroup struct {
	State State
	// Owner is the process. If its Origin is OriginUnknown, no owner is known.
	Owner Owner
	// Sockets is how many there are, and Oldest the age of the oldest of them,
	// if OldestAtLeast a lower bound.
	Sockets       int
	Oldest        time.Duration
	OldestAtLeast bool
}

// ByProcess returns the sockets by the processes that own them, those with the
// most sockets in one state first.
func (s *Stuck) ByProcess() []StuckGroup {
	type key struct {
		state State
		known bool
		pid   uint32
		comm  [16]byte
	}
	groups := map[key]*StuckGroup{}
	var order []*StuckGroup
	for i := range s.Sockets {
		socket := &s.Sockets[i]
		k := key{socket.State, socket.Owner.Origin != OriginUnknown, socket.Owner.PID, socket.Owner.comm}
		g := groups[k]
		if g == nil {
			// The sockets are in the order of their ages.
			g = &StuckGroup{State: socket.State, Owner: socket.Owner, Oldest: socket.Age, OldestAtLeast: socket.AtLeast}
			groups[k] = g
			order = append(order, g)
		}
		g.Sockets++
	}
	slices.SortStableFunc(order, func(a, b *StuckGroup) int { return b.Sockets - a.Sockets })
	out := make([]StuckGroup, 0, len(order))
	for _, g := range order {
		out = append(out, *g)
	}
	return out
}
