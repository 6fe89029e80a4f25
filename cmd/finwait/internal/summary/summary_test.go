package summary

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func newEvent(role tracer.Role, comm string, pid uint32) tracer.Event {
	ev := tracer.Event{
		Time:       time.Date(2026, 11, 22, 9, 8, 7, 0, time.UTC),
		Transition: tracer.Transition{Old: tracer.StateEstablished, New: tracer.StateCloseWait},
		Local:      netip.MustParseAddrPort("10.0.0.1:443"), Remote: netip.MustParseAddrPort("10.0.0.2:5432"),
		Role: role, Owner: tracer.Owner{Origin: tracer.OriginAccept, PID: pid},
	}
	ev.Owner.SetComm(comm)
	return ev
}

func TestReport(t *testing.T) {
	r := New()
	server, client, nobody := newEvent(tracer.RoleServer, "nginx", 1), newEvent(tracer.RoleClient, "curl", 2), newEvent(tracer.RoleUnknown, "", 0)
	nobody.Owner = tracer.Owner{}
	last := client
	last.Time = client.Time.Add(time.Minute)
	last.Old, last.New, last.Reason, last.Side = tracer.StateLastAck, tracer.StateClose, tracer.ReasonFIN, tracer.SidePeer
	last.Dwell, last.DwellKnown = time.Second, true
	for _, ev := range []tracer.Event{last, server, client, nobody} {
		r.AddEvent(&ev, 0)
	}
	c := tracer.Conn{End: last.Time.Add(time.Second), Role: tracer.RoleServer, Local: server.Local, Reason: tracer.ReasonFIN, TimeWaitReason: tracer.ReasonExpired, Side: tracer.SideLocal}
	c.SetWalk(tracer.Visit{State: tracer.StateEstablished, Dwell: time.Hour, DwellKnown: true}, tracer.Visit{State: tracer.StateTimeWait})
	r.AddConn(&c, 0.25)

	qt.Check(t, qt.Equals(r.First, server.Time))
	qt.Check(t, qt.Equals(r.Last, c.End))
	qt.Check(t, qt.Equals(r.Count(server.Transition), 3))
	qt.Check(t, qt.Equals(r.Count(last.Transition), 1))
	qt.Check(t, qt.Equals(r.Count(tracer.Transition{}), 0))

	k := &r.Transitions
	qt.Check(t, qt.Equals(k.Records, 4))
	qt.Check(t, qt.Equals(k.Unplaced, 1))
	qt.Check(t, qt.Equals(k.Owners.Unknown, 1))
	qt.Check(t, qt.Equals(k.Ended(End{tracer.ReasonFIN, tracer.SidePeer}), 1))
	qt.Check(t, qt.Equals(k.Dwell(tracer.StateEstablished).Unknown, 3))
	qt.Check(t, qt.Equals(k.Dwell(tracer.StateLastAck).Max, time.Second))
	qt.Check(t, qt.IsNil(k.Dwell(tracer.StateTimeWait)))
	services, others := k.Services.First(10)
	qt.Check(t, qt.DeepEquals(services, []Row[uint16]{{Key: 443, Count: 1}}))
	qt.Check(t, qt.Equals(others, 0))
	remotes, _ := k.Remotes.First(10)
	qt.Check(t, qt.DeepEquals(remotes, []Row[uint16]{{Key: 5432, Count: 2}}))

	// The same connection once more, and of its own.
	k = &r.Conns
	qt.Check(t, qt.Equals(k.Records, 1))
	qt.Check(t, qt.Equals(k.Ended(End{tracer.ReasonFIN, tracer.SideLocal}), 1))
	qt.Check(t, qt.Equals(k.Dwell(tracer.StateEstablished).Count, 1))
	qt.Check(t, qt.Equals(k.Dwell(tracer.StateTimeWait).Unknown, 1))
	qt.Check(t, qt.Equals(r.TimeWaitEnded(tracer.ReasonExpired), 1))
	qt.Check(t, qt.Equals(k.Sampling.Estimate, 4))
}

