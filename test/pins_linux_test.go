package test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// bpffs mounts a BPF file system for the test.
func bpffs(t testing.TB) string {
	t.Helper()
	netns.RequireRoot(t)
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(unix.Mount("bpf", dir, "bpf", 0, "")))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(dir, 0))) })
	return filepath.Join(dir, "finwait")
}

func pinnedTracer(t testing.TB, path string) *tracer.Tracer {
	t.Helper()
	tr, err := tracer.New(&tracer.Options{
		PinPath: path, NoTransitions: true, Evidence: wantedEvidence(t), Profile: &tracer.ProfileOptions{By: tracer.ProfileByState},
	})
	qt.Assert(t, qt.IsNil(err))
	_, err = tr.Gauges(t.Context()) // returns when they are pinned
	qt.Assert(t, qt.IsNil(err))
	return tr
}

// awaitPinned waits until the pinned gauges of the namespace are what ss says.
func awaitPinned(t *testing.T, path string, ns *netns.NS) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(tracer.SweepInterval) {
		var gauges *tracer.Gauges
		var err error
		ss := atRest(t, ns, func() { gauges, err = tracer.PinnedGauges(path) })
		qt.Assert(t, qt.IsNil(err))
		got := words(gauges.Of(ns.Inode()))
		if !time.Now().After(deadline) && !maps.Equal(got, ss) {
			continue
		}
		qt.Check(t, qt.DeepEquals(got, ss))
		return
	}
}

// TestPins has one tracer after the other keep its counters in one place: they go
// on, and what others read there is what ss says, or an error.
func TestPins(t *testing.T) {
	path := bpffs(t)
	_, err := tracer.PinnedGauges(path)
	qt.Check(t, qt.ErrorIs(err, tracer.ErrNotPinned))

	ns := netns.New(t)
	var total uint64
	var ends tracer.Endings
	var profiled uint64
	begin := time.Now()
	for round := range 3 {
		tr := pinnedTracer(t, path)
		since, inherited := tr.Inherited()
		qt.Check(t, qt.Equals(inherited, round > 0))
		if inherited {
			qt.Check(t, qt.IsTrue(since.Sub(begin).Abs() < time.Minute), qt.Commentf("%v", since))
		}
		var err error
		ns.Do(func() { _, err = kindNamed(t, "active close").Run(connections, tracer.FamilyIPv4) })
		qt.Assert(t, qt.IsNil(err))
		awaitPinned(t, path, ns)

		_, err = tracer.New(&tracer.Options{PinPath: path})
		var held *tracer.PinHeldError
		qt.Assert(t, qt.ErrorAs(err, &held))
		qt.Check(t, qt.Equals(held.PID, uint32(os.Getpid())))

		qt.Assert(t, qt.IsNil(tr.Detach()))
		_, err = tracer.PinnedGauges(path)
		qt.Check(t, qt.ErrorIs(err, tracer.ErrNotPinned), qt.Commentf("nobody counts any more"))
		counters := countersOf(t, tr)
		qt.Check(t, qt.IsTrue(counters.Total() >= total+5*connections), qt.Commentf("%d after %d", counters.Total(), total))
		inheritedTotal := total
		total = counters.Total()
		endings, err := tr.Endings()
		qt.Assert(t, qt.IsNil(err))
		for way, n := range ends.All() {
			qt.Check(t, qt.IsTrue(endings.Count(way) >= n), qt.Commentf("%v", way))
		}
		ends = endings
		profile, err := tr.Profile()
		qt.Assert(t, qt.IsNil(err))
		count, unknown := profile.Total()
		qt.Check(t, qt.IsTrue(count+unknown >= profiled+4*connections))
		profiled = count + unknown
		qt.Check(t, qt.IsTrue(profile.Since.Sub(begin).Abs() < 5*time.Second), qt.Commentf("%v", profile.Since.Sub(begin)))
		ledger, err := tr.Ledger()
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(ledger.Seen, total-inheritedTotal))
		qt.Check(t, qt.IsNil(tr.Close()))
	}
}

