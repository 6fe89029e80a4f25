package doctor

import (
	"fmt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

var timeWaitRules = []*Rule{timeWaitLarge, timeWaitLimit, timeWaitRefused}

const (
	// manyTimeWait is more than one client leaves behind on loopback that uses the
	// default range of ports over and over.
	manyTimeWait = 30_000
	// nearLimit is the share of a limit from which there is something to say.
	nearLimit = 0.8
)

var timeWaitLarge = &Rule{
	ID:    "time-wait-large",
	Title: "Many sockets in TIME_WAIT, which is harmless",
	Worst: Info,
	When:  "a network namespace has more than 30,000 sockets in TIME_WAIT, and less than four fifths of net.ipv4.tcp_max_tw_buckets.",
	Why: `TIME_WAIT is how a connection ends well: the side that closed first keeps the pair of addresses for a
		minute. Such a socket is some 250 bytes and no process; it takes no descriptor, no buffer and no CPU. The number
		by itself says closes per second times 60. It matters where ports run out (port-exhaustion) and where the kernel's
		limit is reached (time-wait-limit), and those are found for themselves.`,
	Application: []string{"Nothing. If you want fewer, keep connections open: HTTP keep-alive, a connection pool."},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout: it is for FIN_WAIT2. TIME_WAIT lasts 60 seconds, which is fixed when the kernel is compiled.",
		"net.ipv4.tcp_max_tw_buckets lowered: connections then end without TIME_WAIT, and late segments reach new ones.",
		"net.ipv4.tcp_tw_recycle: it does not exist since Linux 4.12, and before that it broke clients behind a NAT.",
	},
	Check:      "finwait count; the memory: grep tw_sock /proc/slabinfo.",
	References: []string{"RFC 9293 section 3.6.1", "RFC 1337", "RFC 6191", "Documentation/networking/ip-sysctl.rst: tcp_max_tw_buckets, tcp_tw_reuse"},
	find:       eachNetns(findTimeWaitLarge),
}

func findTimeWaitLarge(h *observe.Host, n *observe.Netns) []Finding {
	count := n.States[tracer.StateTimeWait]
	limit, known := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets")
	if count <= manyTimeWait || known && isNearLimit(n, limit) || n.Counted["TcpExt.TCPTimeWaitOverflow"] > 0 {
		return nil
	}
	f := Finding{
		Severity: Info,
		Subject:  "TIME_WAIT",
		Summary:  fmt.Sprintf("%s sockets in TIME_WAIT, which is harmless by itself", prose.Number(count)),
		Facts:    timeWaitFacts(n),
	}
	if size, ok := miniSocketBytes(&h.Memory, n); ok {
		f.Facts = append(f.Facts, Fact{"memory_bytes", size})
		f.Summary += ": " + prose.Bytes(size) + " of kernel memory in all"
	}
	return []Finding{f}
}

// timeWaitFacts are the numbers that all rules about TIME_WAIT have.
func timeWaitFacts(n *observe.Netns) []Fact {
	facts := []Fact{{"time_wait_sockets", n.States[tracer.StateTimeWait]}, {"mini_sockets", n.MiniSockets}}
	if limit, ok := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets"); ok {
		facts = append(facts, Fact{"tcp_max_tw_buckets", int(limit)})
	}
	return facts
}

// isNearLimit reports whether there are nearly as many mini-sockets as there may be. An
// orphan in FIN_WAIT2 counts as one (inet_twsk_alloc).
func isNearLimit(n *observe.Netns, limit int64) bool {
	return limit > 0 && float64(n.MiniSockets) >= nearLimit*float64(limit)
}

// miniSocketBytes returns the memory of a namespace's mini-sockets, false if the size of one
// is not known.
func miniSocketBytes(m *observe.Memory, n *observe.Netns) (uint64, bool) {
	ipv4, ipv6 := n.MiniSockets-n.MiniSocketsIPv6, n.MiniSocketsIPv6
	if ipv4 > 0 && m.MiniSocket == 0 || ipv6 > 0 && m.MiniSocketIPv6 == 0 {
		return 0, false
	}
	return ipv4*m.MiniSocket + ipv6*m.MiniSocketIPv6, true
}

// higherLimit is the kernel's default, or twice the limit if that is no less.
func higherLimit(m *observe.Memory, limit int64) []Setting {
	higher := m.EstablishedHash / 2
	if uint64(limit) >= higher {
		higher = 2 * uint64(limit)
	}
	note := "the kernel's default is half of the slots of its table of connections"
	if m.MiniSocket > 0 {
		note += "; so many take " + prose.Bytes(higher*max(m.MiniSocket, m.MiniSocketIPv6))
	}
	return []Setting{{fmt.Sprintf("net.ipv4.tcp_max_tw_buckets = %d", higher), note}}
}

