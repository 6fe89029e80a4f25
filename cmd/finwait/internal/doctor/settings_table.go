package doctor

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// setting is what is known of a sysctl.
type setting struct {
	key string
	// def is the kernel's default, "" if there is none that is the same on all hosts, and
	// since the version that has it, if it is not that of all kernels from 5.10 on or is
	// younger than many a tuning guide.
	def, since string
	// share is the default as a share of the table of connections, 2 is half of it, and
	// least the least that it is.
	share, least int64
	// does says what it is for.
	does string
	// judge returns what there is to say of a value; a zero opinion if it is what one
	// would think of it, the default or not.
	judge func(w world, value string) opinion
	// wholeHost tells that only the initial network namespace has it.
	wholeHost bool
}

// settings is what is known of the sysctls that bear on TCP. To add one, give it a line;
// one that is not here is said to have its effect.
var settings = []setting{
	{key: "net.core.somaxconn", def: "4096", since: "5.4", does: "It bounds the backlog that listen(2) can ask for."},
	{key: "net.ipv4.ip_local_port_range", def: "32768 60999", does: "It is the ports that the kernel chooses for outgoing connections.", judge: judgePortRange},
	{key: "net.ipv4.ip_local_reserved_ports", does: "The kernel does not choose these ports by itself."},
	{key: "net.ipv4.tcp_abort_on_overflow", def: "0", judge: judgeAbortOnOverflow},
	{key: "net.ipv4.tcp_congestion_control", does: "It is the congestion control of sockets that do not choose one."},
	{key: "net.ipv4.tcp_dsack", def: "1", does: "Whether duplicate SACKs are sent."},
	{key: "net.ipv4.tcp_ecn", def: "2", does: "Whether ECN is used."},
	{key: "net.ipv4.tcp_fack", def: "0", judge: legacy("4.15")},
	{key: "net.ipv4.tcp_fastopen", def: "1", does: "Whether TCP Fast Open is used, by clients, servers or both."},
	{key: "net.ipv4.tcp_fin_timeout", def: "60", judge: judgeFinTimeout},
	{key: "net.ipv4.tcp_keepalive_intvl", def: "75", does: "It is the time between keepalive probes, for sockets with SO_KEEPALIVE."},
	{key: "net.ipv4.tcp_keepalive_probes", def: "9", does: "It is how many keepalive probes in a row go without an answer before a connection ends, for sockets with SO_KEEPALIVE."},
	{key: "net.ipv4.tcp_keepalive_time", def: "7200", does: "It is for how long a connection is idle before the first keepalive probe, for sockets with SO_KEEPALIVE and no others."},
	{key: "net.ipv4.tcp_low_latency", def: "0", judge: legacy("4.14")},
	{key: "net.ipv4.tcp_max_orphans", share: 2, does: "It bounds the sockets without a process, on the whole host; those beyond it are reset.", wholeHost: true},
	{key: "net.ipv4.tcp_max_syn_backlog", share: 128, least: 128, judge: judgeSynBacklog},
	{key: "net.ipv4.tcp_max_tw_buckets", share: 2, does: "It bounds the sockets in TIME_WAIT, and orphans in FIN_WAIT2.", judge: judgeMaxTimeWait},
	{key: "net.ipv4.tcp_mem", does: "It bounds the memory of all TCP buffers, in pages.", wholeHost: true},
	{key: "net.ipv4.tcp_migrate_req", def: "0", does: "Whether connections that wait to be accepted move on when one listener of several closes."},
	{key: "net.ipv4.tcp_moderate_rcvbuf", def: "1", does: "Whether receive buffers grow by themselves."},
	{key: "net.ipv4.tcp_mtu_probing", def: "0", does: "Whether the path MTU is found by trying."},
	{key: "net.ipv4.tcp_no_metrics_save", def: "0", does: "Whether what was learnt of a path is kept for the next connection."},
	{key: "net.ipv4.tcp_orphan_retries", def: "0", does: "It is how often data and the FIN of a socket without a process are sent again; 0 stands for 8."},
	{key: "net.ipv4.tcp_retries1", def: "3", does: "After so many retransmissions another route is looked for."},
	{key: "net.ipv4.tcp_retries2", def: "15", does: "After so many retransmissions a connection ends."},
	{key: "net.ipv4.tcp_rfc1337", def: "0", judge: judgeRFC1337},
	{key: "net.ipv4.tcp_sack", def: "1", does: "Whether selective acknowledgements are used."},
	{key: "net.ipv4.tcp_slow_start_after_idle", def: "1", does: "Whether a connection that was idle starts slowly again."},
	{key: "net.ipv4.tcp_syn_retries", def: "6", does: "It is how often a SYN is sent again before connect fails."},
	{key: "net.ipv4.tcp_synack_retries", def: "5", does: "It is how often a SYN-ACK is sent again before a half-open connection is given up."},
	{key: "net.ipv4.tcp_syncookies", def: "1", judge: judgeSyncookies},
	{key: "net.ipv4.tcp_timestamps", def: "1", does: "2 is 1 without a random offset for each connection.", judge: judgeTimestamps},
	{key: "net.ipv4.tcp_tw_recycle", judge: judgeRecycle},
	{key: "net.ipv4.tcp_tw_reuse", def: "2", since: "4.19", judge: judgeReuse},
	{key: "net.ipv4.tcp_tw_reuse_delay", def: "1000", since: "6.14", does: "It is how many milliseconds a TIME_WAIT is left alone before tcp_tw_reuse lets connect take its port."},
	{key: "net.ipv4.tcp_window_scaling", def: "1", does: "Whether windows can be larger than 64 kB."},
	{key: "net.netfilter.nf_conntrack_max", does: "It bounds the entries of connection tracking in a network namespace."},
	{key: "net.netfilter.nf_conntrack_tcp_loose", def: "1", does: "Whether connections that are under way already are tracked."},
	{key: "net.netfilter.nf_conntrack_tcp_timeout_close_wait", def: "60", does: forgets},
	{key: "net.netfilter.nf_conntrack_tcp_timeout_established", def: "432000", does: forgets, judge: judgeEstablishedTimeout},
	{key: "net.netfilter.nf_conntrack_tcp_timeout_fin_wait", def: "120", does: forgets},
	{key: "net.netfilter.nf_conntrack_tcp_timeout_time_wait", def: "120", does: forgets + " Sockets stay in TIME_WAIT as long as ever."},
}

