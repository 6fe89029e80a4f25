package doctor

import (
	"fmt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

var conntrackRules = []*Rule{conntrackFull}

const (
	// trackedFull is the share of nf_conntrack_max from which a burst fills the table.
	trackedFull = 0.95
	// entrySize is what an entry takes: struct nf_conn, 256 bytes on Linux 6.18, and what
	// NAT and accounting add to it. The buckets are 8 bytes each besides.
	entrySize = 320
)

var conntrackFull = &Rule{
	ID:    "conntrack-full",
	Title: "The table of connection tracking is nearly full",
	Worst: Critical,
	When: `a network namespace has four fifths of net.netfilter.nf_conntrack_max entries; it is critical from 95 percent on, or if
		packets were dropped while it was watched.`,
	Why: `Once the table is full, a new connection needs an entry to give way: one that is not assured, as of
		TCP one whose handshake is not complete, in the eight buckets that the kernel looks at (early_drop). If there is none it drops the first
		packet of the new connection, of every protocol, in and out: SYNs and queries of DNS get no answer, while what is under
		way works on. An entry is not a socket: it stays for two minutes after a connection has ended
		(nf_conntrack_tcp_timeout_time_wait), and up to five days if an end vanished without a word
		(nf_conntrack_tcp_timeout_established). The limit is that of each network namespace by itself; as a rule only the
		initial one can set it.`,
	Application: []string{
		"Make fewer short connections: each is an entry for two minutes after its end. HTTP keep-alive, a connection pool.",
		"Do not track what needs no NAT and no rule by state, such as a busy service on this host: notrack in a chain with priority raw, in both directions.",
	},
	Sysctls: []Setting{
		{"net.netfilter.nf_conntrack_max = 524288", "twice the most that you need; an entry is some 320 bytes of kernel memory. Have nf_conntrack_buckets grow with it"},
		{"net.netfilter.nf_conntrack_tcp_timeout_time_wait = 30", "entries of connections that are over go sooner; sockets stay in TIME_WAIT as long as ever"},
	},
	Useless: []string{
		"net.ipv4.tcp_fin_timeout, net.ipv4.tcp_tw_reuse: they are about sockets. The table has timeouts of its own.",
	},
	Check:      "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max; the column drop of conntrack -S does not grow; dmesg no longer says: nf_conntrack: table full, dropping packet.",
	References: []string{"Documentation/networking/nf_conntrack-sysctl.rst: nf_conntrack_max, nf_conntrack_buckets", "conntrack(8)", "nft(8): notrack"},
	find:       eachNetns(findConntrackFull),
}

func findConntrackFull(h *observe.Host, n *observe.Netns) []Finding {
	c := n.Conntrack
	if c == nil || c.Max == 0 || float64(c.Entries) < nearLimit*float64(c.Max) {
		return nil
	}
	f := Finding{
		Severity: Warning,
		Subject:  "nf_conntrack",
		Summary:  fmt.Sprintf("%s connections tracked, of %s that there may be", prose.Number(c.Entries), prose.Number(c.Max)),
		Facts: []Fact{
			{"entries", c.Entries}, {"nf_conntrack_max", c.Max}, {"used_percent", 100 * float64(c.Entries) / float64(c.Max)},
			{"memory_bytes_about", c.Entries * entrySize},
			{"established_sockets", n.States[tracer.StateEstablished]}, {"time_wait_sockets", n.States[tracer.StateTimeWait]},
		},
		Sysctls: trackingSettings(n),
	}
	if c.Dropped > 0 {
		f.Summary += fmt.Sprintf(": %s dropped, %s a second", prose.Count(c.Dropped, "packet", "packets"), prose.Rate(h.PerSecond(c.Dropped)))
		f.Facts = append(f.Facts, Fact{"dropped_packets", c.Dropped}, Fact{"dropped_packets_per_second", h.PerSecond(c.Dropped)})
	}
	if c.Dropped > 0 || float64(c.Entries) >= trackedFull*float64(c.Max) {
		f.Severity = Critical
	}
	return []Finding{f}
}

// trackingSettings are the settings that help, with values for the namespace: of the
// timeouts those that are longer.
func trackingSettings(n *observe.Netns) []Setting {
	limit := 2 * n.Conntrack.Max
	note := fmt.Sprintf("twice what it is; %s of kernel memory if all are in use. Set net.netfilter.nf_conntrack_buckets to a quarter of it at the least", prose.Bytes(limit*entrySize))
	if !n.Host {
		note += "; where this network namespace cannot set it, the initial one does"
	}
	all := []Setting{{fmt.Sprintf("net.netfilter.nf_conntrack_max = %d", limit), note}}
	const timeWait, established = "net.netfilter.nf_conntrack_tcp_timeout_time_wait", "net.netfilter.nf_conntrack_tcp_timeout_established"
	if seconds, ok := n.Sysctls.Int(timeWait); ok && seconds > 30 {
		all = append(all, Setting{timeWait + " = 30", fmt.Sprintf("it is %d: entries of connections that are over go sooner; sockets stay in TIME_WAIT as long as ever", seconds)})
	}
	if seconds, ok := n.Sysctls.Int(established); ok && seconds > 86400 {
		all = append(all, Setting{established + " = 86400", fmt.Sprintf("it is %d: entries of connections whose ends have vanished go after a day; keep it above net.ipv4.tcp_keepalive_time", seconds)})
	}
	return all
}
