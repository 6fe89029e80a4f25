package test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

var families = []tracer.Family{tracer.FamilyIPv4, tracer.FamilyIPv6}

// ending is a way in which TIME_WAIT ends early.
type ending struct {
	name   string
	reason tracer.Reason
	server bool // the server closes first, and so is in TIME_WAIT
	// prepare, if it is there, is called before any connection is made.
	prepare func(l *loop)
	// end ends the TIME_WAIT of all, and returns the connections that did.
	end func(l *loop, all []pair) []pair
}

var endings = []ending{
	{"connect from its port", tracer.ReasonReused, false, nil, reconnectAll},
	{"connect that chooses its port", tracer.ReasonReused, false, leavePortsToKernel, reconnectAll},
	{"SYN", tracer.ReasonReused, true, nil, reconnectAll},
	{"reset", tracer.ReasonRSTReceived, false, nil, assassinateAll},
	{"killed", tracer.ReasonKilled, false, nil, killTimeWaits},
}

// TestTimeWaitEndsEarly ends TIME_WAIT in every way but waiting.
func TestTimeWaitEndsEarly(t *testing.T) {
	rec := shared(t)
	for _, e := range endings {
		for _, family := range families {
			t.Run(e.name+"/"+family.String(), func(t *testing.T) { testEnding(t, rec.in(t), e, family) })
		}
	}
	rec.stop()
}

// TestOldTimeWaitEndsEarly does the same with mini-sockets that were there
// before the tracer: nothing is known of them but their addresses, what they
// were asked for, and their timers.
func TestOldTimeWaitEndsEarly(t *testing.T) {
	netns.RequireRoot(t)
	var all []*oldEnding
	for _, e := range endings {
		for _, family := range families {
			l := newEndingLoop(t, e, family)
			from := time.Now()
			made, _ := l.makeTimeWaits(e.server)
			all = append(all, &oldEnding{e, l, made, from, time.Now()})
		}
	}
	rec := record(t, nil)
	for _, o := range all {
		t.Run(o.name+"/"+o.l.addr.String(), func(t *testing.T) { o.l.t = t; testOldEnding(t, rec.in(t), o) })
	}
	rec.stop()
}

type oldEnding struct {
	ending
	l    *loop
	made []pair

	from, to time.Time // when TIME_WAIT began
}

func newEndingLoop(t *testing.T, e ending, family tracer.Family) *loop {
	l := newLoop(t, family)
	if e.prepare != nil {
		e.prepare(l)
	}
	return l
}

func testEnding(t *testing.T, rec *recorder, e ending, family tracer.Family) {
	l := newEndingLoop(t, e, family)
	all, want := l.makeTimeWaits(e.server)
	awaitWalks(rec, l.ns, want)
	for _, p := range all {
		want.add(waiting(p, e.server), timeWaitEnds)
	}
	l.closeAll(e.end(l, all), want)
	events := awaitWalks(rec, l.ns, want)
	checkGauges(t, rec.tracer, l.ns, "after their ends")
	checkOwners(t, events)
	checkEvidence(t, rec.tracer.Evidence(), events)
	checkReasons(t, events, e.reason)
	for _, ev := range only(events, isMiniEnd) {
		qt.Check(t, qt.Equals(ev.Side, tracer.SideLocal))
	}
	for _, walk := range walksOf(events) {
		checkDwell(t, walk)
	}
}

// checkReasons expects that reason of each end of a mini-socket, and one or
// another of all other ends.
func checkReasons(t *testing.T, events []tracer.Event, reason tracer.Reason) {
	t.Helper()
	for _, ev := range only(events, isMiniEnd) {
		qt.Check(t, qt.Equals(ev.Reason, reason), qt.Commentf("%v", ev.Transition))
	}
	checkSomeReason(t, events)
}

// checkSomeReason expects a reason of every end, and of nothing else.
func checkSomeReason(t *testing.T, events []tracer.Event) {
	t.Helper()
	for _, ev := range events {
		known := ev.Reason != tracer.ReasonUnknown
		qt.Check(t, qt.Equals(known, ev.New == tracer.StateClose), qt.Commentf("%v: %v", ev.Transition, ev.Reason))
	}
}

func isMiniEnd(ev *tracer.Event) bool {
	return ev.New == tracer.StateClose && (ev.Old == tracer.StateTimeWait || ev.Old == tracer.StateFinWait2)
}

func killTimeWaits(l *loop, _ []pair) []pair {
	l.kill("state", "time-wait")
	return nil
}

