package explain

import (
	"maps"

	"github.com/finwait/finwait/tracer"
)

// transitionTexts holds the texts of all legal transitions.
var transitionTexts = func() map[tracer.Transition]Transition {
	all := maps.Clone(openTexts)
	maps.Copy(all, closeTexts)
	return all
}()

// selfLoopNote answers for a transition from a state to itself.
const selfLoopNote = `A socket that stays where it is has made no transition. The kernel's tracepoint does report such
	lines, FIN_WAIT2→FIN_WAIT2 when close follows shutdown; finwait leaves them out.`

// impossibleNotes say why, for transitions that people look for.
var impossibleNotes = map[tracer.Transition]string{
	{Old: tracer.StateListen, New: tracer.StateSynRecv}: `The tracepoint sock:inet_sock_set_state does word it so, for the
		new socket of a connection that came in. The listener has not left LISTEN: finwait reports the new socket's birth
		as CLOSE→SYN_RECV.`,
	{Old: tracer.StateListen, New: tracer.StateEstablished}: `A listener never becomes a connection. Each connection gets
		a socket of its own, CLOSE→SYN_RECV→ESTABLISHED, and the listener stays in LISTEN.`,
	{Old: tracer.StateListen, New: tracer.StateSynSent}: `RFC 9293 allows a listener to turn around and connect. On Linux
		connect on a listening socket fails with EISCONN.`,
	{Old: tracer.StateFinWait1, New: tracer.StateTimeWait}: `RFC 9293 draws it for a FIN and the ACK of one's own FIN in
		one segment. Linux handles the ACK first and passes through FIN_WAIT2, for some microseconds.`,
	{Old: tracer.StateFinWait2, New: tracer.StateClosing}: `CLOSING is for FINs that crossed. In FIN_WAIT2 this side's FIN
		is already acknowledged, so the other's leads to TIME_WAIT.`,
	{Old: tracer.StateTimeWait, New: tracer.StateEstablished}: `A new connection between the same addresses and ports ends
		the old mini-socket (TIME_WAIT→CLOSE) and is a socket of its own.`,
	{Old: tracer.StateTimeWait, New: tracer.StateSynRecv}: `A SYN for an address pair in TIME_WAIT ends the mini-socket
		(TIME_WAIT→CLOSE); the new connection is a socket of its own.`,
	{Old: tracer.StateLastAck, New: tracer.StateTimeWait}: `The side that closed second has nothing to wait for: the ACK of
		its FIN ends the connection. TIME_WAIT is on the other side.`,
	{Old: tracer.StateCloseWait, New: tracer.StateTimeWait}: `The side that closes second goes through LAST_ACK to CLOSE.
		TIME_WAIT is on the side that closed first.`,
	{Old: tracer.StateClose, New: tracer.StateEstablished}: `Even a connection that is restored from a checkpoint
		(TCP_REPAIR) passes through SYN_SENT, without a packet.`,
	{Old: tracer.StateNewSynRecv, New: tracer.StateEstablished}: `The ACK makes a full socket, which is in SYN_RECV for some
		microseconds and then in ESTABLISHED.`,
}

