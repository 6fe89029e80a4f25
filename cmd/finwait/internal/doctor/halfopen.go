package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
)

const (
	// manyHalfOpen are more half-open connections without an answer than lossy clients
	// explain; someHalfOpen are, if they take half of the backlog.
	manyHalfOpen = 100
	someHalfOpen = 10
	// manySYNs is how many SYNs of a flood find no room, at the least, and synsPerSecond how
	// many a second; synsPerSecondOfAll if that is not asked.
	manySYNs           = 100
	synsPerSecond      = 10
	synsPerSecondOfAll = 1000
	// manyQueueFull is how often the queue of half-open connections was full before it is
	// worth a word.
	manyQueueFull = 10
	// manyHalfOpenResets a second, if they are that share of what comes, are no accident.
	manyHalfOpenResets = 10
	halfOpenResetShare = 0.05
)

var (
	cookiesOn    = Setting{"net.ipv4.tcp_syncookies = 1", "the default: cookies when there is no room for half-open connections, and not before"}
	fewerSynAcks = Setting{"net.ipv4.tcp_synack_retries = 3", "half-open connections go after 15 seconds instead of 63 (5); clients on lossy paths have fewer tries. Once a listener has more than half of what it may have, the kernel gives up the older ones sooner by itself (reqsk_timer_handler)"}
)

var synFlood = &Rule{
	ID:    "syn-flood",
	Title: "Half-open connections that nobody completes: a SYN flood",
	Worst: Critical,
	When: `a listener has 100 half-open connections or more, or 10 and half of its backlog, those counted in that
		were given up while the host was watched; at least half of them have had their SYN-ACK repeated or were given
		up; and more of these come in a second than connections come to be, or net.ipv4.tcp_syncookies is 0 and SYNs were
		dropped for want of room. How many come is how many more there are than before, with those given up, or how many
		there are for the time after which they are given up. Or at least 100 SYN cookies were sent, 10 a second, and less than half as many came
		back (1,000 a second with net.ipv4.tcp_syncookies at 2, where those that answer with a reset cannot be told from
		those that do not answer); or, with cookies off, 100 SYNs and 10 a second were dropped for want of room, and
		less than half as many connections came to be. Not at a listener whose accept queue is full: its half-open
		connections are answered and find no room (slow-accept). Critical if net.ipv4.tcp_syncookies is 0 and SYNs were
		dropped.`,
	Why: `Somebody sends SYNs and does not answer the SYN-ACK: most often from addresses that are made up, else clients to
		which the answer does not find its way (a route back that goes elsewhere, a firewall that sees one direction only).
		A listener keeps as many half-open connections as its backlog. Beyond that Linux answers with SYN cookies, which take
		no memory: a real client still gets in, but without window scaling and SACK unless it has timestamps, and if
		its last ACK is lost nothing repeats the SYN-ACK. Without SYN cookies its SYN is dropped, and the service is as good as
		down.`,
	Application: []string{
		"Few addresses with many each: look for a route or firewall fault between them and here, or block them. Very many with one or two each: made up; only what is in front of this host (the provider, a scrubbing service, SYNPROXY of nftables) can tell them apart.",
		"A longer backlog keeps more real clients out of the cookies: see listen.",
	},
	Sysctls: []Setting{cookiesOn, fewerSynAcks},
	Useless: []string{
		"net.ipv4.tcp_max_syn_backlog: it is only looked at when tcp_syncookies is 0.",
		"net.ipv4.tcp_syncookies = 2: it sends cookies to all, also when there is room.",
		"net.ipv4.tcp_tw_reuse, net.ipv4.tcp_fin_timeout: these connections were never open.",
	},
	Check: "finwait count: SYN_RECV falls; nstat -az TcpExtSyncookiesSent TcpExtTCPReqQFullDrop no longer grow.",
	References: []string{
		"RFC 4987", "Documentation/networking/ip-sysctl.rst: tcp_syncookies, tcp_synack_retries, tcp_max_syn_backlog",
		"Documentation/networking/snmp_counter.rst",
	},
	find: eachNetns(findSynFlood),
}