var timeWaitLimit = &Rule{
	ID:    "time-wait-limit",
	Title: "TIME_WAIT is near the kernel's limit",
	Worst: Warning,
	When:  "four fifths of net.ipv4.tcp_max_tw_buckets are in use in a network namespace, by TIME_WAIT and by orphans in FIN_WAIT2, and none was refused while it was watched.",
	Why: `Beyond the limit a connection that is closed goes without TIME_WAIT (time-wait-refused). Nothing fails at once;
		what is lost is the protection of a new connection against late segments of an old one.`,
	Application: []string{"Keep connections open: HTTP keep-alive, a connection pool. It is the side that closes first that has TIME_WAIT."},
	Sysctls:     []Setting{{"net.ipv4.tcp_max_tw_buckets = 262144", "the kernel's default is half of its table of connections; a socket in TIME_WAIT is some 250 bytes"}},
	Useless:     []string{"net.ipv4.tcp_fin_timeout: TIME_WAIT lasts 60 seconds whatever it says."},
	Check:       "finwait count beside sysctl net.ipv4.tcp_max_tw_buckets.",
	References:  []string{"Documentation/networking/ip-sysctl.rst: tcp_max_tw_buckets", "RFC 1337"},
	find:        eachNetns(findTimeWaitLimit),
}

func findTimeWaitLimit(h *observe.Host, n *observe.Netns) []Finding {
	limit, ok := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets")
	if !ok || !isNearLimit(n, limit) || n.Counted["TcpExt.TCPTimeWaitOverflow"] > 0 {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		Subject:  "TIME_WAIT",
		Summary: fmt.Sprintf("%s sockets in TIME_WAIT%s, of %s that there may be",
			prose.Number(n.States[tracer.StateTimeWait]), andOrphans(n), prose.Number(uint64(limit))),
		Facts:   timeWaitFacts(n),
		Sysctls: higherLimit(&h.Memory, limit),
	}}
}

// andOrphans names the mini-sockets that are not in TIME_WAIT.
func andOrphans(n *observe.Netns) string {
	if orphans := n.MiniSockets - min(n.MiniSockets, n.States[tracer.StateTimeWait]); orphans > 0 {
		return " and " + prose.Count(orphans, "orphan", "orphans") + " in FIN_WAIT2"
	}
	return ""
}

var timeWaitRefused = &Rule{
	ID:    "time-wait-refused",
	Title: "The kernel refuses TIME_WAIT",
	Worst: Warning,
	When:  "TCPTimeWaitOverflow has grown while the host was watched.",
	Why: `There are as many sockets in TIME_WAIT, and orphans in FIN_WAIT2, as net.ipv4.tcp_max_tw_buckets allows in the network
		namespace, or no memory for another. Connections that are closed end at once instead. Late segments of such a
		connection can then reach a new one between the same ports, and a peer that has not got the last ACK gets a reset for
		its FIN.`,
	Application: []string{"Keep connections open: HTTP keep-alive, a connection pool. It is the side that closes first that has TIME_WAIT."},
	Sysctls:     []Setting{{"net.ipv4.tcp_max_tw_buckets = 262144", "twice what it is, or more; a socket in TIME_WAIT is some 250 bytes"}},
	Useless:     []string{"net.ipv4.tcp_fin_timeout: TIME_WAIT lasts 60 seconds whatever it says."},
	Check:       "nstat -az TcpExtTCPTimeWaitOverflow no longer grows.",
	References:  []string{"Documentation/networking/ip-sysctl.rst: tcp_max_tw_buckets", "RFC 1337"},
	find:        eachNetns(findTimeWaitRefused),
}

func findTimeWaitRefused(h *observe.Host, n *observe.Netns) []Finding {
	refused := n.Counted["TcpExt.TCPTimeWaitOverflow"]
	if refused == 0 {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Subject:  "TIME_WAIT",
		Summary:  fmt.Sprintf("TIME_WAIT refused to %s, %s a second", prose.Count(refused, "connection", "connections"), prose.Rate(h.PerSecond(refused))),
		Facts: append(timeWaitFacts(n), Fact{"refused", refused}, Fact{"refused_per_second", h.PerSecond(refused)},
			Fact{"refused_in_all", n.Counters["TcpExt.TCPTimeWaitOverflow"]}),
	}
	limit, ok := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets")
	switch {
	case !ok:
	case limit > 0 && hadRoom(h, n, limit):
		f.Summary += fmt.Sprintf(", with room for %s more: it seems that the kernel had no memory for them", prose.Number(uint64(limit)-min(uint64(limit), n.MiniSockets)))
		f.Sysctls = []Setting{} // the limit is not what it fails for
	default:
		f.Sysctls = higherLimit(&h.Memory, limit)
	}
	return []Finding{f}
}

// hadRoom reports whether there were fewer mini-sockets than nearly the limit all the time,
// as far as two looks tell: what fills the table after the first is there at the second,
// unless it has had its time. Of those in FIN_WAIT2 before it is not known how many were
// mini-sockets.
func hadRoom(h *observe.Host, n *observe.Netns, limit int64) bool {
	before := n.StatesBefore[tracer.StateTimeWait] + n.StatesBefore[tracer.StateFinWait2]
	return h.Watched() < timeWaitLasts && !isNearLimit(n, limit) && float64(before) < nearLimit*float64(limit)
}
