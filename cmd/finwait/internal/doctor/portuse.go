package doctor

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

const (
	// timeWaitLasts is TCP_TIMEWAIT_LEN. Its timer is up to two seconds late at 250 HZ: so
	// wide are the slots in which the kernel keeps timers of a minute.
	timeWaitLasts = 60 * time.Second
	timerLate     = time.Second
)

// portPool is the local ports that connect chooses from, from the first to the last, and
// those of them that it cannot have.
type portPool struct {
	first, last int
	// reserved and listeners are all ports that are reserved, and that somebody listens on;
	// numReserved and numListening are how many of those are in the range, one or the other.
	reserved                  []sysctl.PortRange
	listeners                 []int
	numReserved, numListening int
}

// size returns how many connections to the same end can have a port each.
func (p *portPool) size() int { return p.inRange() - p.numReserved - p.numListening }

// inRange returns how many ports there are, those that connect cannot have among them.
func (p *portPool) inRange() int { return p.last - p.first + 1 }

// has reports whether connect can have the port, if it is free.
func (p *portPool) has(port int) bool {
	_, listening := slices.BinarySearch(p.listeners, port)
	return p.first <= port && port <= p.last && !listening && !p.isReserved(port)
}

func (p *portPool) isReserved(port int) bool {
	return slices.ContainsFunc(p.reserved, func(r sysctl.PortRange) bool { return int(r.First) <= port && port <= int(r.Last) })
}

// poolOf returns the ports of a network namespace, false if they are not known.
//
// Ports that a socket is bound to are not for connect either, wherever the socket goes
// (fastreuse of their inet_bind_bucket is not negative): but of sockets that are connected
// one cannot see who chose the port. Those that somebody listens on are certainly bound.
func poolOf(n *observe.Netns) (p portPool, ok bool) {
	ports, ok := n.Sysctls.Ints("net.ipv4.ip_local_port_range")
	if !ok || len(ports) != 2 || ports[0] < 1 || ports[1] > math.MaxUint16 || ports[0] > ports[1] {
		return p, false
	}
	p.first, p.last = int(ports[0]), int(ports[1])
	if p.inRange() > 1 {
		p.last = p.first + p.inRange()&^1 - 1 // __inet_hash_connect makes the number even
	}
	p.reserved, _ = n.Sysctls.Ports("net.ipv4.ip_local_reserved_ports")
	p.listeners = listeningPorts(n)
	for _, r := range p.reserved {
		p.numReserved += max(0, min(int(r.Last), p.last)-max(int(r.First), p.first)+1)
	}
	for _, port := range p.listeners {
		if p.first <= port && port <= p.last && !p.isReserved(port) {
			p.numListening++
		}
	}
	return p, p.size() > 0
}

