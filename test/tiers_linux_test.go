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
	Side   tracer.Side
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
		told[key] = append(told[key], telling{ev.Transition, ev.Reason, ev.Side, ev.Role})
	}
	return told
}

// recordAll starts a recorder of each tier that this kernel takes. Where
// FINWAIT_VM says that it takes both, it must.
func recordAll(t *testing.T, buffer int) (recorders []*recorder) {
	t.Helper()
	netns.RequireRoot(t)
	closeShared()
	for _, evidence := range []tracer.Evidence{tracer.EvidenceProbe, tracer.EvidenceTimer} {
		opts := &tracer.Options{Evidence: evidence, EventBuffer: buffer}
		tr, err := tracer.New(opts)
		if err == nil {
			qt.Assert(t, qt.IsNil(tr.Close()))
			recorders = append(recorders, record(t, opts))
		} else if os.Getenv("FINWAIT_VM") != "" || evidence == tracer.EvidenceTimer {
			t.Fatal(err)
		}
	}
	return recorders
}

// TestTiers has all tiers that the kernel takes watch the same traffic, of every
// kind. Each tells what the sockets did, each has the gauges that ss has, they
// tell the same, and each of their programs has been run: one that is attached
// and never called is of no use.
func TestTiers(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	qt.Assert(t, qt.IsNil(err))
	defer stats.Close()
	recorders := recordAll(t, 0)
	spaces := map[uint32]bool{}
	for _, kind := range traffic.Kinds() {
		for _, family := range families {
			spaces[checkKind(t, recorders, kind, family)] = true
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
	for _, family := range families {
		migrateAndDrop(t, family)
		l := newLoop(t, family)
		l.makeTimeWaits(false)
		l.kill("state", "time-wait")
	}
	time.Sleep(2 * tracer.SweepInterval)
	until := time.Now() // TIME_WAIT may end later, and be seen by who stops last alone
	ours := func(ev *tracer.Event) bool { return spaces[ev.Netns] && ev.Time.Before(until) }
	var told []map[string][]telling
	for _, rec := range recorders {
		checkAudit(t, rec)
		_, err := rec.tracer.Stuck(t.Context(), nil)
		qt.Check(t, qt.IsNil(err))
		checkRuns(t, rec.tracer)
		told = append(told, tellings(only(rec.stop(), ours)))
		qt.Check(t, qt.IsTrue(len(told[0]) > 1000), qt.Commentf("%d sockets", len(told[0])))
		qt.Check(t, qt.DeepEquals(told[len(told)-1], told[0]))
	}
}

// checkRuns expects every program to have been run.
func checkRuns(t *testing.T, tr *tracer.Tracer) {
	t.Helper()
	cost, err := tr.Stats()
	qt.Assert(t, qt.IsNil(err))
	for _, p := range cost.Programs {
		qt.Check(t, qt.IsTrue(p.Runs > 0), qt.Commentf("%s (%s) has never run", p.Name, p.AttachedTo))
	}
}

// checkKind makes connections of a kind and holds what is told to what each
// socket did.
func checkKind(t *testing.T, recorders []*recorder, kind traffic.Kind, family tracer.Family) (netnsInode uint32) {
	t.Helper()
	ns := netns.New(t)
	res, err := run(ns, kind, family)
	if errors.Is(err, traffic.ErrUnsupported) {
		return 0
	}
	qt.Assert(t, qt.IsNil(err))
	want := res.Cells()
	for _, rec := range recorders {
		what := fmt.Sprintf("%s/%v by %v", kind.Name, family, rec.tracer.Evidence())
		events := rec.await(sum(want), patience, inNetns(ns.Inode()))
		if !maps.Equal(tally(events), want) {
			rec.guards.excuse(t)
		}
		qt.Assert(t, qt.DeepEquals(tally(events), want), qt.Commentf("%s", what))
		byTime(events)
		checkWalks(t, res, events)
		checkOwners(t, events)
		checkSomeReason(t, events)
		checkGauges(t, rec.tracer, ns, what)
	}
	return ns.Inode()
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