// A leaving of CLOSE has no time: who leaves it was not there.
func TestNoDwellInClose(t *testing.T) {
	r := New()
	ev := newEvent(tracer.RoleClient, "curl", 1)
	ev.Old, ev.New = tracer.StateClose, tracer.StateSynSent
	r.AddEvent(&ev, 0)
	qt.Check(t, qt.IsNil(r.Transitions.Dwell(tracer.StateClose)))
}

func TestSampling(t *testing.T) {
	var s Sampling
	for range 3 {
		s.add(0)
	}
	for i := range 2 * maxRatios {
		s.add(0.5 / float64(i+1))
	}
	s.add(0.5)
	qt.Check(t, qt.Equals(s.All, 3))
	qt.Check(t, qt.HasLen(s.Ratios, maxRatios))
	qt.Check(t, qt.Equals(s.Ratios[0.5], 2))
	qt.Check(t, qt.Equals(s.Others, maxRatios))
	qt.Check(t, qt.Equals(s.Estimate, 3+2*16*17/2+2))
}

// Every time lies in its bucket, and its middle is as near as is promised.
func TestBuckets(t *testing.T) {
	for _, base := range []uint64{0, 1, 127, 128, 255, 256, 257, 511, 512, 1e3, 1e6, 1e9, 6e10, 1e15, 1<<62 - 1, 1 << 62, 1<<63 - 2} {
		for _, ns := range []uint64{base, base + 1} {
			i := bucketOf(ns)
			qt.Assert(t, qt.IsTrue(i >= 0 && i < numBuckets), qt.Commentf("%d", ns))
			miss := float64(middleOf(i)) - float64(ns)
			qt.Check(t, qt.IsTrue(max(miss, -miss) <= float64(ns)*RelativeError), qt.Commentf("%d is %d", ns, middleOf(i)))
		}
	}
	for i := 1; i < numBuckets; i++ { // none is without its own middle
		if got := bucketOf(uint64(middleOf(i))); got != i {
			t.Fatalf("the middle of %d is in %d", i, got)
		}
	}
}

func TestQuantile(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var d Dwell
	qt.Check(t, qt.Equals(d.Quantile(0.5), 0))
	times := make([]time.Duration, 5000)
	for i := range times {
		times[i] = time.Duration(random.Uint64() >> (random.Uint64()%62 + 1))
		d.add(times[i])
	}
	slices.Sort(times)
	qt.Check(t, qt.Equals(d.Max, times[len(times)-1]))
	for _, tt := range []struct {
		q    float64
		rank int
	}{{0, 1}, {0.5, 2500}, {0.9, 4500}, {0.99, 4950}, {1, 5000}} {
		got, want := float64(d.Quantile(tt.q)), float64(times[max(tt.rank, 1)-1])
		qt.Check(t, qt.IsTrue(max(got-want, want-got) <= want*RelativeError), qt.Commentf("q %v: %v, not %v; seed %d", tt.q, got, want, seed))
	}
}

// Times that are all the same are said exactly.
func TestQuantileOfOne(t *testing.T) {
	var d Dwell
	for range 3 {
		d.add(time.Minute)
	}
	qt.Check(t, qt.Equals(d.Quantile(0.5), time.Minute))
	qt.Check(t, qt.Equals(d.Min, time.Minute))
}

