package explain

import "github.com/finwait/finwait/tracer"

var closeTexts = map[tracer.Transition]Transition{
	{Old: tracer.StateEstablished, New: tracer.StateFinWait1}: {
		Summary: "this side closes first: a FIN goes out",
		Wire:    "close or shutdown(SHUT_WR). The FIN is sent after the data that still waits.",
		Who:     "The local process, or its end.",
		Notes:   []string{"This side will hold the TIME_WAIT."},
	},
	{Old: tracer.StateEstablished, New: tracer.StateCloseWait}: {
		Summary: "the other side closed first: its FIN came",
		Wire:    "FIN received and acknowledged; read returns 0 after the last data.",
		Who:     "The other end.",
		Notes:   []string{"From here on only the local process can end the connection, by close."},
	},
	{Old: tracer.StateEstablished, New: tracer.StateClose}: {
		Summary: "ended without a FIN: reset, timeout or abort",
		Wire: `A RST came (ECONNRESET); or data or keepalive probes stayed unanswered (ETIMEDOUT); or this side sent a RST:
			it closed with data unread, closed with SO_LINGER 0, was disconnected by connect(AF_UNSPEC), or was killed by
			ss -K.`,
		Who:   "Either end, a timer, or an operator.",
		Notes: []string{"A listener that closes resets the connections that it has not accepted, in this way."},
	},
	{Old: tracer.StateFinWait1, New: tracer.StateFinWait2}: {
		Summary: "our FIN was acknowledged; the other side is still open",
		Wire:    "The ACK of our FIN.",
		Who:     "The other end's kernel.",
		Notes: []string{
			"The other process has not closed yet: the time in FIN_WAIT2 is how long it takes.",
			"A FIN in the same segment as the ACK leads on to TIME_WAIT at once.",
		},
	},
	{Old: tracer.StateFinWait1, New: tracer.StateClosing}: {
		Summary: "both closed at once: the other's FIN came, no ACK yet",
		Wire:    "A FIN that does not acknowledge ours. It is acknowledged.",
		Who:     "The other end, which closed before it saw our FIN.",
	},
	{Old: tracer.StateFinWait1, New: tracer.StateClose}: {
		Summary: "ended before the FIN was acknowledged",
		Wire: `A RST came, the FIN was sent tcp_orphan_retries times in vain, there were too many orphans, or data came
			that nobody will read and was answered with a RST.`,
		Who: "The other end, a timer, or the limit on orphans.",
	},
	{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}: {
		Summary: "the other side's FIN came: TIME_WAIT begins",
		Wire:    "FIN received, last ACK sent. A mini-socket takes the place of the socket, if it has not already.",
		Who:     "The other end, by closing.",
		Notes: []string{
			"The kernel's tracepoint never says this. It says FIN_WAIT2→CLOSE when the mini-socket takes over, and says the same of an orphan whose peer has not closed. finwait watches the mini-socket and reports TIME_WAIT when it begins.",
			"TIME_WAIT lasts 60 s from here.",
		},
	},
	{Old: tracer.StateFinWait2, New: tracer.StateClose}: {
		Summary: "ended without TIME_WAIT: no FIN came, or a RST did",
		Wire: `An orphan waited tcp_fin_timeout (60 s) for the other's FIN in vain; or a RST came; or data came for a
			socket that nobody reads and was answered with a RST; or TIME_WAIT was refused at tcp_max_tw_buckets; or
			TCP_LINGER2 is negative.`,
		Who: "A timer, the other end, or a limit.",
		Notes: []string{
			"finwait reports this only if the connection is really over. The tracepoint says FIN_WAIT2→CLOSE also when a mini-socket carries the connection on.",
			"TCPTimeWaitOverflow in nstat counts what tcp_max_tw_buckets refused.",
		},
	},
	{Old: tracer.StateClosing, New: tracer.StateTimeWait}: {
		Summary: "our FIN was acknowledged too: TIME_WAIT begins",
		Wire:    "The ACK of our FIN, after FINs that crossed.",
		Who:     "The other end's kernel.",
		Notes:   []string{"The tracepoint says CLOSING→CLOSE. Both sides hold a TIME_WAIT."},
	},
	{Old: tracer.StateClosing, New: tracer.StateClose}: {
		Summary: "ended without TIME_WAIT: RST, timeout or limit",
		Wire:    "A RST, or no ACK for our FIN after all retries, or TIME_WAIT was refused at tcp_max_tw_buckets.",
		Who:     "The other end, a timer, or a limit.",
	},
	{Old: tracer.StateTimeWait, New: tracer.StateClose}: {
		Summary: "the minute is over, or a new connection took the ports",
		Wire: `Mostly the timer, after 60 to 62 s. Earlier: a new SYN from the same address and port, connect taking the
			port (tcp_tw_reuse), or a RST (unless tcp_rfc1337 is 1).`,
		Who:   "A timer; or the next connection between the same ports.",
		Notes: []string{"The tracepoint is silent about it: there has been no full socket for a minute."},
	},
	{Old: tracer.StateCloseWait, New: tracer.StateLastAck}: {
		Summary: "this side has closed too: its FIN goes out",
		Wire:    "close or shutdown(SHUT_WR) after the other's FIN. A FIN is sent.",
		Who:     "The local process, or its end.",
		Notes:   []string{"The time in CLOSE_WAIT is how long the process took to close."},
	},
	{Old: tracer.StateCloseWait, New: tracer.StateClose}: {
		Summary: "ended by a RST after the other side had closed",
		Wire: `A RST came, as an answer to data sent to a peer that is gone (EPIPE follows); or this side sent one: it closed
			with data unread or with SO_LINGER 0; or keepalive or retries ran out.`,
		Who:   "Either end, or a timer.",
		Notes: []string{"Common and mostly harmless: servers that still write to a client which has left."},
	},
	{Old: tracer.StateLastAck, New: tracer.StateClose}: {
		Summary: "the last ACK came: the connection is over",
		Wire:    "The ACK of our FIN. Or a RST, or no answer after tcp_orphan_retries.",
		Who:     "The other end's kernel.",
		Notes:   []string{"The orderly end on the side that closed second; TIME_WAIT is on the other side."},
	},
}
