package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

var memoryRules = []*Rule{tcpMemory}

// nearMaxMemory is the share of the third number of tcp_mem from which it is critical.
const nearMaxMemory = 0.9

const tcpMemNote = `in pages: twice what it is, if the host has memory to spare. By default they are 4.7, 6.25 and 9.4 %
	of it; it cannot be swapped`

var tcpMemory = &Rule{
	ID:    "tcp-memory",
	Title: "TCP's memory is near its limit",
	Worst: Critical,
	When: `the memory of TCP's buffers is above the second number of net.ipv4.tcp_mem (pressure), or has been and is not yet
		below the first, or TCPMemoryPressures has grown while the host was watched. It is critical above nine tenths of the third number, and if a connection was
		reset for lack of memory (or TCPAbortOnMemory has grown and orphans are not near their limit, which it counts too). It
		is a warning if a log tells of such resets.`,
	Why: `Above the second number the kernel makes all windows of the host small, and every connection slow, until it is
		below the first. At the third it drops what comes (TCPRcvQDrop, which also counts what a single full socket drops) and
		has no room for what is to be sent: connections stall until they time out, and closed ones are reset. One process
		that does not read, or peers that do not, take the memory from all.`,
	Application: []string{
		"See who holds it (holders): unread data is of a process that does not read as fast as it gets, unsent data is for peers that do not.",
		"Read, or close; limit what is written ahead to a peer that does not read (TCP_NOTSENT_LOWAT, a limit of the queue), and give up on those that never do (TCP_USER_TIMEOUT).",
		"Fewer connections, or smaller buffers for each: the third numbers of net.ipv4.tcp_rmem and tcp_wmem, SO_RCVBUF and SO_SNDBUF.",
	},
	Sysctls: []Setting{{"net.ipv4.tcp_mem = 196608 262144 393216", tcpMemNote}},
	Useless: []string{
		"net.core.rmem_max, wmem_max: they limit what a process may ask for with SO_RCVBUF and SO_SNDBUF, not what TCP takes by itself.",
		"Larger net.ipv4.tcp_rmem and tcp_wmem: each connection may then take more of what is short.",
		"net.ipv4.tcp_max_tw_buckets: mini-sockets are not in this memory.",
	},
	Check:      "grep ^TCP: /proc/net/sockstat (mem, in pages) beside sysctl net.ipv4.tcp_mem; nstat -az TcpExtTCPMemoryPressures.",
	References: []string{"Documentation/networking/ip-sysctl.rst: tcp_mem, tcp_rmem, tcp_wmem", "Documentation/networking/snmp_counter.rst: TcpExtTCPAbortOnMemory, TcpExtTCPRcvQDrop", "tcp(7): tcp_mem"},
	find:       findTCPMemory,
}

// shortage is what tells that TCP has too little memory.
type shortage struct {
	// above tells that more than the second number of tcp_mem is in use, saving that it was
	// and that the kernel still saves memory.
	above, saving, nearMax bool
	// What is not known is 0; facts has what is.
	resets, pressures, drops uint64
	facts                    []Fact
}

func shortageOf(h *observe.Host) *shortage {
	s := &shortage{}
	if m := &h.Memory; m.PageSize > 0 {
		s.saving = m.Pressure
		s.above = m.PressurePages > 0 && m.Pages > m.PressurePages
		s.nearMax = m.MaxPages > 0 && float64(m.Pages) > nearMaxMemory*float64(m.MaxPages)
		s.facts = append(s.facts, Fact{"memory_bytes", m.Pages * m.PageSize})
		if m.PressurePages > 0 && m.MaxPages > 0 {
			s.facts = append(s.facts, Fact{"pressure_bytes", m.PressurePages * m.PageSize}, Fact{"max_bytes", m.MaxPages * m.PageSize})
		}
	}
	if n, known := countedOf(h, "TcpExt.TCPMemoryPressures"); known {
		s.pressures = n
		s.facts = append(s.facts, Fact{"pressures", n})
	}
	if n, known := resetFor(h, tracer.ReasonRSTSentMemory, !nearOrphanLimit(h)); known {
		s.resets = n
		s.facts = append(s.facts, Fact{"resets", n})
	}
	// Below the mark it is a single socket whose buffer is full, and above it may be.
	if n, known := countedOf(h, "TcpExt.TCPRcvQDrop"); known && s.above {
		s.drops = n
		s.facts = append(s.facts, Fact{"segments_dropped", n})
	}
	return s
}

