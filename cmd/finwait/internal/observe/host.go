// Package observe looks at a host for a while: its sockets at two moments, what the
// kernel has counted in between, what happened to connections meanwhile, and the
// settings that bear on them.
//
// It says what it has seen and judges nothing: package doctor does.
package observe

import (
	"net/netip"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// Host is what was seen of a host. What could not be seen is absent, and Unseen says
// so. It is a plain value: nothing in it changes once it is returned.
type Host struct {
	// Began and Ended are when the first look began, and the last. The looks take as long
	// as one another, so that what differs has come about in between.
	Began, Ended time.Time

	// Namespaces are the network namespaces that were looked at, the host's own first.
	Namespaces []Netns

	// Traffic is what happened meanwhile. It is nil if nothing could see it.
	Traffic *Traffic

	// Settings are the files that set sysctls when the host starts, nil if they were
	// not looked at.
	Settings *sysctl.Files

	// Memory is what TCP takes on the whole host.
	Memory Memory

	// Files has the processes that hold sockets of Lasting or listen, and how many files
	// they have open and may, by PID.
	Files map[uint32]Files

	// Unseen says what could not be looked at, in the order in which it was tried.
	Unseen []Unseen
}

// Watched returns how long the host was watched, 0 if it was looked at once.
func (h *Host) Watched() time.Duration { return h.Ended.Sub(h.Began) }

// PerSecond returns how many a second n are of what was counted while it was watched.
func (h *Host) PerSecond(n uint64) float64 {
	if d := h.Watched().Seconds(); d > 0 {
		return float64(n) / d
	}
	return 0
}

// Unseen is something that could not be looked at.
type Unseen struct {
	// What it is, such as "the owners of sockets".
	What string
	// Why it could not be looked at, and what would help.
	Why string
}

// Files is how many descriptors a process has open, and how many it may have.
type Files struct {
	Open int
	// Limit is math.MaxUint64 if there is none.
	Limit uint64
}

// Memory is what TCP takes on the whole host, and what it may take. What is not known is
// 0, but for Pages and Orphans, which are known if PageSize is not 0.
type Memory struct {
	// Pages is the memory in use for TCP's buffers, and PressurePages and MaxPages the
	// second and third number of net.ipv4.tcp_mem, in pages of PageSize bytes.
	Pages, PressurePages, MaxPages uint64
	PageSize                       uint64
	// Pressure tells that the kernel is known to save TCP's memory: it goes on to until
	// Pages is below the first number.
	Pressure bool
	// Orphans is the number of full sockets that no process holds, MaxOrphans how many
	// there may be (net.ipv4.tcp_max_orphans).
	Orphans, MaxOrphans uint64
	// MiniSocket is the size in bytes of a TIME_WAIT socket, IPv4 and IPv6.
	MiniSocket, MiniSocketIPv6 uint64
	// EstablishedHash is the number of slots in the kernel's table of connections, from
	// which it takes the defaults of tcp_max_tw_buckets and tcp_max_orphans (half of it).
	EstablishedHash uint64
}

// Netns is what was seen of one network namespace.
type Netns struct {
	Inode uint32
	// Name is the name under which it is mounted ("blue" of ip netns add blue), or "".
	// Whoever mounted it chose the name: it may hold any byte.
	Name string
	// Host tells that it is the namespace of process 1, which the sysctl files are for.
	Host bool
	// Path is where ip netns has mounted it, "" if it has not.
	Path string
	// Member is the PID of a process that is in it and holds sockets there, 0 if none is
	// known.
	Member uint32

	// States has the sockets in each state at the end, half-open ones in StateSynRecv.
	States tracer.StateCounts
	// StatesBefore has those of the first look.
	StatesBefore tracer.StateCounts
	// MiniSockets is the number of mini-sockets, which net.ipv4.tcp_max_tw_buckets limits:
	// all that are in TIME_WAIT, and orphans in FIN_WAIT2. MiniSocketsIPv6 is how many of
	// them came of IPv6 sockets, IPv4 addresses or not.
	MiniSockets, MiniSocketsIPv6 uint64
	// UsedPorts are the ports of net.ipv4.ip_local_port_range that any socket has as its
	// own, wherever it goes, in order.
	UsedPorts []uint16

	// Sysctls has what the namespace's sysctls are set to, by name with dots. One that
	// the kernel does not have is not there.
	// In the host's own namespace those that the sysctl files name are there too.
	Sysctls sysctl.Values
	// NoSysctl are the sysctls that the sysctl files name and that do not exist there. It
	// is nil but in the host's own namespace.
	NoSysctl []string

	// Counters has what the kernel has counted since it made the namespace, by names
	// such as "TcpExt.ListenOverflows", and Counted what of that while it was watched.
	// One that the kernel does not have is not there.
	Counters, Counted procnet.Counters

	// Listeners are its listening sockets, by address.
	Listeners []Listener
	// TimeWaitInbound is the number of sockets in TIME_WAIT on ports that somebody listens
	// on: connections that others opened, and that this side closed first.
	TimeWaitInbound int
	// Outgoing has the connections of local ports that the kernel chose, by where they
	// go, those that have the most ports first.
	Outgoing []Outgoing
	// Lasting has the sockets that were in one state all the time.
	Lasting []Lasting
	// Queued has what is in the buffers of its sockets, by who holds them, the most first.
	Queued []Queued

	// Conntrack is the namespace's table of connections, nil if it has none.
	Conntrack *Conntrack
}

// Process is a process that holds a socket, in the PID namespace of /proc.
type Process struct {
	// PID is 0 if no process is known.
	PID uint32
	// Comm is its name. The process chose it: it may hold any byte.
	Comm string
}

// Listener is a listening socket.
type Listener struct {
	Local netip.AddrPort
	Owner Process
	// Backlog is how many connections may wait to be accepted: what the process asked
	// for, at most net.core.somaxconn.
	Backlog uint32
	// Before tells that it was there at the first look, with QueueBefore connections that
	// waited. Queue is how many wait at the last.
	Before             bool
	QueueBefore, Queue uint32
	// HalfOpen is the number of half-open connections at the end, HalfOpenBefore that of
	// the first look, and Unanswered how many of HalfOpen have had their SYN-ACK repeated.
	HalfOpenBefore, HalfOpen, Unanswered uint32
	// HalfOpenPeers is the number of addresses that HalfOpen come from.
	HalfOpenPeers int
}

// Outgoing is the connections from one local address to one remote address and port,
// of local ports that the kernel chooses (net.ipv4.ip_local_port_range) and on which
// nobody listens. Each takes a port, which no other to the same end can have.
type Outgoing struct {
	Local  netip.Addr
	Remote netip.AddrPort
	// Owner is the process that holds the most of them, if one holds any.
	Owner Process

	// Open is the number of ports of full sockets, FinWait2 of orphans in FIN_WAIT2 that
	// are mini-sockets.
	Open, FinWait2 int
	// Before is what Open and FinWait2 were together at the first look.
	Before int
	// TimeWait has for each port in TIME_WAIT how long it has still to wait, the shortest
	// first.
	TimeWait []time.Duration
	// New is the number of ports that were taken while it was watched, and are still.
	New int
	// Gone is the number of ports that were Open at the first look and are free at the last.
	Gone int
}

// Ports returns how many ports are taken.
func (o *Outgoing) Ports() int { return o.Open + o.FinWait2 + len(o.TimeWait) }

// Lasting is a number of sockets that are in the same state and have most in common.
// It is about the states that a connection goes through: LISTEN, ESTABLISHED, SYN_RECV
// and TIME_WAIT are not among them.
type Lasting struct {
	State tracer.State
	// Owner is the process that holds them, with the PID 0 if it is not known. Orphan
	// tells that no process holds them: those of CLOSE_WAIT have not been accepted yet,
	// the others have been closed.
	Owner  Process
	Orphan bool
	// Local is their local address, and their port if somebody listens there, or has
	// chosen it; else 0. Remote is their peer's, its port 0 if Local has one.
	Local, Remote netip.AddrPort

	// Sockets is how many there were in that state at the first look and still are, and
	// New how many have come into it since, and are there.
	Sockets, New int
	// Of Sockets, Unsent is how many have data that the peer has not acknowledged (not
	// counting a FIN), Unread how many have data that their process has not read,
	// UnreadEnd how many have the peer's FIN that it has not read, and Retransmitted how
	// many have sent again what they wait for an answer to.
	Unsent, Unread, UnreadEnd, Retransmitted int
	// Stalled is how many of Sockets have sent a FIN, or have it to send, and have had
	// nothing acknowledged since the first look: FIN_WAIT1, CLOSING and LAST_ACK.
	Stalled int
}

// Queued is what the sockets of one process have in their buffers, in bytes of data. The
// kernel's memory for them is more, often several times as much.
type Queued struct {
	// Owner is the process that holds them, with the PID 0 if it is not known. Orphan
	// tells that no process holds them: they have been closed, or not accepted yet.
	Owner  Process
	Orphan bool
	// Sockets is how many have something in them.
	Sockets int
	// Unread is what the process has not read, Unsent what the peer has not acknowledged.
	Unread, Unsent uint64
}

// Conntrack is the connection tracking of a namespace.
type Conntrack struct {
	// Entries is how many connections are tracked, those that have ended and wait for
	// their timeout too, and Max how many may be, 0 for any number.
	Entries, Max uint64
	// Dropped is how many packets of the namespace could not be tracked while it was
	// watched, for lack of room as a rule; 0 if the kernel does not tell.
	Dropped uint64
}
