package test

import (
	"maps"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// TestCountersOnly has a tracer that keeps only counters count what another, that
// keeps everything, counts too.
func TestCountersOnly(t *testing.T) {
	all := record(t, nil)
	few, err := tracer.New(&tracer.Options{CountersOnly: true, Evidence: wantedEvidence(t)})
	qt.Assert(t, qt.IsNil(err))
	defer few.Close()
	_, err = few.Gauges(t.Context())
	qt.Check(t, qt.ErrorMatches(err, ".*counters only.*"))
	_, err = few.Audit(t.Context())
	qt.Check(t, qt.ErrorMatches(err, ".*counters only.*"))

	allBefore, fewBefore := countersOf(t, all.tracer), countersOf(t, few)
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			ns := netns.New(t)
			ns.Do(func() { _, err = kind.Run(connections, family) })
			qt.Assert(t, qt.IsNil(err), qt.Commentf("%v, %v", kind, family))
		}
	}
	for _, family := range families {
		l := newLoop(t, family)
		l.makeTimeWaits(false)
		l.kill("state", "time-wait")
	}

	var want, got map[tracer.Transition]uint64
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(tracer.SweepInterval) {
		want, got = since(t, all.tracer, &allBefore), since(t, few, &fewBefore)
		if maps.Equal(got, want) || time.Now().After(deadline) {
			break
		}
	}
	ledger, err := few.Ledger()
	qt.Assert(t, qt.IsNil(err))
	if ledger.Recursion == 0 && !maps.Equal(got, want) {
		all.guards.excuse(t)
	}
	checkMissed(t, got, want, ledger.Recursion)
	qt.Check(t, qt.IsTrue(want[tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}] > 0))
	qt.Check(t, qt.Equals(ledger.Emitted, 0))
}

// checkMissed holds what was counted to what happened: no more than so many
// transitions are missing, which interrupted the counting of others, and none is too
// much. The birth of an accepted socket that is missed leaves its half-open connection
// with another end.
func checkMissed(t *testing.T, got, want map[tracer.Transition]uint64, missed uint64) {
	t.Helper()
	if missed == 0 {
		qt.Check(t, qt.DeepEquals(got, want))
		return
	}
	var missing uint64
	for transition, n := range want {
		if got[transition] <= n {
			missing += n - got[transition]
			continue
		}
		qt.Check(t, qt.Equals(transition, tracer.Transition{Old: tracer.StateNewSynRecv, New: tracer.StateClose}), qt.Commentf("%d of %d", got[transition], n))
	}
	qt.Check(t, qt.IsTrue(missing <= missed), qt.Commentf("%d are missing, and the ledger has %d: %v of %v", missing, missed, got, want))
}

// TestCountersOnlyUnderLoad starts and stops in the middle of what others do. What
// it has seen only half of is not counted as less than nothing.
func TestCountersOnlyUnderLoad(t *testing.T) {
	ns := netns.New(t)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			var err error
			ns.Do(func() { _, err = kindNamed(t, "active close").Run(connections, tracer.FamilyIPv4) })
			select {
			case <-stop:
				stopped <- err
				return
			default:
			}
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 3 {
		tr, err := tracer.New(&tracer.Options{CountersOnly: true, Evidence: wantedEvidence(t)})
		qt.Assert(t, qt.IsNil(err))
		time.Sleep(200 * time.Millisecond)
		qt.Check(t, qt.IsNil(tr.Detach()))
		counters := countersOf(t, tr)
		qt.Check(t, qt.IsTrue(counters.Total() > 0))
		for transition, n := range counters.All() {
			qt.Check(t, qt.IsTrue(n < 1<<63), qt.Commentf("%v: %d", transition, n))
		}
		qt.Check(t, qt.IsNil(tr.Close()))
	}
	close(stop)
	qt.Check(t, qt.IsNil(<-stopped))
}

func countersOf(t *testing.T, tr *tracer.Tracer) tracer.Counters {
	t.Helper()
	counters, err := tr.Counters()
	qt.Assert(t, qt.IsNil(err))
	return counters
}

// since returns what tr has counted since before.
func since(t *testing.T, tr *tracer.Tracer, before *tracer.Counters) map[tracer.Transition]uint64 {
	t.Helper()
	now := countersOf(t, tr)
	now = now.Sub(before)
	return maps.Collect(now.All())
}
