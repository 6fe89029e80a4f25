// Package match chooses records by the kernel's rules: it is bpf/filter.h once
// more, for records that were read from a log.
//
// It differs in one thing. The kernel matches a cgroup and all below it; a record
// has the owner's cgroup alone, so that is what has to be the one asked for.
package match

import (
	"net/netip"
	"slices"
	"time"

	"github.com/finwait/finwait/tracer"
)

// Filter is a tracer.Filter, ready for use.
type Filter struct {
	transitions map[tracer.Transition]bool // nil for all
	ports       *portSet
	localPorts  *portSet
	remotePorts *portSet
	addrs       []prefix
	family      tracer.Family
	netns       []uint32
	pids, uids  []uint32
	comms       []string
	cgroups     []uint64
}

// New returns the filter, which has been found to be in order.
func New(f *tracer.Filter) *Filter {
	m := &Filter{
		ports: newPortSet(f.Ports), localPorts: newPortSet(f.LocalPorts), remotePorts: newPortSet(f.RemotePorts),
		family: f.Family, netns: f.Netns, pids: f.PIDs, uids: f.UIDs, comms: f.Comms, cgroups: f.Cgroups,
	}
	for _, p := range f.Addrs {
		m.addrs = append(m.addrs, newPrefix(p))
	}
	if len(f.States)+len(f.Transitions) > 0 {
		m.transitions = transitions(f)
	}
	return m
}

// transitions returns those that f lets through.
func transitions(f *tracer.Filter) map[tracer.Transition]bool {
	pass := map[tracer.Transition]bool{}
	for _, from := range tracer.States() {
		for _, to := range tracer.States() {
			t := tracer.Transition{Old: from, New: to}
			byState := len(f.States) == 0 || slices.Contains(f.States, from) || slices.Contains(f.States, to)
			if byState && (len(f.Transitions) == 0 || slices.Contains(f.Transitions, t)) {
				pass[t] = true
			}
		}
	}
	return pass
}

// Verdict is what a filter says of a socket.
type Verdict uint8

// The verdicts.
const (
	Drop Verdict = iota
	Pass
	// Later is for a socket that lacks a port on which it hangs. Its transition
	// is told with the next, if that passes.
	Later
)

// Socket says whether the socket of the event passes, whatever it does there
// and whoever owns it.
func (m *Filter) Socket(ev *tracer.Event) Verdict {
	return m.socket(ev.Family, ev.Netns, ev.Local, ev.Remote)
}

// Transition says whether the event passes, whose socket does.
func (m *Filter) Transition(ev *tracer.Event) bool {
	return (m.transitions == nil || m.transitions[ev.Transition]) && m.owner(&ev.Owner)
}

// Conn says whether the connection passes.
func (m *Filter) Conn(c *tracer.Conn) bool {
	return m.socket(c.Family, c.Netns, c.Local, c.Remote) == Pass && m.owner(&c.Owner)
}

// socket is filter_tuple.
func (m *Filter) socket(family tracer.Family, netns uint32, local, remote netip.AddrPort) Verdict {
	if m.family != 0 && m.family != family || !among(m.netns, netns) || !m.passAddrs(local.Addr(), remote.Addr()) {
		return Drop
	}
	return m.passPorts(local.Port(), remote.Port())
}

func (m *Filter) passAddrs(local, remote netip.Addr) bool {
	for i := range m.addrs {
		if m.addrs[i].has(local) || m.addrs[i].has(remote) {
			return true
		}
	}
	return len(m.addrs) == 0
}

// passPorts is filter_ports.
func (m *Filter) passPorts(local, remote uint16) Verdict {
	verdict := m.remotePorts.verdict(remote)
	if verdict == Drop {
		return Drop
	}
	if one := m.localPorts.verdict(local); one != Pass {
		verdict = one
	}
	if verdict == Drop || m.ports == nil || m.ports.has(local) || m.ports.has(remote) {
		return verdict
	}
	if local != 0 && remote != 0 {
		return Drop
	}
	return Later
}

// owner is filter_who. An owner that is not known is none of those asked for.
func (m *Filter) owner(o *tracer.Owner) bool {
	if len(m.pids)+len(m.uids)+len(m.comms)+len(m.cgroups) == 0 {
		return true
	}
	return o.Origin != tracer.OriginUnknown && among(m.cgroups, o.CgroupID) && among(m.pids, o.PID) && among(m.uids, o.UID) && m.passComm(o.Comm())
}

func (m *Filter) passComm(comm []byte) bool {
	for _, c := range m.comms {
		if c == string(comm) {
			return true
		}
	}
	return len(m.comms) == 0
}

// among says whether list has v. One that is empty has everything.
func among[T comparable](list []T, v T) bool { return len(list) == 0 || slices.Contains(list, v) }

// portSet is a bit for each port. nil lets every port through.
type portSet [65536 / 64]uint64

func newPortSet(ranges []tracer.PortRange) *portSet {
	if len(ranges) == 0 {
		return nil
	}
	s := &portSet{}
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			s[port/64] |= 1 << (port % 64)
		}
	}
	return s
}

func (s *portSet) has(port uint16) bool { return s[port/64]>>(port%64)&1 == 1 }

func (s *portSet) verdict(port uint16) Verdict {
	switch {
	case s == nil:
		return Pass
	case port == 0:
		return Later
	case s.has(port):
		return Pass
	}
	return Drop
}

// prefix is a network over IPv6, in which IPv4 is mapped, as it is in the
// kernel's records.
type prefix struct{ addr, mask [16]byte }

func newPrefix(p netip.Prefix) (n prefix) {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := range bits {
		n.mask[i/8] |= 0x80 >> (i % 8)
	}
	addr := p.Addr().As16()
	for i := range addr {
		n.addr[i] = addr[i] & n.mask[i]
	}
	return n
}

// has says whether addr is in the network. One that is not known is in none.
func (n *prefix) has(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	bytes := addr.As16()
	for i, b := range bytes {
		if b&n.mask[i] != n.addr[i] {
			return false
		}
	}
	return true
}

// Ends chooses connections by how they were and ended, as bpf/record.h does.
type Ends struct {
	slow    map[tracer.State]time.Duration
	reasons []tracer.Reason
}

// NewEnds returns what o asks for.
func NewEnds(o *tracer.ConnOptions) *Ends { return &Ends{o.Slow, o.Reasons} }

// Wants says whether the connection was as slow as that in a state, or ended for
// one of the reasons; if neither is asked for, it is wanted.
func (e *Ends) Wants(c *tracer.Conn) bool {
	if len(e.slow) == 0 && len(e.reasons) == 0 {
		return true
	}
	for _, v := range c.Walk() {
		if d := e.slow[v.State]; d > 0 && v.DwellKnown && v.Dwell >= d {
			return true
		}
	}
	// That TIME_WAIT has not ended, or not for a known reason, is no reason.
	return slices.Contains(e.reasons, c.Reason) ||
		c.TimeWaitReason != tracer.ReasonUnknown && slices.Contains(e.reasons, c.TimeWaitReason)
}