func testOldEnding(t *testing.T, rec *recorder, o *oldEnding) {
	want, old := walks{}, map[uint64]end{}
	for _, p := range o.made {
		old[waiting(p, o.server).cookie] = waiting(p, o.server)
		want.add(waiting(p, o.server), timeWaitEnds)
	}
	o.l.closeAll(o.end(o.l, o.made), want)
	events := awaitWalks(rec, o.l.ns, want)
	checkGauges(t, rec.tracer, o.l.ns, "after their ends")
	checkReasons(t, events, o.reason)
	for _, ev := range events {
		if e, ok := old[ev.Cookie]; ok {
			checkUnknown(t, &ev, e)
			checkSince(t, &ev, o.from, o.to)
		}
	}
}

// checkSince expects a dwell that says that the state began between the two, to
// a tick of the kernel.
func checkSince(t *testing.T, ev *tracer.Event, from, to time.Time) {
	t.Helper()
	const tick = 10 * time.Millisecond // at HZ=100, the longest
	qt.Assert(t, qt.IsTrue(ev.DwellKnown), qt.Commentf("%v", ev.Transition))
	since := ev.Time.Add(-ev.Dwell)
	qt.Check(t, qt.IsTrue(since.After(from.Add(-tick-clockSlack)) && since.Before(to.Add(tick+clockSlack))),
		qt.Commentf("%v began %v after it could have, and %v before it must have", ev.Old, since.Sub(from), to.Sub(since)))
}

func checkUnknown(t *testing.T, ev *tracer.Event, e end) {
	t.Helper()
	qt.Check(t, qt.Equals(ev.Owner, tracer.Owner{}))
	qt.Check(t, qt.Equals(ev.Role, tracer.RoleUnknown))
	qt.Check(t, qt.Equals(ev.Local, e.local))
	qt.Check(t, qt.Equals(ev.Remote, e.remote))
}

// told tells whether the tracepoint has a word for the state.
func told(s tracer.State) bool { return s != tracer.StateTimeWait && s != tracer.StateNewSynRecv }

// checkEvidence expects the kernel's word for all but what it does not say.
func checkEvidence(t *testing.T, tier tracer.Evidence, events []tracer.Event) {
	t.Helper()
	for _, ev := range events {
		want := tracer.EvidenceKernel
		if !told(ev.Old) || !told(ev.New) {
			want = tier
		}
		qt.Check(t, qt.Equals(ev.Evidence, want), qt.Commentf("%v", ev.Transition))
	}
}

// makeTimeWaits makes connections of which one end is in TIME_WAIT, and says
// what their sockets have done.
func (l *loop) makeTimeWaits(server bool) ([]pair, walks) {
	l.t.Helper()
	l.listen()
	want := walks{}
	want.add(l.listener, path(tracer.StateClose, tracer.StateListen))
	all := l.connectAll()
	for _, p := range all {
		if server {
			l.closeInTurn(p.server, p.client)
			want.add(p.client, clientThatClosesLast)
			want.add(p.server, serverThatClosesFirst)
		} else {
			l.closeInTurn(p.client, p.server)
			want.add(p.client, clientThatClosesFirst)
			want.add(p.server, serverThatClosesLast)
		}
	}
	return all, want
}

// waiting is the end of the connection that is in TIME_WAIT.
func waiting(p pair, server bool) end {
	if server {
		return p.server
	}
	return p.client
}

// closeAll closes the connections, the client first.
func (l *loop) closeAll(all []pair, want walks) {
	l.t.Helper()
	for _, p := range all {
		l.closeInTurn(p.client, p.server)
		want.add(p.client, clientThatClosesFirst)
		want.add(p.server, serverThatClosesLast)
	}
}

// reconnectAll connects from the ports of earlier connections. Where the client
// has closed first, connect finds the mini-socket and takes over; where the
// server has, the SYN does.
func reconnectAll(l *loop, _ []pair) []pair {
	if !l.bound {
		l.allowReuse()
	}
	return l.connectAll()
}

// leavePortsToKernel has the kernel choose from just as many ports as there are
// connections: the next can only have those in TIME_WAIT. It takes over none
// that a socket was bound to. It may leave one out of an odd number of ports,
// so there is one more, which is taken.
func leavePortsToKernel(l *loop) {
	const taken = clientPort + connections
	l.bound = false
	l.ns.Sysctl("net.ipv4.ip_local_port_range", fmt.Sprint(clientPort, taken))
	l.ns.Sysctl("net.ipv4.tcp_tw_reuse", "1")
	l.ns.Do(func() {
		fd := l.socket()
		l.t.Cleanup(func() { unix.Close(fd) })
		l.bind(fd, taken)
	})
}

