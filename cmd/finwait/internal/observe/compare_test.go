package observe

import (
	"net/netip"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// socket is one that some process holds, until the others change that.
func socket(cookie uint64, state tracer.State, local, remote string) tracer.Socket {
	s := tracer.Socket{Cookie: cookie, State: state, Family: tracer.FamilyIPv4, Local: netip.MustParseAddrPort(local), Inode: uint32(cookie)}
	if remote != "" {
		s.Remote = netip.MustParseAddrPort(remote)
	}
	return s
}

func queues(s tracer.Socket, receive, send uint32) tracer.Socket {
	s.ReceiveQueue, s.SendQueue = receive, send
	return s
}

func orphan(s tracer.Socket) tracer.Socket {
	s.Inode = 0
	return s
}

func mini(s tracer.Socket, left time.Duration) tracer.Socket {
	s.Mini, s.Expires, s.Timer = true, left, tracer.TimerTimeWait
	return orphan(s)
}

func halfOpen(cookie uint64, local, remote string, retransmits uint8) tracer.Socket {
	s := orphan(socket(cookie, tracer.StateSynRecv, local, remote))
	s.HalfOpen, s.Retransmits = true, retransmits
	return s
}

func spaceOf(sockets ...tracer.Socket) *space {
	return &space{inode: 7, name: "blue", sockets: sockets, sysctls: sysctl.Values{"net.ipv4.ip_local_port_range": "32768 60999"}}
}

// byValue are the options for what has addresses in it.
var byValue = []cmp.Option{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})}

var (
	web  = Process{42, "web"}
	curl = Process{23, "curl"}
)

// owners has web hold those with odd inode numbers, and curl the others.
func ownersOf(spaces ...*space) map[uint32]tracer.Process {
	owners := map[uint32]tracer.Process{}
	for _, s := range spaces {
		for i := range s.sockets {
			switch inode := s.sockets[i].Inode; {
			case inode == 0:
			case inode%2 == 1:
				owners[inode] = tracer.Process(web)
			default:
				owners[inode] = tracer.Process(curl)
			}
		}
	}
	return owners
}

func compared(before, after *space) Netns {
	return compareNetns(before, after, ownersOf(before, after))
}

func TestCompareNetns(t *testing.T) {
	before, after := spaceOf(), spaceOf(
		socket(1, tracer.StateListen, "0.0.0.0:80", ""),
		halfOpen(2, "10.0.0.2:80", "10.0.0.1:40000", 0),
		mini(socket(3, tracer.StateTimeWait, "10.0.0.2:80", "10.0.0.1:40001"), time.Second),
	)
	before.counters = procnet.Counters{"TcpExt.ListenDrops": 5, "TcpExt.Gone": 1}
	after.counters = procnet.Counters{"TcpExt.ListenDrops": 12, "TcpExt.New": 1}
	n := compared(before, after)
	qt.Check(t, qt.Equals(n.Inode, 7))
	qt.Check(t, qt.Equals(n.Name, "blue"))
	qt.Check(t, qt.DeepEquals(n.Counters, after.counters))
	qt.Check(t, qt.DeepEquals(n.Counted, procnet.Counters{"TcpExt.ListenDrops": 7}))
	qt.Check(t, qt.Equals(n.States, tracer.StateCounts{tracer.StateListen: 1, tracer.StateSynRecv: 1, tracer.StateTimeWait: 1}))

	before.counters = nil // which could not be read: nothing is known to be new
	qt.Check(t, qt.HasLen(compared(before, after).Counted, 0))
}

