package doctor

// The rules of settings. The table of settings names them by their ids.
const (
	sysctlRecycle            = "sysctl-tw-recycle"
	sysctlFinTimeout         = "sysctl-fin-timeout"
	sysctlReuseNoTimestamps  = "sysctl-tw-reuse-no-timestamps"
	sysctlReuseInbound       = "sysctl-tw-reuse-inbound"
	sysctlMaxTimeWait        = "sysctl-max-tw-buckets"
	sysctlRFC1337            = "sysctl-rfc1337"
	sysctlAbortOnOverflow    = "sysctl-abort-on-overflow"
	sysctlSyncookiesOff      = "sysctl-syncookies-off"
	sysctlSyncookiesAlways   = "sysctl-syncookies-always"
	sysctlTimestampsOff      = "sysctl-timestamps-off"
	sysctlSynBacklog         = "sysctl-syn-backlog"
	sysctlPortRange          = "sysctl-port-range"
	sysctlKeepaliveConntrack = "sysctl-keepalive-conntrack"
	sysctlUnknown            = "sysctl-unknown"
	sysctlOverridden         = "sysctl-overridden"
	sysctlNotApplied         = "sysctl-not-applied"
	sysctlConfNotRead        = "sysctl-conf-not-read"
)

const (
	keyRecycle = "net.ipv4.tcp_tw_recycle"
	ipSysctl   = "Documentation/networking/ip-sysctl.rst: "
)