// allowReuse waits until connect may take over a mini-socket: up to 6.13 that
// is when a clock of seconds has moved on by more than one.
func (l *loop) allowReuse() {
	const delay = "net.ipv4.tcp_tw_reuse_delay"
	if _, err := os.Stat("/proc/sys/net/ipv4/tcp_tw_reuse_delay"); errors.Is(err, os.ErrNotExist) {
		time.Sleep(2 * time.Second)
		return
	}
	l.ns.Sysctl(delay, "1")
	time.Sleep(2 * time.Millisecond)
}

// assassinateAll sends each client an old segment of its server's. It is
// answered, to where nobody knows of the connection any more, and so comes the
// reset that ends TIME_WAIT (RFC 1337).
func assassinateAll(l *loop, all []pair) []pair {
	for _, p := range all {
		l.sendRaw(bareACK(p.server.local, p.server.remote))
	}
	return nil
}

// TestTimeWaitExpires waits for the end of TIME_WAIT. Its connections are made
// before t.Parallel, so that the minute passes while other tests run.
func TestTimeWaitExpires(t *testing.T) {
	loops := []*loop{newLoop(t, tracer.FamilyIPv4), newLoop(t, tracer.FamilyIPv6)}
	here := []uint32{loops[0].ns.Inode(), loops[1].ns.Inode()}
	rec := record(t, &tracer.Options{Filter: tracer.Filter{Netns: here}})
	var wants []walks
	for _, l := range loops {
		all, want := l.makeTimeWaits(false)
		awaitWalks(rec, l.ns, want)
		for _, p := range all {
			want.add(p.client, timeWaitEnds)
		}
		wants = append(wants, want)
	}
	t.Parallel()
	for i, l := range loops {
		rec.await(wants[i].len(), 65*time.Second, inNetns(l.ns.Inode()))
		events := awaitWalks(rec, l.ns, wants[i])
		checkOwners(t, events)
		checkEvidence(t, rec.tracer.Evidence(), events)
		checkReasons(t, events, tracer.ReasonExpired)
		for _, ev := range only(events, isEnd) {
			// The kernel's timer wheel is coarse; it is never early.
			ok := ev.DwellKnown && ev.Dwell > 60*time.Second-10*time.Millisecond && ev.Dwell < 63*time.Second
			qt.Check(t, qt.IsTrue(ok), qt.Commentf("dwell %v", ev.Dwell))
			qt.Check(t, qt.Equals(ev.Role, tracer.RoleClient))
		}
	}
}

func isEnd(ev *tracer.Event) bool {
	return ev.Old == tracer.StateTimeWait && ev.New == tracer.StateClose
}

// TestTimeWaitLimit has the kernel refuse mini-sockets: those connections are
// gone at once.
func TestTimeWaitLimit(t *testing.T) {
	const limit = 5
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			l.ns.Sysctl("net.ipv4.tcp_max_tw_buckets", "5")
			rec := shared(t)
			all, want := l.makeTimeWaits(false)
			for _, p := range all[limit:] {
				walk := want[p.client.cookie]
				want[p.client.cookie] = append(walk[:len(walk)-1:len(walk)-1],
					tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateClose})
			}
			events := awaitWalks(rec, l.ns, want)
			checkReasons(t, events, tracer.ReasonTimeWaitRefused)
			checkGauges(t, rec.tracer, l.ns, "at the limit")
			rec.stop()
			snmp, err := oracle.SNMP(l.ns)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(snmp["TcpExt"]["TCPTimeWaitOverflow"], connections-limit))
		})
	}
}

