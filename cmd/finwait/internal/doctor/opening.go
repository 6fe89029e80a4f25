package doctor

import (
	"fmt"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

var openingRules = []*Rule{synSentPileup, connectRefused, slowHandshake}

const (
	// manyUnanswered and manyRefused are more attempts at one service than chance explains.
	manyUnanswered = 10
	manyRefused    = 10
	// unansweredShare of all attempts at a service are more than are lost by chance.
	unansweredShare = 0.05
	// manySlow and slowShare are how many handshakes take a second before a lost packet is
	// no chance.
	manySlow  = 5
	slowShare = 0.05
)

var fewerSYNs = Setting{"net.ipv4.tcp_syn_retries = 3", "connect then fails after 19 seconds (15 before Linux 6.5, which sends four SYNs more, one a second: tcp_syn_linear_timeouts), for all that connect in this namespace, also over paths that lose much. TCP_SYNCNT sets it for one socket"}

var synSentPileup = &Rule{
	ID:    "syn-sent-pileup",
	Title: "A peer does not answer: connections hang in SYN_SENT",
	Worst: Warning,
	When: `at least 10 sockets to one address and port were in SYN_SENT all the time that the host was watched, and have
		sent their SYN again; or at least 10 attempts, and a twentieth of all there, ended meanwhile without an answer: by a
		timeout, by an ICMP error, or because the process gave up after a second or more. In more than a minute, as of a log,
		10 are that many in ten seconds. Not if it is a listener of the same namespace whose accept queue is full: slow-accept
		and accept-queue-overflow tell.`,
	Why: `A port on which nobody listens answers at once with a reset. No answer is a firewall that drops, a host that is
		down, a route that leads nowhere or back another way, or a listener whose queue is full. Each attempt holds a thread,
		a descriptor and a local port until it times out: with the kernel's defaults after 131 seconds (127 before Linux
		6.5). What waits for the peer then stands still as a whole.`,
	Application: []string{
		"See whether the address is still the right one, and try the port from elsewhere: a firewall often lets only some through.",
		"Set a connect timeout of a second or a few, with a limit on attempts in flight and a pause that grows between them.",
	},
	Sysctls: []Setting{fewerSYNs},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout and net.ipv4.tcp_tw_reuse: these connections were never open.",
		"More local ports (net.ipv4.ip_local_port_range): more attempts then hang.",
	},
	Check: "ss -tn state syn-sent is empty; finwait trace --transition SYN_SENT:CLOSE shows no timeout_handshake.",
	References: []string{
		"RFC 9293 section 3.8.3", "RFC 6298 section 2",
		"Documentation/networking/ip-sysctl.rst: tcp_syn_retries, tcp_syn_linear_timeouts", "tcp(7): TCP_SYNCNT, TCP_USER_TIMEOUT", "connect(2): ETIMEDOUT",
	},
	find: eachPeer(findUnanswered),
}

func findUnanswered(h *observe.Host, n *observe.Netns, p *peer) *ranked {
	unanswered := p.unanswered()
	failing := isOften(h.Traffic, unanswered, manyUnanswered, p.attempts()) && float64(unanswered) >= unansweredShare*float64(p.attempts())
	if p.resent < manyUnanswered && !failing || isFullHere(n, p.service) {
		return nil
	}
	f := Finding{Severity: Warning}
	if n != nil {
		f.Facts = append(f.Facts, Fact{"waiting_sockets", p.waiting}, Fact{"syn_retransmitted_sockets", p.resent})
	}
	if p.resent >= manyUnanswered {
		f.Summary = fmt.Sprintf("%s connections to %s have no answer to their SYN", prose.Number(uint64(p.resent)), peerName(p.service))
	} else {
		f.Summary = fmt.Sprintf("%s of %s connections to %s failed without an answer", about(h.Traffic)+prose.Number(unanswered), prose.Number(p.attempts()), peerName(p.service))
	}
	if p.attempts() > 0 {
		f.Facts = append(f.Facts, Fact{"opened", p.opened}, Fact{"timed_out", p.timedOut}, Fact{"unreachable", p.unreachable}, Fact{"given_up", p.givenUp()})
	}
	if n != nil {
		f.Facts = append(f.Facts, connectTimeoutFacts(n.Sysctls)...)
		f.Sysctls = lowered(n, fewerSYNs)
	}
	return &ranked{f, uint64(p.resent) + unanswered}
}