// flooded returns the entrances at which nobody completes handshakes.
func flooded(h *observe.Host, n *observe.Netns) []*entrance {
	return slices.DeleteFunc(entrancesOf(h, n), func(e *entrance) bool {
		all, late := e.halfOpen+e.gaveUp, e.unanswered+e.gaveUp
		isMany := all >= manyHalfOpen || all >= someHalfOpen && 2*all >= e.backlog
		if !isMany || 2*late < all || slices.ContainsFunc(e.listeners, isFull) {
			return true
		}
		return lateRate(h, n, e) <= h.PerSecond(openedAtMost(h, n, e)) && synsDropped(n) == 0
	})
}

// openedAtMost returns how many connections came to be at an entrance, at the most: its
// own, if they are known, with all that was lost, or else those of all listeners.
func openedAtMost(h *observe.Host, n *observe.Netns, e *entrance) uint64 {
	if t := h.Traffic; t != nil && t.Source == observe.SourceKernel && t.Flows != nil && t.Unplaced == 0 {
		return e.opened + t.Lost
	}
	return n.Counted["Tcp.PassiveOpens"]
}

// lateRate returns how many connections a second stay half-open at an entrance, at the
// least: by those that have come since the first look, and by how many there are at any
// time, which go when their SYN-ACK was repeated tcp_synack_retries times.
func lateRate(h *observe.Host, n *observe.Netns, e *entrance) float64 {
	retries, known := n.Sysctls.Int("net.ipv4.tcp_synack_retries")
	if !known {
		retries = 5
	}
	come := h.PerSecond(less(e.halfOpen, e.halfOpenBefore) + e.gaveUp)
	return max(come, float64(e.unanswered)/waits(n.Sysctls, retries))
}

// synsDropped returns how many SYNs found no room among the half-open connections.
// Without cookies the last quarter of tcp_max_syn_backlog is kept for hosts that the kernel
// knows, and TCPReqQFullDrop does not count those that are dropped for that
// (tcp_conn_request). ListenDrops does, with some that are dropped for other causes.
func synsDropped(n *observe.Netns) uint64 {
	dropped := n.Counted["TcpExt.TCPReqQFullDrop"]
	if mode, ok := n.Sysctls.Int("net.ipv4.tcp_syncookies"); ok && mode == 0 {
		return max(dropped, less(n.Counted["TcpExt.ListenDrops"], n.Counted["TcpExt.ListenOverflows"]))
	}
	return dropped
}

// isFloodOfCookies reports whether SYN cookies are sent that do not come back. If all get
// one, those that answer with a reset are among them, which nothing counts: load
// balancers and scanners. A flood is then what they do not make.
func isFloodOfCookies(h *observe.Host, n *observe.Netns) bool {
	sent, valid := n.Counted["TcpExt.SyncookiesSent"], n.Counted["TcpExt.SyncookiesRecv"]
	if mode, ok := n.Sysctls.Int("net.ipv4.tcp_syncookies"); ok && mode == 2 && h.PerSecond(less(sent, valid)) < synsPerSecondOfAll {
		return false
	}
	return isTorrent(h, sent) && 2*valid < sent
}

// isFloodOfDrops reports whether SYNs are dropped for want of room, and few connections
// come to be. If an accept queue is full, that is why: what finds no room there stays
// half-open.
func isFloodOfDrops(h *observe.Host, n *observe.Netns) bool {
	dropped := synsDropped(n)
	opened, known := n.Counted["Tcp.PassiveOpens"]
	return isTorrent(h, dropped) && known && 2*opened < dropped && !slices.ContainsFunc(pointers(n.Listeners), isFull)
}

func isTorrent(h *observe.Host, syns uint64) bool {
	return syns >= manySYNs && h.PerSecond(syns) >= synsPerSecond
}

func isFlooded(h *observe.Host, n *observe.Netns) bool {
	return isFloodOfCookies(h, n) || isFloodOfDrops(h, n) || len(flooded(h, n)) > 0
}

