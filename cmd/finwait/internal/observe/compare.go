package observe

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/tracer"
)

// comparison is one network namespace at two moments.
type comparison struct {
	before, after *space
	owners        map[uint32]tracer.Process // by inode of the socket

	// known has the sockets of before, by cookie. A mini-socket has the cookie of the
	// socket that it takes the place of.
	known map[uint64]sighting
	// chosen is the ports that the kernel chooses, listening those that somebody listens on.
	chosen    [2]int64 // the first and the last
	listening map[uint16]bool
}

// sighting is what a socket was at the first look.
type sighting struct {
	state tracer.State
	index int32 // in before.sockets
}

// compareNetns returns what both looks say of a namespace.
func compareNetns(before, after *space, owners map[uint32]tracer.Process) Netns {
	c := &comparison{before: before, after: after, owners: owners}
	c.remember()
	n := Netns{
		Inode:    after.inode,
		Name:     after.name,
		Sysctls:  after.sysctls,
		NoSysctl: after.noSysctl,
		Counters: after.counters,
		Counted:  after.counters.Sub(before.counters),
	}
	for i := range after.sockets {
		s := &after.sockets[i]
		n.count(s)
		if s.State == tracer.StateTimeWait && c.listening[s.Local.Port()] {
			n.TimeWaitInbound++
		}
	}
	for i := range before.sockets {
		n.StatesBefore[before.sockets[i].State]++
	}
	n.UsedPorts = c.usedPorts()
	n.Listeners = c.listeners()
	n.Outgoing = c.outgoing()
	n.Lasting = c.lasting()
	n.Conntrack = conntrackOf(before.tracked, after.tracked)
	n.Path, n.Member = namedPath(n.Name, n.Inode), n.member()
	n.Queued = c.queued()
	return n
}

func conntrackOf(before, after *procnet.Conntrack) *Conntrack {
	if before == nil || after == nil {
		return nil
	}
	return &Conntrack{Entries: after.Entries, Max: after.Max, Dropped: after.Drops.Sub(before.Drops)["drop"]}
}

func (n *Netns) count(s *tracer.Socket) {
	n.States[s.State]++
	if s.Mini {
		n.MiniSockets++
		if s.Family == tracer.FamilyIPv6 {
			n.MiniSocketsIPv6++
		}
	}
}

func (c *comparison) remember() {
	c.known = make(map[uint64]sighting, len(c.before.sockets))
	for i := range c.before.sockets {
		s := &c.before.sockets[i]
		c.known[s.Cookie] = sighting{s.State, int32(i)}
	}
	c.listening = map[uint16]bool{}
	for i := range c.after.sockets {
		if s := &c.after.sockets[i]; s.State == tracer.StateListen {
			c.listening[s.Local.Port()] = true
		}
	}
	if ports, ok := c.after.sysctls.Ints("net.ipv4.ip_local_port_range"); ok && len(ports) == 2 {
		c.chosen = [2]int64{ports[0], ports[1]}
	}
}

// isChosen reports whether the kernel has chosen the socket's local port, as far as that
// can be told.
func (c *comparison) isChosen(s *tracer.Socket) bool {
	port := s.Local.Port()
	return int64(port) >= c.chosen[0] && int64(port) <= c.chosen[1] && !c.listening[port]
}

// usedPorts returns the ports that the kernel chooses and that have a socket.
func (c *comparison) usedPorts() []uint16 {
	used := map[uint16]struct{}{}
	for i := range c.after.sockets {
		if port := c.after.sockets[i].Local.Port(); int64(port) >= c.chosen[0] && int64(port) <= c.chosen[1] {
			used[port] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(used))
}

func (c *comparison) owner(s *tracer.Socket) Process {
	p := c.owners[s.Inode]
	return Process{PID: p.PID, Comm: p.Comm}
}

// listeners returns the listening sockets, and what has not become a connection yet.
func (c *comparison) listeners() []Listener {
	var all []Listener
	byAddr := map[netip.AddrPort][]int{}
	for i := range c.after.sockets {
		s := &c.after.sockets[i]
		if s.State != tracer.StateListen {
			continue
		}
		l := Listener{Local: s.Local, Owner: c.owner(s), Backlog: s.SendQueue, Queue: s.ReceiveQueue}
		if was, ok := c.known[s.Cookie]; ok {
			l.QueueBefore = c.before.sockets[was.index].ReceiveQueue
			l.Before = true
		}
		byAddr[s.Local] = append(byAddr[s.Local], len(all))
		all = append(all, l)
	}
	countHalfOpen(c.before.sockets, byAddr, func(i int, _ *tracer.Socket) { all[i].HalfOpenBefore++ })
	peers := map[int]map[netip.Addr]bool{}
	countHalfOpen(c.after.sockets, byAddr, func(i int, s *tracer.Socket) {
		all[i].HalfOpen++
		if s.Retransmits > 0 {
			all[i].Unanswered++
		}
		if peers[i] == nil {
			peers[i] = map[netip.Addr]bool{}
		}
		peers[i][s.Remote.Addr()] = true
	})
	for i, addrs := range peers {
		all[i].HalfOpenPeers = len(addrs)
	}
	slices.SortFunc(all, func(a, b Listener) int {
		return cmp.Or(a.Local.Compare(b.Local), cmp.Compare(a.Owner.PID, b.Owner.PID))
	})
	return all
}

// countHalfOpen calls count with the listener of each half-open connection. Of several
// that share an address (SO_REUSEPORT) it cannot be told which one's it is; the first has
// them all.
func countHalfOpen(sockets []tracer.Socket, byAddr map[netip.AddrPort][]int, count func(int, *tracer.Socket)) {
	for i := range sockets {
		s := &sockets[i]
		if !s.HalfOpen {
			continue
		}
		for _, addr := range []netip.Addr{s.Local.Addr(), anyOf(s.Local.Addr()), netip.IPv6Unspecified()} {
			if l := byAddr[netip.AddrPortFrom(addr, s.Local.Port())]; len(l) > 0 {
				count(l[0], s)
				break
			}
		}
	}
}

func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
