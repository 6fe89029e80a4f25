package explain

// Bounds that several closing states share.
var (
	orphanRetries = Bound{"net.ipv4.tcp_orphan_retries", "0, which stands for 8 retries", `How often the FIN, and data before
		it, is sent again once the process has closed the socket: some 100 s at the least with 8, longer on slow paths.`}
	maxOrphans = Bound{"net.ipv4.tcp_max_orphans", "half the connection hash table, sized by memory at boot", `The most
		sockets without a process, on the whole host. Beyond it they are reset (TCPAbortOnMemory).`}
)

var finWait1Text = State{
	Summary: "has closed and sent a FIN; it is not acknowledged yet",
	Meaning: "This side closed first. Its FIN waits behind data that is not sent yet, or is on its way and not acknowledged.",
	Side:    "The one that closed first.",
	Bounds: []Bound{
		orphanRetries,
		{"net.ipv4.tcp_retries2", "15 retries", "The same while the process still holds the socket (after shutdown): 924 s at the least."},
		maxOrphans,
	},
	PileUp: `The other end does not acknowledge: it vanished (mobile clients, a NAT that forgot the connection), or it has
		closed its window and reads no more while there is data left to send. Send-Q in ss -tn tells: more than 1 is data,
		1 is the FIN alone.`,
	Do: []string{
		"A steady number is normal on a server with clients on the internet.",
		"If they cost too much memory, lower tcp_orphan_retries somewhat: each may hold a send buffer.",
	},
	Dont: []string{"tcp_fin_timeout: it is for FIN_WAIT2."},
}

var finWait2Text = State{
	Summary: "has closed, FIN acknowledged; the other side has not closed",
	Meaning: `Half of the connection is closed. This side sends no more and waits for the other's FIN. Two things are in
		this state and must be told apart. If the process still holds the socket (it called shutdown), it may read on and
		there is no time limit. If the process has closed it, it is an orphan, mostly as a mini-socket without a process.`,
	Side: "The one that closed first.",
	Bounds: []Bound{
		{"net.ipv4.tcp_fin_timeout", "60 s", `How long an orphan waits for the FIN; then it is dropped without a word, and
			what comes later is answered with a RST. It does not bound sockets that a process holds, nor TIME_WAIT.
			TCP_LINGER2 sets it for one socket.`},
		{"net.ipv4.tcp_max_tw_buckets", "half the connection hash table, sized by memory at boot", "Orphans here count against the limit of mini-sockets."},
		{"keepalive (SO_KEEPALIVE)", "off", "The only limit while a process holds the socket."},
	},
	PileUp: `The peer got the FIN and does not close: its application sits in CLOSE_WAIT. Or it vanished in between.
		Orphans go after a minute; sockets with an owner can stay for ever.`,
	Do: []string{
		"Find the peer: look for CLOSE_WAIT there, that is where the fault is.",
		"Close the socket once no answer is wanted, rather than leaving it after shutdown; or put a timeout on the read.",
		"Lowering tcp_fin_timeout does shorten this state, for orphans.",
	},
	Dont: []string{"tcp_tw_reuse: it never takes over a socket that is in FIN_WAIT2 on current kernels."},
}

var closingText = State{
	Summary: "both closed at once; waits for the ACK of its own FIN",
	Meaning: "Both sides sent a FIN before they saw the other's. This side has the other's FIN, and its own is not acknowledged.",
	Side:    "Both.",
	Bounds:  []Bound{orphanRetries, maxOrphans},
	PileUp:  "Rare, and a round trip long. Many that stay mean that ACKs are lost on the way here.",
	Do:      []string{"Look for packet loss and for firewalls that drop what follows a FIN."},
}

