package traffic_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// TestKinds makes 23 connections of every kind and expects tracefs to report
// of each socket what its walk says, and of no other.
func TestKinds(t *testing.T) {
	netns.RequireRoot(t)
	for _, kind := range traffic.Kinds() {
		for _, family := range []tracer.Family{tracer.FamilyIPv4, tracer.FamilyIPv6} {
			t.Run(kind.Name+"/"+family.String(), func(t *testing.T) { testKind(t, kind, family) })
		}
	}
}

func testKind(t *testing.T, kind traffic.Kind, family tracer.Family) {
	const n = 23
	ns := netns.New(t)
	trace := oracle.Start(t)
	var res *traffic.Result
	var err error
	ns.Do(func() { res, err = kind.Run(n, family) })
	if errors.Is(err, traffic.ErrUnsupported) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	lines := oracle.About(trace.Stop(), res.Addr)

	got := oracle.Sequences(lines)
	want := wantByTuple(res)
	for tuple, sockets := range want {
		checkSequence(t, tuple, got[tuple], sockets)
		delete(got, tuple)
	}
	qt.Check(t, qt.HasLen(got, 0))
	qt.Check(t, qt.Equals(timeWaits(t, ns), wantTimeWaits(res)))
}

func wantByTuple(res *traffic.Result) map[oracle.Tuple][]*traffic.Socket {
	want := map[oracle.Tuple][]*traffic.Socket{}
	for _, s := range res.Sockets() {
		tuple := oracle.Tuple{Local: s.Local, Remote: s.Remote}
		want[tuple] = append(want[tuple], s)
	}
	return want
}

// checkSequence compares the transitions of the sockets that had the tuple. Of
// one socket the order counts; of several, how many of each there were.
func checkSequence(t *testing.T, tuple oracle.Tuple, got []tracer.Transition, sockets []*traffic.Socket) {
	t.Helper()
	var want []tracer.Transition
	for _, s := range sockets {
		want = append(want, s.Raw...)
	}
	if len(sockets) > 1 {
		got, want = slices.Clone(got), slices.Clone(want)
		slices.SortFunc(got, byState)
		slices.SortFunc(want, byState)
	}
	qt.Check(t, qt.DeepEquals(got, want), qt.Commentf("%v, cookie %d", tuple, sockets[0].Cookie))
}

func byState(a, b tracer.Transition) int {
	return (int(a.Old)<<8 | int(a.New)) - (int(b.Old)<<8 | int(b.New))
}

func timeWaits(t *testing.T, ns *netns.NS) int {
	counts, err := oracle.SS(ns)
	qt.Assert(t, qt.IsNil(err))
	n := counts[tracer.StateTimeWait]
	delete(counts, tracer.StateTimeWait)
	qt.Check(t, qt.HasLen(counts, 0))
	return n
}

func wantTimeWaits(res *traffic.Result) (n int) {
	for _, s := range res.Sockets() {
		if s.EndsInTimeWait {
			n++
		}
	}
	return n
}