// Frequent keys are found among any number of others, and the sum is right.
func TestTop(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	const room = 100
	top, truth, total := newTop[string](room), map[string]uint64{}, uint64(0)
	for i := range 50_000 {
		key := fmt.Sprint("rare", i)
		if n := random.IntN(10); n < 4 {
			key = fmt.Sprint("frequent", n)
		}
		top.add(key)
		truth[key]++
		total++
		if len(top.rows) > room || len(top.places) != len(top.rows) {
			t.Fatalf("%d rows, %d places; seed %d", len(top.rows), len(top.places), seed)
		}
	}
	rows, others := top.First(4)
	qt.Assert(t, qt.HasLen(rows, 4))
	sum := others
	for _, r := range rows {
		sum += r.Count
		qt.Check(t, qt.Matches(r.Key, "frequent."), qt.Commentf("seed %d", seed))
		qt.Check(t, qt.IsTrue(r.Count >= truth[r.Key] && r.Count-r.Over <= truth[r.Key]), qt.Commentf("%+v, %d; seed %d", r, truth[r.Key], seed))
	}
	qt.Check(t, qt.Equals(sum, total))
	for i := 1; i < len(top.rows); i++ {
		qt.Assert(t, qt.IsTrue(top.rows[(i-1)/2].Count <= top.rows[i].Count))
		qt.Assert(t, qt.Equals(top.places[top.rows[i].Key], i))
	}
}

// As long as there is room, every count is exact.
func TestTopExact(t *testing.T) {
	top := newTop[uint16](1 << 16)
	for port := range 1 << 16 {
		for range port%5 + 1 {
			top.add(uint16(port))
		}
	}
	rows, others := top.First(1 << 20)
	qt.Assert(t, qt.HasLen(rows, 1<<16))
	qt.Check(t, qt.Equals(others, 0))
	for _, r := range rows {
		if want := (Row[uint16]{Key: r.Key, Count: uint64(r.Key%5 + 1)}); r != want {
			t.Fatalf("%+v, not %+v", r, want)
		}
	}
}

// Processes are counted by name, and it is said when there may be more.
func TestOwners(t *testing.T) {
	o := newOwners(2)
	add := func(comm string, pid uint32) {
		ev := newEvent(tracer.RoleClient, comm, pid)
		o.add(&ev.Owner)
	}
	check := func(comm string, want int, wantExact bool) {
		t.Helper()
		n, exact := o.Processes(comm)
		qt.Check(t, qt.Equals(n, want))
		qt.Check(t, qt.Equals(exact, wantExact))
	}
	for range 3 {
		add("a", 1)
		add("a", 2)
	}
	add("b", 3)
	check("a", 2, true)
	check("b", 1, true)
	add("c", 4) // takes the place of b
	check("b", 0, false)
	check("c", 1, false)
	qt.Check(t, qt.Equals(o.kept, 3))
	rows, _ := o.First(2)
	qt.Check(t, qt.DeepEquals(rows, []Row[string]{{Key: "a", Count: 6}, {Key: "c", Count: 2, Over: 1}}))
}

// A log in which every record has another owner takes no more memory than one
// has room for.
func TestBoundedMemory(t *testing.T) {
	r := New()
	for i := range 100_000 {
		ev := newEvent(tracer.RoleClient, fmt.Sprintf("c%d", i), uint32(i+1))
		ev.Remote = netip.AddrPortFrom(ev.Remote.Addr(), uint16(i))
		r.AddEvent(&ev, 1/float64(i+2))
	}
	o := &r.Transitions.Owners
	qt.Check(t, qt.HasLen(o.processes, maxOwners))
	qt.Check(t, qt.HasLen(o.rows, maxOwners))
	qt.Check(t, qt.IsTrue(o.kept <= maxPIDs))
	kept := 0
	for _, p := range o.processes {
		kept += len(p.pids)
	}
	qt.Check(t, qt.Equals(o.kept, kept))
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	qt.Check(t, qt.IsTrue(m.HeapAlloc < 32<<20), qt.Commentf("%d bytes", m.HeapAlloc))
	runtime.KeepAlive(r)

	// One name with very many processes.
	for i := range 2 * maxPIDs {
		ev := newEvent(tracer.RoleClient, "one", uint32(i+1))
		r.AddConn(&tracer.Conn{Owner: ev.Owner}, 0)
	}
	n, exact := r.Conns.Owners.Processes("one")
	qt.Check(t, qt.Equals(n, maxPIDs))
	qt.Check(t, qt.IsFalse(exact))
}
