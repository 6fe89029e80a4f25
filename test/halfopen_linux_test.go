package test

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

var halfOpenEnds = path(tracer.StateClose, tracer.StateNewSynRecv, tracer.StateClose)

// halfOpenEnding is a way in which half-open connections are given up.
type halfOpenEnding struct {
	name    string
	reason  tracer.Reason
	prepare func(l *loop)
	end     func(l *loop, r *remote)
	// asked says that ss asks for the cookies while they are half-open.
	asked bool
}

func eachPort(do func(port uint16)) {
	for i := range uint16(connections) {
		do(remotePort + i)
	}
}

var halfOpenEndings = []halfOpenEnding{
	{name: "reset", reason: tracer.ReasonRSTReceived,
		end: func(_ *loop, r *remote) { eachPort(r.rst) }},
	{name: "reset of one that ss has seen", reason: tracer.ReasonRSTReceived, asked: true,
		end: func(_ *loop, r *remote) { eachPort(r.rst) }},
	{name: "timeout", reason: tracer.ReasonTimeoutHandshake,
		prepare: func(l *loop) { l.ns.Sysctl("net.ipv4.tcp_synack_retries", "1") },
		end:     func(l *loop, _ *remote) { l.awaitHalfOpen(0) }},
	{name: "listener closed", reason: tracer.ReasonListenerGone,
		end: func(l *loop, _ *remote) { l.close(l.listener) }},
	{name: "listener closed before the last segment", reason: tracer.ReasonListenerGone,
		end: func(l *loop, r *remote) { l.close(l.listener); eachPort(r.ack) }},
	{name: "listener with no room", reason: tracer.ReasonQueueFull,
		prepare: func(l *loop) { l.ns.Sysctl("net.ipv4.tcp_abort_on_overflow", "1") },
		end:     fillQueue},
	{name: "unreachable", reason: tracer.ReasonUnreachable,
		end: func(_ *loop, r *remote) { eachPort(r.unreachable) }},
	{name: "killed", reason: tracer.ReasonKilled, asked: true,
		end: func(l *loop, _ *remote) { l.kill("state", "syn-recv") }},
}

// fillQueue has the listener refuse what it would have accepted: as many others
// as it has room for wait to be accepted.
func fillQueue(l *loop, r *remote) {
	l.must("listen", unix.Listen(l.listener.fd, 0))
	const first = remotePort + 1000
	r.syn(first)
	r.ack(first) // there is room for one more than the backlog says
	l.awaitQueued(1)
	eachPort(r.ack)
}

// kill ends sockets by ss -K.
func (l *loop) kill(filter ...string) {
	l.t.Helper()
	out, err := l.ns.Command("ss", append([]string{"-Ktn"}, filter...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("ss -K: %v: %s", err, out)
	}
}

// awaitQueued waits until n connections wait to be accepted.
func (l *loop) awaitQueued(n uint32) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		info, err := unix.GetsockoptTCPInfo(l.listener.fd, unix.SOL_TCP, unix.TCP_INFO)
		l.must("TCP_INFO", err)
		if info.Unacked == n { // of a listener, the length of its queue
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%d connections wait to be accepted, want %d", info.Unacked, n)
		}
	}
}

// TestHalfOpenEnds gives half-open connections up in every way.
func TestHalfOpenEnds(t *testing.T) {
	rec := shared(t)
	for _, e := range halfOpenEndings {
		for _, family := range families {
			t.Run(e.name+"/"+family.String(), func(t *testing.T) { testHalfOpenEnding(t, rec.in(t), e, family) })
		}
	}
	rec.stop()
}

