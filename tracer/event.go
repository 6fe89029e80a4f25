package tracer

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Event is one transition of one socket.
//
// Fields that the kernel could not tell are zero, and the documentation of
// each says how to see that: a number that is not known is never guessed.
type Event struct {
	// Time is when the transition happened, from the kernel's monotonic
	// clock, given as wall-clock time in UTC.
	Time time.Time
	Transition

	// Dwell is the time that the socket spent in Old. Valid only if
	// DwellKnown: the first transition that is seen of a socket has none.
	Dwell      time.Duration
	DwellKnown bool

	// Cookie is the socket cookie that ss -e prints as sk:. It is the same
	// for a half-open connection, for the socket that comes of it, and for its
	// TIME_WAIT mini-socket. 0 if unknown, as it is for a half-open connection
	// that ends within a second of its SYN while nobody has asked for the
	// cookie, with EvidenceTimer.
	Cookie uint64

	// Netns is the inode number of the socket's network namespace.
	Netns uint32

	// Family is the socket's address family. An IPv6 socket that carries
	// IPv4 has FamilyIPv6 and IPv4 addresses in Local and Remote.
	Family Family

	// Local and Remote are the socket's addresses. A port is 0 while it is
	// not known: the local port of a socket that is just connecting is chosen
	// after it has entered SYN_SENT. A listener has no Remote, and its Addr
	// is then the unspecified address.
	Local, Remote netip.AddrPort

	// Owner is the process that opened the socket.
	Owner Owner

	// Role is the socket's side of the connection.
	Role Role

	// Evidence says what showed that the transition happened.
	Evidence Evidence

	// Reason says why the socket is gone, on the transition to CLOSE that ends
	// it, and is ReasonUnknown on all others.
	Reason Reason

	// Side says who closed first, on the transition to CLOSE that ends a
	// connection.
	Side Side
}

// Family is a socket's address family.
type Family uint8

// The address families. The numbers are the kernel's AF_INET and AF_INET6.
const (
	FamilyIPv4 Family = 2
	FamilyIPv6 Family = 10
)

// String returns "ipv4" or "ipv6".
func (f Family) String() string {
	switch f {
	case FamilyIPv4:
		return "ipv4"
	case FamilyIPv6:
		return "ipv6"
	}
	return "unknown"
}

// Owner is the process that opened a socket, by connect, listen or accept; until
// a socket is accepted it has its listener's owner. It is the process as it was
// at that call, which may have ended since, or have passed the socket on: to a
// child, or to another process through a UNIX socket. It is still the owner.
// Of a socket that is older than the tracer it is the process that had it open
// when the tracer began, among those that the tracer's PID namespace shows.
type Owner struct {
	// Origin says how the owner was learnt. If it is OriginUnknown, no other
	// field is valid.
	Origin Origin
	// PID is the process (thread group) id in the initial PID namespace.
	PID uint32
	// UID is the real user id in the initial user namespace.
	UID uint32
	// CgroupID is the id of the process's cgroup (version 2), or 0.
	CgroupID uint64

	comm [16]byte
}

// Comm returns the name of the process (of its main thread), at most 15 bytes.
// The process chose it: it may hold any byte, terminal escapes among them.
// The slice is valid as long as o.
func (o *Owner) Comm() []byte {
	if n := bytes.IndexByte(o.comm[:], 0); n >= 0 {
		return o.comm[:n]
	}
	return o.comm[:]
}

// SetComm sets the name that Comm returns, cut to 15 bytes. It is for tests
// and for events that do not come from the kernel.
func (o *Owner) SetComm(name string) {
	o.comm = [16]byte{}
	copy(o.comm[:len(o.comm)-1], name)
}

// Origin says how a socket's owner was learnt.
type Origin uint8

// The ways to learn an owner. The numbers are those of enum finwait_origin in
// bpf/finwait.h.
const (
	OriginUnknown Origin = iota
	// OriginConnect is the process that called connect.
	OriginConnect
	// OriginListen is the process that called listen, or for a socket that is
	// not known to be accepted the process that called listen on its listener.
	OriginListen
	// OriginAccept is the process that called accept. With EvidenceTimer that
	// is not known before the process closes the socket or shuts it down. Of
	// what carries MPTCP it is hardly ever known.
	OriginAccept
	// OriginSnapshot is a process that had the socket open when the tracer
	// began: of several the one that opened it, if that can be told, and else
	// the oldest. What such a listener accepts has its owner too.
	OriginSnapshot
)