func findSynFlood(h *observe.Host, n *observe.Netns) []Finding {
	var all []ranked
	for _, e := range flooded(h, n) {
		f := Finding{
			Severity: Warning,
			Subject:  e.local.String(),
			Summary: fmt.Sprintf("%s, from %s, %s without an answer to their SYN-ACK",
				halfOpenAt(e), prose.Count(uint64(e.halfOpenPeers), "address", "addresses"), prose.Number(e.unanswered)),
			Facts: []Fact{
				{"half_open", e.halfOpen}, {"synack_retransmitted", e.unanswered}, {"addresses", e.halfOpenPeers}, {"backlog", e.backlog},
			},
		}
		if isExact(h.Traffic) {
			f.Facts = append(f.Facts, Fact{"opened", e.opened}, Fact{"given_up", e.gaveUp})
		}
		f.Facts = append(f.Facts, processFacts(e.listeners[0].Owner)...)
		all = append(all, ranked{f, e.halfOpen})
	}
	found := fold(worstFirst(all), "listeners")
	switch {
	case len(found) == 0:
		found = floodByCounters(h, n)
	case isFloodOfCookies(h, n):
		found[0].Summary = cookiesSent(h, n) + "; " + found[0].Summary
	}
	if len(found) > 0 {
		judgeDefence(&found[0], n)
	}
	return found
}

// halfOpenAt says how many connections are half-open at an entrance.
func halfOpenAt(e *entrance) string {
	text := fmt.Sprintf("%s half-open at %s", prose.Number(e.halfOpen), e.local)
	if e.halfOpen > 0 && e.halfOpen >= e.backlog {
		text += ", as many as fit"
	}
	return text
}

func cookiesSent(h *observe.Host, n *observe.Netns) string {
	sent := n.Counted["TcpExt.SyncookiesSent"]
	return fmt.Sprintf("%s SYN cookies sent, %s a second, %s came back", prose.Number(sent), prose.Rate(h.PerSecond(sent)), prose.Number(n.Counted["TcpExt.SyncookiesRecv"]))
}

// floodByCounters tells of a flood that does not show in half-open connections: there is
// little room for them, or none with tcp_syncookies at 2.
func floodByCounters(h *observe.Host, n *observe.Netns) []Finding {
	f := Finding{Severity: Warning, Subject: "SYNs"}
	switch {
	case isFloodOfCookies(h, n):
		f.Summary = cookiesSent(h, n)
	case isFloodOfDrops(h, n):
		dropped, opened := synsDropped(n), n.Counted["Tcp.PassiveOpens"]
		f.Summary = fmt.Sprintf("%s SYNs found no room, %s a second, and %s connections came to be", prose.Number(dropped), prose.Rate(h.PerSecond(dropped)), prose.Number(opened))
		f.Facts = []Fact{{"opened", opened}}
	default:
		return nil
	}
	if e := theOnly(entrancesOf(h, n), isAny, isHalfFullOfHalfOpen); e != nil {
		f.Subject = e.local.String()
		f.Summary += "; " + halfOpenAt(e)
		f.Facts = append(f.Facts, Fact{"half_open", e.halfOpen}, Fact{"backlog", e.backlog})
		f.Facts = append(f.Facts, processFacts(e.listeners[0].Owner)...)
	}
	return []Finding{f}
}

// judgeDefence says how the namespace stands against a flood, and what would help.
func judgeDefence(f *Finding, n *observe.Netns) {
	f.Facts = append(f.Facts, cookieFacts(n)...)
	f.Sysctls = lowered(n, fewerSynAcks)
	cookies, known := n.Sysctls.Int("net.ipv4.tcp_syncookies")
	if !known {
		return
	}
	f.Facts = append(f.Facts, Fact{"tcp_syncookies", cookies})
	if cookies != 0 {
		return
	}
	f.Sysctls = append([]Setting{cookiesOn}, f.Sysctls...)
	dropped := synsDropped(n)
	f.Facts = append(f.Facts, Fact{"syns_dropped", dropped})
	if dropped > 0 {
		f.Severity = Critical
		if !strings.Contains(f.Summary, " SYNs found no room") {
			f.Summary += fmt.Sprintf("; %s dropped", prose.Count(dropped, "SYN", "SYNs"))
		}
	}
}

// cookieFacts returns the counters of SYN cookies and of the queue of half-open
// connections, of those that the kernel has.
func cookieFacts(n *observe.Netns) (facts []Fact) {
	for _, c := range []struct{ fact, counter string }{
		{"syn_cookies_sent", "TcpExt.SyncookiesSent"},
		{"syn_cookies_valid", "TcpExt.SyncookiesRecv"},
		{"syn_cookies_invalid", "TcpExt.SyncookiesFailed"},
		{"syn_queue_full_dropped", "TcpExt.TCPReqQFullDrop"},
	} {
		if count, ok := n.Counted[c.counter]; ok {
			facts = append(facts, Fact{c.fact, count})
		}
	}
	return facts
}

