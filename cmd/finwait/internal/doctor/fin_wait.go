package doctor

import (
	"fmt"
	"net/netip"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

const (
	// orphansOfPeer and stalledOfPeer are more than one peer leaves behind that is well.
	orphansOfPeer, stalledOfPeer = 50, 20
	// scattered is more than there are of peers that have vanished one by one, as those of
	// a busy service on the internet do all the time.
	scattered = 1000
	// notable is the part of all from which many are more than such a service's usual.
	notable = 10
)

const finTimeoutNote = `this is the state that it is for. A peer that closes later gets a reset for its FIN, which does no
	harm to one that has nothing left to read`

var finWait2Orphans = &Rule{
	ID:    "fin-wait2-orphans",
	Title: "Peers do not close connections that were closed here",
	Worst: Warning,
	When: `at least 50 sockets of one peer, or 1,000 in a network namespace, were in FIN_WAIT2 all the time, which was 2.5
		seconds or more, and no process holds them. It is info if no peer has 50 and a tenth of them, and there are fewer
		mini-sockets than four fifths of net.ipv4.tcp_max_tw_buckets: peers that vanish one by one are usual on the internet.`,
	Why: `The process has closed, the peer has acknowledged that and does not close its own end: its application leaks
		connections in CLOSE_WAIT, or it is gone since, or a firewall drops its FIN. The kernel waits for it for
		net.ipv4.tcp_fin_timeout, with a mini-socket of some 250 bytes, which counts against net.ipv4.tcp_max_tw_buckets and
		keeps the ports in use.`,
	Application: []string{
		"Look at the peer: its sockets to here are in CLOSE_WAIT (close-wait-leak, if it is a host that you can look at).",
		"If it is gone, or cut off, look at what lies between: a NAT or firewall that forgets a connection at the first FIN.",
		"TCP_LINGER2 sets the time for one socket, up to two minutes.",
	},
	Sysctls: []Setting{{"net.ipv4.tcp_fin_timeout = 30", finTimeoutNote}},
	Useless: []string{
		"net.ipv4.tcp_tw_reuse: it takes over TIME_WAIT, not FIN_WAIT2 on current kernels.",
		"net.ipv4.tcp_max_tw_buckets lowered: orphans and TIME_WAIT then end at once, with a reset for what comes late.",
		"net.ipv4.tcp_orphan_retries: it is for a FIN that is not acknowledged.",
	},
	Check:      "ss -tn state fin-wait-2.",
	References: []string{"RFC 9293 section 3.6", "Documentation/networking/ip-sysctl.rst: tcp_fin_timeout, tcp_max_tw_buckets", "tcp(7): TCP_LINGER2"},
	find:       allTheTime(findFinWait2Orphans),
}

func findFinWait2Orphans(h *observe.Host, n *observe.Netns) []Finding {
	orphans := func(l *observe.Lasting) int {
		if l.State != tracer.StateFinWait2 || !l.Orphan {
			return 0
		}
		return l.Sockets
	}
	p := bigPile(n, orphans, orphansOfPeer)
	if p == nil {
		return nil
	}
	f := p.finding("sockets without a process wait in FIN_WAIT2 for their peers to close")
	limit, _ := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets")
	if _, most := biggest(p.peers); (most < orphansOfPeer || most*notable < p.count) && !isNearLimit(n, limit) {
		f.Severity = Info
	}
	const name = "net.ipv4.tcp_fin_timeout"
	timeout, known := n.Sysctls.Int(name)
	if known {
		f.Facts = append(f.Facts, Fact{"tcp_fin_timeout_seconds", int(timeout)})
	}
	switch {
	case 2*orphansFromHere(h, n) > p.count:
		f.Application = []string{"The other end is on this host, and its process does not close: see close-wait-leak."}
		f.Sysctls = []Setting{} // they would hide it
	case known:
		f.Sysctls = []Setting{}
		if timeout > 10 {
			line := fmt.Sprintf("%s = %d", name, max(timeout/2, 10))
			f.Sysctls = []Setting{{line, finTimeoutNote}}
		}
	}
	return []Finding{f}
}

// orphansFromHere returns how many of a namespace's orphans in FIN_WAIT2 have their other
// end on this host: on loopback, or in CLOSE_WAIT in a namespace that was looked at.
func orphansFromHere(h *observe.Host, n *observe.Netns) (here int) {
	type ends struct{ local, remote netip.AddrPort }
	closeWaits := map[ends]bool{}
	for i := range h.Namespaces {
		for _, l := range h.Namespaces[i].Lasting {
			if l.State == tracer.StateCloseWait {
				closeWaits[ends{unmapped(l.Local), unmapped(l.Remote)}] = true
			}
		}
	}
	for _, l := range n.Lasting {
		if l.State == tracer.StateFinWait2 && l.Orphan {
			local, remote := unmapped(l.Local), unmapped(l.Remote)
			if remote.Addr().IsLoopback() || closeWaits[ends{remote, local}] {
				here += l.Sockets
			}
		}
	}
	return here
}

// unmapped returns an IPv4 address of an IPv6 socket as that of an IPv4 one.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

var finWait2Held = &Rule{
	ID:    "fin-wait2-held",
	Title: "A process waits without limit for peers to close",
	Worst: Warning,
	When: `a process holds at least 20 sockets that were in FIN_WAIT2 all the time, which was 2.5 seconds or more. It is info
		if the host was watched for less than 10 seconds and they do not become more: long answers may be on their way.`,
	Why: `The process has called shutdown(SHUT_WR), and waits for the rest of what the peer sends, or for its end. The
		kernel has no timeout for that while a process holds the socket. If the peer does not close, or has vanished, the
		socket and its descriptor stay for ever.`,
	Application: []string{
		"Put a time limit on what is read after shutdown (SO_RCVTIMEO, a deadline), and close then. Once closed, net.ipv4.tcp_fin_timeout applies.",
		"If nothing is expected any more, close at once rather than shut down.",
		"In a proxy or tunnel set the timeout for connections of which one half is closed; it is often off.",
		"SO_KEEPALIVE ends it where the peer has vanished, not where it does not close.",
	},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for orphans. A process holds these.",
		"net.ipv4.tcp_keepalive_time for sockets that have not asked for SO_KEEPALIVE.",
	},
	Check:      "ss -tnp state fin-wait-2 lists no connection of the process that stays.",
	References: []string{"RFC 9293 section 3.6.1", "shutdown(2)", "Documentation/networking/ip-sysctl.rst: tcp_fin_timeout", "socket(7): SO_RCVTIMEO"},
	find:       allTheTime(findFinWait2Held),
}