var originNames = [...]string{"unknown", "connect", "listen", "accept", "snapshot"}

// String returns the origin as it stands in the JSON record, such as "connect".
func (o Origin) String() string { return nameOf(originNames[:], uint8(o)) }

// Role is a socket's side of a connection.
type Role uint8

// The sides. The numbers are those of enum finwait_role in bpf/finwait.h.
const (
	RoleUnknown Role = iota
	// RoleClient is a socket that called connect.
	RoleClient
	// RoleServer is a listener or a socket that came out of one.
	RoleServer
)

var roleNames = [...]string{"unknown", "client", "server"}

// String returns "client", "server" or "unknown".
func (r Role) String() string { return nameOf(roleNames[:], uint8(r)) }

// Evidence says what showed that a transition happened.
type Evidence uint8

// The kinds of evidence. The numbers are those of enum finwait_evidence in
// bpf/finwait.h.
const (
	// EvidenceKernel is the kernel's own word: the tracepoint
	// sock:inet_sock_set_state said exactly this.
	EvidenceKernel Evidence = iota
	// EvidenceTimer is a timer tracepoint that saw the timer of a mini-socket
	// or of a half-open connection armed, cancelled or expired.
	EvidenceTimer
	// EvidenceProbe is a program at the kernel function that does it.
	EvidenceProbe
)

var evidenceNames = [...]string{"kernel", "timer", "probe"}

// String returns the evidence as it stands in the JSON record, such as "timer".
func (e Evidence) String() string { return nameOf(evidenceNames[:], uint8(e)) }

// Reason says why a connection, or a mini-socket, is gone.
type Reason uint8

// The reasons. The numbers are those of enum finwait_reason in bpf/finwait.h.
//
// Names begin with what they have in common: see [ParseReasons].
const (
	// ReasonUnknown is none of the others.
	ReasonUnknown Reason = iota
	// ReasonFIN is the orderly end of the side that closed last: both have
	// sent a FIN, and both are acknowledged. The side that closed first goes
	// on to TIME_WAIT, whose end has a reason of its own.
	ReasonFIN
	// ReasonRSTReceived is a reset from the peer. For a half-open connection
	// it may also be a segment that the kernel answers with a reset.
	ReasonRSTReceived
	// ReasonRefused is a reset that answered a SYN: nobody listens there.
	ReasonRefused
	// ReasonRSTSentUnreadData is a close while there was data that nobody had
	// read.
	ReasonRSTSentUnreadData
	// ReasonRSTSentLinger is a close with SO_LINGER and a time of 0, or, in
	// FIN_WAIT2, with a negative TCP_LINGER2.
	ReasonRSTSentLinger
	// ReasonRSTSentAbort is a connect to AF_UNSPEC, which gives the connection
	// up and keeps the socket.
	ReasonRSTSentAbort
	// ReasonRSTSentUnaccepted is a listener that was closed before anybody
	// accepted the connection.
	ReasonRSTSentUnaccepted
	// ReasonRSTSentLateData is data (or a SYN) that came after the socket was
	// closed, when nobody was left to read it, or data beyond the peer's FIN.
	ReasonRSTSentLateData
	// ReasonRSTSentOrphanLimit is a connection that nobody owned any more, of
	// which there were more than net.ipv4.tcp_max_orphans allows.
	ReasonRSTSentOrphanLimit
	// ReasonRSTSentMemory is TCP out of memory (net.ipv4.tcp_mem).
	ReasonRSTSentMemory
	// ReasonTimeoutHandshake is a SYN, or a SYN-ACK, that was repeated as
	// often as it may be and not answered.
	ReasonTimeoutHandshake
	// ReasonTimeoutRetransmit is data, a FIN or a window probe that was
	// repeated as often as it may be and not acknowledged.
	ReasonTimeoutRetransmit
	// ReasonTimeoutKeepalive is keepalive probes that were not answered.
	ReasonTimeoutKeepalive
	// ReasonTimeoutUser is TCP_USER_TIMEOUT.
	ReasonTimeoutUser
	// ReasonUnreachable is an ICMP error that ended a handshake.
	ReasonUnreachable
	// ReasonKilled is an operator: ss -K, or a program that calls
	// bpf_sock_destroy.
	ReasonKilled
	// ReasonClosed is a process that closed a listener, or gave up connecting,
	// or closed a connection that TCP_REPAIR has taken elsewhere: the peer is
	// told nothing.
	ReasonClosed
	// ReasonLocalError is a connect or listen that failed by itself: no free
	// port, address in use.
	ReasonLocalError
	// ReasonHandshakeFailed is a connection that the kernel could not make
	// when its handshake was complete.
	ReasonHandshakeFailed
	// ReasonListenerGone is a half-open connection whose listener was closed.
	ReasonListenerGone
	// ReasonQueueFull is a half-open connection that was given up early
	// because the listener's queue was more than half full, or whose listener
	// had no room for it (with net.ipv4.tcp_abort_on_overflow).
	ReasonQueueFull
	// ReasonTimeWaitRefused is a connection that went to CLOSE where
	// TIME_WAIT, or an orphan's FIN_WAIT2, should have begun: there are
	// net.ipv4.tcp_max_tw_buckets already, or there was no memory.
	ReasonTimeWaitRefused
	// ReasonExpired is the end of TIME_WAIT after its 60 seconds, or of an
	// orphan's FIN_WAIT2 after net.ipv4.tcp_fin_timeout or TCP_LINGER2.
	ReasonExpired
	// ReasonReused is a new connection that took over from TIME_WAIT: by
	// connect (see net.ipv4.tcp_tw_reuse), or by a SYN of the peer.
	ReasonReused
	// ReasonNetnsGone is the end of the network namespace.
	ReasonNetnsGone
)

