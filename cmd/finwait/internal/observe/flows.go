package observe

import (
	"cmp"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/finwait/finwait/tracer"
)

// maxFlows is how many flows are kept.
const maxFlows = 4096

// FlowTransitions are the transitions that [Flows] takes something from.
func FlowTransitions() []tracer.Transition {
	return slices.DeleteFunc(tracer.LegalTransitions(), func(t tracer.Transition) bool { return !tells(t) })
}

// tells reports whether Flows takes something from that transition.
func tells(t tracer.Transition) bool {
	switch {
	case t.New == tracer.StateEstablished, t.New == tracer.StateTimeWait:
		return true
	case t.Old == tracer.StateSynSent, t.Old == tracer.StateCloseWait:
		return true
	}
	return t.New == tracer.StateClose && t.Old != tracer.StateListen
}

// Flows adds up transitions, or records of whole connections, to what happened. Both
// tell the same of the same connections; it must not be told of one by both. One
// goroutine at a time may use it. The zero value is not ready: see [NewFlows].
type Flows struct {
	traffic Traffic
	flows   map[FlowKey]*Flow
	rest    *Flow             // of what found no room, which nobody looks at
	comms   map[string]string // each the same as its key, so that a name is kept once
	chance  *rand.Rand        // begins the same each time, so that a log says the same each time
}

// NewFlows returns one that has seen nothing yet.
func NewFlows(source Source) *Flows {
	return &Flows{
		traffic: Traffic{Source: source},
		flows:   map[FlowKey]*Flow{},
		rest:    newFlow(FlowKey{}),
		comms:   map[string]string{},
		chance:  rand.New(rand.NewPCG(0, 0)),
	}
}

// AddEvent adds a transition. ratio is the share of connections that was recorded, 0 if
// that is all.
func (f *Flows) AddEvent(ev *tracer.Event, ratio float64) {
	if !tells(ev.Transition) {
		return
	}
	n := f.weight(ratio)
	f.span(ev.Time)
	flow := f.flow(FlowKey{Netns: ev.Netns, Role: ev.Role, Owner: f.processOf(&ev.Owner)}, ev.Local, ev.Remote)
	switch ev.New {
	case tracer.StateEstablished:
		f.opened(flow, n)
	case tracer.StateTimeWait:
		flow.TimeWait += n
	case tracer.StateClose:
		f.ended(flow, tracer.Ending{Old: ev.Old, Reason: ev.Reason, Side: ev.Side}, n)
	}
	flow.stayed(ev.Old, ev.Dwell, ev.DwellKnown, n)
	if ev.Old == tracer.StateSynSent && ev.New == tracer.StateEstablished {
		addTimes(&flow.Handshake, ev.Dwell, ev.DwellKnown, n)
	}
}

// AddConn adds a connection; ratio is as for AddEvent.
func (f *Flows) AddConn(c *tracer.Conn, ratio float64) {
	n := f.weight(ratio)
	f.span(c.End)
	flow := f.flow(FlowKey{Netns: c.Netns, Role: c.Role, Owner: f.processOf(&c.Owner)}, c.Local, c.Remote)
	var last tracer.Visit
	for i, v := range c.Walk() {
		// The tracer found an older connection in the first state, and has not seen it enter.
		entered := i > 0 || !c.Start.IsZero()
		switch {
		case v.State == tracer.StateEstablished && entered:
			f.opened(flow, n)
		case v.State == tracer.StateTimeWait && entered:
			flow.TimeWait += n
		}
		flow.stayed(v.State, v.Dwell, v.DwellKnown, n)
		if last.State == tracer.StateSynSent && v.State == tracer.StateEstablished {
			addTimes(&flow.Handshake, last.Dwell, last.DwellKnown, n)
		}
		last = v
	}
	reason := c.Reason
	if last.State == tracer.StateTimeWait {
		if reason = c.TimeWaitReason; reason == tracer.ReasonUnknown {
			return // it was told when TIME_WAIT began, and is still there
		}
	}
	f.ended(flow, tracer.Ending{Old: last.State, Reason: reason, Side: c.Side}, n)
}

