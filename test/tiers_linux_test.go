package test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// telling is what an event says apart from when, by what, and whose it is.
type telling struct {
	tracer.Transition
	Reason tracer.Reason
	Role   tracer.Role
}

// tellings returns what is told of the sockets of each pair of addresses in a
// namespace, in the order of their times: with one tier a half-open connection
// that ends soon has no cookie, with the other it has.
func tellings(events []tracer.Event) map[string][]telling {
	byTime(events)
	told := map[string][]telling{}
	ports := map[uint64]uint16{} // connecting has no local port yet
	for _, ev := range events {
		ports[ev.Cookie] = max(ports[ev.Cookie], ev.Local.Port())
	}
	for _, ev := range events {
		key := fmt.Sprint(ev.Netns, " ", ev.Local.Addr(), " ", cmp.Or(ev.Local.Port(), ports[ev.Cookie]), " ", ev.Remote)
		told[key] = append(told[key], telling{ev.Transition, ev.Reason, ev.Role})
	}
	return told
}

// TestTiersAgree has both tiers watch the same traffic: they tell the same.
func TestTiersAgree(t *testing.T) {
	netns.RequireRoot(t)
	if _, err := tryTier(t, tracer.EvidenceProbe); err != nil {
		skipWithoutProbes(t, err)
	}
	spaces := map[uint32]bool{}
	recorders := []*recorder{
		record(t, &tracer.Options{Evidence: tracer.EvidenceProbe}),
		record(t, &tracer.Options{Evidence: tracer.EvidenceTimer}),
	}
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			ns := netns.New(t)
			if _, err := run(ns, kind, family); err != nil && !errors.Is(err, traffic.ErrUnsupported) {
				t.Fatal(err)
			}
			spaces[ns.Inode()] = true
			for _, rec := range recorders {
				checkGauges(t, rec.tracer, ns, fmt.Sprint(kind.Name, " by ", rec.tracer.Evidence()))
			}
		}
	}
	for _, e := range halfOpenEndings {
		for _, family := range families {
			l, r := newRemoteLoop(t, family)
			if e.prepare != nil {
				e.prepare(l)
			}
			l.listen()
			eachPort(r.syn)
			eachPort(func(port uint16) { r.awaitSynAck(port) })
			e.end(l, r)
			l.awaitHalfOpen(0)
			spaces[l.ns.Inode()] = true
		}
	}
	time.Sleep(2 * tracer.SweepInterval)
	var told []map[string][]telling
	for _, rec := range recorders {
		told = append(told, tellings(only(rec.stop(), func(ev *tracer.Event) bool { return spaces[ev.Netns] })))
	}
	qt.Check(t, qt.DeepEquals(told[1], told[0]))
	qt.Check(t, qt.IsTrue(len(told[0]) > 1000), qt.Commentf("%d sockets", len(told[0])))
}

func tryTier(t testing.TB, evidence tracer.Evidence) (*tracer.Tracer, error) {
	tr, err := tracer.New(&tracer.Options{Evidence: evidence})
	if err == nil {
		t.Cleanup(func() { qt.Check(t, qt.IsNil(tr.Close())) })
	}
	return tr, err
}

// skipWithoutProbes skips a test for a kernel that takes no probe; where
// FINWAIT_VM says that it does, it fails it.
func skipWithoutProbes(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("FINWAIT_VM") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// TestEveryProgramRuns has one tracer see connections of every kind, and expects
// each program of its tier to have been run: one that is attached and never
// called is of no use.
func TestEveryProgramRuns(t *testing.T) {
	netns.RequireRoot(t)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	qt.Assert(t, qt.IsNil(err))
	defer stats.Close()
	rec := record(t, nil)
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			checkKind(t, rec, kind, family)
		}
	}
	for _, family := range families {
		migrateAndDrop(t, family)
		l := newLoop(t, family)
		l.makeTimeWaits(false)
		l.kill("state", "time-wait")
	}
	checkAudit(t, rec.tracer)
	cost, err := rec.tracer.Stats()
	qt.Assert(t, qt.IsNil(err))
	for _, p := range cost.Programs {
		qt.Check(t, qt.IsTrue(p.Runs > 0), qt.Commentf("%s (%s) has never run", p.Name, p.AttachedTo))
	}
	rec.stop()
}

// checkKind makes connections of a kind and holds what is told to what each
// socket did.
func checkKind(t *testing.T, rec *recorder, kind traffic.Kind, family tracer.Family) {
	t.Helper()
	ns := netns.New(t)
	res, err := run(ns, kind, family)
	if errors.Is(err, traffic.ErrUnsupported) {
		return
	}
	qt.Assert(t, qt.IsNil(err))
	want := res.Cells()
	events := rec.await(sum(want), patience, inNetns(ns.Inode()))
	what := qt.Commentf("%s/%v", kind.Name, family)
	if !maps.Equal(tally(events), want) {
		rec.guards.excuse(t)
	}
	if !qt.Check(t, qt.DeepEquals(tally(events), want), what) {
		return
	}
	byTime(events)
	checkWalks(t, res, events)
	checkOwners(t, events)
	checkGauges(t, rec.tracer, ns, kind.Name+"/"+family.String())
}

// migrateAndDrop has half-open connections move to another listener, when their
// answer is repeated after a second, and gives them up then.
func migrateAndDrop(t *testing.T, family tracer.Family) {
	t.Helper()
	l, r := newRemoteLoop(t, family)
	l.ns.Sysctl("net.ipv4.tcp_migrate_req", "1")
	first, second := l.sharedListener(), l.sharedListener()
	eachPort(r.syn)
	eachPort(func(port uint16) { r.awaitSynAck(port) })
	l.must("close", unix.Close(first))
	time.Sleep(1500 * time.Millisecond)
	eachPort(r.rst)
	l.awaitHalfOpen(0)
	l.must("close", unix.Close(second))
}
