package tracer

import (
	"runtime"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// TestAuditCorrects has the gauges drift from the kernel in every way, and
// audits put them right and say by how much. The difference stays with the
// namespace, and goes when that has no sockets left.
func TestAuditCorrects(t *testing.T) {
	netns := enterNetns(t)
	cookie, err := netnsCookie()
	qt.Assert(t, qt.IsNil(err))
	tr, err := New(&Options{AuditInterval: -1})
	qt.Assert(t, qt.IsNil(err))
	defer tr.Close()

	kept := listen(t, loopback(unix.AF_INET, 0), 1)
	eachPair(t, unix.AF_INET, func(_, _ int) {})
	want := ssStates(t)
	qt.Assert(t, qt.Equals(gaugesIn(t, tr, netns), want))
	drift(t, tr, cookie, StateEstablished, 3)
	drift(t, tr, cookie, StateListen, -1)
	drift(t, tr, cookie, StateTimeWait, 2)
	qt.Assert(t, qt.Not(qt.Equals(gaugesIn(t, tr, netns), want)))

	audit, err := tr.Audit(t.Context())
	qt.Assert(t, qt.IsNil(err))
	established, listening := int64(want[StateEstablished]), int64(want[StateListen])
	qt.Check(t, qt.ContentEquals(audit.Differences, []Difference{
		{Netns: netns, State: StateEstablished, Gauge: established + 3, Kernel: established},
		{Netns: netns, State: StateListen, Gauge: listening - 1, Kernel: listening},
		{Netns: netns, State: StateTimeWait, Gauge: 2, Kernel: 0},
	}))
	qt.Check(t, qt.Equals(gaugesIn(t, tr, netns), want))
	ledger, err := tr.Ledger()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(ledger.Corrected, 6))
	audit, err = tr.Audit(t.Context())
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(audit.Differences, 0))

	closeSockets(kept)
	qt.Check(t, qt.Equals(gaugesIn(t, tr, netns), ssStates(t)))
	qt.Check(t, qt.Not(qt.Equals(tr.auditor.correction(cookie), correction{})))
}

// TestAuditForgets takes a corrected namespace away: its row goes with it, and
// the next namespace, whatever its number, has gauges of its own.
func TestAuditForgets(t *testing.T) {
	requireRoot(t)
	tr, err := New(&Options{AuditInterval: -1})
	qt.Assert(t, qt.IsNil(err))
	defer tr.Close()
	cookie := driftInNetns(t, tr)
	qt.Assert(t, qt.Not(qt.Equals(tr.auditor.correction(cookie), correction{})))
	for range 2 { // it is deleted when found empty twice
		tr.auditor.deleted -= maxNetns // there is no room left
		qt.Assert(t, qt.IsNil(tr.auditor.makeRoom()))
		tr.auditor.deleted += maxNetns
	}
	qt.Check(t, qt.Equals(tr.auditor.correction(cookie), correction{}))
	row, err := tr.gaugeRow(cookie)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsFalse(row.found))

	netns := enterNetns(t)
	eachPair(t, unix.AF_INET, func(_, _ int) {})
	qt.Check(t, qt.Equals(gaugesIn(t, tr, netns), ssStates(t)))
}

// driftInNetns corrects the gauges of a namespace that is gone when it returns.
func driftInNetns(t *testing.T, tr *Tracer) (cookie uint64) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread and its namespace end here
		if err := unix.Unshare(unix.CLONE_NEWNET); !qt.Check(t, qt.IsNil(err)) {
			return
		}
		run(t, "ip", "link", "set", "lo", "up")
		cookie, _ = netnsCookie()
		unix.Close(listenHere(t))
		drift(t, tr, cookie, StateEstablished, 3)
		_, err := tr.Audit(t.Context())
		qt.Check(t, qt.IsNil(err))
	}()
	<-done
	return cookie
}

func listenHere(t *testing.T) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.IsNil(unix.Listen(fd, 1)))
	return fd
}

// drift has the gauge of a state say n more than it has counted.
func drift(t *testing.T, tr *Tracer, cookie uint64, s State, n int64) {
	t.Helper()
	var perCPU []bpfFinwaitGauge
	qt.Check(t, qt.IsNil(tr.coll.Maps["gauges"].Lookup(cookie, &perCPU)))
	perCPU[0].Entered[s] += uint64(max(n, 0))
	perCPU[0].Left[s] += uint64(max(-n, 0))
	qt.Check(t, qt.IsNil(tr.coll.Maps["gauges"].Put(cookie, perCPU)))
}

func gaugesIn(t *testing.T, tr *Tracer, netns uint32) StateCounts {
	t.Helper()
	time.Sleep(20 * time.Millisecond) // what closes may have a softirq to go
	g, err := tr.Gauges(t.Context())
	qt.Assert(t, qt.IsNil(err))
	return g.Of(netns).Folded()
}