var openTexts = map[tracer.Transition]Transition{
	{Old: tracer.StateClose, New: tracer.StateListen}: {
		Summary: "the process called listen",
		Wire:    "No packet. The socket begins to take connections.",
		Who:     "The process that called listen.",
		Notes:   []string{"If the port turns out to be taken, LISTEN→CLOSE follows at once and listen fails with EADDRINUSE."},
	},
	{Old: tracer.StateListen, New: tracer.StateClose}: {
		Summary: "the listener was closed",
		Wire: `close or shutdown on the listener, or the end of its process. Connections that it had not accepted are reset,
			each one with its own transition to CLOSE.`,
		Who: "The process; or listen itself when it fails; or an operator with ss -K.",
		Notes: []string{
			"Half-open connections are not reset: they go when their timer runs out or their next packet comes.",
			"With SO_REUSEPORT and net.ipv4.tcp_migrate_req = 1 the waiting connections move to another listener instead.",
		},
	},
	{Old: tracer.StateClose, New: tracer.StateSynSent}: {
		Summary: "the process called connect; a SYN goes out",
		Wire:    "connect sends a SYN.",
		Who:     "The process that called connect.",
		Notes: []string{
			"The local port may not be chosen yet at this moment; the next event of the socket has it.",
			"With TCP_FASTOPEN_CONNECT the SYN waits for the first data.",
		},
	},
	{Old: tracer.StateSynSent, New: tracer.StateEstablished}: {
		Summary: "the SYN-ACK came: the client is connected",
		Wire:    "SYN-ACK received, ACK sent. connect returns.",
		Who:     "The other end's answer.",
		Notes:   []string{"The time in SYN_SENT is one round trip. One second more, or three, is a SYN that was lost."},
	},
	{Old: tracer.StateSynSent, New: tracer.StateSynRecv}: {
		Summary: "a SYN crossed our own: both ends connect at once",
		Wire:    "A SYN without ACK came from the address that ours went to. A SYN-ACK is sent.",
		Who:     "Both ends called connect; or one socket connected to itself.",
		Notes: []string{`A socket that connects to its own address and port gets here too: a client that retries a local
			service which is down can hit its own ephemeral port.`},
	},
	{Old: tracer.StateSynSent, New: tracer.StateClose}: {
		Summary: "connect failed: refused, no answer, or given up",
		Wire: `A RST (ECONNREFUSED), no answer to any SYN (ETIMEDOUT), an ICMP error (EHOSTUNREACH and others), no local
			port (EADDRNOTAVAIL), or the process closed the socket first.`,
		Who:   "The other end, the network, or this process.",
		Notes: []string{"The time in SYN_SENT tells which: a round trip is a refusal, a round number of seconds the application's own timeout, 127 or 131 s the kernel's."},
	},
	{Old: tracer.StateClose, New: tracer.StateNewSynRecv}: {
		Summary: "a SYN came in: a half-open connection begins",
		Wire:    "SYN received, SYN-ACK sent. A request socket remembers it.",
		Who:     "A remote client.",
		Notes:   []string{"A connection by SYN cookie or Fast Open skips this state."},
	},
	{Old: tracer.StateNewSynRecv, New: tracer.StateSynRecv}: {
		Summary: "the last ACK came: the request becomes a socket",
		Wire:    "The ACK of the SYN-ACK.",
		Who:     "The remote client.",
		Notes: []string{
			"The tracepoint words the birth of the socket LISTEN→SYN_RECV, because the new socket starts as a copy of the listener. The listener has not left LISTEN.",
			"Counts per state put NEW_SYN_RECV and SYN_RECV together.",
		},
	},
	{Old: tracer.StateNewSynRecv, New: tracer.StateClose}: {
		Summary: "the half-open connection was given up",
		Wire:    "No ACK for all the SYN-ACKs, a RST from the client, an ICMP error, or the listener is gone.",
		Who:     "The timer, the client or the network.",
		Notes:   []string{"After 63 s with tcp_synack_retries = 5. Nothing tells the process."},
	},
	{Old: tracer.StateClose, New: tracer.StateSynRecv}: {
		Summary: "a new socket of a listener, never half-open",
		Wire:    "The ACK of a SYN-ACK that was a SYN cookie; with Fast Open the SYN itself, with its data.",
		Who:     "The remote client. The process has not accepted it yet.",
		Notes: []string{
			"All others come by way of NEW_SYN_RECV. The tracepoint says LISTEN→SYN_RECV of both.",
			"ESTABLISHED follows within microseconds, but for Fast Open.",
		},
	},
	{Old: tracer.StateSynRecv, New: tracer.StateEstablished}: {
		Summary: "the handshake is done on the accepting side",
		Wire:    "The last ACK of the handshake. The connection waits in the accept queue.",
		Who:     "The remote client.",
		Notes:   []string{"accept makes no transition: another CPU may even accept the connection a moment before this."},
	},
	{Old: tracer.StateSynRecv, New: tracer.StateFinWait1}: {
		Summary: "closed before the handshake was over (Fast Open)",
		Wire:    "The process answered the data of the SYN and closed; a FIN follows.",
		Who:     "The server's process.",
		Notes:   []string{"Up to Linux 6.8 shutdown does this as well; since 6.9 the FIN of a shutdown waits for ESTABLISHED."},
	},
	{Old: tracer.StateSynRecv, New: tracer.StateCloseWait}: {
		Summary: "the client's FIN came before the handshake was over",
		Wire:    "Fast Open: a FIN along with the SYN and its data.",
		Who:     "The remote client.",
	},
	{Old: tracer.StateSynRecv, New: tracer.StateClose}: {
		Summary: "a new connection died before it was open",
		Wire: `A RST, a timeout, a duplicate of a connection that another CPU made, an error while the socket was made, or
			the listener closed.`,
		Who:   "The other end, the kernel, or the process that closed the listener.",
		Notes: []string{"The process never sees it. ListenDrops in nstat grows when it was for want of memory."},
	},
}
