package observe

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/finwait/finwait/tracer"
)

// maxFlows is how many flows are kept.
const maxFlows = 4096

// FlowTransitions are the transitions that [Flows] takes something from.
func FlowTransitions() []tracer.Transition {
	wanted := func(t tracer.Transition) bool {
		switch {
		case t.New == tracer.StateEstablished, t.New == tracer.StateTimeWait:
			return true
		case t.Old == tracer.StateCloseWait:
			return true
		}
		return t.New == tracer.StateClose && t.Old != tracer.StateListen
	}
	return slices.DeleteFunc(tracer.LegalTransitions(), func(t tracer.Transition) bool { return !wanted(t) })
}

// Flows adds up transitions, or records of whole connections, to what happened. One
// goroutine at a time may use it. The zero value is not ready: see [NewFlows].
type Flows struct {
	traffic Traffic
	flows   map[FlowKey]*Flow
}

// NewFlows returns one that has seen nothing yet.
func NewFlows(source Source) *Flows {
	return &Flows{traffic: Traffic{Source: source}, flows: map[FlowKey]*Flow{}}
}

// AddEvent adds a transition. ratio is the share of connections that was recorded, 0 if
// that is all.
func (f *Flows) AddEvent(ev *tracer.Event, ratio float64) {
	n := f.weight(ratio)
	f.span(ev.Time, ev.Time)
	flow := f.flow(FlowKey{Netns: ev.Netns, Role: ev.Role, Owner: processOf(&ev.Owner)}, ev.Local, ev.Remote)
	switch ev.New {
	case tracer.StateEstablished:
		f.opened(flow, n)
	case tracer.StateTimeWait:
		flow.TimeWait += n
	case tracer.StateClose:
		f.ended(flow, tracer.Ending{Old: ev.Old, Reason: ev.Reason, Side: ev.Side}, n)
	}
	flow.stayed(ev.Old, ev.Dwell, ev.DwellKnown)
}

// AddConn adds a connection; ratio is as for AddEvent.
func (f *Flows) AddConn(c *tracer.Conn, ratio float64) {
	n := f.weight(ratio)
	f.span(c.End, c.End)
	flow := f.flow(FlowKey{Netns: c.Netns, Role: c.Role, Owner: processOf(&c.Owner)}, c.Local, c.Remote)
	var last tracer.State
	for _, v := range c.Walk() {
		switch v.State {
		case tracer.StateEstablished:
			f.opened(flow, n)
		case tracer.StateTimeWait:
			flow.TimeWait += n
		}
		flow.stayed(v.State, v.Dwell, v.DwellKnown)
		last = v.State
	}
	reason := c.Reason
	if last == tracer.StateTimeWait {
		reason = c.TimeWaitReason
	}
	f.ended(flow, tracer.Ending{Old: last, Reason: reason, Side: c.Side}, n)
}

// weight returns how many connections one that was recorded stands for.
func (f *Flows) weight(ratio float64) uint64 {
	if ratio <= 0 || ratio >= 1 {
		return 1
	}
	f.traffic.Estimated = true
	return uint64(math.Round(1 / ratio))
}

func (f *Flows) span(first, last time.Time) {
	t := &f.traffic
	if t.Since.IsZero() || first.Before(t.Since) {
		t.Since = first
	}
	if last.After(t.Until) {
		t.Until = last
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
		return newFlow(key)
	}
	flow = newFlow(key)
	f.flows[key] = flow
	return flow
}

func newFlow(key FlowKey) *Flow { return &Flow{FlowKey: key, Endings: map[tracer.Ending]uint64{}} }

// stayed notes how long a socket was in a state that it has left.
func (f *Flow) stayed(in tracer.State, d time.Duration, known bool) {
	var h *tracer.Histogram
	switch in {
	case tracer.StateSynSent:
		h = &f.SynSent
	case tracer.StateCloseWait:
		h = &f.CloseWait
	default:
		return
	}
	if known {
		h.Add(d)
	} else {
		h.Unknown++
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

func processOf(o *tracer.Owner) Process {
	if o.Origin == tracer.OriginUnknown {
		return Process{}
	}
	return Process{PID: o.PID, Comm: string(o.Comm())}
}