var synBacklogSmall = &Rule{
	ID:    "syn-backlog-small",
	Title: "Bursts of handshakes find no room for half-open connections",
	Worst: Warning,
	When: `at least 10 SYNs came while a listener had as many half-open connections as it may, and it is no flood: at least
		half of the SYN cookies that were sent came back, or, with net.ipv4.tcp_syncookies at 0, at least half as many
		connections came to be as SYNs were dropped. Not if accept queues have overflowed (slow-accept and
		accept-queue-overflow tell: connections that find no room there stay half-open), and not with
		net.ipv4.tcp_syncookies at 2, which counts every SYN.`,
	Why: `A listener keeps as many half-open connections as its backlog: the number that the application gives to listen, at
		most net.core.somaxconn (one more since early 2025). They last a round trip, so
		a burst of more real clients than that fills it. The others get SYN cookies: they lose window scaling and SACK unless
		they have timestamps, and if the last ACK is lost nothing repeats the SYN-ACK. The kernel's log then
		says "Possible SYN flooding", wrongly. With tcp_syncookies at 0 their SYNs are dropped, and the client tries again
		after a second; then three quarters of net.ipv4.tcp_max_syn_backlog are a limit too, unless the kernel remembers the
		client (tcp_conn_request).`,
	Application: []string{raiseBacklog},
	Sysctls:     []Setting{longerBacklog, cookiesOn},
	Useless:     []string{"net.ipv4.tcp_max_syn_backlog while SYN cookies are on: it is not looked at."},
	Check:       "nstat -az TcpExtTCPReqQFullDoCookies TcpExtTCPReqQFullDrop no longer grow.",
	References: []string{
		"RFC 4987 section 3.6", "listen(2)", "Documentation/networking/ip-sysctl.rst: somaxconn, tcp_max_syn_backlog, tcp_syncookies",
	},
	find: eachNetns(findSmallSynBacklog),
}

// burstsOverBacklog returns how many SYNs found no room among the half-open connections
// though their handshakes complete; 0 if that is not so.
func burstsOverBacklog(h *observe.Host, n *observe.Netns) uint64 {
	var full uint64
	dropped := synsDropped(n)
	if opened, ok := n.Counted["Tcp.PassiveOpens"]; ok && 2*opened >= dropped {
		full = dropped
	}
	sent, valid := n.Counted["TcpExt.SyncookiesSent"], n.Counted["TcpExt.SyncookiesRecv"]
	// With 2, tcp_syn_flood_action counts each SYN as one for which there was no room.
	if mode, ok := n.Sysctls.Int("net.ipv4.tcp_syncookies"); ok && mode != 2 && sent > 0 && 2*valid >= sent {
		full += n.Counted["TcpExt.TCPReqQFullDoCookies"]
	}
	if full < manyQueueFull || n.Counted["TcpExt.ListenOverflows"] > 0 || isFlooded(h, n) {
		return 0
	}
	return full
}

func findSmallSynBacklog(h *observe.Host, n *observe.Netns) []Finding {
	full := burstsOverBacklog(h, n)
	if full == 0 {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Subject:  "half-open connections",
		Facts:    []Fact{{"syn_queue_full", full}, {"syn_queue_full_per_second", h.PerSecond(full)}},
	}
	f.Facts = append(f.Facts, cookieFacts(n)...)
	mode, known := n.Sysctls.Int("net.ipv4.tcp_syncookies")
	if known {
		f.Facts = append(f.Facts, Fact{"tcp_syncookies", mode})
	}
	var likely *observe.Listener
	if e := likelyFull(h, n); e != nil {
		likely = e.listeners[0]
		f.Subject = e.local.String()
		f.Facts = append(f.Facts, Fact{"backlog", e.backlog}, Fact{"half_open", e.halfOpen})
		f.Facts = append(f.Facts, processFacts(likely.Owner)...)
	}
	f.Sysctls = moreConnections(n, likely)
	if known && mode == 0 {
		if limit, ok := n.Sysctls.Int("net.ipv4.tcp_max_syn_backlog"); ok {
			f.Facts = append(f.Facts, Fact{"tcp_max_syn_backlog", limit})
		}
		f.Sysctls = append(f.Sysctls, cookiesOn)
	}
	f.Summary = fmt.Sprintf("%s SYNs found no room among the half-open connections, %s a second: a burst, not a flood", prose.Number(full), prose.Rate(h.PerSecond(full)))
	return []Finding{f}
}

