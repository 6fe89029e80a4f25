package test

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

var profileDimensions = []tracer.ProfileDimension{
	tracer.ProfileByService, tracer.ProfileByRemotePort, tracer.ProfileByCgroup, tracer.ProfileByProcess, tracer.ProfileByState,
}

// TestProfile makes connections of every kind and holds the kernel's histograms
// to its counters, and to its events: they are what one gets by adding up those.
func TestProfile(t *testing.T) {
	netns.RequireRoot(t)
	var recorders []*recorder
	for _, by := range profileDimensions {
		recorders = append(recorders, record(t, &tracer.Options{EventBuffer: 16 << 20, Profile: &tracer.ProfileOptions{By: by}}))
	}
	ns := netns.New(t)
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			if _, err := run(ns, kind, family); !errors.Is(err, traffic.ErrUnsupported) {
				qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", kind.Name))
			}
		}
	}
	endTimeWaits(t)
	dropHalfOpen(t)
	for _, rec := range recorders {
		qt.Assert(t, qt.IsNil(rec.tracer.Detach()))
		<-rec.ended
		p := profileOf(t, rec)
		checkSums(t, rec, p)
		checkRows(t, p, expectedRows(rec.seen(), p.By))
		ledger := rec.ledgerNow()
		qt.Check(t, qt.Equals(ledger.ProfileFull, 0))
		// What the kernel hides from BPF (see guarded) is nowhere at all.
		qt.Check(t, qt.Equals(ledger.Lost()-ledger.Recursion, 0))
		if p.By == tracer.ProfileByState { // of all but CLOSE there was one
			qt.Check(t, qt.HasLen(p.Rows, len(tracer.States())-1))
		}
	}
}

// endTimeWaits makes connections whose clients end in TIME_WAIT, and others that
// take their place.
func endTimeWaits(t *testing.T) {
	t.Helper()
	l := newLoop(t, tracer.FamilyIPv4)
	l.listen()
	for range 2 {
		for _, p := range l.connectAll() {
			l.closeInTurn(p.client, p.server)
		}
	}
	l.close(l.listener)
}

// dropHalfOpen makes half-open connections that are reset.
func dropHalfOpen(t *testing.T) {
	t.Helper()
	l, r := newRemoteLoop(t, tracer.FamilyIPv4)
	l.listen()
	eachPort(r.syn)
	eachPort(func(port uint16) { r.awaitSynAck(port) })
	eachPort(r.rst)
	l.awaitHalfOpen(0)
	l.close(l.listener)
}

func profileOf(t testing.TB, rec *recorder) *tracer.Profile {
	t.Helper()
	p, err := rec.tracer.Profile()
	qt.Assert(t, qt.IsNil(err))
	return p
}

// checkSums expects as many times in each state, known or not, as there were
// transitions out of it.
func checkSums(t *testing.T, rec *recorder, p *tracer.Profile) {
	t.Helper()
	counters := settledCounters(t, rec)
	want, got := map[tracer.State]uint64{}, map[tracer.State]uint64{}
	for tr, n := range maps.Collect(counters.All()) {
		if tr.Old != tracer.StateClose {
			want[tr.Old] += n
		}
	}
	for i := range p.Rows {
		got[p.Rows[i].Key.State] += p.Rows[i].Count() + p.Rows[i].Unknown
	}
	qt.Check(t, qt.DeepEquals(got, want), qt.Commentf("by %v", p.By))
}

// profileRow is what can be compared of a row.
type profileRow struct {
	buckets [tracer.NumBuckets]uint64
	unknown uint64
	max     time.Duration
	total   time.Duration
	comm    string
}

// bucketOf returns the number of the bucket that the time is in.
func bucketOf(d time.Duration) int {
	for i := range tracer.NumBuckets {
		if _, longest := tracer.BucketBounds(i); d <= longest {
			return i
		}
	}
	panic("no bucket")
}

// expectedRows adds up events.
func expectedRows(events []tracer.Event, by tracer.ProfileDimension) map[tracer.ProfileKey]profileRow {
	rows := map[tracer.ProfileKey]profileRow{}
	for _, ev := range events {
		if ev.Old == tracer.StateClose {
			continue
		}
		key := expectedKey(&ev, by)
		row := rows[key]
		if by == tracer.ProfileByProcess && key.Group == tracer.GroupOne && row.comm == "" {
			row.comm = string(ev.Owner.Comm())
		}
		if ev.DwellKnown {
			row.buckets[bucketOf(ev.Dwell)]++
			row.max = max(row.max, ev.Dwell)
			row.total += ev.Dwell
		} else {
			row.unknown++
		}
		rows[key] = row
	}
	return rows
}

func expectedKey(ev *tracer.Event, by tracer.ProfileDimension) tracer.ProfileKey {
	owned := ev.Owner.Origin != tracer.OriginUnknown
	key := tracer.ProfileKey{State: ev.Old}
	switch {
	case by == tracer.ProfileByState:
	case by == tracer.ProfileByService && ev.Role == tracer.RoleClient:
		key.Group = tracer.GroupClients
	case by == tracer.ProfileByRemotePort && ev.Role == tracer.RoleServer:
		key.Group = tracer.GroupServers
	case by == tracer.ProfileByService && ev.Role == tracer.RoleServer && ev.Local.Port() != 0:
		key.Value = uint64(ev.Local.Port())
	case by == tracer.ProfileByRemotePort && ev.Role == tracer.RoleClient && ev.Remote.Port() != 0:
		key.Value = uint64(ev.Remote.Port())
	case by == tracer.ProfileByCgroup && owned:
		key.Value = ev.Owner.CgroupID
	case by == tracer.ProfileByProcess && owned:
		key.Value = uint64(ev.Owner.PID)
	default:
		key.Group = tracer.GroupUnknown
	}
	return key
}

