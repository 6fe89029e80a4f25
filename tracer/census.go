package tracer

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Census is a count of the TCP sockets that existed at one moment, taken by
// [TakeCensus]. It is a plain value: nothing in it changes once it is returned.
//
// It counts full sockets, half-open connections and TIME_WAIT and orphaned
// FIN_WAIT2 mini-sockets, IPv4 and IPv6, each once. Sockets in CLOSE, such as
// one that is bound and idle, are not counted: no connection hangs on them.
//
// The kernel has no way to stop the world for a count. While connections come
// and go, a socket that changes state during the census is counted in either
// state, and one that comes or goes may be missed or counted.
type Census struct {
	// Time is when the census began, in UTC.
	Time time.Time
	// States has the number of sockets in each state, over all namespaces.
	States StateCounts
	// By is the dimension of Groups.
	By Dimension
	// Groups has the same sockets broken down along By, largest first; it is
	// nil for ByNothing. Its counts add up to States.
	Groups []CensusGroup
	// Namespaces is the number of network namespaces that were read.
	Namespaces int
	// Missed is what could not be read.
	Missed CensusMissed
}

// StateCounts has a number of sockets for each State, which is its index. In a
// census, half-open connections are in StateSynRecv and StateNewSynRecv stays
// 0, as the kernel reports them to ss and netstat.
type StateCounts [numStates]uint64

// Total returns the number of sockets in all states.
func (c *StateCounts) Total() uint64 {
	var sum uint64
	for _, n := range c {
		sum += n
	}
	return sum
}

// Folded returns the counts with half-open connections in StateSynRecv, as ss
// and netstat have them.
func (c StateCounts) Folded() StateCounts {
	c[StateSynRecv] += c[StateNewSynRecv]
	c[StateNewSynRecv] = 0
	return c
}

func (c *StateCounts) add(other *StateCounts) {
	for s, n := range other {
		c[s] += n
	}
}

// CensusGroup is the sockets of a census that have one value of its Dimension
// in common. Only the fields that belong to that dimension are set.
type CensusGroup struct {
	// Netns is the inode number of the network namespace, and NetnsName the
	// name under which it is mounted ("blue" of ip netns add blue), or "";
	// a census of SelfNetns does not look for the name. For ByNetns and
	// ByListener. Whoever mounted it chose the name: it may hold any byte.
	Netns     uint32
	NetnsName string

	// Listener is the listening socket's address. It is the zero AddrPort for
	// the sockets that belong to no listener. For ByListener.
	Listener netip.AddrPort

	// Remote is the peer's address. It is the zero Addr for the sockets that
	// have no peer: listeners. For ByRemote.
	Remote netip.Addr

	// PID is the process that holds the sockets, in the PID namespace of
	// /proc, or 0 for the sockets that no process is known to hold. For ByProcess.
	PID uint32
	// Comm is the process's name, "" if it is not known. The process chose
	// it: it may hold any byte, terminal escapes among them. For ByProcess.
	Comm string

	// States has the number of the group's sockets in each state.
	States StateCounts
}

// CensusMissed is the ledger of what a census could not read. A zero value
// says that the census is complete.
type CensusMissed struct {
	// Netns has the network namespaces that were found and not read, in most
	// cases because entering them needs CAP_SYS_ADMIN.
	Netns []MissedNetns
	// Vanished has the inode numbers of the network namespaces that were
	// found and had ended before they could be opened.
	Vanished []uint32
	// Inexact has the inode numbers of the network namespaces that the kernel
	// could not list without saying that the list changed meanwhile. They are
	// in the counts.
	Inexact []uint32
	// HiddenProcesses is the number of processes that the caller was not
	// allowed to look into: their network namespaces, or with ByProcess their
	// sockets, are unknown.
	HiddenProcesses int
}

func (m *CensusMissed) sort() {
	slices.Sort(m.Vanished)
	slices.Sort(m.Inexact)
}

// MissedNetns is a network namespace that a census found and could not read.
type MissedNetns struct {
	// Netns is its inode number, Name the name under which it is mounted, or "".
	Netns uint32
	Name  string
	// Err says why it was not read. For a lack of privilege,
	// errors.Is(Err, os.ErrPermission).
	Err error
}

// CensusOptions says what a census counts. A nil *CensusOptions stands for the
// zero value.
type CensusOptions struct {
	// Netns is the network namespaces to count in. Default: AllNetns.
	Netns NetnsScope
	// By is the dimension to break the counts down by. Default: ByNothing,
	// which is also the fastest: TIME_WAIT is then summed by the kernel
	// instead of listed.
	By Dimension
}

func (o *CensusOptions) validate() error {
	if err := o.Netns.validate(); err != nil {
		return fmt.Errorf("census: %w", err)
	}
	if o.By > ByRemote {
		return fmt.Errorf("census: unknown dimension %d", o.By)
	}
	return nil
}

// NetnsScope is a choice of network namespaces.
type NetnsScope uint8

const (
	// AllNetns is every network namespace that a process or thread in /proc is
	// in, or that is mounted in the file system of the caller or of process 1.
	// One that is kept alive by a file descriptor or a socket alone, whose
	// owner has moved elsewhere, is not found; nor is one of a process
	// that the caller's PID namespace does not show.
	AllNetns NetnsScope = iota
	// SelfNetns is the network namespace of the calling thread. It needs no
	// privilege.
	SelfNetns
)

func (s NetnsScope) validate() error {
	if s > SelfNetns {
		return fmt.Errorf("unknown network namespace scope %d", s)
	}
	return nil
}

// Dimension is what the sockets of a census are grouped by.
type Dimension uint8

const (
	// ByNothing makes no groups.
	ByNothing Dimension = iota
	// ByNetns groups by network namespace.
	ByNetns
	// ByListener groups by the listening socket that a socket belongs to: the
	// one that the kernel would hand a connection to that local address and
	// port, of the same address family. The listener is in its own group.
	// Sockets whose local port nobody listens on, outgoing connections in the
	// main, share one group per namespace; so does what is left of a listener
	// that was closed. Listeners that differ in nothing but the device they
	// are bound to, or that share a port (SO_REUSEPORT), are one.
	ByListener
	// ByProcess groups by the process that holds the socket as a file. A
	// socket that several processes hold is counted once, for the lowest PID.
	// Half-open connections, connections that wait to be accepted, orphans
	// and TIME_WAIT belong to no process, and share a group without one. So
	// do the sockets that only a thread with a file table of its own holds.
	ByProcess
	// ByRemote groups by the address of the peer, whatever its port, over all
	// namespaces. Listeners have no peer and share a group without one.
	ByRemote
)

var dimensionNames = [...]string{"nothing", "netns", "listener", "process", "remote"}

// String returns the dimension as the command spells it, such as "listener".
func (d Dimension) String() string { return nameOf(dimensionNames[:], uint8(d)) }
