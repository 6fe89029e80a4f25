package test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// side is a set of the sockets that a filter lets through.
type side uint8

const (
	clients side = 1 << iota
	servers
	listeners

	nobody   side = 0
	everyone      = clients | servers | listeners
)

// filterCase is a filter and whose transitions it is to let through.
type filterCase struct {
	name   string
	filter tracer.Filter
	want   side
}

// walkCounts is how many sockets have walked each way.
type walkCounts map[string]int

// wanted are the walks when clients close first.
func (s side) wanted() walkCounts {
	want := walkCounts{}
	add := func(n int, role tracer.Role, walk []tracer.Transition) {
		want[fmt.Sprint(role, walk)] += n
	}
	if s&clients != 0 {
		add(connections, tracer.RoleClient, clientThatClosesFirst)
	}
	if s&servers != 0 {
		add(connections, tracer.RoleServer, serverThatClosesLast)
	}
	if s&listeners != 0 {
		add(1, tracer.RoleServer, path(tracer.StateClose, tracer.StateListen, tracer.StateClose))
	}
	return want
}

// events is the number of events in the walks that are wanted.
func (s side) events() int {
	n := 0
	if s&clients != 0 {
		n += connections * len(clientThatClosesFirst)
	}
	if s&servers != 0 {
		n += connections * len(serverThatClosesLast)
	}
	if s&listeners != 0 {
		n += 2
	}
	return n
}

func countWalks(events []tracer.Event) walkCounts {
	got := walkCounts{}
	for _, walk := range walksOf(events) {
		got[fmt.Sprint(walk[0].Role, transitions(walk))]++
	}
	return got
}

// testFilters has a tracer for each filter look at the same connections, which
// connect makes and closes, and hold what it sees to what it should.
func testFilters(t *testing.T, l *loop, cases []filterCase, connect func()) {
	t.Helper()
	here := []uint32{l.ns.Inode()}
	guards := watchGuards(t)
	// Each transition comes to this one after all the others.
	cases = append(cases, filterCase{"namespace", tracer.Filter{Netns: here}, everyone})
	var tracers []*tracer.Tracer
	for _, c := range cases {
		if c.filter.Netns == nil {
			c.filter.Netns = here
		}
		tracers = append(tracers, newTracer(t, c.filter))
	}
	connect()
	awaitEmitted(t, guards, tracers[len(tracers)-1], everyone.events())
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			events := drain(t, tracers[i])
			byTime(events)
			qt.Check(t, qt.DeepEquals(countWalks(events), c.want.wanted()))
		})
	}
}

// newTracer starts a tracer that nobody reads yet.
func newTracer(t testing.TB, filter tracer.Filter) *tracer.Tracer {
	t.Helper()
	tr, err := tracer.New(&tracer.Options{Filter: filter, EventBuffer: 1 << 20})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(tr.Close())) })
	return tr
}

func awaitEmitted(t testing.TB, guards *guards, tr *tracer.Tracer, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		ledger, err := tr.Ledger()
		qt.Assert(t, qt.IsNil(err))
		if ledger.Emitted >= uint64(n) {
			return
		}
		if time.Now().After(deadline) {
			guards.excuse(t)
			t.Fatalf("%d events of %d; ledger %+v", ledger.Emitted, n, ledger)
		}
	}
}

// drain ends the tracing and returns all that was traced. Nothing may have been
// lost.
func drain(t testing.TB, tr *tracer.Tracer) []tracer.Event {
	t.Helper()
	events := drainAll(t, tr)
	ledger, err := tr.Ledger()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(ledger.Lost(), 0), qt.Commentf("%+v", ledger))
	return events
}

func drainAll(t testing.TB, tr *tracer.Tracer) (events []tracer.Event) {
	t.Helper()
	qt.Assert(t, qt.IsNil(tr.Detach()))
	for ev, err := range tr.Events(context.Background()) {
		qt.Assert(t, qt.IsNil(err))
		events = append(events, *ev)
	}
	return events
}