func findFinWait2Held(h *observe.Host, n *observe.Netns) (all []Finding) {
	held := func(l *observe.Lasting) int {
		if l.State != tracer.StateFinWait2 || l.Orphan {
			return 0
		}
		return l.Sockets
	}
	for _, p := range pileUp(n, byProcess, held) {
		if p.count < heldFinWait2 {
			break // the others are smaller
		}
		all = append(all, heldOf(h, n, p))
	}
	return fold(all, "processes")
}

func heldOf(h *observe.Host, n *observe.Netns, p *pile) Finding {
	growth := leastGrowth(h, n, p)
	f := Finding{
		Severity: Warning,
		Subject:  p.subject(),
		Summary: fmt.Sprintf("%s: %s shut down and open for all of %s, without a time limit of the kernel",
			p.where(), prose.Count(uint64(p.count), "connection", "connections"), prose.Duration(h.Watched())),
		Facts: append(processFacts(p.owner), []Fact{
			{"sockets", p.sum.Sockets}, {"new", p.sum.New}, {"unread_data", p.sum.Unread}, {"biggest_locals", listBiggest(p.locals)},
			{"peers", len(p.peers)}, {"biggest_peers", listBiggest(p.peers)},
		}...),
	}
	switch {
	case growth > 0:
		f.Facts = append(f.Facts, Fact{"grown_per_second", growth})
		f.Summary += fmt.Sprintf("; %s more a second", prose.Rate(growth))
	case mayBeAtWork(h, growth):
		f.Severity = Info
		f.Summary += watchLonger
	}
	return f
}

