package observe

import (
	"net/netip"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/finwait/finwait/tracer"
)

var (
	start  = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	server = netip.MustParseAddrPort("10.0.0.2:8080")
	client = netip.MustParseAddrPort("10.0.0.1:45000")
)

// life is a connection, which transitions tell of, or one record.
type life struct {
	role       tracer.Role
	owner      tracer.Owner
	walk       []tracer.State
	reason     tracer.Reason
	side       tracer.Side
	older      bool // than the tracer, which found it in the first state
	inTimeWait bool // it is still there
}

func (l *life) ends() (local, remote netip.AddrPort) {
	if l.role == tracer.RoleServer {
		return server, client
	}
	return client, server
}

// stay is how long it is in the i-th state, known but for the first of an older one.
func (l *life) stay(i int) (d time.Duration, known bool) {
	if l.older && i == 0 {
		return 0, false
	}
	return time.Duration(i+1) * time.Second, true
}

// events are all that a tracer tells of it.
func (l *life) events() (events []tracer.Event) {
	at := start
	add := func(from, to tracer.State, i int) {
		ev := tracer.Event{Time: at, Transition: tracer.Transition{Old: from, New: to}, Netns: 7, Role: l.role, Owner: l.owner}
		ev.Local, ev.Remote = l.ends()
		if i >= 0 {
			ev.Dwell, ev.DwellKnown = l.stay(i)
		}
		if to == tracer.StateClose {
			ev.Reason, ev.Side = l.reason, l.side
			if from == tracer.StateTimeWait {
				ev.Reason = tracer.ReasonExpired
			}
		}
		events = append(events, ev)
	}
	if !l.older {
		add(tracer.StateClose, l.walk[0], -1)
	}
	for i, state := range l.walk {
		at = at.Add(time.Second)
		switch {
		case i+1 < len(l.walk):
			add(state, l.walk[i+1], i)
		case !l.inTimeWait:
			add(state, tracer.StateClose, i)
		}
	}
	return events
}

// conn is the record of it.
func (l *life) conn() *tracer.Conn {
	c := &tracer.Conn{End: start.Add(time.Minute), Netns: 7, Role: l.role, Owner: l.owner, Reason: l.reason, Side: l.side}
	c.Local, c.Remote = l.ends()
	if !l.older {
		c.Start = start
	}
	var walk []tracer.Visit
	for i, state := range l.walk {
		v := tracer.Visit{State: state}
		if last := i+1 == len(l.walk); !last || !l.inTimeWait {
			v.Dwell, v.DwellKnown = l.stay(i)
		}
		walk = append(walk, v)
	}
	c.SetWalk(walk...)
	if l.walk[len(l.walk)-1] == tracer.StateTimeWait && !l.inTimeWait {
		c.TimeWaitReason = tracer.ReasonExpired
	}
	return c
}

func ownedBy(pid uint32, comm string) tracer.Owner {
	o := tracer.Owner{Origin: tracer.OriginConnect, PID: pid}
	o.SetComm(comm)
	return o
}

func lives() map[string]life {
	curl, web := ownedBy(23, "curl"), ownedBy(42, "web")
	const (
		synSent, synRecv, half = tracer.StateSynSent, tracer.StateSynRecv, tracer.StateNewSynRecv
		open, fin1, fin2       = tracer.StateEstablished, tracer.StateFinWait1, tracer.StateFinWait2
		timeWait, closeWait    = tracer.StateTimeWait, tracer.StateCloseWait
		lastAck                = tracer.StateLastAck
	)
	return map[string]life{
		"client closes":     {role: tracer.RoleClient, owner: curl, walk: []tracer.State{synSent, open, fin1, fin2, timeWait}, reason: tracer.ReasonFIN, side: tracer.SideLocal},
		"in TIME_WAIT":      {role: tracer.RoleClient, owner: curl, walk: []tracer.State{synSent, open, fin1, fin2, timeWait}, reason: tracer.ReasonFIN, side: tracer.SideLocal, inTimeWait: true},
		"server closes":     {role: tracer.RoleClient, owner: curl, walk: []tracer.State{synSent, open, closeWait, lastAck}, reason: tracer.ReasonFIN, side: tracer.SidePeer},
		"refused":           {role: tracer.RoleClient, owner: curl, walk: []tracer.State{synSent}, reason: tracer.ReasonRefused},
		"of a server":       {role: tracer.RoleServer, owner: web, walk: []tracer.State{half, synRecv, open, closeWait, lastAck}, reason: tracer.ReasonFIN, side: tracer.SidePeer},
		"half-open":         {role: tracer.RoleServer, owner: web, walk: []tracer.State{half}, reason: tracer.ReasonTimeoutHandshake},
		"reset":             {role: tracer.RoleServer, owner: web, walk: []tracer.State{half, synRecv, open}, reason: tracer.ReasonRSTReceived},
		"older":             {walk: []tracer.State{open, closeWait, lastAck}, reason: tracer.ReasonFIN, side: tracer.SidePeer, older: true},
		"older in SYN_SENT": {role: tracer.RoleClient, owner: curl, walk: []tracer.State{synSent, open}, reason: tracer.ReasonRSTReceived, older: true},
		"crossed SYNs":      {role: tracer.RoleClient, owner: curl, walk: []tracer.State{synSent, synRecv, open}, reason: tracer.ReasonRSTReceived},
	}
}

