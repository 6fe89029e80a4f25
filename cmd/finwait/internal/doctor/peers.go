package doctor

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/tracer"
)

// peer is a service that processes of a network namespace connect to, or try to.
type peer struct {
	netns   uint32
	service netip.AddrPort // its port is 0 if it is not known
	owners  map[observe.Process]uint64

	// waiting is the number of sockets that were in SYN_SENT all the time, and resent how
	// many of them have sent their SYN again.
	waiting, resent int

	// What follows is known from traffic alone. opened is the number of connections that
	// came to be; the others are attempts that ended in SYN_SENT.
	opened, failed, refused, timedOut, unreachable, closed uint64
	synSent, handshake                                     tracer.Histogram
}

// peersOf returns the services that were connected to, by namespace and address.
func peersOf(h *observe.Host) []*peer {
	type key struct {
		netns   uint32
		service netip.AddrPort
	}
	peers := map[key]*peer{}
	at := func(netns uint32, service netip.AddrPort) *peer {
		k := key{netns, service}
		if peers[k] == nil {
			peers[k] = &peer{netns: netns, service: service, owners: map[observe.Process]uint64{}}
		}
		return peers[k]
	}
	for i := range h.Namespaces {
		n := &h.Namespaces[i]
		for j := range n.Lasting {
			if l := &n.Lasting[j]; l.State == tracer.StateSynSent {
				at(n.Inode, l.Remote).addLasting(l)
			}
		}
	}
	for i := range flowsOf(h) {
		if f := &h.Traffic.Flows[i]; f.Role == tracer.RoleClient {
			at(f.Netns, f.Service).addFlow(f)
		}
	}
	var all []*peer
	for _, p := range peers {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *peer) int {
		return cmp.Or(cmp.Compare(a.netns, b.netns), a.service.Compare(b.service))
	})
	return all
}

// flowsOf returns the flows of what was seen, none if nothing tells them apart.
func flowsOf(h *observe.Host) []observe.Flow {
	if h.Traffic == nil {
		return nil
	}
	return h.Traffic.Flows
}

func (p *peer) addLasting(l *observe.Lasting) {
	p.waiting += l.Sockets
	p.resent += l.Retransmitted
	p.owners[l.Owner] += uint64(l.Sockets)
}

func (p *peer) addFlow(f *observe.Flow) {
	p.opened += f.Opened
	p.owners[f.Owner] += f.Opened
	p.synSent.Merge(&f.SynSent)
	p.handshake.Merge(&f.Handshake)
	for way, n := range f.Endings {
		if way.Old != tracer.StateSynSent {
			continue
		}
		p.failed += n
		p.owners[f.Owner] += n
		switch way.Reason {
		case tracer.ReasonRefused:
			p.refused += n
		case tracer.ReasonTimeoutHandshake, tracer.ReasonTimeoutUser:
			p.timedOut += n
		case tracer.ReasonUnreachable:
			p.unreachable += n
		case tracer.ReasonClosed:
			p.closed += n
		}
	}
}

// attempts returns how many connections came to be or failed.
func (p *peer) attempts() uint64 { return p.opened + p.failed }

// givenUp returns how many attempts the process has ended after a second or more without
// an answer: at least so many.
func (p *peer) givenUp() uint64 {
	long := less(aSecond(&p.synSent), aSecond(&p.handshake))
	return min(p.closed, less(long, p.timedOut+p.unreachable+p.refused))
}

// unanswered returns how many attempts have ended without an answer, or with the word
// that there is no way.
func (p *peer) unanswered() uint64 { return p.timedOut + p.unreachable + p.givenUp() }

// aSecond returns how many times of h are a second or more. A SYN is sent again after a
// second, never before: timers do not run early.
func aSecond(h *tracer.Histogram) (n uint64) {
	for _, times := range h.Buckets[tracer.SecondBucket:] {
		n += times
	}
	return n
}

// less returns a - b, 0 if that is less than 0.
func less(a, b uint64) uint64 { return a - min(a, b) }

// facts returns the process that has the most to do with it, if one is known, and of how
// many it is one.
func (p *peer) facts() []Fact {
	var first observe.Process
	known := 0
	for owner, n := range p.owners {
		if owner.PID == 0 || n == 0 {
			continue
		}
		known++
		if most := p.owners[first]; first.PID == 0 || n > most || n == most && owner.PID < first.PID {
			first = owner
		}
	}
	facts := processFacts(first)
	if known > 1 {
		facts = append(facts, Fact{"processes", known})
	}
	return facts
}

// processFacts names a process, if it is known.
func processFacts(p observe.Process) []Fact {
	if p.PID == 0 {
		return nil
	}
	return []Fact{{"pid", uint64(p.PID)}, {"comm", p.Comm}}
}

// eachPeer makes the find of a rule that looks at one peer at a time. find returns nil if
// nothing is wrong; n is nil if the namespace is known from a log alone.
func eachPeer(find func(h *observe.Host, n *observe.Netns, p *peer) *ranked) func(*observe.Host) []Finding {
	return func(h *observe.Host) []Finding {
		var all []ranked
		for _, p := range peersOf(h) {
			n := netnsOf(h, p.netns)
			if n == nil && !isLogged(h) {
				continue // nobody has asked for that namespace
			}
			f := find(h, n, p)
			if f == nil {
				continue
			}
			f.Subject, f.Facts = peerName(p.service), append(f.Facts, p.facts()...)
			place(h, &f.Finding, p.netns)
			all = append(all, *f)
		}
		return foldByNetns(worstFirst(all), "destinations")
	}
}

// ranked is a finding of which there may be many, and how much it weighs among those of
// its severity.
type ranked struct {
	Finding
	weight uint64
}

func worstFirst(all []ranked) (findings []Finding) {
	slices.SortStableFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(b.weight, a.weight))
	})
	for _, f := range all {
		findings = append(findings, f.Finding)
	}
	return findings
}
