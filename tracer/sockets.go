package tracer

import (
	"fmt"
	"net/netip"
	"time"
)

// Socket is one TCP socket as the kernel listed it. See [Netns.ListSockets]. It
// is a plain value.
type Socket struct {
	// Cookie is the socket cookie that ss -e prints as sk:, the same as that of
	// an Event.
	Cookie uint64

	// Local and Remote are the socket's addresses. A listener has no Remote:
	// its Addr is the unspecified address, its port 0.
	Local, Remote netip.AddrPort

	// Expires is how long Timer has to go, to the millisecond. 0 if it is due,
	// and for TimerNone.
	Expires time.Duration

	// Netns is the inode number of the socket's network namespace.
	Netns uint32

	// Inode is the inode number of the socket's file, for [FindOwners]. 0 if it
	// has none: a connection that waits to be accepted, a half-open one, an
	// orphan, a mini-socket.
	Inode uint32

	// UID is the user who made the socket, in the caller's user namespace. It
	// is not known, and 0, of half-open connections and mini-sockets.
	UID uint32

	// ReceiveQueue is the number of bytes that the process has not read yet,
	// and SendQueue of those that the peer has not acknowledged yet, sent or
	// not. A FIN and a SYN count as a byte each: a socket in CLOSE_WAIT with
	// nothing but 1 in ReceiveQueue has a process that has not even seen that
	// the peer has closed.
	//
	// Of a listener ReceiveQueue is the number of connections that wait to be
	// accepted, and SendQueue its backlog: once there are more than that, new
	// ones are dropped.
	//
	// Both are not known, and 0, of half-open connections and mini-sockets.
	ReceiveQueue, SendQueue uint32

	// Family is the socket's address family. An IPv6 socket that carries
	// IPv4 has FamilyIPv6 and IPv4 addresses in Local and Remote.
	Family Family

	// State is the socket's state. Half-open connections are in StateSynRecv,
	// and HalfOpen.
	State State

	// Timer is the timer that runs for the socket. The kernel tells of one.
	Timer Timer

	// Retransmits is how often in a row, without an answer, something has been
	// sent again with TimerRetransmit, or a probe been sent with
	// TimerKeepalive and TimerProbe. 0 for other timers.
	Retransmits uint8

	// Mini says that it is a mini-socket: TIME_WAIT, or FIN_WAIT2 without an
	// owner.
	Mini bool

	// HalfOpen says that it is a request socket, which waits for the last ACK
	// of the handshake: a full socket is in StateSynRecv as well, with TCP Fast
	// Open or when both ends connect at once.
	HalfOpen bool
}

// Timer is what the kernel waits for on behalf of a socket. The numbers are the
// kernel's own (idiag_timer), which are part of its user-space ABI: there may
// be more.
type Timer uint8

const (
	// TimerNone says that no timer runs.
	TimerNone Timer = iota
	// TimerRetransmit runs as long as something is not acknowledged: data, a
	// SYN or a FIN, or the SYN-ACK of a half-open connection.
	TimerRetransmit
	// TimerKeepalive is that of SO_KEEPALIVE, or ends FIN_WAIT2 if there is no
	// owner. It shows only when none of TimerRetransmit and TimerProbe runs.
	TimerKeepalive
	// TimerTimeWait ends a mini-socket, whether in TIME_WAIT or in FIN_WAIT2.
	TimerTimeWait
	// TimerProbe asks a peer that has closed its window (persist timer).
	TimerProbe
)

var timerNames = [...]string{"none", "retransmit", "keepalive", "time_wait", "probe"}

// String returns the timer's name, such as "retransmit".
func (t Timer) String() string {
	if int(t) < len(timerNames) {
		return timerNames[t]
	}
	return fmt.Sprintf("timer_%d", uint8(t))
}

// Process is a process that holds a socket. See [FindOwners].
type Process struct {
	// PID is its process (thread group) id in the PID namespace of /proc.
	PID uint32
	// Comm is its name, "" if it ended before it was asked for. The process
	// chose it: it may hold any byte, terminal escapes among them.
	Comm string
}
