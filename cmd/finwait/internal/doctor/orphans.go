package doctor

import (
	"fmt"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

const maxOrphansNote = `the default is half of the kernel's table of connections; each orphan may hold 64 kB, and more,
	of memory that cannot be swapped`

var orphanLimit = &Rule{
	ID:    "orphan-limit",
	Title: "Closed connections are near the limit of orphans",
	Worst: Critical,
	When: `there are more than half of net.ipv4.tcp_max_orphans sockets that no process holds and that are not mini-sockets.
		It is critical if connections were reset for that while the host was watched (if nobody could see them end: if
		TCPAbortOnMemory has grown, which counts lack of memory too), and a warning if a log tells of such resets.`,
	Why: `An orphan has been closed and has something left to send: it is in FIN_WAIT1, CLOSING or LAST_ACK. (One in
		FIN_WAIT2 is a mini-socket, unless net.ipv4.tcp_fin_timeout or TCP_LINGER2 is above 60 seconds, and then only for what
		that is more.) Beyond the limit the kernel resets them, so the end of what their peers were to get is
		lost. Those that have sent nothing for some minutes, or have met an ICMP error, it resets from half of the limit on,
		and those with both from a quarter.`,
	Application: []string{
		"See why they stay: fin-wait1-pileup and last-ack-pileup name the peers.",
		"Set TCP_USER_TIMEOUT, or keep the socket until the peer has taken all: it is the process's then.",
	},
	Sysctls: []Setting{
		orphanRetries,
		{"net.ipv4.tcp_max_orphans = 65536", maxOrphansNote},
	},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout up to 60: FIN_WAIT2 is a mini-socket then, which is not counted.",
		"net.ipv4.tcp_max_tw_buckets: it is the limit of mini-sockets.",
	},
	Check:      "grep ^TCP: /proc/net/sockstat (orphan) beside sysctl net.ipv4.tcp_max_orphans; dmesg: too many orphaned sockets.",
	References: []string{"Documentation/networking/ip-sysctl.rst: tcp_max_orphans, tcp_orphan_retries", "tcp(7): TCP_USER_TIMEOUT"},
	find:       findOrphanLimit,
}

// nearOrphanLimit tells that there are more than half of those that there may be.
func nearOrphanLimit(h *observe.Host) bool {
	m := &h.Memory
	return m.PageSize > 0 && m.MaxOrphans > 0 && m.Orphans > m.MaxOrphans/2
}

func findOrphanLimit(h *observe.Host) []Finding {
	m := &h.Memory
	refused, known := resetFor(h, tracer.ReasonRSTSentOrphanLimit, nearOrphanLimit(h))
	if refused == 0 && !nearOrphanLimit(h) {
		return nil
	}
	f := Finding{Severity: Warning, Subject: "orphans", Sysctls: []Setting{}}
	var says []string
	if m.PageSize > 0 && m.MaxOrphans > 0 {
		f.Facts = append(f.Facts, Fact{"orphans", m.Orphans}, Fact{"tcp_max_orphans", m.MaxOrphans})
		says = append(says, fmt.Sprintf("%s closed sockets have something left to do, of %s that there may be", prose.Number(m.Orphans), prose.Number(m.MaxOrphans)))
		if len(h.Namespaces) > 0 && !fewOrphanRetries(&h.Namespaces[0]) { // the host's own is the first
			f.Sysctls = append(f.Sysctls, orphanRetries)
		}
		f.Sysctls = append(f.Sysctls, Setting{fmt.Sprintf("net.ipv4.tcp_max_orphans = %d", 2*m.MaxOrphans), maxOrphansNote})
	}
	if known {
		f.Facts = append(f.Facts, Fact{"resets", refused})
	}
	if refused > 0 {
		f.Severity = severityOfResets(h)
		says = append(says, prose.Count(refused, "connection was", "connections were")+" reset because there were too many")
	}
	if peers := orphansByPeer(h); len(peers) > 0 {
		f.Facts = append(f.Facts, Fact{"biggest_peers", listBiggest(peers)})
	}
	f.Summary = strings.Join(says, "; ")
	return []Finding{f}
}

// orphansByPeer counts the orphans that were seen to wait for an acknowledgement.
func orphansByPeer(h *observe.Host) map[string]int {
	peers := map[string]int{}
	for i := range h.Namespaces {
		for j := range h.Namespaces[i].Lasting {
			l := &h.Namespaces[i].Lasting[j]
			switch l.State {
			case tracer.StateFinWait1, tracer.StateClosing, tracer.StateLastAck:
				if n := l.Sockets + l.New; l.Orphan && n > 0 {
					peers[peerName(l.Remote)] += n
				}
			}
		}
	}
	return peers
}