func TestCompareListeners(t *testing.T) {
	before := spaceOf(
		queues(socket(1, tracer.StateListen, "0.0.0.0:80", ""), 3, 128),
		queues(socket(3, tracer.StateListen, "0.0.0.0:81", ""), 0, 128), // ends
		halfOpen(5, "10.0.0.2:80", "10.0.0.1:40000", 0),
		halfOpen(7, "10.0.0.2:80", "10.0.0.1:40002", 0),
	)
	after := spaceOf(
		queues(socket(1, tracer.StateListen, "0.0.0.0:80", ""), 129, 128),
		queues(socket(9, tracer.StateListen, "[::]:82", ""), 1, 5), // has come
		queues(socket(11, tracer.StateListen, "10.0.0.2:82", ""), 0, 6),
		orphan(queues(socket(13, tracer.StateListen, "127.0.0.1:83", ""), 0, 7)), // of nobody who is known
		halfOpen(5, "10.0.0.2:80", "10.0.0.1:40000", 2),
		halfOpen(15, "10.0.0.2:80", "10.0.0.1:40003", 0),
		halfOpen(17, "10.0.0.2:80", "10.0.0.9:40003", 0),
		halfOpen(19, "10.0.0.2:82", "10.0.0.1:1", 0), // the listener on the address comes first
		halfOpen(21, "10.0.0.3:82", "10.0.0.1:1", 1), // IPv4 on a socket of IPv6
		halfOpen(23, "[2001:db8::1]:82", "[2001:db8::2]:1", 0),
		halfOpen(25, "10.0.0.3:99", "10.0.0.1:1", 0), // nobody listens any more
	)
	got := compared(before, after).Listeners
	want := []Listener{
		{Local: netip.MustParseAddrPort("0.0.0.0:80"), Owner: web, Backlog: 128, Before: true, QueueBefore: 3, Queue: 129, HalfOpenBefore: 2, HalfOpen: 3, Unanswered: 1, HalfOpenPeers: 2},
		{Local: netip.MustParseAddrPort("10.0.0.2:82"), Owner: web, Backlog: 6, HalfOpen: 1, HalfOpenPeers: 1},
		{Local: netip.MustParseAddrPort("127.0.0.1:83"), Backlog: 7},
		{Local: netip.MustParseAddrPort("[::]:82"), Owner: web, Backlog: 5, Queue: 1, HalfOpen: 2, Unanswered: 1, HalfOpenPeers: 2},
	}
	qt.Check(t, qt.CmpEquals(got, want, byValue...))
}

// Connections to one end are told apart by the ports that the kernel has chosen.
func TestCompareOutgoing(t *testing.T) {
	const db, other = "10.0.0.9:5432", "10.0.0.9:5433"
	const open, timeWait = tracer.StateEstablished, tracer.StateTimeWait
	before := spaceOf(
		socket(2, open, "10.0.0.1:32768", db),
		socket(4, open, "10.0.0.1:40001", db),                          // ends
		socket(6, open, "10.0.0.1:40002", db),                          // goes to TIME_WAIT
		mini(socket(8, timeWait, "10.0.0.1:40003", db), 2*time.Second), // is over, and was not open
		socket(10, open, "10.0.0.1:40004", "10.0.0.77:1"),              // the last one to there
		mini(socket(12, tracer.StateFinWait2, "10.0.0.1:40005", db), 2*time.Second),
	)
	after := spaceOf(
		socket(1, tracer.StateListen, "0.0.0.0:50000", ""),
		socket(2, open, "10.0.0.1:32768", db),
		mini(socket(6, timeWait, "10.0.0.1:40002", db), 59*time.Second),
		mini(socket(12, tracer.StateFinWait2, "10.0.0.1:40005", db), time.Second),
		socket(14, open, "10.0.0.1:60999", db),                           // new
		socket(15, tracer.StateSynSent, "10.0.0.1:40006", db),            // new, of another
		mini(socket(16, timeWait, "10.0.0.1:40007", db), 30*time.Second), // new, and over
		socket(18, open, "10.0.0.1:40008", other),
		socket(20, open, "10.0.0.2:40008", other), // from another address
		socket(22, open, "10.0.0.1:32767", db),    // a port that it has chosen itself
		socket(24, open, "10.0.0.1:61000", db),
		socket(26, open, "10.0.0.1:50000", "10.0.0.9:1"), // somebody listens there
		halfOpen(28, "10.0.0.1:50000", "10.0.0.9:2", 0),
	)
	after.sockets[2].Family = tracer.FamilyIPv6 // with IPv4 addresses
	n := compared(before, after)
	got := n.Outgoing
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	want := []Outgoing{
		{Local: one, Remote: netip.MustParseAddrPort(db), Owner: curl, Open: 3, FinWait2: 1, Before: 4, TimeWait: []time.Duration{30 * time.Second, 59 * time.Second}, New: 3, Gone: 1},
		{Local: one, Remote: netip.MustParseAddrPort(other), Owner: curl, Open: 1, New: 1},
		{Local: two, Remote: netip.MustParseAddrPort(other), Owner: curl, Open: 1, New: 1},
	}
	qt.Check(t, qt.CmpEquals(got, want, byValue...))
	qt.Check(t, qt.Equals(got[0].Ports(), 6))
	qt.Check(t, qt.DeepEquals(n.UsedPorts, []uint16{32768, 40002, 40005, 40006, 40007, 40008, 50000, 60999}))
	qt.Check(t, qt.Equals(n.MiniSockets, 3))
	qt.Check(t, qt.Equals(n.MiniSocketsIPv6, 1))

	after.sysctls = nil // which ports the kernel chooses is not known
	n = compared(before, after)
	qt.Check(t, qt.HasLen(n.Outgoing, 0))
	qt.Check(t, qt.HasLen(n.UsedPorts, 0))
}

