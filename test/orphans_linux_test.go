package test

import (
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

var (
	clientToFinWait2 = path(tracer.StateClose, tracer.StateSynSent, tracer.StateEstablished,
		tracer.StateFinWait1, tracer.StateFinWait2)
	serverToCloseWait = path(tracer.StateClose, tracer.StateNewSynRecv, tracer.StateSynRecv, tracer.StateEstablished, tracer.StateCloseWait)
)

// makeOrphans makes connections whose client has closed and whose server has
// not: nothing is left of the client but a mini-socket in FIN_WAIT2.
func (l *loop) makeOrphans(rec *recorder, prepare func(pair)) ([]pair, walks) {
	l.t.Helper()
	l.listen()
	want := walks{}
	want.add(l.listener, path(tracer.StateClose, tracer.StateListen))
	all := l.connectAll()
	for _, p := range all {
		prepare(p)
		l.orphan(p.client, p.server)
		want.add(p.client, clientToFinWait2)
		want.add(p.server, serverToCloseWait)
	}
	awaitWalks(rec, l.ns, want)
	return all, want
}

// TestOrphanReset ends orphans in FIN_WAIT2 by a reset from their peers. They
// are closed then, and never were in TIME_WAIT.
func TestOrphanReset(t *testing.T) {
	nothing := func(*loop, pair) {}
	resets := []struct {
		name          string
		reason        tracer.Reason
		before, after func(l *loop, p pair) // the client closes
	}{
		{"unread data", tracer.ReasonRSTReceived, writeByte, nothing},
		{"linger 0", tracer.ReasonRSTReceived, lingerZero, nothing},
		{"data nobody will read", tracer.ReasonRSTSentLateData, nothing, writeLate},
	}
	rec := shared(t)
	for _, reset := range resets {
		for _, family := range families {
			t.Run(reset.name+"/"+family.String(), func(t *testing.T) {
				l, rec := newLoop(t, family), rec.in(t)
				all, want := l.makeOrphans(rec, func(p pair) { reset.before(l, p) })
				for _, p := range all {
					reset.after(l, p)
					l.close(p.server)
					want.add(p.server, path(tracer.StateCloseWait, tracer.StateClose))
					want.add(p.client, path(tracer.StateFinWait2, tracer.StateClose))
				}
				events := awaitWalks(rec, l.ns, want)
				checkGauges(t, rec.tracer, l.ns, "after the resets")
				checkReasons(t, events, reset.reason)
				checkOwners(t, events)
				for _, walk := range walksOf(events) {
					checkDwell(t, walk)
				}
			})
		}
	}
}

func writeByte(l *loop, p pair) {
	_, err := unix.Write(p.client.fd, []byte{'x'})
	l.must("write", err)
}

func lingerZero(l *loop, p pair) {
	l.must("SO_LINGER", unix.SetsockoptLinger(p.server.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

// writeLate has the orphan answer with a reset.
func writeLate(l *loop, p pair) {
	_, err := unix.Write(p.server.fd, []byte{'x'})
	l.must("write", err)
	l.awaitState(p.server, tracer.StateClose)
}

// TestOrphanMovesAndEnds ends an orphan's TIME_WAIT at once, so that its end is
// what shows the move, if nothing has looked at it in between.
func TestOrphanMovesAndEnds(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			rec := shared(t)
			all, want := l.makeOrphans(rec, func(pair) {})
			var anew []pair
			closed := map[uint64]time.Time{}
			for i, p := range all {
				closed[p.client.cookie] = time.Now()
				l.must("shutdown", unix.Shutdown(p.server.fd, unix.SHUT_WR))
				l.awaitState(p.server, tracer.StateClose) // the orphan has answered
				l.close(p.server)
				anew = append(anew, l.connect(clientPort+uint16(i)))
				want.add(p.server, path(tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClose))
				want.add(p.client, path(tracer.StateFinWait2, tracer.StateTimeWait, tracer.StateClose))
			}
			l.closeAll(anew, want)
			events := awaitWalks(rec, l.ns, want)
			rec.stop()
			checkReasons(t, events, tracer.ReasonReused)
			checkOwners(t, events)
			checkEvidence(t, rec.tracer.Evidence(), events)
			for _, walk := range walksOf(events) {
				checkDwell(t, walk)
			}
			checkMoveTimes(t, events, closed)
		})
	}
}

// checkMoveTimes holds orphans' moves to TIME_WAIT to when their peers closed.
func checkMoveTimes(t *testing.T, events []tracer.Event, closed map[uint64]time.Time) {
	t.Helper()
	for _, ev := range events {
		if at, ok := closed[ev.Cookie]; ok && ev.New == tracer.StateTimeWait {
			after := ev.Time.Sub(at)
			// Two jiffies at HZ=100, and what a loaded machine needs for close.
			qt.Check(t, qt.IsTrue(after > -20*time.Millisecond && after < slow(50*time.Millisecond)), qt.Commentf("TIME_WAIT %v after the peer closed", after))
		}
	}
}

// TestOrphanMoves closes the peers of orphans that would have given up after
// three seconds, and waits until they would have.
func TestOrphanMoves(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l := newLoop(t, family)
			l.ns.Sysctl("net.ipv4.tcp_fin_timeout", "3")
			rec := shared(t)
			all, want := l.makeOrphans(rec, func(pair) {})
			closed := map[uint64]time.Time{}
			for _, p := range all {
				closed[p.client.cookie] = time.Now()
				l.close(p.server)
				want.add(p.server, path(tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClose))
				want.add(p.client, path(tracer.StateFinWait2, tracer.StateTimeWait))
			}
			events := awaitWalks(rec, l.ns, want)
			checkOwners(t, events)
			checkMoveTimes(t, events, closed)
			checkToldAtOnce(t, rec, l)
			outlive(rec, l, want)
			t.Parallel() // with the other family's three seconds
			checkReasons(t, awaitWalks(rec, l.ns, want), tracer.ReasonExpired)
			rec.stop()
		})
	}
}

// checkToldAtOnce expects each move to be told before the end of the peer, which
// comes after: arming the timer to another slot of its wheel shows it at once.
func checkToldAtOnce(t *testing.T, rec *recorder, l *loop) {
	t.Helper()
	told := only(rec.seen(), inNetns(l.ns.Inode()))
	index := func(local uint16, tr tracer.Transition) int {
		return slices.IndexFunc(told, func(ev tracer.Event) bool {
			return ev.Transition == tr && (ev.Local.Port() == local || ev.Remote.Port() == local)
		})
	}
	for _, ev := range told {
		if ev.New != tracer.StateTimeWait {
			continue
		}
		port := ev.Local.Port()
		moved := index(port, ev.Transition)
		qt.Check(t, qt.IsTrue(index(port, tracer.Transition{Old: tracer.StateCloseWait, New: tracer.StateLastAck}) < moved))
		qt.Check(t, qt.IsTrue(moved < index(port, tracer.Transition{Old: tracer.StateLastAck, New: tracer.StateClose})))
	}
}

// outlive makes one orphan more, whose peer does not close: once it has given
// up, the others would have.
func outlive(rec *recorder, l *loop, want walks) {
	l.t.Helper()
	p := l.connect(clientPort + connections)
	l.orphan(p.client, p.server)
	l.t.Cleanup(func() { unix.Close(p.server.fd) })
	want.add(p.server, serverToCloseWait)
	want.add(p.client, clientToFinWait2)
	awaitWalks(rec, l.ns, want)
	want.add(p.client, path(tracer.StateFinWait2, tracer.StateClose))
}