var settingRules = []*Rule{
	{
		ID:    sysctlRecycle,
		Title: "A sysctl file sets tcp_tw_recycle, which does not exist",
		Worst: Warning,
		When:  "a line of a sysctl file sets net.ipv4.tcp_tw_recycle.",
		Why: `It was removed in Linux 4.12. Before, it ended TIME_WAIT early by going by the timestamps of a whole address, and so dropped
			the SYNs of hosts behind a NAT, whose timestamps do not agree; since timestamps have random offsets, Linux 4.10, it could
			drop anybody's. On this kernel the line does nothing. It tells of a guide from 2008, whose other lines are worth a look.`,
		Application: []string{deleteLine},
		Useless:     []string{"A kernel that still has it: it never was safe where clients come from the internet."},
		Check:       "grep -r tw_recycle /etc/sysctl.conf /etc/sysctl.d finds nothing.",
		References:  []string{"tcp(7): tcp_tw_recycle", "RFC 6191", "RFC 7323 section 5"},
		find:        judged(sysctlRecycle),
	},
	{
		ID:    sysctlFinTimeout,
		Title: "tcp_fin_timeout is lowered, which does not shorten TIME_WAIT",
		Worst: Info,
		When:  "net.ipv4.tcp_fin_timeout is below 60 by a sysctl file or as it runs, and with 60 there would be less than 50 orphans in FIN_WAIT2, which it is for.",
		Why: `TIME_WAIT lasts 60 seconds, which is fixed when the kernel is compiled (TCP_TIMEWAIT_LEN). What the sysctl bounds is how
			long a connection that the process has closed waits in FIN_WAIT2 for the peer's FIN. Here there are next to none of
			these. It does little harm: a peer that closes later than that gets a reset.`,
		Application: []string{deleteLine, "If there are too many sockets in TIME_WAIT for you, keep connections open: HTTP keep-alive, a connection pool."},
		Useless:     []string{"A still lower value: TIME_WAIT stays as it is."},
		Check:       "ss -tano state time-wait shows timers of up to 60 s, before and after.",
		References:  []string{ipSysctl + "tcp_fin_timeout", "tcp(7): tcp_fin_timeout", "RFC 9293 section 3.6.1"},
		find:        judged(sysctlFinTimeout),
	},
	{
		ID:    sysctlReuseNoTimestamps,
		Title: "tcp_tw_reuse is on and timestamps are off",
		Worst: Warning,
		When:  "net.ipv4.tcp_tw_reuse is 1, or a sysctl file sets it to 2, and net.ipv4.tcp_timestamps is 0: both as they run, or both by sysctl files.",
		Why: `A port in TIME_WAIT is safe to take because the timestamps of the new connection are later than those of the old one: late
			segments are told apart. Without timestamps the kernel does not take it (tcp_twsk_unique), and the sysctl is without
			effect. Whoever runs out of ports will do so all the same.`,
		Application: []string{"Keep connections open: HTTP keep-alive, a connection pool. Then ports in TIME_WAIT are few."},
		Sysctls:     []Setting{{"net.ipv4.tcp_timestamps = 1", "the kernel's default; 12 bytes in each segment"}},
		Check:       "nstat -az TcpExtTWRecycled grows when connect takes a port in TIME_WAIT.",
		References:  []string{ipSysctl + "tcp_tw_reuse, tcp_timestamps", "RFC 6191", "RFC 7323"},
		find:        judged(sysctlReuseNoTimestamps),
	},
	{
		ID:    sysctlReuseInbound,
		Title: "tcp_tw_reuse is on, and TIME_WAIT is of inbound connections",
		Worst: Info,
		When: `net.ipv4.tcp_tw_reuse is 1, there are sockets in TIME_WAIT on ports that somebody listens on, and none of outgoing
			connections to other hosts.`,
		Why: `The sysctl lets connect take a local port whose connection to the same destination is in TIME_WAIT. On a server that closes
			first there is no connect, and nothing for it to do; nor does TIME_WAIT cost it ports, for all its connections have the
			same one. A SYN from a client that uses its port again ends TIME_WAIT anyway, whatever the sysctl says. The default, 2, is
			the same for connections on loopback alone.`,
		Application: []string{"Nothing is wrong.", "Unless this host also opens many connections to others: delete " + theLine + ", if it names one."},
		Check:       "nstat -az TcpExtTWRecycled does not grow: no port was taken so.",
		References:  []string{ipSysctl + "tcp_tw_reuse", "RFC 9293 section 3.6.1", "RFC 6191"},
		find:        judged(sysctlReuseInbound),
	},
	{
		ID:    sysctlMaxTimeWait,
		Title: "tcp_max_tw_buckets is lower than the kernel's default",
		Worst: Warning,
		When: `net.ipv4.tcp_max_tw_buckets is lower than half of the kernel's table of connections, by a sysctl file or as it runs. If the
			table's size is not known, it is compared with net.ipv4.tcp_max_orphans, whose default is the same.`,
		Why: `At the limit a connection that is closed has no TIME_WAIT. The number in netstat is smaller then, and the reason for
			TIME_WAIT is gone: late segments reach a new connection between the same ports, and a peer whose last ACK got lost gets a
			reset for its FIN. Such a socket is some 250 bytes, and no process.`,
		Application: []string{deleteLine, "If there are too many sockets in TIME_WAIT for you, keep connections open: HTTP keep-alive, a connection pool."},
		Sysctls:     []Setting{{"net.ipv4.tcp_max_tw_buckets = 262144", "some 65 MB at most, if all are in use"}},
		Check:       "nstat -az TcpExtTCPTimeWaitOverflow does not grow.",
		References:  []string{ipSysctl + "tcp_max_tw_buckets", "RFC 1337"},
		find:        judged(sysctlMaxTimeWait),
	},
	{
		ID:    sysctlRFC1337,
		Title: "tcp_rfc1337 is on, which does not lessen TIME_WAIT",
		Worst: Info,
		When:  "net.ipv4.tcp_rfc1337 is not 0, by a sysctl file or as it runs.",
		Why: `With 0 a RST that fits ends TIME_WAIT at once, with 1 it is ignored (tcp_timewait_state_process). So 1 is what protects
			TIME_WAIT from being assassinated by a stray RST; ip-sysctl.rst can be read the other way round. It makes nothing faster
			and lessens nothing: there is rather more TIME_WAIT with it. It does no harm.`,
		Application: []string{"Keep it if this is what you want.", "Else: delete " + theLine + ", if it names one."},
		Check:       "sysctl net.ipv4.tcp_rfc1337.",
		References:  []string{"RFC 1337", ipSysctl + "tcp_rfc1337"},
		find:        judged(sysctlRFC1337),
	},
	{
		ID:    sysctlAbortOnOverflow,
		Title: "tcp_abort_on_overflow resets clients",
		Worst: Warning,
		When:  "net.ipv4.tcp_abort_on_overflow is not 0, by a sysctl file or as it runs.",
		Why: `When the accept queue is full as the last ACK of a handshake arrives, the kernel ignores that ACK by default: the client sends
			its data again, or the SYN-ACK is, and it gets in as soon as there is room. With 1 it is reset instead, and a burst of
			some milliseconds becomes an error that users see.`,
		Application: []string{"Give the listener a larger backlog and accept faster."},
		Check:       "nstat -az TcpExtListenOverflows TcpOutRsts.",
		References:  []string{ipSysctl + "tcp_abort_on_overflow", "tcp(7): tcp_abort_on_overflow", "listen(2)"},
		find:        judged(sysctlAbortOnOverflow),
	},
	{
		ID:    sysctlSyncookiesOff,
		Title: "SYN cookies are off",
		Worst: Warning,
		When:  "net.ipv4.tcp_syncookies is 0, by a sysctl file or as it runs.",
		Why: `As soon as a listener has as many half-open connections as its backlog, further SYNs are dropped: some hundred or
			thousand forged SYNs shut all clients out. With 1, the default, the kernel answers with a cookie then, and only then: it costs nothing
			while there is room.`,
		Application: []string{deleteLine},
		Sysctls:     []Setting{{"net.ipv4.tcp_syncookies = 1", "the kernel's default"}},
		Useless:     []string{"net.ipv4.tcp_max_syn_backlog alone: the listener's backlog and net.core.somaxconn bound the queue as well."},
		Check:       "nstat -az TcpExtSyncookiesSent TcpExtTCPReqQFullDoCookies TcpExtTCPReqQFullDrop.",
		References:  []string{ipSysctl + "tcp_syncookies", "RFC 4987 section 3.6"},
		find:        judged(sysctlSyncookiesOff),
	},
	{
		ID:    sysctlSyncookiesAlways,
		Title: "Every connection begins with a SYN cookie",
		Worst: Warning,
		When:  "net.ipv4.tcp_syncookies is 2, by a sysctl file or as it runs.",
		Why: `It is meant for testing. A cookie has room for an MSS out of a few, and for other options only in a timestamp: clients
			without timestamps get no window scaling, no SACK and no ECN. The kernel knows nothing of the half-open connection, so a
			SYN-ACK that is lost is not sent again, and a last ACK that is lost leaves a client that waits for the server to speak
			waiting.`,
		Application: []string{deleteLine},
		Sysctls:     []Setting{{"net.ipv4.tcp_syncookies = 1", "the kernel's default: cookies when there are more half-open connections than a listener's backlog"}},
		Check:       "nstat -az TcpExtSyncookiesSent does not grow with each connection.",
		References:  []string{ipSysctl + "tcp_syncookies", "RFC 4987 section 3.6"},
		find:        judged(sysctlSyncookiesAlways),
	},
	{
		ID:    sysctlTimestampsOff,
		Title: "TCP timestamps are off",
		Worst: Warning,
		When:  "net.ipv4.tcp_timestamps is 0, by a sysctl file or as it runs.",
		Why: `What goes with them: protection against old segments on fast connections (PAWS), round-trip times of segments that were sent
			again, tcp_tw_reuse, by which connect takes ports in TIME_WAIT, and window scaling, SACK and ECN of connections that
			begin with a SYN cookie. What is won are 12 bytes in each segment. They no longer tell how long the host has been up: since
			Linux 4.10 they have a random offset.`,
		Application: []string{deleteLine},
		Sysctls:     []Setting{{"net.ipv4.tcp_timestamps = 1", "the kernel's default, with random offsets"}},
		Check:       "ss -ti shows ts for new connections.",
		References:  []string{ipSysctl + "tcp_timestamps", "RFC 7323 sections 4 and 5", "RFC 6191"},
		find:        judged(sysctlTimestampsOff),
	},
	{
		ID:    sysctlSynBacklog,
		Title: "tcp_max_syn_backlog is raised, which does nothing",
		Worst: Info,
		When:  "a sysctl file sets net.ipv4.tcp_max_syn_backlog higher than the kernel's default, if that is known, and net.ipv4.tcp_syncookies is not 0.",
		Why: `The half-open connections of a listener are bounded by its backlog: what listen(2) was given, at most net.core.somaxconn. If
			there are more, new ones get cookies. tcp_max_syn_backlog is looked at only if cookies are off: then a listener that has
			three quarters of it takes no more from hosts that it does not know (tcp_conn_request).`,
		Application: []string{deleteLine, "For more half-open connections, give listen(2) a larger backlog."},
		Sysctls:     []Setting{{"net.core.somaxconn = 4096", "the kernel's default since 5.4; it bounds what listen(2) can ask for"}},
		Useless:     []string{"net.ipv4.tcp_syncookies = 0, to have it work: a flood then shuts clients out."},
		Check:       "ss -tln shows the backlog of each listener (Send-Q).",
		References:  []string{ipSysctl + "tcp_max_syn_backlog, tcp_syncookies", "listen(2)"},
		find:        judged(sysctlSynBacklog),
	},
	{
		ID:    sysctlPortRange,
		Title: "The ports of services are in the range of outgoing connections",
		Worst: Info,
		When: `net.ipv4.ip_local_port_range has ports in it, outside of the default range 32768 to 60999, that somebody listens on and that
			are not in net.ipv4.ip_local_reserved_ports.`,
		Why: `While a service listens its port is not given away. While it does not, as in the moment of a restart or before it starts, the
			kernel may give the port to an outgoing connection. bind then fails with "Address already in use" until that connection and
			its TIME_WAIT are over: a start that fails now and then, for no reason that is still there when one looks for it.`,
		Application: []string{"Reserve the ports of services; explicit bind can have them all the same."},
		Sysctls:     []Setting{{"net.ipv4.ip_local_reserved_ports = 3306,8080", "the ports of the services; ranges are written 8000-8010"}},
		Check:       "cat /proc/sys/net/ipv4/ip_local_reserved_ports.",
		References:  []string{ipSysctl + "ip_local_port_range, ip_local_reserved_ports", "ip(7)", "RFC 6335 section 6"},
		find:        judged(sysctlPortRange),
	},
	{
		ID:    sysctlKeepaliveConntrack,
		Title: "Connection tracking forgets connections before keepalive probes them",
		Worst: Info,
		When: `net.netfilter.nf_conntrack_tcp_timeout_established is lower than net.ipv4.tcp_keepalive_time in a network namespace that
			tracks connections.`,
		Why: `An idle connection with SO_KEEPALIVE sends its first probe after tcp_keepalive_time. If connection tracking has forgotten it by
			then, NAT no longer knows where its packets belong, and rules that let in what is ESTABLISHED drop them: both ends believe in
			a connection that is dead. The kernel's defaults are 5 days and 2 hours.`,
		Application: []string{"Set TCP_KEEPIDLE on the sockets that are idle for long, or have the protocol send something now and then."},
		Sysctls: []Setting{
			{"net.ipv4.tcp_keepalive_time = 300", "for sockets with SO_KEEPALIVE that do not set TCP_KEEPIDLE; a packet now and then"},
			{"net.netfilter.nf_conntrack_tcp_timeout_established = 432000", "the kernel's default, 5 days"},
		},
		Check:      "conntrack -L -p tcp shows the time that an entry has left.",
		References: []string{"Documentation/networking/nf_conntrack-sysctl.rst: nf_conntrack_tcp_timeout_established", ipSysctl + "tcp_keepalive_time", "RFC 5382 section 5"},
		find:       judged(sysctlKeepaliveConntrack),
	},
	settingUnknown, settingOverridden, settingNotApplied, settingConfNotRead,
}
