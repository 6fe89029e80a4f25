package test

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// recorder keeps every event of a tracer.
type recorder struct {
	t      testing.TB
	tracer *tracer.Tracer
	guards *guards
	ended  chan struct{}
	log    *eventLog

	isShared bool
	from     int           // of the log, what came before is not for this test
	before   tracer.Ledger // nor is this
}

type eventLog struct {
	mu     sync.Mutex // guards what follows
	events []tracer.Event
	err    error
}

func (l *eventLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *eventLog) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// all returns what has been added so far, which does not change any more.
func (l *eventLog) all() []tracer.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events
}

func (l *eventLog) add(ev *tracer.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, *ev)
}

// in returns the recorder for another test than the one that it was made for. It
// sees what comes from now on: another namespace may have had its number before.
func (r *recorder) in(t testing.TB) *recorder {
	other := *r
	other.t = t
	other.guards = watchGuards(t)
	r.catchUp()
	other.from = len(r.log.all())
	other.before = r.ledgerNow()
	return &other
}

// catchUp waits until all that was traced up to now has been read.
func (r *recorder) catchUp() {
	r.t.Helper()
	emitted := r.ledgerNow().Emitted
	for deadline := time.Now().Add(patience); uint64(len(r.log.all())) < emitted; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%d of %d events have been read", len(r.log.all()), emitted)
		}
	}
}

// record starts a tracer and keeps what it yields until the test ends.
func record(t testing.TB, opts *tracer.Options) *recorder {
	t.Helper()
	r := startRecorder(t, opts)
	r.guards = watchGuards(t)
	t.Cleanup(func() { qt.Check(t, qt.IsNil(r.tracer.Close())) })
	return r
}

func startRecorder(t testing.TB, opts *tracer.Options) *recorder {
	t.Helper()
	if opts == nil {
		opts = &tracer.Options{}
	}
	if opts.Evidence == 0 {
		opts.Evidence = wantedEvidence(t)
	}
	tr, err := tracer.New(opts)
	qt.Assert(t, qt.IsNil(err))
	r := &recorder{t: t, tracer: tr, ended: make(chan struct{}), log: &eventLog{}}
	go func() {
		defer close(r.ended)
		for ev, err := range tr.Events(context.Background()) {
			if err != nil {
				r.log.fail(err)
				return
			}
			r.log.add(ev)
		}
	}()
	_, err = tr.Gauges(t.Context()) // returns when what was there is claimed
	qt.Assert(t, qt.IsNil(err))
	return r
}

// common is the recorder of the tests that can do with one that others have
// used before: to start a tracer is most of what they would take.
var common struct {
	mu  sync.Mutex // guards rec
	rec *recorder
}

func shared(t testing.TB) *recorder {
	t.Helper()
	netns.RequireRoot(t)
	common.mu.Lock()
	defer common.mu.Unlock()
	if common.rec == nil {
		common.rec = startRecorder(t, nil)
		common.rec.isShared = true
	}
	return common.rec.in(t)
}

// closeShared ends the common recorder; the next who asks gets another.
func closeShared() {
	common.mu.Lock()
	defer common.mu.Unlock()
	if common.rec != nil {
		common.rec.tracer.Close()
		common.rec = nil
	}
}

// evidenceVar chooses the tier that all tests use, probe or timer; without it
// they use the best that the kernel takes.
const evidenceVar = "FINWAIT_TEST_EVIDENCE"

func wantedEvidence(t testing.TB) tracer.Evidence {
	t.Helper()
	word := os.Getenv(evidenceVar)
	for _, e := range []tracer.Evidence{tracer.EvidenceProbe, tracer.EvidenceTimer} {
		if word == e.String() {
			return e
		}
	}
	if word != "" {
		t.Fatalf("%s=%q is neither probe nor timer", evidenceVar, word)
	}
	return 0
}

func (r *recorder) seen() []tracer.Event {
	return slices.Clone(r.log.all()[r.from:])
}

// await waits until n events are there that keep lets through.
func (r *recorder) await(n int, timeout time.Duration, keep func(*tracer.Event) bool) []tracer.Event {
	r.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		kept := only(r.seen(), keep)
		if len(kept) >= n {
			return kept
		}
		if time.Now().After(deadline) {
			r.guards.excuse(r.t)
			ledger, err := r.tracer.Ledger()
			r.t.Fatalf("%d events of %d after %v: %v; ledger %+v, %v", len(kept), n, timeout, tally(kept), ledger, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stop ends the tracing, if it is for this test alone, and returns all events.
// Nothing may have been lost.
func (r *recorder) stop() []tracer.Event {
	r.t.Helper()
	if !r.isShared {
		qt.Assert(r.t, qt.IsNil(r.tracer.Detach()))
		<-r.ended
	}
	ledger := r.ledgerNow()
	if ledger.Recursion > r.before.Recursion {
		r.guards.excuse(r.t)
	}
	qt.Check(r.t, qt.Equals(ledger.Lost(), r.before.Lost()), qt.Commentf("%+v", ledger))
	qt.Check(r.t, qt.Equals(ledger.Impaired(), r.before.Impaired()), qt.Commentf("%+v", ledger))
	if !r.isShared {
		qt.Check(r.t, qt.Equals(ledger.Emitted, uint64(len(r.seen()))))
	}
	qt.Check(r.t, qt.IsNil(r.log.failure()))
	return r.seen()
}

func only(events []tracer.Event, keep func(*tracer.Event) bool) []tracer.Event {
	return slices.DeleteFunc(slices.Clone(events), func(ev tracer.Event) bool { return !keep(&ev) })
}

func inNetns(inode uint32) func(*tracer.Event) bool {
	return func(ev *tracer.Event) bool { return ev.Netns == inode }
}

// byTime sorts events as they happened. Equal times stay in the order told.
func byTime(events []tracer.Event) {
	slices.SortStableFunc(events, func(a, b tracer.Event) int { return a.Time.Compare(b.Time) })
}

func tally(events []tracer.Event) map[tracer.Transition]uint64 {
	cells := map[tracer.Transition]uint64{}
	for _, ev := range events {
		cells[ev.Transition]++
	}
	return cells
}