var sameTraffic = []cmp.Option{
	cmpopts.IgnoreFields(Traffic{}, "Since", "Until"), // of the first and the last record
	cmp.AllowUnexported(tracer.Endings{}, tracer.Histogram{}), cmpopts.EquateComparable(netip.AddrPort{}),
}

// Transitions and connections tell the same.
func TestFlowsOfEventsAndConns(t *testing.T) {
	byEvent, byConn := NewFlows(SourceLog), NewFlows(SourceLog)
	for name, l := range lives() {
		events, conns := NewFlows(SourceLog), NewFlows(SourceLog)
		for _, flows := range []*Flows{events, byEvent} {
			for _, ev := range l.events() {
				flows.AddEvent(&ev, 0)
			}
		}
		for _, flows := range []*Flows{conns, byConn} {
			flows.AddConn(l.conn(), 0)
		}
		qt.Check(t, qt.CmpEquals(events.Traffic(), conns.Traffic(), sameTraffic...), qt.Commentf("%s", name))
	}
	qt.Check(t, qt.CmpEquals(byEvent.Traffic(), byConn.Traffic(), sameTraffic...))

	// What they tell is right.
	got := byEvent.Traffic()
	qt.Check(t, qt.Equals(got.Opened, 7)) // not the older one, that was open, nor two that never were
	qt.Assert(t, qt.HasLen(got.Flows, 3))
	curl, web := got.Flows[0], got.Flows[1]
	qt.Check(t, qt.Equals(curl.FlowKey, FlowKey{Netns: 7, Role: tracer.RoleClient, Owner: Process{23, "curl"}, Service: server}))
	qt.Check(t, qt.Equals(web.FlowKey, FlowKey{Netns: 7, Role: tracer.RoleServer, Owner: Process{42, "web"}, Service: server}))
	qt.Check(t, qt.Equals(curl.TimeWait, 2))
	qt.Check(t, qt.Equals(curl.Ended(tracer.ReasonExpired), 1))
	qt.Check(t, qt.Equals(curl.Ended(tracer.ReasonRefused), 1))
	qt.Check(t, qt.Equals(curl.SynSent.Count(), 5))
	qt.Check(t, qt.Equals(curl.SynSent.Unknown, 1))
	qt.Check(t, qt.Equals(curl.CloseWait.Max, 3*time.Second))
	qt.Check(t, qt.Equals(web.Endings[tracer.Ending{Old: tracer.StateNewSynRecv, Reason: tracer.ReasonTimeoutHandshake}], 1))
	qt.Check(t, qt.Equals(got.Endings.Count(tracer.Ending{Old: tracer.StateLastAck, Reason: tracer.ReasonFIN, Side: tracer.SidePeer}), 3))
}

// A log has transitions that a tracer of our own does not tell of.
func TestFlowsTakeOnlyTheirTransitions(t *testing.T) {
	flows := NewFlows(SourceLog)
	for _, tr := range tracer.LegalTransitions() {
		if !tells(tr) {
			flows.AddEvent(&tracer.Event{Transition: tr, Time: start, Local: server}, 0)
		}
	}
	qt.Check(t, qt.CmpEquals(flows.Traffic(), &Traffic{Source: SourceLog, Flows: []Flow{}}, sameTraffic...))
	for _, tr := range FlowTransitions() {
		qt.Check(t, qt.IsTrue(tr.Old != tracer.StateClose && tr.Old != tracer.StateListen), qt.Commentf("%v", tr))
	}
}

