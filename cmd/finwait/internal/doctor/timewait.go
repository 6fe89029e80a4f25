package doctor

import (
	"fmt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
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
	When:  "a network namespace has more than 30,000 sockets in TIME_WAIT, less than four fifths of net.ipv4.tcp_max_tw_buckets.",
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
	References: []string{"RFC 9293 section 3.6.1", "RFC 6191", "Documentation/networking/ip-sysctl.rst: tcp_max_tw_buckets, tcp_tw_reuse"},
	find:       eachNetns(findTimeWaitLarge),
}

func findTimeWaitLarge(h *observe.Host, n *observe.Netns) []Finding {
	count := n.States[tracer.StateTimeWait]
	limit, known := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets")
	if count <= manyTimeWait || known && float64(count) >= nearLimit*float64(limit) {
		return nil
	}
	f := Finding{
		Severity: Info,
		Subject:  "TIME_WAIT",
		Summary:  fmt.Sprintf("%s sockets in TIME_WAIT, which is harmless", number(count)),
		Facts:    []Fact{{"time_wait_sockets", count}},
	}
	if known {
		f.Facts = append(f.Facts, Fact{"tcp_max_tw_buckets", limit})
	}
	if size := h.Memory.MiniSocket; size > 0 {
		f.Facts = append(f.Facts, Fact{"memory_bytes", count * size})
		f.Summary += ": " + bytes(count*size) + " of kernel memory in all"
	}
	return []Finding{f}
}

var timeWaitLimit = &Rule{
	ID:    "time-wait-limit",
	Title: "TIME_WAIT is near the kernel's limit",
	Worst: Warning,
	When:  "four fifths of net.ipv4.tcp_max_tw_buckets are in use in a network namespace, by TIME_WAIT and by orphans in FIN_WAIT2, and none was refused yet.",
	Why: `Beyond the limit a connection that is closed goes without TIME_WAIT (time-wait-refused). Nothing fails at once;
		what is lost is the protection of a new connection against late segments of an old one.`,
	Application: []string{"Keep connections open: HTTP keep-alive, a connection pool. It is the side that closes first that has TIME_WAIT."},
	Sysctls:     []Setting{{"net.ipv4.tcp_max_tw_buckets = 262144", "the kernel's default is half of its table of connections; a socket in TIME_WAIT is some 250 bytes"}},
	Useless:     []string{"net.ipv4.tcp_fin_timeout: TIME_WAIT lasts 60 seconds whatever it says."},
	Check:       "finwait count beside sysctl net.ipv4.tcp_max_tw_buckets.",
	References:  []string{"Documentation/networking/ip-sysctl.rst: tcp_max_tw_buckets", "RFC 1337"},
	find:        eachNetns(findTimeWaitLimit),
}

func findTimeWaitLimit(_ *observe.Host, n *observe.Netns) []Finding {
	limit, ok := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets")
	count := n.States[tracer.StateTimeWait]
	if !ok || float64(count) < nearLimit*float64(limit) || n.Counted["TcpExt.TCPTimeWaitOverflow"] > 0 {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		Subject:  "TIME_WAIT",
		Summary:  fmt.Sprintf("%s sockets in TIME_WAIT, of %s that there may be", number(count), number(uint64(limit))),
		Facts:    []Fact{{"time_wait_sockets", count}, {"tcp_max_tw_buckets", limit}},
		Sysctls:  []Setting{{fmt.Sprintf("net.ipv4.tcp_max_tw_buckets = %d", 2*limit), "twice what it is; a socket in TIME_WAIT is some 250 bytes"}},
	}}
}

var timeWaitRefused = &Rule{
	ID:    "time-wait-refused",
	Title: "The kernel refuses TIME_WAIT",
	Worst: Warning,
	When:  "TCPTimeWaitOverflow has grown while the host was watched.",
	Why: `There are net.ipv4.tcp_max_tw_buckets sockets in TIME_WAIT, or no memory for another. Connections that are closed
		end at once instead. Late segments of such a connection can then reach a new one between the same ports, and a peer
		whose last ACK got lost gets a reset for its FIN.`,
	Application: []string{"Keep connections open: HTTP keep-alive, a connection pool. It is the side that closes first that has TIME_WAIT."},
	Sysctls:     []Setting{{"net.ipv4.tcp_max_tw_buckets = 262144", "twice what it is, or more; a socket in TIME_WAIT is some 250 bytes"}},
	Useless:     []string{"net.ipv4.tcp_fin_timeout: TIME_WAIT lasts 60 seconds whatever it says."},
	Check:       "nstat -az TcpExtTCPTimeWaitOverflow no longer grows.",
	References:  []string{"Documentation/networking/ip-sysctl.rst: tcp_max_tw_buckets", "Documentation/networking/snmp_counter.rst", "RFC 1337"},
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
		Summary:  fmt.Sprintf("TIME_WAIT refused to %s connections, %s a second", number(refused), rate(h.PerSecond(refused))),
		Facts: []Fact{
			{"refused", refused}, {"refused_per_second", h.PerSecond(refused)},
			{"refused_since_boot", n.Counters["TcpExt.TCPTimeWaitOverflow"]}, {"time_wait_sockets", n.States[tracer.StateTimeWait]},
		},
	}
	if limit, ok := n.Sysctls.Int("net.ipv4.tcp_max_tw_buckets"); ok {
		f.Facts = append(f.Facts, Fact{"tcp_max_tw_buckets", limit})
		f.Sysctls = []Setting{{fmt.Sprintf("net.ipv4.tcp_max_tw_buckets = %d", max(2*limit, 65536)), "a socket in TIME_WAIT is some 250 bytes"}}
	}
	return []Finding{f}
}
