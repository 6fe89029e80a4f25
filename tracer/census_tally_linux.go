package tracer

import (
	"cmp"
	"net/netip"
	"slices"
)

// tally adds up sockets: first those of one namespace, then those of all.
// Adding a socket allocates nothing but for the first of its group.
type tally struct {
	by          Dimension
	netns       uint32
	states      StateCounts
	groups      map[groupKey]*StateCounts
	interrupted bool

	// orphans is the number of FIN_WAIT2 mini-sockets in states.
	orphans uint64
	// listeners has the listening sockets, for ByListener.
	listeners map[listenerKey]bool
	// files has the sockets that some process holds, for ByProcess.
	files []socketFile
}

// groupKey is what tells one CensusGroup from another.
type groupKey struct {
	netns    uint32
	pid      uint32
	listener netip.AddrPort
	remote   netip.Addr
}

// listenerKey is a listener's address in its own family: a listener hands
// connections of that family alone, IPv4 ones with IPv4-mapped addresses.
type listenerKey struct {
	family Family
	addr   netip.AddrPort
}

// socketFile is a socket that has an inode, which is to say a file.
type socketFile struct {
	inode uint32
	state State
}

func newTally(by Dimension) *tally {
	return &tally{by: by, groups: map[groupKey]*StateCounts{}, listeners: map[listenerKey]bool{}}
}

// reset empties t for a count of the namespace with that inode number.
func (t *tally) reset(netns uint32) {
	clear(t.groups)
	clear(t.listeners)
	*t = tally{by: t.by, netns: netns, groups: t.groups, listeners: t.listeners, files: t.files[:0]}
}

// add counts one socket.
func (t *tally) add(m diagMsg) {
	state := m.state()
	if state == 0 {
		return
	}
	t.states[state]++
	if state == StateFinWait2 && m.isMini() {
		t.orphans++
	}
	switch t.by {
	case ByListener:
		if state == StateListen {
			t.listeners[listenerKey{m.family(), m.local()}] = true
		}
		t.group(groupKey{netns: t.netns, listener: t.listenerOf(m)})[state]++
	case ByRemote:
		t.group(groupKey{remote: remoteOf(m, state)})[state]++
	case ByProcess:
		if inode := m.inode(); inode != 0 {
			t.files = append(t.files, socketFile{inode, state})
		} else {
			t.group(groupKey{})[state]++
		}
	}
}

// addMiniSockets counts the TIME_WAIT sockets, of which there are sum less the
// orphans. It reports whether that was possible.
func (t *tally) addMiniSockets(sum uint64) bool {
	if sum < t.orphans {
		return false
	}
	n := sum - t.orphans
	t.states[StateTimeWait] += n
	if t.by == ByProcess && n > 0 {
		t.group(groupKey{})[StateTimeWait] += n
	}
	return true
}

// listenerOf returns the address of the listener that the socket belongs to,
// or the zero AddrPort: one on exactly its address, else one on all of them.
func (t *tally) listenerOf(m diagMsg) netip.AddrPort {
	local := m.local()
	all := [...]netip.Addr{local.Addr(), anyOf(m.family()), mappedAny}
	candidates := all[:2]
	if local.Addr().Is4In6() {
		candidates = all[:]
	}
	for _, a := range candidates {
		addr := netip.AddrPortFrom(a, local.Port())
		if t.listeners[listenerKey{m.family(), addr}] {
			return netip.AddrPortFrom(a.Unmap(), local.Port())
		}
	}
	return netip.AddrPort{}
}

// mappedAny is the address of an IPv6 socket that serves IPv4 alone.
var mappedAny = netip.AddrFrom16(netip.IPv4Unspecified().As16())

func anyOf(f Family) netip.Addr {
	if f == FamilyIPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func remoteOf(m diagMsg, state State) netip.Addr {
	if state == StateListen {
		return netip.Addr{}
	}
	return m.remote().Addr().Unmap()
}

func (t *tally) group(key groupKey) *StateCounts {
	counts := t.groups[key]
	if counts == nil {
		counts = new(StateCounts)
		t.groups[key] = counts
	}
	return counts
}

// merge adds the sockets of one namespace to t.
func (t *tally) merge(one *tally) {
	t.states.add(&one.states)
	if t.by == ByNetns {
		t.group(groupKey{netns: one.netns}).add(&one.states)
	}
	for key, counts := range one.groups {
		t.group(key).add(counts)
	}
	t.files = append(t.files, one.files...)
}

// sortedGroups returns the groups, the largest first.
func (t *tally) sortedGroups() []CensusGroup {
	if t.by == ByNothing {
		return nil
	}
	groups := make([]CensusGroup, 0, len(t.groups))
	for key, counts := range t.groups {
		g := CensusGroup{Netns: key.netns, PID: key.pid, Listener: key.listener, Remote: key.remote, States: *counts}
		if g.PID != 0 {
			g.Comm = processName(g.PID)
		}
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b CensusGroup) int {
		return cmp.Or(
			cmp.Compare(b.States.Total(), a.States.Total()),
			cmp.Compare(a.Netns, b.Netns),
			cmp.Compare(a.PID, b.PID),
			a.Listener.Compare(b.Listener),
			a.Remote.Compare(b.Remote),
		)
	})
	return groups
}