// Each record of a sample stands for several connections.
func TestFlowsOfASample(t *testing.T) {
	const records, share = 20_011, 0.4
	events, conns := NewFlows(SourceLog), NewFlows(SourceLog)
	l := lives()["server closes"]
	all := l.events()
	for range records {
		for i := range all {
			events.AddEvent(&all[i], share)
		}
		conns.AddConn(l.conn(), share)
	}
	for _, traffic := range []*Traffic{events.Traffic(), conns.Traffic()} {
		qt.Check(t, qt.IsTrue(traffic.Estimated))
		f := &traffic.Flows[0]
		for name, n := range map[string]uint64{
			"opened": traffic.Opened, "of the flow": f.Opened, "ended": f.Ended(tracer.ReasonFIN),
			"SYN_SENT": f.SynSent.Count(), "CLOSE_WAIT": f.CloseWait.Count(),
		} {
			want := records / share
			qt.Check(t, qt.IsTrue(float64(n) > 0.99*want && float64(n) < 1.01*want), qt.Commentf("%s: %d of %v", name, n, want))
		}
		mean := f.CloseWait.Mean()
		qt.Check(t, qt.Equals(mean, 3*time.Second))
	}

	// What somebody has made up does no harm.
	events.AddEvent(&all[len(all)-1], 1e-300)
	qt.Check(t, qt.IsTrue(events.Traffic().Flows[0].Ended(tracer.ReasonFIN) <= 1e9+1e5))
}

func TestFlowsAreBounded(t *testing.T) {
	flows := NewFlows(SourceKernel)
	l := lives()["client closes"]
	const more = 23
	for pid := range uint32(maxFlows + more) {
		l.owner = ownedBy(pid+1, "curl")
		flows.AddConn(l.conn(), 0)
	}
	l.owner = ownedBy(1, "curl") // which has its place
	flows.AddConn(l.conn(), 0)
	got := flows.Traffic()
	qt.Check(t, qt.HasLen(got.Flows, maxFlows))
	qt.Check(t, qt.Equals(got.Unplaced, more))
	qt.Check(t, qt.Equals(got.Opened, maxFlows+more+1))
	qt.Check(t, qt.Equals(got.Endings.Count(tracer.Ending{Old: tracer.StateTimeWait, Reason: tracer.ReasonExpired, Side: tracer.SideLocal}), maxFlows+more+1))
	qt.Check(t, qt.Equals(got.Flows[0].Owner.PID, 1))
	qt.Check(t, qt.Equals(got.Flows[0].Opened, 2))
}

func TestTrafficRate(t *testing.T) {
	one := &Traffic{Since: start, Until: start}
	qt.Check(t, qt.Equals(one.Rate(7), 0)) // not infinite
	two := &Traffic{Since: start, Until: start.Add(2 * time.Second)}
	qt.Check(t, qt.Equals(two.Rate(7), 3.5))
}

// What is known already, and what finds no room, takes no memory for each event.
func TestFlowsDoNotAllocate(t *testing.T) {
	f := NewFlows(SourceKernel)
	ev := tracer.Event{
		Time: start, Role: tracer.RoleClient, Local: client, Remote: server, DwellKnown: true, Dwell: time.Second,
		Transition: tracer.Transition{Old: tracer.StateSynSent, New: tracer.StateEstablished},
		Owner:      tracer.Owner{Origin: tracer.OriginConnect, PID: 1},
	}
	ev.Owner.SetComm("one")
	add := func() { f.AddEvent(&ev, 0) }
	qt.Check(t, qt.Equals(testing.AllocsPerRun(100, add), 0))
	for pid := range uint32(maxFlows) {
		ev.Owner.PID = pid
		add()
	}
	ev.Owner.PID = maxFlows
	qt.Check(t, qt.Equals(testing.AllocsPerRun(100, add), 0))
	qt.Check(t, qt.Equals(f.Traffic().Unplaced, 101))
}