const forgets = "After so many seconds without a packet connection tracking forgets a connection in that state."

// settingOf returns what is known of a sysctl, which may be its name alone.
func settingOf(key string) *setting {
	for i := range settings {
		if settings[i].key == key {
			return &settings[i]
		}
	}
	return &setting{key: key}
}

// defaultIn returns the kernel's default, if it is known.
func (s *setting) defaultIn(w world) (string, bool) {
	if s.share == 0 {
		return s.def, s.def != ""
	}
	n, ok := w.share(s.share, s.least)
	return strconv.FormatInt(n, 10), ok
}

// opinion returns what is to be said of a value.
func (s *setting) opinion(w world, value string) opinion {
	if s.judge != nil {
		if o := s.judge(w, value); o.why != "" {
			o.why = strings.Join(strings.Fields(o.why), " ")
			return o
		}
	}
	def, known := s.defaultIn(w)
	switch {
	case known && sysctl.Equal(value, def):
		since := ""
		if s.since != "" {
			since = " since Linux " + s.since
		}
		return opinion{verdict: VerdictDefault, why: fmt.Sprintf("It is the kernel's default%s: the line changes nothing.", since)}
	case s.does == "" && known:
		return opinion{verdict: VerdictEffective, why: fmt.Sprintf("The default is %s.", def)}
	case s.does == "":
		return opinion{verdict: VerdictEffective, why: "The kernel has it, and takes the value; what it is good for here is not judged."}
	case known:
		return opinion{verdict: VerdictEffective, why: fmt.Sprintf("%s The default is %s.", s.does, def)}
	}
	return opinion{verdict: VerdictEffective, why: s.does}
}
