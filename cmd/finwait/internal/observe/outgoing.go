package observe

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/finwait/finwait/tracer"
)

// path is where the connections of an Outgoing go.
type path struct {
	local  netip.Addr
	remote netip.AddrPort
}

// outgoing returns the connections whose ports the kernel has chosen, by their ends.
func (c *comparison) outgoing() []Outgoing {
	paths := map[path]*Outgoing{}
	holders := holders{}
	still := make(map[uint64]bool, len(c.after.sockets))
	for i := range c.after.sockets {
		s := &c.after.sockets[i]
		still[s.Cookie] = true
		if s.State == tracer.StateListen || s.State == tracer.StateSynRecv || !c.isChosen(s) {
			continue
		}
		p := path{s.Local.Addr(), s.Remote}
		o := paths[p]
		if o == nil {
			o = &Outgoing{Local: p.local, Remote: p.remote}
			paths[p] = o
		}
		o.add(s)
		if _, known := c.known[s.Cookie]; !known {
			o.New++
		}
		if owner := c.owner(s); owner.PID != 0 {
			holders[holding{p, owner}]++
		}
	}
	c.countBefore(paths, still)
	owners := holders.byPath()
	all := make([]Outgoing, 0, len(paths))
	for p, o := range paths {
		slices.Sort(o.TimeWait)
		o.Owner = owners[p]
		all = append(all, *o)
	}
	slices.SortFunc(all, func(a, b Outgoing) int {
		return cmp.Or(cmp.Compare(b.Ports(), a.Ports()), a.Local.Compare(b.Local), a.Remote.Compare(b.Remote))
	})
	return all
}

// add counts the port of a socket.
func (o *Outgoing) add(s *tracer.Socket) {
	switch {
	case s.State == tracer.StateTimeWait:
		o.TimeWait = append(o.TimeWait, s.Expires)
	case s.Mini:
		o.FinWait2++
	default:
		o.Open++
	}
}

// countBefore counts the ports of the first look that are not in TIME_WAIT, and those of
// them, but for mini-sockets, that are free at the last.
func (c *comparison) countBefore(paths map[path]*Outgoing, still map[uint64]bool) {
	for i := range c.before.sockets {
		s := &c.before.sockets[i]
		switch s.State {
		case tracer.StateListen, tracer.StateSynRecv, tracer.StateTimeWait:
			continue
		}
		o := paths[path{s.Local.Addr(), s.Remote}]
		if o == nil || !c.isChosen(s) {
			continue
		}
		o.Before++
		if !s.Mini && !still[s.Cookie] {
			o.Gone++
		}
	}
}

// holders counts the sockets of each path that a process holds. Most paths have one
// process, or none: a map for each would be the most of all that is kept.
type holders map[holding]int

type holding struct {
	path
	Process
}

func (h holders) byPath() map[path]Process {
	first, most := map[path]Process{}, map[path]int{}
	for k, n := range h {
		if n > most[k.path] || n == most[k.path] && k.PID < first[k.path].PID {
			first[k.path], most[k.path] = k.Process, n
		}
	}
	return first
}