// TestPinsOfAnother finds counters that it does not understand: it begins anew.
func TestPinsOfAnother(t *testing.T) {
	path := bpffs(t)
	qt.Assert(t, qt.IsNil(pinnedTracer(t, path).Close()))
	info, err := ebpf.LoadPinnedMap(filepath.Join(path, "info"), nil)
	qt.Assert(t, qt.IsNil(err))
	defer info.Close()
	value := make([]byte, info.ValueSize())
	qt.Assert(t, qt.IsNil(info.Lookup(uint32(0), &value)))
	value[0]++ // of its layout
	qt.Assert(t, qt.IsNil(info.Put(uint32(0), value)))
	live, err := os.Open(filepath.Join(path, "live")) // as if the other still ran
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(unix.Flock(int(live.Fd()), unix.LOCK_EX)))
	_, err = tracer.PinnedCounts(path)
	qt.Check(t, qt.ErrorIs(err, tracer.ErrNotPinned))
	qt.Check(t, qt.ErrorMatches(err, ".*the pinned counters are of another version"))
	qt.Assert(t, qt.IsNil(live.Close()))
	tr := pinnedTracer(t, path)
	defer tr.Close()
	_, inherited := tr.Inherited()
	qt.Check(t, qt.IsFalse(inherited))
	ns := netns.New(t)
	ns.Do(func() { _, err = kindNamed(t, "active close").Run(connections, tracer.FamilyIPv6) })
	qt.Assert(t, qt.IsNil(err))
	awaitPinned(t, path, ns)
}

// TestPinnedCounts reads what one tracer after the other has counted: it is what each
// says itself.
func TestPinnedCounts(t *testing.T) {
	path := bpffs(t)
	_, err := tracer.PinnedCounts(path)
	qt.Check(t, qt.ErrorIs(err, tracer.ErrNotPinned))

	ns := netns.New(t)
	begin := time.Now()
	var since time.Time
	for round := range 2 {
		tr := pinnedTracer(t, path)
		ns.Do(func() { _, err = kindNamed(t, "active close").Run(connections, tracer.FamilyIPv6) })
		qt.Assert(t, qt.IsNil(err))
		counts := assertPinnedCounts(t, path, tr)
		qt.Check(t, qt.IsTrue(counts.Counters.Total() >= uint64(round+1)*5*connections))
		qt.Check(t, qt.IsTrue(begin.Before(counts.Since) && counts.Since.Before(counts.Time)), qt.Commentf("%v", counts.Since))
		if round == 0 {
			since = counts.Since
		}
		qt.Check(t, qt.Equals(counts.Since, since))

		qt.Assert(t, qt.IsNil(tr.Detach()))
		_, err = tracer.PinnedCounts(path)
		qt.Check(t, qt.ErrorIs(err, tracer.ErrNotPinned), qt.Commentf("nobody counts any more"))
		qt.Check(t, qt.IsNil(tr.Close()))
	}
}

// assertPinnedCounts compares what is pinned with what the tracer says, while no
// socket of the host moves.
func assertPinnedCounts(t *testing.T, path string, tr *tracer.Tracer) *tracer.Counts {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		before := countersOf(t, tr)
		counts, err := tracer.PinnedCounts(path)
		qt.Assert(t, qt.IsNil(err))
		endings, err := tr.Endings()
		qt.Assert(t, qt.IsNil(err))
		if countersOf(t, tr) != before && time.Now().Before(deadline) {
			continue
		}
		qt.Check(t, qt.IsTrue(counts.Counters == before))
		qt.Check(t, qt.IsTrue(counts.Endings == endings))
		var ended uint64
		for _, n := range counts.Endings.All() {
			ended += n
		}
		qt.Check(t, qt.IsTrue(ended >= connections))
		return counts
	}
}

// TestPinsNowhere names what is wrong with a place that cannot be.
func TestPinsNowhere(t *testing.T) {
	netns.RequireRoot(t)
	_, err := tracer.New(&tracer.Options{PinPath: filepath.Join(t.TempDir(), "a", "b")})
	qt.Check(t, qt.ErrorMatches(err, "pin counters: .* is not on a BPF file system .*"))
}

// TestEndings holds the reasons to the transitions: each that ends a socket has one.
func TestEndings(t *testing.T) {
	rec := record(t, nil)
	for _, kind := range traffic.Kinds() {
		ns := netns.New(t)
		var err error
		ns.Do(func() { _, err = kind.Run(connections, tracer.FamilyIPv4) })
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%v", kind))
	}
	rec.catchUp()
	qt.Assert(t, qt.IsNil(rec.tracer.Detach()))
	<-rec.ended
	after, err := rec.tracer.Endings()
	qt.Assert(t, qt.IsNil(err))
	want := map[tracer.Ending]uint64{}
	for _, ev := range rec.seen() {
		if ev.New == tracer.StateClose {
			want[tracer.Ending{Old: ev.Old, Reason: ev.Reason, Side: ev.Side}]++
		}
	}
	qt.Check(t, qt.IsTrue(len(want) > 3))
	for way, n := range after.All() {
		qt.Check(t, qt.Equals(n, want[way]), qt.Commentf("%v", way))
		delete(want, way)
	}
	qt.Check(t, qt.HasLen(want, 0))
	counters := countersOf(t, rec.tracer)
	for _, s := range tracer.States() {
		var n uint64
		for way, count := range after.All() {
			if way.Old == s {
				n += count
			}
		}
		qt.Check(t, qt.Equals(n, counters.Count(tracer.Transition{Old: s, New: tracer.StateClose})), qt.Commentf("%v", s))
	}
}