// likelyFull returns the entrance that the kernel's counters, which are not by listener,
// are most likely about: the only one that takes connections, or else the only one that
// was half full of half-open ones; nil if that does not tell.
func likelyFull(h *observe.Host, n *observe.Netns) *entrance {
	return theOnly(entrancesOf(h, n), isAny, func(e *entrance) bool { return e.opened > 0 }, isHalfFullOfHalfOpen)
}

func isAny(*entrance) bool { return true }

func isHalfFullOfHalfOpen(e *entrance) bool { return 2*max(e.halfOpen, e.halfOpenBefore) >= e.backlog }

// theOnly returns the only entrance that is likely by the first criterion by which there
// is one alone, nil if there is none.
func theOnly(all []*entrance, likely ...func(*entrance) bool) *entrance {
	for _, isLikely := range likely {
		if found := slices.DeleteFunc(slices.Clone(all), func(e *entrance) bool { return !isLikely(e) }); len(found) == 1 {
			return found[0]
		}
	}
	return nil
}

var halfOpenResets = &Rule{
	ID:    "half-open-resets",
	Title: "Handshakes are broken off by a reset",
	Worst: Info,
	When: `EmbryonicRsts grows by 10 a second or more, and by a twentieth of what comes or more, without the resets that
		net.ipv4.tcp_abort_on_overflow = 1 sends. With net.ipv4.tcp_syncookies at 2 nothing counts them.`,
	Why: `Somebody sends a SYN, gets the SYN-ACK, and answers with a reset. That is how load balancers check a port without
		bothering the application, and how scanners (nmap -sS) look for open ones; and clients do it that give up, or that
		have tried two addresses at once, before the answer is there. No process learns of it, and nothing is left behind.`,
	Application: []string{
		"See who it is: finwait trace --transition NEW_SYN_RECV:CLOSE.",
		"Health checks: make them rarer, or let them make a connection and ask the application, which says more.",
	},
	Useless:    []string{"net.ipv4.tcp_syncookies, net.ipv4.tcp_synack_retries: these handshakes have had their answer."},
	Check:      "nstat -az TcpExtEmbryonicRsts grows more slowly.",
	References: []string{"RFC 9293 section 3.10.7.4", "Documentation/networking/snmp_counter.rst"},
	find:       eachNetns(findHalfOpenResets),
}

func findHalfOpenResets(h *observe.Host, n *observe.Netns) []Finding {
	resets := n.Counted["TcpExt.EmbryonicRsts"]
	if abort, ok := n.Sysctls.Int("net.ipv4.tcp_abort_on_overflow"); ok && abort == 1 {
		resets = less(resets, n.Counted["TcpExt.ListenOverflows"]) // tcp_check_req counts those too
	}
	opened, known := n.Counted["Tcp.PassiveOpens"]
	if h.PerSecond(resets) < manyHalfOpenResets || float64(resets) < halfOpenResetShare*float64(resets+opened) {
		return nil
	}
	f := Finding{
		Severity: Info,
		Subject:  "half-open connections",
		Summary:  fmt.Sprintf("%s handshakes broken off by a reset, %s a second", prose.Number(resets), prose.Rate(h.PerSecond(resets))),
		Facts:    []Fact{{"embryonic_resets", resets}, {"embryonic_resets_per_second", h.PerSecond(resets)}},
	}
	if known {
		f.Facts = append(f.Facts, Fact{"opened", opened})
	}
	var most *entrance
	for _, e := range entrancesOf(h, n) {
		if e.reset > 0 && (most == nil || e.reset > most.reset) {
			most = e
		}
	}
	if most != nil {
		f.Subject = most.local.String()
		f.Facts = append(f.Facts, Fact{"most_at", most.local.String()}, Fact{"most_at_resets", most.reset})
	}
	return []Finding{f}
}