func testHalfOpenEnding(t *testing.T, rec *recorder, e halfOpenEnding, family tracer.Family) {
	l, r := newRemoteLoop(t, family)
	if e.prepare != nil {
		e.prepare(l)
	}
	l.listen()
	eachPort(r.syn)
	var cookies map[uint16]uint64
	if e.asked {
		cookies = l.halfOpenCookies()
	}
	eachPort(func(port uint16) { r.awaitSynAck(port) })
	e.end(l, r)

	ours := func(ev *tracer.Event) bool {
		port := ev.Remote.Port()
		return ev.Netns == l.ns.Inode() && port >= remotePort && port < remotePort+connections
	}
	events := rec.await(len(halfOpenEnds)*connections, patience, ours)
	checkGauges(t, rec.tracer, l.ns, "when they are given up")
	byTime(events)
	byPort := map[uint16][]tracer.Event{}
	for _, ev := range events {
		byPort[ev.Remote.Port()] = append(byPort[ev.Remote.Port()], ev)
	}
	qt.Assert(t, qt.HasLen(byPort, connections))
	for port, walk := range byPort {
		qt.Assert(t, qt.DeepEquals(transitions(walk), halfOpenEnds))
		last := walk[1]
		qt.Check(t, qt.Equals(last.Reason, e.reason))
		qt.Check(t, qt.Equals(walk[0].Reason, tracer.ReasonUnknown))
		qt.Check(t, qt.Equals(walk[0].Cookie, last.Cookie))
		if e.asked {
			qt.Check(t, qt.Equals(last.Cookie, cookies[port]))
		}
		checkDwell(t, walk)
		checkHalfOpenEvent(t, rec, l, r, &walk[0])
		checkHalfOpenEvent(t, rec, l, r, &last)
	}
}

func checkHalfOpenEvent(t *testing.T, rec *recorder, l *loop, r *remote, ev *tracer.Event) {
	t.Helper()
	qt.Check(t, qt.Equals(ev.Evidence, rec.tracer.Evidence()))
	qt.Check(t, qt.Equals(ev.Role, tracer.RoleServer))
	qt.Check(t, qt.Equals(ev.Local, l.listener.local))
	qt.Check(t, qt.Equals(ev.Remote.Addr(), r.addr))
	if ev.Owner.Origin != tracer.OriginUnknown {
		checkOwners(t, []tracer.Event{*ev})
	}
}

// halfOpenCookies returns the cookies that ss shows of half-open connections,
// by the remote port.
func (l *loop) halfOpenCookies() map[uint16]uint64 {
	l.t.Helper()
	cookies, err := oracle.Cookies(l.ns, "syn-recv")
	l.must("ss", err)
	byPort := map[uint16]uint64{}
	for tuple, cookie := range cookies {
		byPort[tuple.Remote.Port()] = cookie
	}
	return byPort
}

// TestHalfOpenCompletes completes handshakes, some at once and some after the
// answer was repeated: one cookie for all of a connection's life, the one that
// ss shows of the half-open connection, of the socket and of its TIME_WAIT.
func TestHalfOpenCompletes(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			rec := shared(t)
			l.listen()
			eachPort(r.syn)
			time.Sleep(1500 * time.Millisecond) // the answer is repeated after a second
			told := only(rec.seen(), func(ev *tracer.Event) bool {
				return ev.New == tracer.StateNewSynRecv && ev.Netns == l.ns.Inode()
			})
			qt.Check(t, qt.HasLen(told, connections), qt.Commentf("half-open connections told within 1.5 s"))
			before := l.halfOpenCookies()
			for _, ev := range told {
				qt.Check(t, qt.Equals(ev.Cookie, before[ev.Remote.Port()]))
			}
			checkOwners(t, told)
			eachPort(r.ack)
			want := walks{}
			want.add(l.listener, path(tracer.StateClose, tracer.StateListen))
			for range connections {
				fd := l.acceptIn()
				e := end{fd: fd, cookie: l.cookie(fd)}
				port := l.peer(fd).Port()
				qt.Check(t, qt.Equals(e.cookie, before[port]))
				l.must("shutdown", unix.Shutdown(fd, unix.SHUT_WR))
				r.segment(port, flagFIN|flagACK, remoteISN+1, r.awaitSynAck(port)+2)
				l.awaitState(e, tracer.StateClose)
				l.close(e)
				want.add(e, serverThatClosesFirst)
			}
			events := awaitWalks(rec, l.ns, want)
			after, err := oracle.Cookies(l.ns, "time-wait")
			qt.Assert(t, qt.IsNil(err))
			for tuple, cookie := range after {
				qt.Check(t, qt.Equals(cookie, before[tuple.Remote.Port()]))
			}
			qt.Check(t, qt.HasLen(after, connections))
			checkGauges(t, rec.tracer, l.ns, "in TIME_WAIT")
			rec.stop()
			checkOwners(t, events)
			checkEvidence(t, rec.tracer.Evidence(), events)
			for _, walk := range walksOf(events) {
				checkDwell(t, walk)
			}
		})
	}
}

