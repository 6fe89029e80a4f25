package explain

import "github.com/finwait/finwait/tracer"

// stateTexts holds the texts of all states. State, From and Next are filled in
// when one is looked up.
var stateTexts = map[tracer.State]State{
	tracer.StateListen:      listenText,
	tracer.StateSynSent:     synSentText,
	tracer.StateNewSynRecv:  newSynRecvText,
	tracer.StateSynRecv:     synRecvText,
	tracer.StateEstablished: establishedText,
	tracer.StateFinWait1:    finWait1Text,
	tracer.StateFinWait2:    finWait2Text,
	tracer.StateClosing:     closingText,
	tracer.StateTimeWait:    timeWaitText,
	tracer.StateCloseWait:   closeWaitText,
	tracer.StateLastAck:     lastAckText,
	tracer.StateClose:       closeText,
}

var listenText = State{
	Summary: "waits for connections on a port",
	Meaning: `The socket takes connections and is part of none. It stays in LISTEN as long as its process keeps it open:
		every connection that comes in gets a socket of its own.`,
	Side: "Server. The process called listen.",
	Bounds: []Bound{
		{"listen(backlog), net.core.somaxconn", "4096 connections (128 before 5.4)", `The smaller of the two is the length of
			the queue of finished connections that the process has not accepted, and with SYN cookies on also the limit
			of half-open ones. When the accept queue is full, SYNs are dropped and clients retry.`},
		{"net.ipv4.tcp_abort_on_overflow", "0 (off)", `What the last ACK of a handshake gets when the accept queue is
			full. 0: it is dropped and the client, which believes the connection is open, sends again. 1: a RST.`},
		{"net.ipv4.tcp_migrate_req", "0 (off)", `With SO_REUSEPORT and 1, a listener that closes hands the connections it
			has not accepted to another one on the same port. Otherwise they are reset.`},
	},
	PileUp: `Sockets in LISTEN are as many as the services that were started. One listener per worker on the same port
		(SO_REUSEPORT) is normal. What can pile up is its accept queue: ListenOverflows and ListenDrops in nstat grow.`,
	Do: []string{
		"Compare Recv-Q (waiting) with Send-Q (limit) in ss -ltn: a queue that is full belongs to a process that does not accept fast enough.",
		"Make the process accept faster, or raise the backlog in the application and somaxconn together for bursts.",
	},
	Dont: []string{
		"Raising somaxconn alone: the backlog that the application passed to listen still holds, and a running listener keeps its old limit until it calls listen again.",
	},
}

var synSentText = State{
	Summary: "has sent a SYN and waits for the answer",
	Meaning: "The process called connect. A SYN is on its way, or about to be, and nothing has come back.",
	Side:    "Client.",
	Bounds: []Bound{
		{"net.ipv4.tcp_syn_retries", "6 retries", `Without an answer connect fails with ETIMEDOUT after 127 s (SYNs after
			1, 3, 7, 15, 31 and 63 s). The socket option TCP_SYNCNT sets it for one socket.`},
		{"net.ipv4.tcp_syn_linear_timeouts", "4 retries (since 6.5)", `That many more SYNs, one a second, before the
			intervals begin to double: the last SYN goes out after 67 s and connect fails after 131 s.`},
		{"TCP_USER_TIMEOUT, and the application's own timeout", "", "Most programs give up much earlier than the kernel."},
	},
	PileUp: `The other end does not answer: a firewall drops the SYNs, the host is down, its listen queue is full, or the
		answer does not find its way back. A closed port would have answered at once with a RST, and a neighbour that is
		missing on the local network fails with EHOSTUNREACH after some three seconds.`,
	Do: []string{
		"See which remote address and port they share, and try it from elsewhere.",
		"Set a connect timeout in the application, with a limit on connections in flight.",
	},
	Dont: []string{
		"Timeouts for closing connections, such as tcp_fin_timeout: this connection was never open.",
	},
}