func TestCompareLasting(t *testing.T) {
	const (
		closeWait, lastAck = tracer.StateCloseWait, tracer.StateLastAck
		fin1, fin2         = tracer.StateFinWait1, tracer.StateFinWait2
		us, peer           = "10.0.0.2:80", "10.0.0.1:50001"
	)
	// A leak of web's: three that have stayed, one that has come.
	before := spaceOf(
		socket(1, closeWait, us, peer), socket(3, closeWait, us, "10.0.0.1:50003"), socket(5, closeWait, us, "10.0.0.1:50005"),
		socket(7, tracer.StateEstablished, us, "10.0.0.1:50007"),
		orphan(socket(9, fin1, us, "10.0.0.1:50009")), orphan(socket(11, lastAck, us, "10.0.0.1:50011")),
		socket(20, tracer.StateSynSent, "10.0.0.2:40020", "10.0.0.9:1"), socket(22, tracer.StateSynSent, "10.0.0.2:40022", "10.0.0.9:1"),
		orphan(socket(30, fin2, us, "10.0.0.1:50030")),
	)
	after := spaceOf(
		socket(99, tracer.StateListen, "0.0.0.0:80", ""),
		queues(socket(1, closeWait, us, peer), 1, 0), // has not read the end
		queues(socket(3, closeWait, us, "10.0.0.1:50003"), 8, 23),
		queues(socket(5, closeWait, us, "10.0.0.1:50005"), 0, 0), // has read it
		queues(socket(7, closeWait, us, "10.0.0.1:50007"), 9, 9), // has just come
		retransmitted(orphan(queues(socket(9, fin1, us, "10.0.0.1:50009"), 0, 24))),
		orphan(queues(socket(11, lastAck, us, "10.0.0.1:50011"), 0, 1)), // nothing but its FIN
		queues(socket(20, tracer.StateSynSent, "10.0.0.2:40020", "10.0.0.9:1"), 0, 1),
		retransmitted(queues(socket(22, tracer.StateSynSent, "10.0.0.2:40022", "10.0.0.9:1"), 0, 1)),
		mini(socket(30, fin2, us, "10.0.0.1:50030"), time.Second), // the same state, in another form
		mini(socket(31, tracer.StateTimeWait, us, "10.0.0.1:50031"), time.Second),
		socket(33, tracer.StateEstablished, us, "10.0.0.1:50033"),
	)
	service, client := netip.MustParseAddrPort(us), netip.MustParseAddrPort("10.0.0.1:0")
	want := []Lasting{
		{State: closeWait, Owner: web, Local: service, Remote: client, Sockets: 3, New: 1, Unsent: 1, Unread: 1, UnreadEnd: 2},
		{State: tracer.StateSynSent, Owner: curl, Local: netip.MustParseAddrPort("10.0.0.2:0"), Remote: netip.MustParseAddrPort("10.0.0.9:1"), Sockets: 2, Retransmitted: 1},
		{State: fin1, Orphan: true, Local: service, Remote: client, Sockets: 1, Unsent: 1, Retransmitted: 1},
		{State: fin2, Orphan: true, Local: service, Remote: client, Sockets: 1},
		{State: lastAck, Orphan: true, Local: service, Remote: client, Sockets: 1},
	}
	qt.Check(t, qt.CmpEquals(compared(before, after).Lasting, want, byValue...))
}

func retransmitted(s tracer.Socket) tracer.Socket {
	s.Retransmits, s.Timer = 3, tracer.TimerRetransmit
	return s
}
