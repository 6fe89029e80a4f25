package doctor

import (
	"net/netip"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

var resetRules = []*Rule{rstUnreadData, lingerZero, lateData, peerResets, orphanLimit}

const (
	// fewResets and resetShare are less than a process makes that means to: of so many
	// in a hundred there is something to say.
	fewResets, resetShare = 10, 1
	// fewPeerResets and peerResetShare are the same for resets that come.
	fewPeerResets, peerResetShare = 20, 10
)

var rstUnreadData = &Rule{
	ID:    "rst-unread-data",
	Title: "A process closes connections with data that it has not read",
	Worst: Warning,
	When: `at least 10 connections of a process, and one in a hundred of those that ended while the host was watched, were
		reset because the process closed them with unread data. It is info if most of these are connections that the process
		opened: crawlers and TLS clients do that as a rule. If nobody could see connections end: TCPAbortOnClose has grown by
		at least 10, and one for a hundred connections that were opened in the network namespace.`,
	Why: `The kernel then sends a reset instead of a FIN, to tell the peer that data was lost. It also drops what
		the peer has not acknowledged yet, and the peer may lose what it has received and not read: the end of an answer
		that was sent just before is missing, and the peer sees ECONNRESET.`,
	Application: []string{
		"Read until read returns 0 before close, with a limit of time and size: shutdown(SHUT_WR), read, close. Servers call it lingering close.",
		"A server that refuses a request early (413, 401) must still read its body, or go on as above. A client must read the body of an answer that it does not want, or cancel it in its protocol.",
		"With TLS, what is unread may be no data of the application: the peer's close_notify, or session tickets of TLS 1.3 to a client that never reads.",
	},
	Useless: []string{
		"SO_LINGER with a time to wait: the kernel looks for unread data first, and resets at once.",
		"Larger buffers (net.ipv4.tcp_rmem): there is more then that nobody reads.",
	},
	Check:      "nstat -az TcpExtTCPAbortOnClose no longer grows; finwait conns --reason rst_sent_unread_data.",
	References: []string{"RFC 1122 section 4.2.2.13", "RFC 9293 section 3.6.1", "RFC 2525 section 2.17", "Documentation/networking/snmp_counter.rst: TcpExtTCPAbortOnClose"},
	find:       unreadKind.find,
}

var unreadKind = &resetKind{
	reason: tracer.ReasonRSTSentUnreadData, severity: Warning, clientSeverity: Info,
	says:    "closed with data that was not read",
	counter: "TCPAbortOnClose", counterSeverity: Warning,
	counterSays: "connections closed with data that was not read",
}

var lingerZero = &Rule{
	ID:    "linger-zero",
	Title: "A process ends connections by a reset on purpose",
	Worst: Warning,
	When: `at least 10 connections of a process, and one in a hundred of those that ended while the host was watched, were
		reset because the process closed them with SO_LINGER and a time of 0 (or with a negative TCP_LINGER2 in FIN_WAIT2).
		If nobody could see connections end: TCPAbortOnData has grown as much, which also counts data that came after close;
		it is info then.`,
	Why: `close then drops what has not been sent and acknowledged, and the peer gets a reset at any point of what it reads:
		it cannot tell the end of the data from a failure. It is mostly done to have no TIME_WAIT, which is harmless, and
		which protects the next connection between the same ports from late segments of this one.`,
	Application: []string{
		"Remove SO_LINGER (SetLinger(0), setSoLinger(true, 0), option nolinger of a proxy), and close. Keep connections open to have less TIME_WAIT.",
		"It is right for a peer that misbehaves, and for a health check that has sent nothing.",
	},
	Useless:    []string{"Any sysctl: none turns the option off."},
	Check:      "nstat -az TcpExtTCPAbortOnData no longer grows; finwait conns --reason rst_sent_linger.",
	References: []string{"RFC 9293 sections 3.6.1 and 3.10.5", "RFC 1337", "socket(7): SO_LINGER", "Documentation/networking/snmp_counter.rst: TcpExtTCPAbortOnData"},
	find:       lingerKind.find,
}

var lingerKind = &resetKind{
	reason: tracer.ReasonRSTSentLinger, severity: Warning, clientSeverity: Warning,
	says:    "reset by close with SO_LINGER 0",
	counter: "TCPAbortOnData", counterSeverity: Info,
	counterSays: "connections reset by close with SO_LINGER 0, or by data that came after close: the counter does not tell which",
}

var lateData = &Rule{
	ID:    "late-data",
	Title: "Peers send data after a process has closed",
	Worst: Info,
	When: `at least 10 connections of a process, and one in a hundred of those that ended while the host was watched, were
		reset because data came after the process had closed them.`,
	Why: `Nobody is left to read it, so the kernel answers with a reset, and the peer's write fails with EPIPE or
		ECONNRESET. It is what happens when a process gives up an answer that it does not need any more, or closes an idle
		connection just when its peer sends the next request, which is then lost.`,
	Application: []string{
		"If a server's idle timeout does it: have its clients, or the proxy before it, give up idle connections sooner than the server does.",
		"If a client gives up answers: ask for less, or end the exchange in the protocol first (HTTP/2 RST_STREAM, a range).",
	},
	Useless:    []string{"net.ipv4.tcp_fin_timeout: late data is answered by a reset in FIN_WAIT2 and after it."},
	Check:      "finwait conns --reason rst_sent_late_data.",
	References: []string{"RFC 1122 section 4.2.2.13", "RFC 9293 section 3.6.1"},
	find:       (&resetKind{reason: tracer.ReasonRSTSentLateData, severity: Info, clientSeverity: Info, says: "reset because data came after close"}).find,
}

// resetKind is a reason for which this side resets connections.
type resetKind struct {
	reason tracer.Reason
	// clientSeverity is that of a process which has opened most of the connections itself.
	severity, clientSeverity Severity
	says                     string // what was done to the connections

	// counter is the one of TcpExt that counts them, if there is one, and counterSays what
	// it counts.
	counter         string
	counterSeverity Severity
	counterSays     string
}

// find says where there are many, as exactly as can be told.
func (k *resetKind) find(h *observe.Host) []Finding {
	t := h.Traffic
	switch {
	case t == nil:
		return k.findCounted(h)
	case t.Flows == nil:
		a := accountOfAll(t)
		if f, many := k.judge(t, a); many {
			f.Subject = "all connections"
			return []Finding{f.Finding}
		}
		return nil
	}
	var all []ranked
	for _, a := range accounts(t, ofProcess) {
		if f, many := k.judge(t, a); many {
			f.Subject = a.subject()
			f.Summary = a.subject() + ": " + f.Summary
			place(h, &f.Finding, a.netns)
			all = append(all, f)
		}
	}
	return foldByNetns(worstFirst(all), "processes")
}

// judge says whether there are many, and how many.
func (k *resetKind) judge(t *observe.Traffic, a *account) (f ranked, many bool) {
	n, states := a.reset(k.reason, wasConnection)
	if !t.Enough(n, fewResets) || percent(n, a.ended) < resetShare {
		return f, false
	}
	f = rankedResets(t, a, n, states)
	f.Severity = k.severity
	if a.clients[k.reason] > n/2 {
		f.Severity = k.clientSeverity
	}
	f.Summary += " " + k.says
	return f, true
}

// rankedResets is what there is to say of any resets. Those with the most come first.
func rankedResets(t *observe.Traffic, a *account, n uint64, states map[string]int) ranked {
	return ranked{Finding{
		Severity: Info,
		Summary:  about(t) + ratio(n, a.ended) + " connections",
		Facts: append(a.facts(), []Fact{
			{"resets", n}, {"resets_per_second", t.Rate(n)}, {"resets_percent", percent(n, a.ended)},
			{"in_states", listBiggest(states)},
		}...),
	}, n}
}

// findCounted goes by the kernel's counter.
func (k *resetKind) findCounted(h *observe.Host) []Finding {
	if k.counter == "" {
		return nil
	}
	return eachNetns(func(h *observe.Host, n *observe.Netns) []Finding {
		resets := n.Counted["TcpExt."+k.counter]
		opened := n.Counted["Tcp.ActiveOpens"] + n.Counted["Tcp.PassiveOpens"]
		if resets < fewResets || opened > 0 && percent(resets, opened) < resetShare {
			return nil
		}
		return []Finding{{
			Severity: k.counterSeverity,
			Subject:  k.counter,
			Summary:  prose.Number(resets) + " " + k.counterSays,
			Facts: []Fact{
				{"resets", resets}, {"resets_per_second", h.PerSecond(resets)}, {"opened", opened},
				{"resets_since_boot", n.Counters["TcpExt."+k.counter]},
			},
		}}
	})(h)
}

var peerResets = &Rule{
	ID:    "peer-resets",
	Title: "Peers reset many connections",
	Worst: Info,
	When: `at least 20 connections with one service, and one in ten of those that ended while the host was watched, were
		reset by the peer when they were open, or being closed. It is not said where the peers are processes of this host of
		which rst-unread-data or linger-zero tells.`,
	Why: `A reset drops what is under way, and the process sees ECONNRESET or EPIPE. In ESTABLISHED it comes to an open
		connection; in FIN_WAIT1, FIN_WAIT2 and LAST_ACK this side had closed or shut down already. It is usual for health
		checks and for clients that leave.`,
	Application: []string{
		"See which peers do it (finwait conns --reason rst_received), and look there: on a host with finwait, the other end says why.",
		"Health checks that connect and reset: let them send a request and close, or leave it at that.",
		"Idle connections: the idle timeout of a proxy, NAT or server was shorter than this side's. Make this side's the shorter one.",
		"In the middle of data: the peer's process crashed, or closed without reading all (rst-unread-data there).",
	},
	Useless: []string{
		"net.ipv4.tcp_retries2 and other timeouts: a reset is no timeout.",
		"net.ipv4.tcp_rfc1337: it is for resets that come in TIME_WAIT, which are not counted here.",
	},
	Check:      "finwait conns --reason rst_received.",
	References: []string{"RFC 9293 sections 3.5.2 and 3.5.3", "RFC 3360"},
	find:       findPeerResets,
}

func findPeerResets(h *observe.Host) []Finding {
	if h.Traffic == nil {
		return nil
	}
	if h.Traffic.Flows == nil {
		if f, many := judgePeerResets(h.Traffic, accountOfAll(h.Traffic), 0); many {
			f.Subject = "all connections"
			return []Finding{f.Finding}
		}
		return nil
	}
	told := toldResets(h.Traffic)
	var all []ranked
	for _, a := range accounts(h.Traffic, ofService) {
		f, many := judgePeerResets(h.Traffic, a, told[otherEnd(a.party)])
		if !many {
			continue
		}
		switch a.role {
		case tracer.RoleServer:
			f.Subject = a.service.String()
			f.Summary += ": those of clients to " + f.Subject
		case tracer.RoleClient:
			f.Subject = a.service.String()
			f.Summary += ": those to the service " + f.Subject
		default:
			f.Subject = "connections that were open before"
			f.Summary += ": such as were open before"
		}
		place(h, &f.Finding, a.netns)
		all = append(all, f)
	}
	return foldByNetns(worstFirst(all), "services")
}

// side is one of the two of connections with a service.
type side struct {
	role    tracer.Role
	service netip.AddrPort
	netns   uint32 // of a service on loopback, which each has for itself
}

func sideOf(role tracer.Role, p party) side {
	s := side{role: role, service: unmapped(p.service)}
	if s.service.Addr().IsLoopback() {
		s.netns = p.netns
	}
	return s
}

// otherEnd returns the side of the peers of a party.
func otherEnd(p party) side {
	switch p.role {
	case tracer.RoleServer:
		return sideOf(tracer.RoleClient, p)
	case tracer.RoleClient:
		return sideOf(tracer.RoleServer, p)
	}
	return side{}
}

// toldResets returns how many connections were reset here of which the rules about this
// side tell, by the side that did it.
func toldResets(t *observe.Traffic) map[side]uint64 {
	told := map[side]uint64{}
	for _, kind := range []*resetKind{unreadKind, lingerKind} {
		many := map[party]bool{}
		for _, a := range accounts(t, ofProcess) {
			_, many[a.party] = kind.judge(t, a)
		}
		for i := range t.Flows {
			if f := &t.Flows[i]; f.Role != tracer.RoleUnknown && many[ofProcess(f)] {
				told[sideOf(f.Role, ofService(f))] += f.Ended(kind.reason)
			}
		}
	}
	return told
}

// judgePeerResets says whether there are many besides those of which is told already.
func judgePeerResets(t *observe.Traffic, a *account, told uint64) (f ranked, many bool) {
	n, states := a.reset(tracer.ReasonRSTReceived, func(old tracer.State) bool {
		return wasConnection(old) && old != tracer.StateSynRecv && old != tracer.StateTimeWait
	})
	if rest := less(n, told); !t.Enough(rest, fewPeerResets) || percent(rest, a.ended) < peerResetShare {
		return f, false
	}
	f = rankedResets(t, a, n, states)
	f.Summary += " were reset by the peer"
	return f, true
}