var timeWaitText = State{
	Summary: "both sides have closed; the address pair rests for 60 s",
	Meaning: `The connection ended well. The side that closed first keeps its addresses and ports for a minute so that the
		last ACK can be sent again if it was lost, and so that stray segments do not get into a new connection between the
		same ports. It is a mini-socket of some 250 bytes: no process, no descriptor, no buffers.`,
	Side: "The one that closed first; both if they closed at once.",
	Bounds: []Bound{
		{"TCP_TIMEWAIT_LEN", "60 s", `Fixed when the kernel is compiled; there is no sysctl. The timer is coarse: TIME_WAIT
			really lasts from 60 up to about 62 s. A FIN that is sent again starts the minute anew.`},
		{"net.ipv4.tcp_max_tw_buckets", "half the connection hash table, sized by memory at boot", `The most mini-sockets in
			a network namespace. Beyond it connections end without TIME_WAIT (TCPTimeWaitOverflow in nstat).`},
		{"net.ipv4.tcp_tw_reuse", "2, loopback only (0 before 4.19)", `1 lets connect take a port that is in TIME_WAIT to
			the same destination, if both sides use TCP timestamps. It is for outgoing connections only and changes nothing
			on the side that accepts.`},
		{"net.ipv4.tcp_tw_reuse_delay", "1000 ms (since 6.14)", "How old the TIME_WAIT must be for that; before it was one second."},
		{"net.ipv4.tcp_rfc1337", "0 (off)", "0: a RST ends TIME_WAIT early. 1: it is ignored."},
	},
	PileUp: `Many short connections that this side closes first. Their number is closes per second times 60, and in itself
		harmless: memory is about 25 MB for 100,000. It hurts in one case: a client that runs out of local ports to one
		destination address and port, at some 470 new connections a second with the default port range (28,232 ports in
		60 s). connect then fails with EADDRNOTAVAIL.`,
	Do: []string{
		"Nothing, if connect does not fail: on a server that closes first this is how TCP works, and a new SYN from the same address and port is usually let in early.",
		"Keep connections open and use them again: keepalive in HTTP, a pool for databases. This removes the cause.",
		"For a client short of ports: widen net.ipv4.ip_local_port_range, use more source or destination addresses, or set tcp_tw_reuse to 1.",
	},
	Dont: []string{
		"tcp_fin_timeout: it bounds orphans in FIN_WAIT2, whatever its name suggests.",
		"tcp_tw_recycle: removed in 4.12, because it lost connections from behind NAT.",
		"Lowering tcp_max_tw_buckets: connections then end without the protection, and ports are not the limit on a server.",
		"SO_LINGER with 0: it avoids TIME_WAIT by a RST, and the other side loses data that it has not read.",
	},
}

var closeWaitText = State{
	Summary: "the other side has closed; this process has not",
	Meaning: `A FIN came, the kernel acknowledged it and told the process: read returns 0. The kernel now waits for the
		process to call close. It may still send.`,
	Side: "The one that did not close first.",
	Bounds: []Bound{
		{"no timer", "", "Only the process ends this state, by close or by its own end. If the peer is gone as well, writing ends it by a RST, and so does keepalive (SO_KEEPALIVE)."},
	},
	PileUp: `A bug in the local application: it does not close. A descriptor leak, an error path without close, a pool that
		does not check its idle connections, a worker that hangs. Each one holds a descriptor; accept and open fail with
		EMFILE in the end.`,
	Do: []string{
		"Find the process and fix it. Restarting it clears them, for a while.",
		"Look at what the connections have in common: the remote port names the client library, the time since when names the event.",
	},
	Dont: []string{"Any sysctl: none bounds this state. Those of keepalive act only on sockets with SO_KEEPALIVE, and only once the peer is gone."},
}

var lastAckText = State{
	Summary: "both have closed; waits for the last ACK",
	Meaning: "The other side closed first, this process has now closed as well, and its FIN is not acknowledged.",
	Side:    "The one that closed second.",
	Bounds:  []Bound{orphanRetries, maxOrphans},
	PileUp: `Normally one round trip long. Many that stay: the other end has gone and answers nothing, or a firewall dropped
		its state after the first FIN. Data that was not sent waits here too (Send-Q in ss -tn above 1).`,
	Do: []string{
		"Look at the remote addresses: a single one that has gone, or a middlebox in front of many.",
		"If they cost too much memory, lower tcp_orphan_retries somewhat.",
	},
	Dont: []string{"tcp_fin_timeout: it is for FIN_WAIT2."},
}