func checkRows(t *testing.T, p *tracer.Profile, want map[tracer.ProfileKey]profileRow) {
	t.Helper()
	got := map[tracer.ProfileKey]profileRow{}
	for i := range p.Rows {
		row := &p.Rows[i]
		got[row.Key] = profileRow{
			row.Buckets, row.Unknown, row.Max,
			time.Duration(row.Seconds()*1e9 + 0.5), string(row.Comm()),
		}
	}
	qt.Check(t, qt.Equals(len(got), len(p.Rows)))
	qt.Check(t, qt.Equals(len(got), len(want)))
	for key, row := range want {
		qt.Check(t, qt.IsTrue(got[key] == row), qt.Commentf("by %v, %+v: %+v, want %+v", p.By, key, got[key], row))
	}
}

// TestProfileDwell has servers wait in CLOSE_WAIT, and profiles that alone.
func TestProfileDwell(t *testing.T) {
	const wait = 50 * time.Millisecond
	l := newLoop(t, tracer.FamilyIPv4)
	closeWait := tracer.Filter{
		Netns:       []uint32{l.ns.Inode()},
		LocalPorts:  []tracer.PortRange{{First: listenPort, Last: listenPort}},
		Transitions: []tracer.Transition{{Old: tracer.StateCloseWait, New: tracer.StateLastAck}},
	}
	rec := record(t, &tracer.Options{EventBuffer: 1 << 16, Filter: closeWait, Profile: &tracer.ProfileOptions{}})
	l.listen()
	pairs := l.connectAll()
	before := profileOf(t, rec)
	began := time.Now()
	for _, p := range pairs {
		l.must("shutdown", unix.Shutdown(p.client.fd, unix.SHUT_WR))
		l.awaitEOF(p.server)
	}
	time.Sleep(wait)
	for _, p := range pairs {
		l.close(p.server)
		l.close(p.client)
	}
	longest := time.Since(began)
	rec.await(len(pairs), patience, inNetns(l.ns.Inode()))
	rec.stop()
	diff := profileOf(t, rec).Sub(before)
	qt.Assert(t, qt.HasLen(diff.Rows, 1))
	row := diff.Rows[0]
	qt.Check(t, qt.Equals(row.Key, tracer.ProfileKey{State: tracer.StateCloseWait, Value: listenPort}))
	qt.Check(t, qt.Equals(row.Count(), connections))
	qt.Check(t, qt.Equals(row.Unknown, 0))
	qt.Check(t, qt.IsTrue(row.Mean() >= wait && row.Max <= longest), qt.Commentf("mean %v, max %v of %v", row.Mean(), row.Max, longest))
	lowest, _ := tracer.BucketBounds(bucketOf(wait))
	for _, q := range []float64{0, 0.5, 1} {
		qt.Check(t, qt.IsTrue(row.Quantile(q) >= lowest && row.Quantile(q) <= longest), qt.Commentf("%g: %v", q, row.Quantile(q)))
	}
}

// TestProfileOlder ends connections that were there before the tracer: whose
// they are is not known, nor how long they have been open.
func TestProfileOlder(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv4)
	l.listen()
	pairs := l.connectAll()
	rec := record(t, &tracer.Options{
		EventBuffer: 1 << 16,
		Filter:      tracer.Filter{Netns: []uint32{l.ns.Inode()}},
		Profile:     &tracer.ProfileOptions{},
	})
	for _, p := range pairs {
		l.closeInTurn(p.client, p.server)
	}
	l.close(l.listener)
	rec.await(6*len(pairs)+1, patience, inNetns(l.ns.Inode()))
	events := rec.stop()
	p := profileOf(t, rec)
	checkRows(t, p, expectedRows(events, p.By))
	for i := range p.Rows {
		row := &p.Rows[i]
		switch row.Key.State {
		case tracer.StateListen:
			qt.Check(t, qt.Equals(row.Key.Value, listenPort), qt.Commentf("a listener is known to be a server"))
			qt.Check(t, qt.Equals(row.Unknown, 1))
		case tracer.StateEstablished:
			qt.Check(t, qt.Equals(row.Key.Group, tracer.GroupUnknown))
			qt.Check(t, qt.Equals(row.Unknown, 2*connections))
			qt.Check(t, qt.Equals(row.Count(), 0))
		default:
			qt.Check(t, qt.Equals(row.Key.Group, tracer.GroupUnknown))
			qt.Check(t, qt.Equals(row.Count(), connections))
		}
	}
}

// TestProfileFilter lets nothing through that is not this process's.
func TestProfileFilter(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv4)
	rec := record(t, &tracer.Options{
		EventBuffer: 1 << 16,
		Filter:      tracer.Filter{PIDs: []uint32{1}, Netns: []uint32{l.ns.Inode()}},
		Profile:     &tracer.ProfileOptions{By: tracer.ProfileByState},
	})
	l.listen()
	p := l.connect(clientPort)
	l.closeInTurn(p.client, p.server)
	l.close(l.listener)
	rec.stop()
	qt.Check(t, qt.HasLen(profileOf(t, rec).Rows, 0))
}
