package test

import (
	"errors"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// connections is how many of a kind are made: a prime, so that no other number
// that happens to be around is taken for it.
const connections = 23

// TestKinds makes connections of every kind and holds what the tracer says to
// what each socket did, and to what tracefs says.
func TestKinds(t *testing.T) {
	netns.RequireRoot(t)
	for _, kind := range traffic.Kinds() {
		for _, family := range []tracer.Family{tracer.FamilyIPv4, tracer.FamilyIPv6} {
			t.Run(kind.Name+"/"+family.String(), func(t *testing.T) { testKind(t, kind, family) })
		}
	}
}

// testKind repeats a run that says nothing: see guarded.
func testKind(t *testing.T, kind traffic.Kind, family tracer.Family) {
	for range 5 {
		if tryKind(t, kind, family) {
			return
		}
	}
	t.Fatal("in every run some transition interrupted a task that the kernel guards from BPF")
}

func tryKind(t *testing.T, kind traffic.Kind, family tracer.Family) (valid bool) {
	ns := netns.New(t)
	rec := record(t, nil)
	trace := oracle.Start(t)
	res, err := run(ns, kind, family)
	if errors.Is(err, traffic.ErrUnsupported) {
		t.Skip(err)
	}
	qt.Assert(t, qt.IsNil(err))
	lines := oracle.About(trace.Stop(), res.Addr)
	if guarded(t, lines) {
		return false
	}
	want := res.Cells()
	rec.await(sum(want), 5*time.Second, inNetns(ns.Inode()))
	counters := settledCounters(t, rec)
	all := rec.stop()

	// Every number in the matrix has its event, on the whole host; every
	// event in this namespace is one that the sockets made.
	qt.Check(t, qt.DeepEquals(maps.Collect(counters.All()), tally(all)))
	events := only(all, inNetns(ns.Inode()))
	qt.Check(t, qt.DeepEquals(tally(events), want))
	byTime(events)
	checkWalks(t, res, events)
	checkTracefs(t, lines, events)
	checkOwners(t, events)
	checkSomeReason(t, events)
	checkOrphans(t, res, events)
	return true
}

func run(ns *netns.NS, kind traffic.Kind, family tracer.Family) (res *traffic.Result, err error) {
	ns.Do(func() { res, err = kind.Run(connections, family) })
	return res, err
}

func sum(cells map[tracer.Transition]uint64) (n int) {
	for _, count := range cells {
		n += int(count)
	}
	return n
}

// settledCounters detaches, so that counters and events are of the same time.
func settledCounters(t *testing.T, rec *recorder) tracer.Counters {
	t.Helper()
	qt.Assert(t, qt.IsNil(rec.tracer.Detach()))
	counters, err := rec.tracer.Counters()
	qt.Assert(t, qt.IsNil(err))
	return counters
}

// walksOf returns the events of each socket in order.
func walksOf(events []tracer.Event) map[uint64][]tracer.Event {
	walks := map[uint64][]tracer.Event{}
	for _, ev := range events {
		walks[ev.Cookie] = append(walks[ev.Cookie], ev)
	}
	return walks
}

func transitions(walk []tracer.Event) []tracer.Transition {
	var ts []tracer.Transition
	for _, ev := range walk {
		ts = append(ts, ev.Transition)
	}
	return ts
}

func tupleOf(walk []tracer.Event) oracle.Tuple {
	last := walk[len(walk)-1]
	return oracle.Tuple{Local: last.Local, Remote: last.Remote}
}

// checkWalks compares each socket's events with its walk, by cookie, or by
// addresses where no process ever held the socket to ask for its cookie.
func checkWalks(t *testing.T, res *traffic.Result, events []tracer.Event) {
	t.Helper()
	walks := walksOf(events)
	for _, walk := range walks {
		checkDwell(t, walk)
	}
	for cookie, want := range res.WantByCookie() {
		qt.Check(t, qt.DeepEquals(transitions(walks[cookie]), want), qt.Commentf("cookie %d", cookie))
		delete(walks, cookie)
	}
	unnamed := map[oracle.Tuple][]tracer.Transition{}
	for _, walk := range walks {
		unnamed[tupleOf(walk)] = transitions(walk)
	}
	for _, s := range res.Sockets() {
		if s.Cookie == 0 {
			tuple := oracle.Tuple{Local: s.Local, Remote: s.Remote}
			qt.Check(t, qt.DeepEquals(unnamed[tuple], s.Want()), qt.Commentf("%v", tuple))
			delete(unnamed, tuple)
		}
	}
	qt.Check(t, qt.HasLen(unnamed, 0), qt.Commentf("sockets that nobody made"))
}

// clockSlack is what the wall clock may be adjusted by between two events.
var clockSlack = slow(5 * time.Millisecond)

// slow returns how long something may take on this machine that takes up to d
// on one that is not emulated.
func slow(d time.Duration) time.Duration {
	if os.Getenv("FINWAIT_VM") != "" {
		return 10 * d
	}
	return d
}

// checkDwell holds dwell to the times of a socket's events: unknown at first,
// then as long as it is since the one before.
func checkDwell(t *testing.T, walk []tracer.Event) {
	t.Helper()
	for i, ev := range walk {
		qt.Assert(t, qt.Equals(ev.DwellKnown, i > 0), qt.Commentf("%v, cookie %d", ev.Transition, ev.Cookie))
		if i > 0 {
			off := (ev.Time.Sub(walk[i-1].Time) - ev.Dwell).Abs()
			qt.Check(t, qt.IsTrue(off < clockSlack), qt.Commentf("%v, dwell %v is off by %v", ev.Transition, ev.Dwell, off))
		}
	}
}

// checkTracefs compares with tracefs, line by line for every socket, after
// putting both into the same words: the tracepoint's, without self-loops.
func checkTracefs(t *testing.T, lines []oracle.Line, events []tracer.Event) {
	t.Helper()
	want := oracle.Sequences(lines)
	for tuple, seq := range want {
		want[tuple] = slices.DeleteFunc(seq, func(tr tracer.Transition) bool { return tr.Old == tr.New })
	}
	got := map[oracle.Tuple][]tracer.Transition{}
	sockets := map[oracle.Tuple]int{}
	for _, walk := range walksOf(events) {
		for tuple, part := range byTuple(walk) {
			got[tuple] = append(got[tuple], inTracepointWords(part)...)
			sockets[tuple]++
		}
	}
	for tuple, n := range sockets {
		if n > 1 { // tracefs cannot tell them apart
			slices.SortFunc(want[tuple], byStates)
			slices.SortFunc(got[tuple], byStates)
		}
	}
	qt.Check(t, qt.DeepEquals(got, want))
}

// byTuple splits the events of a socket that connects twice. Connecting has no
// port yet and goes with what comes next.
func byTuple(walk []tracer.Event) map[oracle.Tuple][]tracer.Event {
	parts := map[oracle.Tuple][]tracer.Event{}
	var part []tracer.Event
	for i, ev := range walk {
		part = append(part, ev)
		if i+1 == len(walk) || walk[i+1].New == tracer.StateSynSent {
			tuple := tupleOf(part)
			parts[tuple] = append(parts[tuple], part...)
			part = nil
		}
	}
	return parts
}

func inTracepointWords(walk []tracer.Event) (ts []tracer.Transition) {
	for _, t := range transitions(walk) {
		switch {
		case t.New == tracer.StateNewSynRecv:
			continue // a request socket is not its business
		case t.New == tracer.StateTimeWait:
			t.New = tracer.StateClose
		case t.New == tracer.StateSynRecv && t.Old != tracer.StateSynSent:
			t.Old = tracer.StateListen
		}
		ts = append(ts, t)
	}
	return ts
}

func byStates(a, b tracer.Transition) int {
	return (int(a.Old)<<8 | int(a.New)) - (int(b.Old)<<8 | int(b.New))
}

// checkOwners expects this process, which made all sockets, and never who was
// interrupted.
func checkOwners(t *testing.T, events []tracer.Event) {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	qt.Assert(t, qt.IsNil(err))
	for _, ev := range events {
		qt.Assert(t, qt.Equals(ev.Owner.PID, uint32(os.Getpid())), qt.Commentf("%v of %s", ev.Transition, ev.Owner.Comm()))
		qt.Assert(t, qt.Equals(string(ev.Owner.Comm())+"\n", string(comm)))
		want := map[tracer.Role]tracer.Origin{tracer.RoleClient: tracer.OriginConnect, tracer.RoleServer: tracer.OriginListen}
		qt.Assert(t, qt.Equals(opening(ev.Owner.Origin), want[ev.Role]), qt.Commentf("%v", ev.Role))
	}
}

// opening takes accept for listen, where one process has done both.
func opening(o tracer.Origin) tracer.Origin {
	if o == tracer.OriginAccept {
		return tracer.OriginListen
	}
	return o
}

// checkOrphans holds an orphan's move to TIME_WAIT, which no tracepoint shows,
// to when the peer closed.
func checkOrphans(t *testing.T, res *traffic.Result, events []tracer.Event) {
	t.Helper()
	walks := walksOf(events)
	for _, c := range res.Conns {
		if c.LastClosed.IsZero() || !c.Client.EndsInTimeWait {
			continue
		}
		walk := walks[c.Client.Cookie]
		last := walk[len(walk)-1]
		qt.Assert(t, qt.Equals(last.New, tracer.StateTimeWait))
		off := last.Time.Sub(c.LastClosed)
		// Two jiffies at HZ=100, and what a loaded machine needs for close.
		qt.Check(t, qt.IsTrue(off > -20*time.Millisecond && off < slow(50*time.Millisecond)), qt.Commentf("TIME_WAIT %v after the peer closed", off))
	}
}