// maxWeight is more than one record stands for where somebody has not made it up.
const maxWeight = 1e9

// weight returns how many connections one that was recorded stands for, rounded up or
// down by chance: always the same way would be wrong for all of them together.
func (f *Flows) weight(ratio float64) uint64 {
	if ratio <= 0 || ratio >= 1 {
		return 1
	}
	f.traffic.Estimated = true
	f.traffic.Weight = max(f.traffic.Weight, uint64(math.Ceil(min(1/ratio, maxWeight))))
	return uint64(min(1/ratio, maxWeight) + f.chance.Float64())
}

func (f *Flows) span(at time.Time) {
	t := &f.traffic
	if t.Since.IsZero() || at.Before(t.Since) {
		t.Since = at
	}
	if at.After(t.Until) {
		t.Until = at
	}
}

func (f *Flows) opened(flow *Flow, n uint64) {
	f.traffic.Opened += n
	flow.Opened += n
}

func (f *Flows) ended(flow *Flow, way tracer.Ending, n uint64) {
	f.traffic.Endings.Add(way, n)
	flow.Endings[way] += n
}

// flow returns the flow of that key and those ends. If there is no room for it, what is
// added to it is in the sums alone.
func (f *Flows) flow(key FlowKey, local, remote netip.AddrPort) *Flow {
	switch key.Role {
	case tracer.RoleClient:
		key.Service = remote
	case tracer.RoleServer:
		key.Service = local
	}
	flow := f.flows[key]
	switch {
	case flow != nil:
		return flow
	case len(f.flows) >= maxFlows:
		f.traffic.Unplaced++
		return f.rest
	}
	flow = newFlow(key)
	f.flows[key] = flow
	return flow
}

func newFlow(key FlowKey) *Flow { return &Flow{FlowKey: key, Endings: map[tracer.Ending]uint64{}} }

// stayed notes how long n sockets were in a state that they have left.
func (f *Flow) stayed(in tracer.State, d time.Duration, known bool, n uint64) {
	switch in {
	case tracer.StateSynSent:
		addTimes(&f.SynSent, d, known, n)
	case tracer.StateCloseWait:
		addTimes(&f.CloseWait, d, known, n)
	}
}

// addTimes adds a time n times.
func addTimes(h *tracer.Histogram, d time.Duration, known bool, n uint64) {
	switch {
	case !known:
		h.Unknown += n
		return
	case n == 1:
		h.Add(d)
		return
	}
	var times tracer.Histogram // 1, 2, 4, … of them
	times.Add(d)
	for ; n > 0; n /= 2 {
		if n%2 == 1 {
			h.Merge(&times)
		}
		twice := times
		times.Merge(&twice)
	}
}

// Traffic returns what has been added.
func (f *Flows) Traffic() *Traffic {
	t := f.traffic
	t.Flows = make([]Flow, 0, len(f.flows))
	for _, flow := range f.flows {
		t.Flows = append(t.Flows, *flow)
	}
	slices.SortFunc(t.Flows, func(a, b Flow) int {
		return cmp.Or(
			cmp.Compare(b.size(), a.size()),
			cmp.Compare(a.Netns, b.Netns),
			cmp.Compare(a.Owner.PID, b.Owner.PID),
			a.Service.Compare(b.Service),
		)
	})
	return &t
}

// size is how many sockets a flow has, as far as they have done something.
func (f *Flow) size() uint64 {
	var ended uint64
	for _, n := range f.Endings {
		ended += n
	}
	return max(f.Opened, ended)
}

// processOf returns the process. It allocates for a name that it does not know, and not
// for each event.
func (f *Flows) processOf(o *tracer.Owner) Process {
	if o.Origin == tracer.OriginUnknown {
		return Process{}
	}
	comm, known := f.comms[string(o.Comm())]
	if !known {
		comm = string(o.Comm())
		if len(f.comms) < maxFlows {
			f.comms[comm] = comm
		}
	}
	return Process{PID: o.PID, Comm: comm}
}
