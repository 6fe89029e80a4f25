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
			g.add(s, &c.before.sockets[was.index])
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

// add counts a socket that has not left its state, and was as before at the first look.
func (g *Lasting) add(s, before *tracer.Socket) {
	g.Sockets++
	if s.Mini {
		return // it has no queues
	}
	unread, unsent := dataOf(s)
	if unsent > 0 {
		g.Unsent++
	}
	if unread > 0 {
		g.Unread++
	}
	if hasEnd(s) && s.ReceiveQueue > 0 {
		g.UnreadEnd++
	}
	if s.Timer == tracer.TimerRetransmit && s.Retransmits > 0 {
		g.Retransmitted++
	}
	// Nothing can be added to what is to be sent before a FIN.
	if isEnding(s) && s.SendQueue == before.SendQueue {
		g.Stalled++
	}
}

// isEnding tells that a socket has a FIN of its own that is not acknowledged.
func isEnding(s *tracer.Socket) bool {
	switch s.State {
	case tracer.StateFinWait1, tracer.StateLastAck, tracer.StateClosing:
		return true
	}
	return false
}

// hasEnd tells that a socket has its peer's FIN.
func hasEnd(s *tracer.Socket) bool {
	switch s.State {
	case tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClosing:
		return true
	}
	return false
}

// dataOf returns how many bytes of data a full socket has that its process has not read,
// and that its peer has not acknowledged. A SYN and a FIN take a number in the stream, and
// so a place in the queue.
func dataOf(s *tracer.Socket) (unread, unsent uint32) {
	unread, unsent = s.ReceiveQueue, s.SendQueue
	if unread > 0 && hasEnd(s) {
		unread--
	}
	if unsent > 0 && (isEnding(s) || s.State == tracer.StateSynSent) {
		unsent--
	}
	return unread, unsent
}