// isOften reports whether n, of all that the traffic has of its kind, are more than
// chance explains: least that were seen. What adds up to that in a log of a week may be
// nothing: in more than a minute they are as many in ten seconds, or a hundredth of all.
func isOften(t *observe.Traffic, n, least, all uint64) bool {
	switch {
	case t == nil || !t.Enough(n, least):
		return false
	case t.Duration() <= time.Minute:
		return true
	}
	return 10*t.Rate(n) >= float64(least) || 100*n >= all
}

// about is the word before a number of traffic that is an estimate.
func about(t *observe.Traffic) string {
	if t.Estimated {
		return "about "
	}
	return ""
}

// lowered returns a setting that lowers a sysctl, none if that is as low already.
func lowered(n *observe.Netns, s Setting) []Setting {
	name, value := s.Split()
	if running, ok := n.Sysctls.Int(name); ok {
		if low, _ := sysctl.ParseInt(value); running <= low {
			return []Setting{}
		}
	}
	return []Setting{s}
}

func connectTimeoutFacts(v sysctl.Values) []Fact {
	seconds, ok := connectTimeout(v)
	if !ok {
		return nil
	}
	retries, _ := v.Int("net.ipv4.tcp_syn_retries")
	return []Fact{{"tcp_syn_retries", retries}, {"connect_fails_after_seconds", seconds}}
}

// connectTimeout returns after how many seconds connect fails if no SYN is answered and
// nobody has asked for another time. The first waits for a second, as does each of
// tcp_syn_linear_timeouts (since Linux 6.5), which come on top of tcp_syn_retries
// (tcp_write_timeout); the others double what they wait for, up to two minutes, or
// tcp_rto_max_ms (since 6.15; tcp_retransmit_timer).
func connectTimeout(v sysctl.Values) (seconds float64, ok bool) {
	retries, ok := v.Int("net.ipv4.tcp_syn_retries")
	if !ok {
		return 0, false
	}
	if linear, ok := v.Int("net.ipv4.tcp_syn_linear_timeouts"); ok {
		seconds = float64(linear)
	}
	return seconds + waits(v, retries), true
}

// waits returns how many seconds go by until the kernel gives up a handshake of which it
// repeats a segment so many times.
func waits(v sysctl.Values, retries int64) (seconds float64) {
	longest := 120.0
	if ms, ok := v.Int("net.ipv4.tcp_rto_max_ms"); ok {
		longest = float64(ms) / 1000
	}
	wait := 1.0
	for range retries + 1 {
		seconds += min(wait, longest)
		wait *= 2
	}
	return seconds
}

var connectRefused = &Rule{
	ID:    "connect-refused",
	Title: "Connections are refused: nobody listens there",
	Worst: Warning,
	When: `at least 10 connections to one address and port were answered with a reset while the host was watched; in more than
		a minute, as of a log, as many in ten seconds or a hundredth of all. A warning if all were, info if some were not.`,
	Why: `A reset that answers a SYN says that the host is there and that nobody listens on the port: the service is down,
		starting, or elsewhere; or a firewall rejects with a reset. It costs little, but what needs the service does without
		it, and a client that tries again at once makes load of it. If only some are refused, one of several behind the
		address is down, or the service was restarted.`,
	Application: []string{
		"Start the service, or correct the address: ss -ltn on the host it names; 127.0.0.1 does not reach a listener on another address.",
		"Have the client wait before it tries again, longer each time.",
	},
	Useless: []string{"net.core.somaxconn, net.ipv4.tcp_max_syn_backlog and net.ipv4.tcp_abort_on_overflow on the client: there is no queue that could be full. Linux drops a SYN for which a queue has no room, and sends no reset."},
	Check:   "finwait trace --transition SYN_SENT:CLOSE shows no reason refused.",
	References: []string{
		"RFC 9293 section 3.10.7.1", "connect(2): ECONNREFUSED",
	},
	find: eachPeer(findRefused),
}