var reasonNames = [...]string{
	"unknown", "fin", "rst_received", "refused",
	"rst_sent_unread_data", "rst_sent_linger", "rst_sent_abort", "rst_sent_unaccepted", "rst_sent_late_data",
	"rst_sent_orphan_limit", "rst_sent_memory",
	"timeout_handshake", "timeout_retransmit", "timeout_keepalive", "timeout_user",
	"unreachable", "killed", "closed", "local_error", "handshake_failed", "listener_gone", "queue_full",
	"time_wait_refused", "expired", "reused", "netns_gone",
}

// Reasons returns all reasons in the order of their numbers, ReasonUnknown
// first.
func Reasons() []Reason {
	all := make([]Reason, len(reasonNames))
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// reasonGroups are names that stand for several reasons, those whose names begin
// with them.
var reasonGroups = []string{"rst_sent", "timeout"}

// ReasonNames returns the names that ParseReasons knows.
func ReasonNames() []string { return slices.Concat(reasonGroups, reasonNames[:]) }

// ParseReasons returns the reason of that name, or those of the group of that
// name: "timeout" has all whose names begin with "timeout_", and "rst_sent" all
// that begin with "rst_sent_".
func ParseReasons(name string) ([]Reason, error) {
	var found []Reason
	group := slices.Contains(reasonGroups, name)
	for _, r := range Reasons() {
		if r.String() == name || group && strings.HasPrefix(r.String(), name+"_") {
			found = append(found, r)
		}
	}
	if found == nil {
		return nil, fmt.Errorf("unknown reason %q (want one of %s)", name, strings.Join(ReasonNames(), ", "))
	}
	return found, nil
}

// String returns the reason as it stands in the JSON record, such as "expired".
func (r Reason) String() string { return nameOf(reasonNames[:], uint8(r)) }

// Side says who closed a connection first.
type Side uint8

// The sides. The numbers are those of enum finwait_side in bpf/finwait.h.
const (
	// SideUnknown also stands for nobody: the connection timed out, or could
	// not be made.
	SideUnknown Side = iota
	// SideLocal is the socket's own side: it sent the first FIN, or the reset.
	SideLocal
	// SidePeer is the other side.
	SidePeer
	// SideBoth is both at once: each sent its FIN before the other's came.
	SideBoth
)

var sideNames = [...]string{"unknown", "local", "peer", "both"}

// String returns the side as it stands in the JSON record, such as "local".
func (s Side) String() string { return nameOf(sideNames[:], uint8(s)) }

func nameOf(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return "unknown"
}