// listeningPorts returns the ports that somebody listens on, in order.
func listeningPorts(n *observe.Netns) (ports []int) {
	for i := range n.Listeners {
		ports = append(ports, int(n.Listeners[i].Local.Port()))
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// reuse says whether, and how soon, connect takes a port over that is in TIME_WAIT.
type reuse struct {
	allowed bool
	// lasts is how long TIME_WAIT keeps a port from connect.
	lasts time.Duration
}

// reuseOf returns what connect does about TIME_WAIT (tcp_twsk_unique), false if it is not
// known. Both sides must have had timestamps: of the peer that is taken for granted, since
// they are on by default everywhere, and of this side the sysctl is what it is now.
func reuseOf(n *observe.Netns, loopback bool) (reuse, bool) {
	mode, ok := n.Sysctls.Int("net.ipv4.tcp_tw_reuse")
	timestamps, known := n.Sysctls.Int("net.ipv4.tcp_timestamps")
	switch {
	case !ok, !known:
		return reuse{}, false
	case timestamps == 0, mode == 0, mode == 2 && !loopback:
		return reuse{lasts: timeWaitLasts + timerLate}, true
	}
	delay := time.Second // since 6.14 it can be set; before, it was up to a second
	if ms, ok := n.Sysctls.Int("net.ipv4.tcp_tw_reuse_delay"); ok {
		delay = time.Duration(max(ms, 1)) * time.Millisecond
	}
	return reuse{allowed: true, lasts: min(delay, timeWaitLasts+timerLate)}, true
}

// portUse is the ports of connections with the same ends, and what becomes of them.
type portUse struct {
	*observe.Outgoing
	pool  *portPool
	reuse reuse
	// waiting has for each port in TIME_WAIT that connect cannot have how long it cannot,
	// the shortest first.
	waiting []time.Duration
	// closing is how many a second go to TIME_WAIT, growth how many a second more are open,
	// as it was while the host was watched.
	closing, growth float64
	// steady says that growth is no more than chance.
	steady bool
}

// portUseOf returns how an Outgoing of a namespace uses the namespace's ports, false if
// what becomes of TIME_WAIT is not known.
func portUseOf(h *observe.Host, n *observe.Netns, pool *portPool, o *observe.Outgoing) (u portUse, ok bool) {
	u.Outgoing, u.pool = o, pool
	if u.reuse, ok = reuseOf(n, o.Local.Unmap().IsLoopback() || o.Remote.Addr().Unmap().IsLoopback()); !ok {
		return u, false
	}
	watched := h.Watched()
	window, closed := min(watched, u.reuse.lasts), 0
	for _, left := range o.TimeWait {
		age := timeWaitLasts - left
		if age < window {
			closed++
		}
		if free := u.reuse.lasts - age; free > 0 {
			u.waiting = append(u.waiting, free)
		}
	}
	if watched > 0 {
		u.closing = float64(closed) / window.Seconds()
		u.growth = float64(o.Open+o.FinWait2-o.Before) / watched.Seconds()
	}
	u.steady = !u.grows(closed)
	return u, true
}

// grows reports whether more are open, and not by chance. By chance the number differs by
// three standard deviations at most: of those that have come and gone, or, if fewer
// than that are open, of those.
func (u *portUse) grows(closed int) bool {
	grown := float64(u.Open + u.FinWait2 - u.Before)
	turnover := float64(u.New + u.Gone + closed)
	open := float64(u.Open + u.FinWait2 + u.Before)
	return grown > 3*math.Sqrt(min(turnover, open))
}

// taken is how many ports connect cannot have.
func (u *portUse) taken() int { return u.Open + u.FinWait2 + len(u.waiting) }

// left is how many ports connect can have.
func (u *portUse) left() int { return max(0, u.pool.size()-u.taken()) }

// share is which share of the ports is taken.
func (u *portUse) share() float64 { return float64(u.taken()) / float64(u.pool.size()) }

// timeLeft returns how long it takes until connect finds no port, if all goes on as it
// did while the host was watched, and false if that never comes.
//
// A port is taken by each new connection that stays open or goes to TIME_WAIT. Those that
// are in TIME_WAIT get free, each in its time; new ones not before reuse.lasts is over, and
// from then on as many as have gone to TIME_WAIT that long before. So it levels off, if the
// number of open ones does not grow.
func (u *portUse) timeLeft() (time.Duration, bool) {
	room, perSecond, lasts := float64(u.pool.size()-u.taken()), u.closing+u.growth, u.reuse.lasts.Seconds()
	if room <= 0 {
		return 0, true
	}
	for _, free := range u.waiting {
		if room <= perSecond*free.Seconds() {
			return toDuration(room / perSecond), true
		}
		room++ // this one gets free
	}
	if room <= perSecond*lasts {
		return toDuration(room / perSecond), true
	}
	if u.steady {
		return 0, false
	}
	return toDuration(lasts + (room-perSecond*lasts)/u.growth), true
}

// toDuration returns that many seconds, at most a century.
func toDuration(seconds float64) time.Duration {
	return time.Duration(min(seconds, 100*365*24*3600) * float64(time.Second))
}

// failures are connects that failed within the kernel, and who made the most of them.
type failures struct {
	count uint64
	owner observe.Process
}

// connectsFailed returns how many connects of that network namespace failed within the
// kernel, by where they went. It is nil if that was not seen.
func connectsFailed(h *observe.Host, n *observe.Netns) map[netip.AddrPort]failures {
	flows := flowsNow(h)
	if flows == nil {
		return nil
	}
	all := map[netip.AddrPort]failures{}
	for i := range flows {
		f := &flows[i]
		if f.Netns != n.Inode {
			continue
		}
		for way, count := range f.Endings {
			if way.Old == tracer.StateSynSent && way.Reason == tracer.ReasonLocalError {
				was := all[f.Service]
				if count >= was.count {
					was.owner = f.Owner
				}
				was.count += count
				all[f.Service] = was
			}
		}
	}
	return all
}