// orphanRetries is what helps against FINs that are not acknowledged.
var orphanRetries = Setting{
	"net.ipv4.tcp_orphan_retries = 6",
	`for sockets without a process whose peers have vanished: given up after 25 seconds at the least, rather than 102 (0
	stands for 8 retries). A peer that was cut off for longer loses the end of what it was sent`,
}

// fewOrphanRetries reports whether a network namespace has no more retries than
// orphanRetries sets.
func fewOrphanRetries(n *observe.Netns) bool {
	retries, _ := n.Sysctls.Int("net.ipv4.tcp_orphan_retries")
	return retries > 0 && retries <= 6
}

// uselessForWindow is why orphanRetries is not for peers that answer. tcp_ack sets
// icsk_probes_out to 0; tcp_probe_timer gives up an orphan once its backoff is at
// TCP_RTO_MAX.
const uselessForWindow = `net.ipv4.tcp_orphan_retries where the peer has closed its window: each answer to a probe starts
	the count again. The kernel gives up by itself after some minutes, when the probes are two minutes apart;
	TCP_USER_TIMEOUT does it sooner.`

var finWait1PileUp = &Rule{
	ID:    "fin-wait1-pileup",
	Title: "Peers do not acknowledge the end of connections that were closed here",
	Worst: Warning,
	When: `at least 20 sockets of one peer, or 1,000 in a network namespace, were in FIN_WAIT1 or CLOSING all the time, which
		was 2.5 seconds or more, and have had nothing acknowledged. A peer that takes its data slowly is not counted. It is
		info if no peer has 20, and they are less than a tenth of the sockets in ESTABLISHED, and of
		net.ipv4.tcp_max_orphans.`,
	Why: `The peer has vanished (retransmitted), or it reads no more and has closed its window while there is data left to
		send (unsent_data without retransmitted: it answers the window probes). Each such socket keeps what it has to send,
		in memory that counts against net.ipv4.tcp_mem, and without a process it counts against net.ipv4.tcp_max_orphans.`,
	Application: []string{
		"Look at the peers that have the most: one host that is gone or hangs, or a firewall or NAT before many that drops what belongs to connections it has forgotten.",
		"Set TCP_USER_TIMEOUT: it limits how long data and the FIN may be unacknowledged, after close too.",
	},
	Sysctls: []Setting{orphanRetries},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for FIN_WAIT2, which begins when the FIN is acknowledged.",
		"net.ipv4.tcp_keepalive_time: a socket that has something to send has another timer.",
		uselessForWindow,
	},
	Check:      "ss -tnoe state fin-wait-1: Send-Q 1 is the FIN alone; the timer says on (retransmission) or persist (closed window).",
	References: []string{"RFC 9293 sections 3.6 and 3.8.6.1", "RFC 5482", "Documentation/networking/ip-sysctl.rst: tcp_orphan_retries, tcp_max_orphans", "tcp(7): TCP_USER_TIMEOUT"},
	find: findStalled("FIN_WAIT1 or CLOSING", func(s tracer.State) bool {
		return s == tracer.StateFinWait1 || s == tracer.StateClosing
	}),
}

