package doctor

import (
	"net/netip"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/tracer"
)

// entrance is an address and port with its listeners: one, or several that share it
// (SO_REUSEPORT). Of those it cannot be told which a half-open connection is for.
type entrance struct {
	local     netip.AddrPort
	listeners []*observe.Listener
	backlog   uint64 // of all of them

	halfOpenBefore, halfOpen, unanswered uint64
	halfOpenPeers                        int

	// What follows is known from traffic alone, that of now. opened is the number of
	// connections that came to be; gaveUp and reset are half-open ones that ended without
	// an answer, and by the client's reset.
	opened, gaveUp, reset uint64
}

// entrancesOf returns the entrances of a namespace, by address.
func entrancesOf(h *observe.Host, n *observe.Netns) []*entrance {
	var all []*entrance
	byLocal := map[netip.AddrPort]*entrance{}
	for i := range n.Listeners {
		l := &n.Listeners[i]
		e := byLocal[l.Local]
		if e == nil {
			e = &entrance{local: l.Local}
			byLocal[l.Local] = e
			all = append(all, e)
		}
		e.listeners = append(e.listeners, l)
		e.backlog += uint64(l.Backlog)
		e.halfOpenBefore += uint64(l.HalfOpenBefore)
		e.halfOpen += uint64(l.HalfOpen)
		e.unanswered += uint64(l.Unanswered)
		e.halfOpenPeers += l.HalfOpenPeers
	}
	flows := flowsNow(h)
	for i := range flows {
		f := &flows[i]
		if f.Netns != n.Inode || f.Role != tracer.RoleServer {
			continue
		}
		for _, local := range localsFor(f.Service) {
			if e := byLocal[local]; e != nil {
				e.addFlow(f)
				break
			}
		}
	}
	return all
}

// localsFor returns the addresses of listeners that take connections to an address, the
// one that has precedence first.
func localsFor(service netip.AddrPort) []netip.AddrPort {
	all := []netip.AddrPort{service}
	if service.Addr().Is4() {
		all = append(all, netip.AddrPortFrom(netip.IPv4Unspecified(), service.Port()))
	}
	return append(all, netip.AddrPortFrom(netip.IPv6Unspecified(), service.Port()))
}

func (e *entrance) addFlow(f *observe.Flow) {
	e.opened += f.Opened
	for way, n := range f.Endings {
		if way.Old != tracer.StateNewSynRecv {
			continue
		}
		switch way.Reason {
		case tracer.ReasonTimeoutHandshake, tracer.ReasonQueueFull:
			e.gaveUp += n
		case tracer.ReasonRSTReceived:
			e.reset += n
		}
	}
}

// isExact reports whether traffic has all that happened between the looks.
func isExact(t *observe.Traffic) bool {
	return t != nil && t.Source == observe.SourceKernel && t.Flows != nil && t.Lost == 0 && t.Unplaced == 0 && !t.Estimated
}

// room returns how many connections fit into a listener's accept queue: one more than
// the backlog (sk_acceptq_is_full).
func room(l *observe.Listener) uint64 { return uint64(l.Backlog) + 1 }

func isFull(l *observe.Listener) bool  { return uint64(l.Queue) >= room(l) }
func wasFull(l *observe.Listener) bool { return l.Before && uint64(l.QueueBefore) >= room(l) }

// isHalfFull is true of a queue that is at least half full, or was at the first look.
func isHalfFull(l *observe.Listener) bool { return 2*uint64(max(l.Queue, l.QueueBefore)) >= room(l) }

// listenersAt returns the listeners of the namespace that a connection to service from
// within leads to, as far as can be told: a listener on all addresses takes what goes to
// the loopback address, and which others are the host's is not known.
func listenersAt(n *observe.Netns, service netip.AddrPort) (found []*observe.Listener) {
	if n == nil {
		return nil
	}
	for _, local := range localsFor(service) {
		if local != service && !service.Addr().IsLoopback() {
			continue
		}
		for i := range n.Listeners {
			if l := &n.Listeners[i]; l.Local == local {
				found = append(found, l)
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// isFullHere reports whether service is a listener of the namespace whose accept queue is
// full: SYNs to it are dropped.
func isFullHere(n *observe.Netns, service netip.AddrPort) bool {
	for _, l := range listenersAt(n, service) {
		if isFull(l) {
			return true
		}
	}
	return false
}

// hasOverflowedHere reports whether service is a listener of the namespace, and accept
// queues there have overflowed while it was watched.
func hasOverflowedHere(n *observe.Netns, service netip.AddrPort) bool {
	return listenersAt(n, service) != nil && n.Counted["TcpExt.ListenOverflows"] > 0
}
