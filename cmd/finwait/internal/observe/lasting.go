package observe

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/finwait/finwait/tracer"
)

// passing are the states that a connection goes through.
const passing = 1<<tracer.StateSynSent | 1<<tracer.StateFinWait1 | 1<<tracer.StateFinWait2 |
	1<<tracer.StateClosing | 1<<tracer.StateCloseWait | 1<<tracer.StateLastAck

func isPassing(s tracer.State) bool { return passing>>s&1 != 0 }

// company is what the sockets of a Lasting have in common.
type company struct {
	state         tracer.State
	owner         Process
	orphan        bool
	local, remote netip.AddrPort
}

// lasting returns the sockets that are in states to go through, those that were there
// before and those that have come.
func (c *comparison) lasting() []Lasting {
	groups := map[company]*Lasting{}
	for i := range c.after.sockets {
		s := &c.after.sockets[i]
		if !isPassing(s.State) {
			continue
		}
		k := c.companyOf(s)
		g := groups[k]
		if g == nil {
			g = &Lasting{State: k.state, Owner: k.owner, Orphan: k.orphan, Local: k.local, Remote: k.remote}
			groups[k] = g
		}
		if was, ok := c.known[s.Cookie]; ok && was.state == s.State {
			g.add(s)
		} else {
			g.New++
		}
	}
	all := make([]Lasting, 0, len(groups))
	for _, g := range groups {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b Lasting) int {
		return cmp.Or(
			cmp.Compare(b.Sockets, a.Sockets), cmp.Compare(b.New, a.New), cmp.Compare(a.State, b.State),
			cmp.Compare(a.Owner.PID, b.Owner.PID), a.Local.Compare(b.Local), a.Remote.Compare(b.Remote),
		)
	})
	return all
}

func (c *comparison) companyOf(s *tracer.Socket) company {
	k := company{state: s.State, owner: c.owner(s), orphan: s.Inode == 0, local: s.Local, remote: s.Remote}
	if c.isChosen(s) {
		k.local = netip.AddrPortFrom(s.Local.Addr(), 0)
	} else {
		k.remote = netip.AddrPortFrom(s.Remote.Addr(), 0)
	}
	return k
}

// add counts a socket that has not left its state.
func (g *Lasting) add(s *tracer.Socket) {
	g.Sockets++
	if s.Mini {
		return // it has no queues
	}
	// A FIN takes a number in the stream, and so a place in the queue.
	var finSent, finReceived uint32
	switch s.State {
	case tracer.StateFinWait1, tracer.StateLastAck, tracer.StateClosing:
		finSent = 1
	case tracer.StateSynSent:
		finSent = 1 // the SYN
	}
	switch s.State {
	case tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClosing:
		finReceived = 1
	}
	if s.SendQueue > finSent {
		g.Unsent++
	}
	if s.ReceiveQueue > finReceived {
		g.Unread++
	}
	if finReceived > 0 && s.ReceiveQueue > 0 {
		g.UnreadEnd++
	}
	if s.Timer == tracer.TimerRetransmit && s.Retransmits > 0 {
		g.Retransmitted++
	}
}
