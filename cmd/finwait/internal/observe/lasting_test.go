package observe

import (
	"net/netip"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

var (
	here  = netip.MustParseAddrPort("192.0.2.1:80")
	there = netip.MustParseAddrPort("198.51.100.7:40001")
)

// served is one of a server.
func served(cookie uint64, state tracer.State, receive, send uint32) tracer.Socket {
	return tracer.Socket{Cookie: cookie, State: state, Local: here, Remote: there, ReceiveQueue: receive, SendQueue: send}
}

func compareSockets(before, after []tracer.Socket) Netns {
	owners := map[uint32]tracer.Process{23: {PID: 5, Comm: "server"}}
	return compareNetns(&space{sockets: before}, &space{sockets: after}, owners)
}

// Of sockets that end, those stall that have had nothing acknowledged.
func TestStalled(t *testing.T) {
	before := []tracer.Socket{
		served(1, tracer.StateFinWait1, 0, 1), served(2, tracer.StateFinWait1, 0, 1000), served(3, tracer.StateFinWait1, 0, 1000),
		served(4, tracer.StateEstablished, 0, 5),
	}
	after := []tracer.Socket{
		served(1, tracer.StateFinWait1, 0, 1), served(2, tracer.StateFinWait1, 7, 1000), served(3, tracer.StateFinWait1, 0, 999),
		served(4, tracer.StateFinWait1, 0, 5), // has come meanwhile
	}
	after[1].Timer, after[1].Retransmits = tracer.TimerRetransmit, 3
	after[2].Timer, after[2].Retransmits = tracer.TimerProbe, 3
	n := compareSockets(before, after)
	qt.Assert(t, qt.HasLen(n.Lasting, 1))
	want := Lasting{
		State: tracer.StateFinWait1, Orphan: true, Local: here, Remote: netip.AddrPortFrom(there.Addr(), 0),
		Sockets: 3, New: 1, Unsent: 2, Unread: 1, Retransmitted: 1, Stalled: 2,
	}
	qt.Check(t, qt.Equals(n.Lasting[0], want))
	qt.Check(t, qt.Equals(n.StatesBefore[tracer.StateFinWait1], 3))
	qt.Check(t, qt.Equals(n.StatesBefore[tracer.StateEstablished], 1))
	qt.Check(t, qt.Equals(n.States[tracer.StateFinWait1], 4))
}

// A FIN is no data, and whoever is in CLOSE_WAIT may go on sending.
func TestCloseWaitQueues(t *testing.T) {
	all := []tracer.Socket{
		served(1, tracer.StateCloseWait, 0, 0), served(2, tracer.StateCloseWait, 1, 0), served(3, tracer.StateCloseWait, 2, 9),
	}
	for i := range all {
		all[i].Inode = 23
	}
	n := compareSockets(all, all)
	qt.Assert(t, qt.HasLen(n.Lasting, 1))
	got := n.Lasting[0]
	qt.Check(t, qt.Equals(got.Owner, Process{PID: 5, Comm: "server"}))
	qt.Check(t, qt.DeepEquals([]int{got.Sockets, got.UnreadEnd, got.Unread, got.Unsent, got.Stalled}, []int{3, 2, 1, 1, 0}))
}

func TestQueued(t *testing.T) {
	established := served(1, tracer.StateEstablished, 5, 6)
	established.Inode = 23
	closing := served(2, tracer.StateCloseWait, 2, 0)
	closing.Inode = 23
	stranger := served(3, tracer.StateEstablished, 0, 3)
	stranger.Inode = 29 // nobody knows whose it is
	n := compareSockets(nil, []tracer.Socket{
		established, closing, stranger,
		served(4, tracer.StateFinWait1, 0, 101), // an orphan, with a FIN
		served(5, tracer.StateFinWait1, 0, 1),   // which has nothing else
		served(6, tracer.StateListen, 7, 128),   // a queue of connections
		{Cookie: 7, State: tracer.StateTimeWait, Mini: true},
	})
	qt.Check(t, qt.DeepEquals(n.Queued, []Queued{
		{Orphan: true, Sockets: 1, Unsent: 100},
		{Owner: Process{PID: 5, Comm: "server"}, Sockets: 2, Unread: 6, Unsent: 6},
		{Sockets: 1, Unsent: 3},
	}))
}