// severity says how bad it is. What was dropped may be a single socket's, whose buffer is
// full: it makes nothing worse.
func (s *shortage) severity(h *observe.Host) Severity {
	switch {
	case s.nearMax:
		return Critical
	case s.resets > 0:
		return severityOfResets(h)
	}
	return Warning
}

// severityOfResets is that of connections that were reset for want of something: a log
// may be of any length, and of another host.
func severityOfResets(h *observe.Host) Severity {
	if isLogged(h) {
		return Warning
	}
	return Critical
}

// resetFor returns how many connections were reset for that reason. If nobody saw it, and
// guess says that it is this one, it is what the kernel has counted of both reasons for
// which memory is short.
func resetFor(h *observe.Host, reason tracer.Reason, guess bool) (n uint64, known bool) {
	if h.Traffic == nil {
		if !guess {
			return 0, false
		}
		return countedOf(h, "TcpExt.TCPAbortOnMemory")
	}
	for way, count := range h.Traffic.Endings.All() {
		if way.Reason == reason {
			n += count
		}
	}
	return n, true
}

// countedOf sums what was counted in all network namespaces meanwhile, if it was in any.
func countedOf(h *observe.Host, name string) (sum uint64, known bool) {
	for i := range h.Namespaces {
		n, counted := h.Namespaces[i].Counted[name]
		sum, known = sum+n, known || counted
	}
	return sum, known
}

func findTCPMemory(h *observe.Host) []Finding {
	s := shortageOf(h)
	if !s.nearMax && !s.above && !s.saving && s.pressures == 0 && s.resets == 0 {
		return nil
	}
	f := Finding{Severity: s.severity(h), Subject: "TCP memory", Summary: s.says(&h.Memory), Facts: s.facts, Sysctls: []Setting{}}
	if holders := biggestHolders(h); holders != "" {
		f.Facts = append(f.Facts, Fact{"holders", holders})
	}
	if m := &h.Memory; m.PressurePages > 0 && m.MaxPages > 0 {
		line := fmt.Sprintf("net.ipv4.tcp_mem = %d %d %d", m.PressurePages*3/2, 2*m.PressurePages, 2*m.MaxPages)
		f.Sysctls = []Setting{{line, tcpMemNote}}
	}
	return []Finding{f}
}

func (s *shortage) says(m *observe.Memory) string {
	var says []string
	if m.PageSize > 0 && m.PressurePages > 0 && m.MaxPages > 0 {
		says = append(says, fmt.Sprintf("TCP's buffers have %s; it saves memory from %s on, and may have %s",
			prose.Bytes(m.Pages*m.PageSize), prose.Bytes(m.PressurePages*m.PageSize), prose.Bytes(m.MaxPages*m.PageSize)))
	}
	if s.saving && !s.above {
		says = append(says, "it still saves memory, having had more")
	}
	if s.pressures > 0 {
		says = append(says, fmt.Sprintf("it began to save memory %s meanwhile", prose.Count(s.pressures, "time", "times")))
	}
	if s.resets > 0 {
		says = append(says, prose.Count(s.resets, "connection was", "connections were")+" reset for lack of memory")
	}
	if s.drops > 0 {
		says = append(says, prose.Count(s.drops, "segment of data was", "segments of data were")+" dropped")
	}
	return strings.Join(says, "; ")
}

// biggestHolders says who has the most in the buffers of sockets: three of all network
// namespaces.
func biggestHolders(h *observe.Host) string {
	var all []*observe.Queued
	for i := range h.Namespaces {
		for j := range h.Namespaces[i].Queued {
			all = append(all, &h.Namespaces[i].Queued[j])
		}
	}
	slices.SortStableFunc(all, func(a, b *observe.Queued) int { return cmp.Compare(b.Unread+b.Unsent, a.Unread+a.Unsent) })
	var list []string
	for _, q := range all[:min(len(all), 3)] {
		list = append(list, fmt.Sprintf("%s: %s unread, %s unsent (sockets: %d)", holderName(q), prose.Bytes(q.Unread), prose.Bytes(q.Unsent), q.Sockets))
	}
	return strings.Join(list, "; ")
}

func holderName(q *observe.Queued) string {
	switch {
	case q.Orphan:
		return "no process"
	case q.Owner.PID == 0:
		return "unknown processes"
	}
	return processName(q.Owner)
}