var newSynRecvText = State{
	Summary: "half-open: the server has answered a SYN, no ACK yet",
	Meaning: `A connection that has come in and is not complete: SYN received, SYN-ACK sent. It is no socket yet but a
		small request socket that belongs to the listener and has no process. ss and netstat show it as SYN_RECV, and so do
		finwait's counts.`,
	Side: "Server.",
	Bounds: []Bound{
		{"net.ipv4.tcp_synack_retries", "5 retries", "It goes after 63 s without an ACK (SYN-ACKs after 1, 3, 7, 15 and 31 s)."},
		{"listen(backlog), net.core.somaxconn", "4096 connections (128 before 5.4)", `The most half-open connections of one
			listener. Beyond that SYN cookies are sent, or SYNs dropped if those are off.`},
		{"net.ipv4.tcp_syncookies", "1 (when the queue is full)", `A connection that comes in by a cookie is not kept while
			it is half-open: nothing is in this state. 0 turns cookies off, 2 always sends them.`},
		{"net.ipv4.tcp_max_syn_backlog", "sized by memory, at least 128", "Matters only with tcp_syncookies = 0: then SYNs are dropped when three quarters of it are used."},
	},
	PileUp: `SYN-ACKs are not answered: a flood of SYNs from addresses that are made up, clients behind a path that loses
		the answer, or a route back that goes elsewhere. Also a full accept queue: the last ACK is then dropped and the
		connection stays half-open.`,
	Do: []string{
		"Leave tcp_syncookies at 1.",
		"Look at where they come from. Many sources with one or two each are a flood; one network with many is a routing or firewall fault.",
		"Check ListenOverflows in nstat: if it grows, the process does not accept fast enough.",
	},
	Dont: []string{
		"Raising tcp_max_syn_backlog while SYN cookies are on: it is not consulted.",
	},
}

var synRecvText = State{
	Summary: "SYN received; waits for the ACK that opens the connection",
	Meaning: `As a full socket this state is short: Linux makes the socket when the last ACK of the handshake has come and
		opens it in the same breath. It lasts only with Fast Open, where the process may work on data before the handshake
		is over, and when both ends connect to each other at once. In counts, half-open connections (NEW_SYN_RECV) are
		added to it.`,
	Side: "Server; either one if both called connect.",
	Bounds: []Bound{
		{"net.ipv4.tcp_synack_retries", "5 retries", "63 s for a half-open connection. A Fast Open socket gets one retry more."},
		{"net.ipv4.tcp_syn_retries", "6 retries", "Where both ends called connect."},
		{"listen(backlog), net.core.somaxconn", "4096 connections (128 before 5.4)", "The most half-open connections of one listener. See NEW_SYN_RECV."},
		{"net.ipv4.tcp_syncookies", "1 (when the queue is full)", "What happens beyond that limit. See NEW_SYN_RECV."},
	},
	PileUp: "Nearly all of a large count are half-open connections: see NEW_SYN_RECV.",
	Do:     []string{"As for NEW_SYN_RECV: finwait explain NEW_SYN_RECV."},
}

var establishedText = State{
	Summary: "open in both directions",
	Meaning: `The handshake is done and neither side has closed. A connection over which nothing is sent stays here for
		ever unless keepalive is on: the death of the other host is only noticed by sending.`,
	Side: "Both.",
	Bounds: []Bound{
		{"net.ipv4.tcp_keepalive_time", "7200 s", "Idle time before the first probe. Only for sockets with SO_KEEPALIVE; it is off unless the application asks. TCP_KEEPIDLE sets it for one socket."},
		{"net.ipv4.tcp_keepalive_intvl", "75 s", "Between probes (TCP_KEEPINTVL)."},
		{"net.ipv4.tcp_keepalive_probes", "9 probes", "Unanswered probes before the connection ends (TCP_KEEPCNT). With the defaults a dead peer is noticed after 2 h 11 min."},
		{"net.ipv4.tcp_retries2", "15 retries", "How long data is sent again without an ACK: 924 s at the least, and some 15 to 30 minutes in practice, by the round-trip time."},
		{"TCP_USER_TIMEOUT", "off", "Milliseconds that sent data or a probe may stay unacknowledged; for one socket, in place of tcp_retries2 and of the number of keepalive probes."},
	},
	PileUp: `Often just as many as there is work. If the number only ever grows: a pool that does not give connections
		back, clients that vanished without a FIN (a NAT or firewall that forgot them) while no keepalive is set, or a
		process that opens faster than it closes.`,
	Do: []string{
		"See whose they are and how long they have been open.",
		"Turn on SO_KEEPALIVE with a shorter TCP_KEEPIDLE, or set TCP_USER_TIMEOUT, where peers vanish.",
		"Set idle timeouts and pool limits in the application.",
	},
	Dont: []string{
		"Lowering tcp_keepalive_time for sockets that have not asked for keepalive.",
	},
}

var closeText = State{
	Summary: "no connection: not yet opened, or gone",
	Meaning: `A new socket is in CLOSE until connect or listen, and a connection that is over returns to it. finwait says
		that whatever comes into being leaves CLOSE, and whatever is gone has entered it. A socket that only sits in CLOSE
		is in no table of connections, so it is in no count.`,
	Side:   "Either.",
	PileUp: "Does not show here. Sockets that were made and never used, or whose connection is over while the process keeps the descriptor, are in the process's descriptor table: ls -l /proc/PID/fd.",
	Do:     []string{"Close descriptors whose connection has ended."},
}