var lastAckPileUp = &Rule{
	ID:    "last-ack-pileup",
	Title: "Peers that closed first do not acknowledge the last FIN",
	Worst: Warning,
	When: `at least 20 sockets of one peer, or 1,000 in a network namespace, were in LAST_ACK all the time, which was 2.5
		seconds or more, and have had nothing acknowledged. It is info if no peer has 20, and they are less than a tenth of
		the sockets in ESTABLISHED, and of net.ipv4.tcp_max_orphans.`,
	Why: `The peer has closed, this side has closed after it, and its FIN, or data before it, is not acknowledged. The peer
		has vanished, or given up waiting and something between drops the reset that it would answer; or it reads no more.
		Each such socket keeps what it has to send and counts against net.ipv4.tcp_max_orphans.`,
	Application: []string{
		"Close sooner after the peer: what happens in CLOSE_WAIT (close-wait-leak, slow-close)? Many peers, NATs and firewalls forget a connection a minute or two after their FIN.",
		"Look at the peers that have the most: one host that is gone, or a firewall or NAT before many.",
		"Set TCP_USER_TIMEOUT: it limits how long data and the FIN may be unacknowledged, after close too.",
	},
	Sysctls: []Setting{orphanRetries},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for FIN_WAIT2.",
		"net.ipv4.tcp_max_tw_buckets, tcp_tw_reuse: the side that closes last has no TIME_WAIT.",
		uselessForWindow,
	},
	Check:      "ss -tnoe state last-ack: Send-Q 1 is the FIN alone.",
	References: []string{"RFC 9293 section 3.6", "RFC 5482", "Documentation/networking/ip-sysctl.rst: tcp_orphan_retries, tcp_max_orphans", "tcp(7): TCP_USER_TIMEOUT"},
	find:       findStalled("LAST_ACK", func(s tracer.State) bool { return s == tracer.StateLastAck }),
}

// findStalled makes the find of a rule about sockets whose peers do not acknowledge what
// they send at the end.
func findStalled(states string, in func(tracer.State) bool) func(*observe.Host) []Finding {
	return allTheTime(func(h *observe.Host, n *observe.Netns) []Finding {
		p := bigPile(n, func(l *observe.Lasting) int {
			if !in(l.State) {
				return 0
			}
			return l.Stalled
		}, stalledOfPeer)
		if p == nil {
			return nil
		}
		f := p.finding("sockets in " + states + " whose peers acknowledge nothing")
		if _, most := biggest(p.peers); most < stalledOfPeer && !p.isNotable(h, n) {
			f.Severity = Info
		}
		f.Facts = append(f.Facts, []Fact{
			{"stalled", p.sum.Stalled}, {"without_process", p.orphans},
			{"unsent_data", p.sum.Unsent}, {"retransmitted", p.sum.Retransmitted},
		}...)
		if retries, known := n.Sysctls.Int("net.ipv4.tcp_orphan_retries"); known {
			f.Facts = append(f.Facts, Fact{"tcp_orphan_retries", int(retries)})
		}
		if p.orphans == 0 || p.sum.Retransmitted == 0 || fewOrphanRetries(n) {
			f.Sysctls = []Setting{}
		}
		return []Finding{f}
	})
}

// isNotable reports whether scattered sockets are many beside those that are open, or
// that there may be.
func (p *pile) isNotable(h *observe.Host, n *observe.Netns) bool {
	established, limit := n.States[tracer.StateEstablished], h.Memory.MaxOrphans
	return uint64(p.count)*notable >= established || limit > 0 && uint64(p.orphans)*notable >= limit
}

// bigPile returns the sockets that a rule counts, if so many are one peer's, or there are
// many of several.
func bigPile(n *observe.Netns, counted func(*observe.Lasting) int, ofPeer int) *pile {
	for _, p := range pileUp(n, together, counted) {
		if _, most := biggest(p.peers); most >= ofPeer || p.count >= scattered {
			return p
		}
	}
	return nil
}

// finding is what there is to say of sockets that wait for their peers.
func (p *pile) finding(what string) Finding {
	peer, most := biggest(p.peers)
	summary, subject := fmt.Sprintf("%s %s: %s", prose.Number(uint64(p.count)), what, peer), peer
	if n := len(p.peers); n > 1 {
		summary = fmt.Sprintf("%s %s: %s peers, of which %s has %s", prose.Number(uint64(p.count)), what, prose.Number(uint64(n)), peer, prose.Number(uint64(most)))
	}
	if most < p.count/2 {
		subject = "many peers"
	}
	return Finding{
		Severity: Warning,
		Subject:  subject,
		Summary:  summary,
		Facts: []Fact{
			{"sockets", p.sum.Sockets}, {"new", p.sum.New},
			{"peers", len(p.peers)}, {"biggest_peers", listBiggest(p.peers)},
		},
	}
}