// TestSample tells some connections, each of them whole, and counts all.
func TestSample(t *testing.T) {
	all := record(t, nil)
	some := record(t, &tracer.Options{Filter: tracer.Filter{Sample: 0.3}, Conns: &tracer.ConnOptions{AtTimeWait: true}})
	conns := make(chan []uint64, 1)
	go func() {
		var cookies []uint64
		for c := range some.tracer.Conns(context.Background()) {
			cookies = append(cookies, c.Cookie)
		}
		conns <- cookies
	}()
	ns := netns.New(t)
	for range 20 {
		var err error
		ns.Do(func() { _, err = kindNamed(t, "active close").Run(connections, tracer.FamilyIPv4) })
		qt.Assert(t, qt.IsNil(err))
	}
	time.Sleep(2 * tracer.SweepInterval)
	told := perCookie(some.stop(), ns)
	whole := perCookie(all.stop(), ns)
	for cookie, n := range told {
		qt.Check(t, qt.Equals(n, whole[cookie]), qt.Commentf("connection %d", cookie))
	}
	share := float64(len(told)) / float64(len(whole))
	qt.Check(t, qt.IsTrue(share > 0.2 && share < 0.4), qt.Commentf("%d of %d", len(told), len(whole)))
	for _, cookie := range <-conns {
		if whole[cookie] > 0 {
			qt.Check(t, qt.IsTrue(told[cookie] > 0), qt.Commentf("connection %d", cookie))
		}
	}
	counters := countersOf(t, some.tracer)
	qt.Check(t, qt.IsTrue(counters.Count(tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}) >= 20*connections))
}

func perCookie(events []tracer.Event, ns *netns.NS) map[uint64]int {
	n := map[uint64]int{}
	for _, ev := range events {
		if ev.Netns == ns.Inode() {
			n[ev.Cookie]++
		}
	}
	return n
}

// TestSetFilter changes the filter while sockets live: the owner of those that did
// not pass before is known, all are counted and profiled.
func TestSetFilter(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv4)
	rec := record(t, &tracer.Options{
		Reloadable: true,
		Filter:     tracer.Filter{LocalPorts: []tracer.PortRange{{First: 1, Last: 1}}},
		Profile:    &tracer.ProfileOptions{By: tracer.ProfileByState, Unfiltered: true},
	})
	l.listen()
	pairs := l.connectAll()
	rec.catchUp()
	qt.Check(t, qt.HasLen(only(rec.seen(), inNetns(l.ns.Inode())), 0))
	qt.Assert(t, qt.IsNil(rec.tracer.SetFilter(&tracer.Filter{PIDs: []uint32{uint32(os.Getpid())}}, nil)))
	for _, p := range pairs {
		l.closeInTurn(p.client, p.server)
	}
	// ESTABLISHED→FIN_WAIT1→FIN_WAIT2→TIME_WAIT, and →CLOSE_WAIT→LAST_ACK→CLOSE.
	told := rec.await(6*len(pairs), patience, inNetns(l.ns.Inode()))
	qt.Check(t, qt.HasLen(told, 6*len(pairs)))
	for _, ev := range told {
		qt.Check(t, qt.Equals(ev.Owner.PID, uint32(os.Getpid())))
	}
	qt.Assert(t, qt.IsNil(rec.tracer.SetFilter(&tracer.Filter{PIDs: []uint32{1 << 30}}, nil)))
	l.close(l.listener)
	qt.Check(t, qt.ErrorMatches(rec.tracer.SetFilter(&tracer.Filter{Family: 3}, nil), "unknown address family 3"))
	qt.Check(t, qt.ErrorMatches(rec.tracer.SetFilter(&tracer.Filter{Cgroups: []uint64{1}}, nil), ".*cgroups takes another tracer"))
	rec.stop()
	qt.Check(t, qt.HasLen(only(rec.seen(), inNetns(l.ns.Inode())), 6*len(pairs)))
	profile, err := rec.tracer.Profile()
	qt.Assert(t, qt.IsNil(err))
	count, unknown := profile.Total()
	counters := countersOf(t, rec.tracer)
	var left uint64 // of all states but CLOSE
	for transition, n := range counters.All() {
		if transition.Old != tracer.StateClose {
			left += n
		}
	}
	qt.Check(t, qt.Equals(count+unknown, left))
}

// BenchmarkPinnedGauges reads what finwait count reads where an agent runs.
func BenchmarkPinnedGauges(b *testing.B) {
	path := bpffs(b)
	defer pinnedTracer(b, path).Close()
	for b.Loop() {
		if _, err := tracer.PinnedGauges(path); err != nil {
			b.Fatal(err)
		}
	}
}
