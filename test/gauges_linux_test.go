package test

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

// gaugesOf returns the gauges of the namespace in the words of ss.
func gaugesOf(t testing.TB, tr *tracer.Tracer, ns *netns.NS) map[tracer.State]int {
	t.Helper()
	gauges, err := tr.Gauges(t.Context())
	qt.Assert(t, qt.IsNil(err))
	return words(gauges.Of(ns.Inode()))
}

func words(counts tracer.StateCounts) map[tracer.State]int {
	m := map[tracer.State]int{}
	for s, n := range counts.Folded() {
		if n > 0 {
			m[tracer.State(s)] = int(n)
		}
	}
	return m
}

// checkGauges holds the gauges of a quiet namespace to ss, and to the kernel's
// own totals.
func checkGauges(t testing.TB, tr *tracer.Tracer, ns *netns.NS, what string) {
	t.Helper()
	awaitSoftirqs()
	var (
		gauges         *tracer.Gauges
		snmp, sockstat oracle.Counters
	)
	ss := atRest(t, ns, func() {
		var errs [3]error
		gauges, errs[0] = tr.Gauges(t.Context())
		sockstat, errs[1] = oracle.Sockstat(ns)
		snmp, errs[2] = oracle.SNMP(ns)
		qt.Assert(t, qt.IsNil(errors.Join(errs[:]...)))
	})
	got := words(gauges.Of(ns.Inode()))
	qt.Check(t, qt.DeepEquals(got, ss), qt.Commentf("%s", what))
	all := -int(gauges.Of(ns.Inode())[tracer.StateNewSynRecv])
	for _, n := range got {
		all += n
	}
	qt.Check(t, qt.Equals(all, sockstat["TCP"]["inuse"]+sockstat["TCP6"]["inuse"]+sockstat["TCP"]["tw"]), qt.Commentf("%s", what))
	qt.Check(t, qt.Equals(got[tracer.StateEstablished]+got[tracer.StateCloseWait], snmp["Tcp"]["CurrEstab"]), qt.Commentf("%s", what))
}

// atRest reads at a moment at which nothing moves, not even a TIME_WAIT that
// ends: ss says the same before and after, which it returns.
func atRest(t testing.TB, ns *netns.NS, read func()) (ss map[tracer.State]int) {
	t.Helper()
	for attempts := 1; ; attempts++ {
		before, err := oracle.SS(ns)
		qt.Assert(t, qt.IsNil(err))
		read()
		after, err := oracle.SS(ns)
		qt.Assert(t, qt.IsNil(err))
		if maps.Equal(before, after) || attempts == 10 {
			return after
		}
	}
}

// awaitSoftirqs waits for the softirqs that are at work: they are RCU readers.
func awaitSoftirqs() {
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(20 * time.Millisecond)
	}
}

// stations leaves sockets in every state that can be made to last: established
// ones, listeners, half-open connections, orphans in FIN_WAIT2, CLOSE_WAIT and
// TIME_WAIT.
type stations struct {
	l      *loop
	all    []pair
	remote *remote
}

func makeStations(t testing.TB, family tracer.Family) *stations {
	t.Helper()
	s := &stations{}
	s.l, s.remote = newRemoteLoop(t, family)
	s.l.listen()
	s.all = s.l.connectAll()
	for i, p := range s.all {
		switch i % 4 {
		case 0:
			s.l.closeInTurn(p.client, p.server) // TIME_WAIT
		case 1:
			s.l.orphan(p.client, p.server) // FIN_WAIT2 without an owner, CLOSE_WAIT
		case 2:
			s.l.must("shutdown", unix.Shutdown(p.client.fd, unix.SHUT_WR)) // FIN_WAIT2 with one
			s.l.awaitState(p.server, tracer.StateCloseWait)
			s.l.must("TCP_QUICKACK", unix.SetsockoptInt(p.server.fd, unix.SOL_TCP, unix.TCP_QUICKACK, 1))
		}
	}
	for i := range connections {
		s.remote.syn(remotePort + uint16(i))
	}
	s.l.awaitHalfOpen(connections)
	return s
}

// finish ends what is left of the connections.
func (s *stations) finish() {
	s.l.t.Helper()
	for i, p := range s.all {
		switch i % 4 {
		case 1:
			s.l.close(p.server)
		case 2:
			s.l.close(p.server)
			s.l.close(p.client)
		case 3:
			s.l.closeInTurn(p.client, p.server)
		}
	}
	for i := range connections {
		s.remote.rst(remotePort + uint16(i))
	}
	s.l.awaitHalfOpen(0)
}

// TestGauges holds the gauges to ss: with sockets that are older than the
// tracer, after they have moved, and after others have come, five times over.
func TestGauges(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			old := makeStations(t, family)
			rec := record(t, nil)
			checkGauges(t, rec.tracer, old.l.ns, "before anything moves")
			old.finish()
			checkGauges(t, rec.tracer, old.l.ns, "when the old have moved")
			for i := range 5 {
				anew := makeStations(t, family)
				checkGauges(t, rec.tracer, anew.l.ns, fmt.Sprintf("at repetition %d", i+1))
				anew.finish()
				checkGauges(t, rec.tracer, anew.l.ns, fmt.Sprintf("after repetition %d", i+1))
			}
			checkAudit(t, rec)
		})
	}
}

// checkAudit expects an audit to find nothing.
func checkAudit(t testing.TB, rec *recorder) {
	t.Helper()
	audit, err := rec.tracer.Audit(t.Context())
	qt.Assert(t, qt.IsNil(err))
	if len(audit.Differences) > 0 {
		rec.guards.excuse(t)
	}
	qt.Check(t, qt.HasLen(audit.Differences, 0))
	qt.Check(t, qt.Equals(audit.Claimed, tracer.StateCounts{}))
	qt.Check(t, qt.Equals(audit.Stale, 0))
	qt.Check(t, qt.Equals(audit.Walked, audit.Netns))
	qt.Check(t, qt.IsTrue(audit.Netns > 0))
}