func findRefused(h *observe.Host, _ *observe.Netns, p *peer) *ranked {
	if !isOften(h.Traffic, p.refused, manyRefused, p.attempts()) {
		return nil
	}
	f := Finding{
		Severity: Info,
		Summary:  fmt.Sprintf("%s of %s connections to %s refused", about(h.Traffic)+prose.Number(p.refused), prose.Number(p.attempts()), peerName(p.service)),
		Facts:    []Fact{{"refused", p.refused}, {"attempts", p.attempts()}, {"opened", p.opened}},
	}
	if p.refused == p.attempts() {
		f.Severity = Warning
		f.Summary = fmt.Sprintf("all %s connections to %s refused: nobody listens there", about(h.Traffic)+prose.Number(p.refused), peerName(p.service))
	}
	return &ranked{f, p.refused}
}

var slowHandshake = &Rule{
	ID:    "slow-handshake",
	Title: "Handshakes take a second: SYNs are lost",
	Worst: Warning,
	When: `of the connections to one address and port that came to be while the host was watched, at least 5 and at least 5 %
		were in SYN_SENT for a second or more. Not if it is a listener of the same namespace, and accept queues have
		overflowed there meanwhile: slow-accept and accept-queue-overflow tell.`,
	Why: `A handshake takes one round trip. The kernel repeats a SYN that is not answered after one second, so a second or
		more says that the first SYN, or its answer, was lost or dropped. A listener drops SYNs when one of its queues is
		full; a firewall when its table of connections is; a path when it is overloaded. Each such connection is a request
		that takes a second longer. A round trip of a second would look the same.`,
	Application: []string{
		"Look at the server first: ListenOverflows and ListenDrops of nstat there, or finwait doctor.",
		"Keep connections open (HTTP keep-alive, a connection pool): fewer handshakes, and a burst no longer meets a queue.",
		"If the server drops nothing, look for loss on the way, and for a full table of connections (nf_conntrack) on both hosts and between them.",
	},
	Useless: []string{
		"net.ipv4.tcp_syn_retries: it says how often a SYN is repeated, not how soon; the first second is fixed.",
		"net.ipv4.tcp_tw_reuse and net.ipv4.tcp_fin_timeout: they bear on how connections end.",
	},
	Check: "finwait profile: nothing in SYN_SENT at a second or more; nstat -az TcpExtTCPSynRetrans stands still.",
	References: []string{
		"RFC 6298 section 2", "Documentation/networking/snmp_counter.rst: TcpExtListenOverflows, TcpExtListenDrops, TcpExtTCPSynRetrans",
	},
	find: eachPeer(findSlowHandshake),
}

func findSlowHandshake(h *observe.Host, n *observe.Netns, p *peer) *ranked {
	all, slow := p.handshake.Count(), aSecond(&p.handshake)
	if h.Traffic == nil || !h.Traffic.Enough(slow, manySlow) || float64(slow) < slowShare*float64(all) || hasOverflowedHere(n, p.service) {
		return nil
	}
	return &ranked{Finding{
		Severity: Warning,
		Summary:  fmt.Sprintf("%s handshakes with %s took a second or more", about(h.Traffic)+ratio(slow, all), peerName(p.service)),
		Facts: []Fact{
			{"slow_handshakes", slow}, {"measured_handshakes", all},
			{"longest_seconds", p.handshake.Max.Seconds()},
		},
	}, slow}
}