// TestTimeWaitRefusedOrNot has connections end in the same transition and at the
// same moment, when their FIN is acknowledged: those to which data comes as well
// because of that, and the others because no mini-socket is to be had.
func TestTimeWaitRefusedOrNot(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			l.ns.Sysctl("net.ipv4.tcp_max_tw_buckets", "0")
			rec := shared(t)
			l.listen()
			eachPort(r.syn)
			eachPort(r.ack)
			want, reasons := walks{}, map[uint64]tracer.Reason{}
			want.add(l.listener, path(tracer.StateClose, tracer.StateListen))
			for i := range connections {
				fd := l.acceptIn()
				e := end{fd: fd, cookie: l.cookie(fd)}
				port := l.peer(fd).Port()
				l.close(e)
				want.add(e, path(tracer.StateClose, tracer.StateNewSynRecv, tracer.StateSynRecv, tracer.StateEstablished,
					tracer.StateFinWait1, tracer.StateFinWait2, tracer.StateClose))
				if i%2 == 0 {
					r.segment(port, flagACK, remoteISN+1, r.awaitSynAck(port)+2)
					reasons[e.cookie] = tracer.ReasonTimeWaitRefused
				} else {
					r.segment(port, flagACK, remoteISN+1, r.awaitSynAck(port)+2, 'x')
					reasons[e.cookie] = tracer.ReasonRSTSentLateData
				}
			}
			events := awaitWalks(rec, l.ns, want)
			for _, ev := range events {
				if ev.Old == tracer.StateFinWait2 {
					qt.Check(t, qt.Equals(ev.Reason, reasons[ev.Cookie]))
				}
			}
			checkGauges(t, rec.tracer, l.ns, "at the limit")
			rec.stop()
			snmp, err := oracle.SNMP(l.ns)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(snmp["TcpExt"]["TCPTimeWaitOverflow"], (connections+1)/2))
			qt.Check(t, qt.Equals(snmp["TcpExt"]["TCPAbortOnData"], connections/2))
		})
	}
}

// TestNetnsRemoved removes a namespace with mini-sockets in it.
func TestNetnsRemoved(t *testing.T) {
	netns.RequireRoot(t)
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			rec := shared(t)
			var want walks
			var ns *netns.NS
			t.Run("namespace", func(t *testing.T) { // it is removed when this ends
				l := newLoop(t, family)
				ns = l.ns
				var all []pair
				all, want = l.makeTimeWaits(false)
				l.close(l.listener)
				want.add(l.listener, path(tracer.StateListen, tracer.StateClose))
				awaitWalks(rec, ns, want)
				for _, p := range all {
					want.add(p.client, timeWaitEnds)
				}
			})
			// By now another namespace may have the number.
			ours := func(ev *tracer.Event) bool { return ev.Netns == ns.Inode() && want[ev.Cookie] != nil }
			events := awaitWalksAmong(rec, ours, want)
			checkOwners(t, events)
			checkEvidence(t, rec.tracer.Evidence(), events)
			checkReasons(t, events, tracer.ReasonNetnsGone)
		})
	}
}

// TestMoreThanMiniSockets has more mini-sockets than are followed. All is told
// of how they begin, and nothing that is wrong of how they end.
func TestMoreThanMiniSockets(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv4)
	rec := record(t, &tracer.Options{MiniSockets: 7})
	all, want := l.makeTimeWaits(false)
	awaitWalks(rec, l.ns, want)
	before := rec.ledgerNow()
	qt.Check(t, qt.IsTrue(before.Unfollowed >= uint64(connections-7-ebpf.MustPossibleCPU())), qt.Commentf("%+v", before))

	anew := walks{}
	l.closeAll(l.connectAll(), anew)
	events := rec.await(want.len()+anew.len(), patience, func(ev *tracer.Event) bool {
		return ev.Netns == l.ns.Inode() && !isEnd(ev)
	})
	qt.Check(t, qt.HasLen(events, want.len()+anew.len()))
	began := map[uint64]time.Time{}
	for _, p := range all {
		began[p.client.cookie] = time.Time{}
	}
	checkEndsOf(t, only(rec.seen(), inNetns(l.ns.Inode())), began)
	after := rec.ledgerNow()
	qt.Check(t, qt.Equals(after.Lost(), 0), qt.Commentf("%+v", after))
}

// checkEndsOf expects at most one end of each socket, and of those of which
// more is said than that they ended, what is true.
func checkEndsOf(t *testing.T, events []tracer.Event, began map[uint64]time.Time) {
	t.Helper()
	for _, ev := range events {
		since, ours := began[ev.Cookie]
		switch {
		case ev.New == tracer.StateTimeWait && ours:
			began[ev.Cookie] = ev.Time
		case isEnd(&ev):
			qt.Assert(t, qt.IsTrue(ours), qt.Commentf("end of %d, which is another's or the second", ev.Cookie))
			delete(began, ev.Cookie)
			if ev.DwellKnown {
				qt.Check(t, qt.IsTrue((ev.Time.Sub(since)-ev.Dwell).Abs() < clockSlack))
			}
			if ev.Owner.Origin == tracer.OriginUnknown {
				qt.Check(t, qt.Equals(ev.Owner, tracer.Owner{}))
			} else {
				checkOwners(t, []tracer.Event{ev})
			}
		}
	}
}

func (r *recorder) ledgerNow() tracer.Ledger {
	r.t.Helper()
	ledger, err := r.tracer.Ledger()
	qt.Assert(r.t, qt.IsNil(err))
	return ledger
}