// TestSynCookies has the listener answer with cookies alone: there are no
// half-open connections, and none are told.
func TestSynCookies(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			l.ns.Sysctl("net.ipv4.tcp_syncookies", "2")
			rec := shared(t)
			l.listen()
			eachPort(r.syn)
			eachPort(r.ack)
			want := walks{}
			want.add(l.listener, path(tracer.StateClose, tracer.StateListen))
			for range connections {
				fd := l.acceptIn()
				e := end{fd: fd, cookie: l.cookie(fd)}
				want.add(e, path(tracer.StateClose, tracer.StateSynRecv, tracer.StateEstablished))
				l.t.Cleanup(func() { unix.Close(fd) })
			}
			awaitWalks(rec, l.ns, want)
			checkGauges(t, rec.tracer, l.ns, "opened by cookies")
			rec.stop()
			snmp, err := oracle.SNMP(l.ns)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(snmp["TcpExt"]["SyncookiesRecv"], connections))
			qt.Check(t, qt.Equals(rec.ledgerNow().SYNCookies-rec.before.SYNCookies, connections))
		})
	}
}

// TestHalfOpenMigrates closes one of two listeners on a port that hand over to
// each other: half-open connections go on with the other.
func TestHalfOpenMigrates(t *testing.T) {
	netns.RequireRoot(t)
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			l.ns.Sysctl("net.ipv4.tcp_migrate_req", "1")
			rec := shared(t)
			both := []int{l.sharedListener(), l.sharedListener()}
			eachPort(r.syn)
			eachPort(func(port uint16) { r.awaitSynAck(port) })
			l.listener.fd = both[1]
			l.must("close", unix.Close(both[0]))
			time.Sleep(1500 * time.Millisecond) // their timers run after a second
			checkGauges(t, rec.tracer, l.ns, "moved to another listener")
			eachPort(r.ack)
			for range connections {
				fd := l.acceptIn()
				t.Cleanup(func() { unix.Close(fd) })
			}
			born := path(tracer.StateClose, tracer.StateNewSynRecv, tracer.StateSynRecv, tracer.StateEstablished)
			events := rec.await(connections*len(born), patience, func(ev *tracer.Event) bool {
				return ev.Netns == l.ns.Inode() && ev.Remote.Port() >= remotePort && ev.Remote.Port() < remotePort+connections
			})
			checkGauges(t, rec.tracer, l.ns, "accepted by another listener")
			checkAudit(t, rec)
			rec.stop()
			byTime(events)
			for _, walk := range walksOf(events) {
				qt.Check(t, qt.DeepEquals(transitions(walk), born))
			}
			qt.Check(t, qt.HasLen(walksOf(events), connections))
		})
	}
}

// sharedListener makes a listener on the loop's port beside others.
func (l *loop) sharedListener() (fd int) {
	l.t.Helper()
	l.ns.Do(func() {
		fd = l.socket()
		l.must("SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		l.bind(fd, listenPort)
		l.must("listen", unix.Listen(fd, 1024))
	})
	l.listener = end{fd: fd, cookie: l.cookie(fd), local: l.name(fd)}
	return fd
}

// acceptIn accepts in the loop's namespace.
func (l *loop) acceptIn() (fd int) {
	l.t.Helper()
	l.ns.Do(func() { fd = l.accept() })
	return fd
}
